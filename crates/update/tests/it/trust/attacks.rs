//! What is refused, and that a device goes on with what it believed before.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tierline_update::trust::{
    Answer, Change, Client, Holders, Limits, Policy, Repository, TargetCheck, TrustError, UnixTime,
};

use super::{DAY, START, Site, fetch, kept, name, search, update};

/// Days after the start.
fn day(days: u32) -> UnixTime {
    START.after(DAY * days)
}

fn versions(client: &Client) -> [u64; 3] {
    [
        client.root().head.version,
        client.timestamp().map_or(0, |timestamp| timestamp.head.version),
        client.snapshot().map_or(0, |snapshot| snapshot.head.version),
    ]
}

/// A client that has updated, restarted from what it kept.
fn again(site: &Site, client: &mut Client) -> Client {
    let mut files = BTreeMap::new();
    kept(&mut files, client);
    site.client().with_kept(files)
}

#[test]
fn rollback() {
    let mut site = Site::new();
    let old = site.files();
    site.set("targets", "a", b"1", START);
    site.publish(START);
    let mut client = site.client();
    update(&mut client, &site.files(), START).unwrap();
    let mut client = again(&site, &mut client);
    // A mirror that hands out last week's files, all of them or the timestamp only.
    let error = update(&mut client, &old, START).unwrap_err();
    assert_eq!(error, TrustError::Rollback { role: "timestamp".into(), trusted: 2, offered: 1 });
    let mut mixed = site.files();
    mixed.insert("timestamp.json".into(), old["timestamp.json"].clone());
    assert!(matches!(update(&mut client, &mixed, START), Err(TrustError::Rollback { .. })));
    update(&mut client, &site.files(), START).unwrap();
    assert_eq!(versions(&client), [1, 2, 2]);
}

#[test]
fn replayed_timestamp() {
    let mut site = Site::new();
    let mut client = site.client();
    let first = site.files();
    update(&mut client, &first, START).unwrap();
    // The same timestamp day after day: taken while it counts, which is what bounds a freeze.
    for days in 0..7 {
        update(&mut client, &first, day(days)).unwrap();
    }
    let frozen = update(&mut client, &first, day(7)).unwrap_err();
    assert_eq!(frozen, TrustError::Expired { role: "timestamp".into(), expires: day(7), now: day(7) });
    site.publish(day(7));
    update(&mut client, &site.files(), day(7)).unwrap();
    // The first one once more, after a restart too.
    let mut client = again(&site, &mut client);
    assert!(matches!(update(&mut client, &first, day(7)), Err(TrustError::Rollback { .. })));
}

#[test]
fn freeze_and_expired() {
    let mut site = Site::new();
    let files = site.files();
    for (days, role) in [(8, "timestamp"), (366, "root")] {
        let error = update(&mut site.client(), &files, day(days)).unwrap_err();
        assert!(matches!(&error, TrustError::Expired { role: of, .. } if of == role), "{error}");
    }
    // A snapshot that ended under a timestamp that didn't: a repository that forgot it.
    let online = site.some(&["online"]);
    site.repository.publish(&online, day(29), &site.random).unwrap();
    update(&mut site.client(), &site.files(), day(29)).unwrap();
}

#[test]
fn clock_set_back() {
    let mut site = Site::new();
    let first = site.files();
    let mut client = site.client();
    site.publish(day(6));
    let later = site.files();
    update(&mut client, &later, day(10)).unwrap();
    let mut files = BTreeMap::new();
    kept(&mut files, &mut client);
    let mut client = site.client().with_kept(files.clone());
    // Whoever sets the clock back can't make what ended count again.
    let mut fresh = site.client();
    update(&mut fresh, &first, day(3)).unwrap();
    client.begin(day(3));
    assert_eq!(client.clock_behind(), Some(DAY * 7));
    fetch(&mut client, &later).unwrap();
    client.begin(day(14));
    assert!(matches!(fetch(&mut client, &later), Err(TrustError::Expired { .. })));
    site.publish(day(14));
    client.begin(day(3));
    fetch(&mut client, &site.files()).unwrap();
    // The latest time counts, even where all else that was kept is lost: by day 10 the timestamp of day 0 was over.
    let seen = files.remove("seen").unwrap();
    let mut client = site.client().with_kept([("seen".to_owned(), seen)]);
    assert!(matches!(update(&mut client, &first, day(3)), Err(TrustError::Expired { .. })));
}

#[test]
fn clock_that_jumps_ahead_for_once() {
    let mut site = Site::new();
    let mut client = site.client();
    update(&mut client, &site.files(), day(6)).unwrap();
    // Day 6 was wrong; it is day 1, and the repository signs for day 1 to 8.
    site.publish(day(1));
    let mut client = again(&site, &mut client);
    update(&mut client, &site.files(), day(1)).unwrap();
    assert_eq!(client.clock_behind(), Some(DAY * 5));
    // A file that no update of ours wrote counts nothing.
    for seen in ["9999-12-31T23:59:59Z", "x", ""] {
        let mut client = site.client().with_kept([("seen".to_owned(), seen.as_bytes().to_vec())]);
        update(&mut client, &site.files(), day(1)).unwrap();
        assert_eq!(client.clock_behind(), None, "{seen}");
    }
}

#[test]
fn slack() {
    let site = Site::new();
    let mut client = site.client().with_slack(DAY);
    update(&mut client, &site.files(), day(7)).unwrap();
    update(&mut client, &site.files(), UnixTime(day(8).0 - 1)).unwrap();
    assert!(matches!(update(&mut client, &site.files(), day(8)), Err(TrustError::Expired { .. })));
    // A device that believes that it is 1970 takes what is offered, and learns nothing of the time by it.
    update(&mut site.client(), &site.files(), UnixTime(0)).unwrap();
}

#[test]
fn fast_forward_is_recovered_from_by_other_keys() {
    let mut site = Site::new();
    let mut client = site.client();
    // Who stole the online key drives versions up.
    let thief = {
        let mut repository = Repository::open(site.files(), Policy::default()).unwrap();
        for days in 1..=20 {
            repository.publish(&site.some(&["online"]), day(days), &site.random).unwrap();
        }
        repository
    };
    update(&mut client, thief.files(), day(20)).unwrap();
    assert!(versions(&client)[1] > 15);
    site.publish(day(20));
    let mut client = again(&site, &mut client);
    assert!(matches!(update(&mut client, &site.files(), day(20)), Err(TrustError::Rollback { .. })));

    // Other online keys, signed by the root.
    for role in ["snapshot", "timestamp"] {
        site.repository.rotate(role, &Holders::one(site.keys["spare"].public()), day(20)).unwrap();
    }
    site.sign(&["root"]);
    let spare = site.some(&["spare"]);
    site.repository.publish(&spare, day(20), &site.random).unwrap();
    let mut client = again(&site, &mut client);
    update(&mut client, &site.files(), day(20)).unwrap();
    assert_eq!(versions(&client)[0], 2);
    assert!(versions(&client)[1] < 10);
    // The thief's own files no longer count.
    let mut files = thief.files().clone();
    files.insert("2.root.json".into(), site.files()["2.root.json"].clone());
    assert!(matches!(update(&mut client, &files, day(20)), Err(TrustError::Threshold { .. })));
}

#[test]
fn mix_and_match() {
    let mut site = Site::new();
    site.set("targets", "a", b"1", START);
    site.publish(START);
    let first = site.files();
    site.set("targets", "a", b"2", START);
    site.publish(START);
    let good = site.files();
    for (file, of) in [("3.snapshot.json", "2.snapshot.json"), ("3.targets.json", "2.targets.json")] {
        let mut files = good.clone();
        files.insert(file.into(), first[of].clone());
        let error = update(&mut site.client(), &files, START).unwrap_err();
        assert!(matches!(error, TrustError::Mismatch { .. }), "{error}");
    }
    update(&mut site.client(), &good, START).unwrap();
}

#[test]
fn wrong_keys_and_thresholds() {
    let site = Site::new();
    let other = Site::new();
    let good = site.files();
    for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
        let mut files = good.clone();
        files.insert(file.into(), other.files()[file].clone());
        let error = update(&mut site.client(), &files, START).unwrap_err();
        assert!(
            matches!(error, TrustError::Threshold { have: 0, need: 1, .. } | TrustError::Mismatch { .. }),
            "{error}"
        );
    }
    let mut files = good.clone();
    files.insert("2.root.json".into(), other.files()["1.root.json"].clone());
    assert!(matches!(update(&mut site.client(), &files, START), Err(TrustError::Threshold { .. })));
    // Signatures of others below what is right are no matter, nor is their absence from it.
    let edit = |edit: fn(&mut Value)| {
        let mut document: Value = serde_json::from_slice(&good["timestamp.json"]).unwrap();
        edit(&mut document);
        let mut files = good.clone();
        files.insert("timestamp.json".into(), serde_json::to_vec(&document).unwrap());
        update(&mut site.client(), &files, START)
    };
    edit(|document| {
        document["signatures"].as_array_mut().unwrap().push(serde_json::json!({"keyid": "x", "sig": "00"}))
    })
    .unwrap();
    edit(|document| document["signed"]["version"] = 1.into()).unwrap();
    let refused: [fn(&mut Value); 8] = [
        |document| document["signed"]["version"] = 2.into(),
        |document| document["signed"]["more"] = 1.into(),
        |document| document["signatures"] = serde_json::json!([]),
        |document| document["signatures"][0]["sig"] = "".into(),
        |document| document["signatures"][0]["sig"] = "zz".into(),
        |document| document["signatures"][0]["keyid"] = "x".into(),
        |document| {
            let twice = document["signatures"][0].clone();
            document["signatures"].as_array_mut().unwrap().push(twice);
        },
        |document| document["signed"]["_type"] = "snapshot".into(),
    ];
    for (at, refused) in refused.into_iter().enumerate() {
        assert!(edit(refused).is_err(), "{at}");
    }
}

#[test]
fn endless_data() {
    let mut site = Site::new();
    site.set("targets", "a", b"content", START);
    site.publish(START);
    let mut client = site.client();
    client.begin(START);
    let files = site.files();
    while let Some(wanted) = client.next() {
        assert!(wanted.bytes_max <= 5_000_000, "{wanted:?}");
        let mut other = site.client();
        other.begin(START);
        while other.next() != Some(wanted.clone()) {
            let next = other.next().unwrap();
            other.feed(files.get(&next.name).map_or(Answer::Missing, |bytes| Answer::Bytes(bytes))).unwrap();
        }
        let long = vec![b' '; wanted.bytes_max as usize + 1];
        assert!(matches!(other.feed(Answer::Bytes(&long)), Err(TrustError::TooLarge { .. })), "{wanted:?}");
        assert_eq!((other.next(), other.feed(Answer::Missing)), (None, Err(TrustError::Ended)));
        client.feed(files.get(&wanted.name).map_or(Answer::Missing, |bytes| Answer::Bytes(bytes))).unwrap();
    }
    search(&mut client, &files, "a").unwrap();
    let found = client.found().unwrap();
    for (content, fits) in
        [(&b"content"[..], true), (b"c0ntent", false), (b"conten", false), (b"content.", false), (b"", false)]
    {
        let mut check = TargetCheck::new("a", &found.target);
        let taken = content.chunks(3).try_for_each(|part| check.update(part)).and_then(|()| check.finish());
        assert_eq!(taken.is_ok(), fits, "{taken:?}");
    }
    // Announced lengths are bounds as well, and never beyond the role's.
    let limits = Limits { targets_bytes: 10, ..Limits::default() };
    let error = update(&mut site.client().with_limits(limits), &files, START).unwrap_err();
    assert!(matches!(error, TrustError::TooLarge { .. }), "{error}");
}

#[test]
fn too_many_roots() {
    let mut site = Site::new();
    for _ in 0..9 {
        site.repository.renew("root", START).unwrap();
        site.sign(&["root"]);
        site.publish(START);
    }
    let limits = Limits { roots: 4, ..Limits::default() };
    let mut client = site.client().with_limits(limits);
    let mut seen = Vec::new();
    let mut files = BTreeMap::new();
    for _ in 0..3 {
        let _ = update(&mut client, &site.files(), START);
        seen.push(client.root().head.version);
        kept(&mut files, &mut client);
        client = site.client().with_limits(Limits { roots: 4, ..Limits::default() }).with_kept(files.clone());
    }
    assert_eq!(seen, [5, 9, 10]);
}

#[test]
fn bad_names_and_searches_before_their_time() {
    let site = Site::new();
    let mut client = site.client();
    assert_eq!(client.search(&name("a")), Err(TrustError::Unasked));
    assert_eq!(client.feed(Answer::Missing), Err(TrustError::Unasked));
    update(&mut client, &site.files(), START).unwrap();
    assert_eq!(client.feed(Answer::Missing), Err(TrustError::Unasked));
    assert!(client.is_current());
    assert!(matches!(search(&mut client, &site.files(), "nothing"), Err(TrustError::NoTarget { .. })));
    assert!(client.is_current() && client.found().is_none());
}

#[test]
fn a_kept_file_that_is_damaged_is_fetched_again() {
    let mut site = Site::new();
    site.set("targets", "a", b"1", START);
    site.publish(START);
    let mut client = site.client();
    update(&mut client, &site.files(), START).unwrap();
    let mut whole = BTreeMap::new();
    kept(&mut whole, &mut client);
    for file in whole.keys().cloned().collect::<Vec<_>>() {
        for damage in [&b""[..], b"{", &whole[&file][..whole[&file].len() / 2]] {
            let mut files = whole.clone();
            files.insert(file.clone(), damage.to_vec());
            let mut client = site.client().with_kept(files);
            update(&mut client, &site.files(), START).unwrap();
            search(&mut client, &site.files(), "a").unwrap();
        }
    }
}

#[test]
fn a_device_without_its_repository() {
    let mut site = Site::new();
    site.set("targets", "a", b"1", START);
    site.publish(START);
    let mut client = site.client();
    assert!(matches!(client.resume(START), Err(TrustError::Missing { .. })));
    update(&mut client, &site.files(), START).unwrap();
    let mut files = BTreeMap::new();
    kept(&mut files, &mut client);
    let mut client = site.client().with_kept(files.clone());
    client.resume(day(6)).unwrap();
    assert_eq!(client.next(), None);
    client.search(&name("a")).unwrap();
    assert_eq!(client.found().unwrap().role, "targets");
    assert!(matches!(client.resume(day(7)), Err(TrustError::Expired { .. })));
    assert_eq!(client.search(&name("a")), Err(TrustError::Unasked));
    files.remove("targets.json");
    assert!(matches!(site.client().with_kept(files).resume(day(6)), Err(TrustError::Missing { .. })));
}

#[test]
fn an_update_cut_short_anywhere_goes_on() {
    let mut site = Site::new();
    let mut client = site.client();
    update(&mut client, &site.files(), START).unwrap();
    let mut before = BTreeMap::new();
    kept(&mut before, &mut client);
    for role in ["snapshot", "timestamp"] {
        site.repository.rotate(role, &Holders::one(site.keys["spare"].public()), day(1)).unwrap();
    }
    site.set("targets", "a", b"1", day(1));
    site.sign(&["root"]);
    let spare = site.some(&["spare"]);
    site.repository.publish(&spare, day(1), &site.random).unwrap();
    let mut client = site.client().with_kept(before.clone());
    update(&mut client, &site.files(), day(1)).unwrap();
    let changes = client.changes();
    assert!(changes.len() > 5);
    for cut in 0..=changes.len() {
        let mut files = before.clone();
        for change in &changes[..cut] {
            match change.clone() {
                Change::Store(file, bytes) => drop(files.insert(file, bytes)),
                Change::Remove(file) => drop(files.remove(&file)),
            }
        }
        let mut client = site.client().with_kept(files);
        update(&mut client, &site.files(), day(1)).unwrap_or_else(|error| panic!("{cut}: {error}"));
        search(&mut client, &site.files(), "a").unwrap();
    }
}

#[test]
fn a_mirror_hands_on_what_it_has() {
    let mut site = Site::new();
    site.repository
        .delegate(
            "targets",
            "detector",
            &Holders::one(site.keys["detector"].public()),
            &["detector/*/*".into()],
            true,
            START,
        )
        .unwrap();
    site.sign(&["targets"]);
    site.set("detector", "detector/2/model.onnx", b"1", START);
    site.repository.renew("root", START).unwrap();
    site.sign(&["root"]);
    site.publish(START);
    let mut edge = site.client();
    update(&mut edge, &site.files(), START).unwrap();
    let mut end = site.client();
    let through = |edge: &Client, end: &mut Client| {
        while let Some(wanted) = end.next() {
            end.feed(edge.mirror(&wanted.name).map_or(Answer::Missing, Answer::Bytes))?;
        }
        Ok::<_, TrustError>(())
    };
    end.begin(START);
    through(&edge, &mut end).unwrap();
    assert_eq!(versions(&end), [2, 2, 2]);
    end.search(&name("detector/2/model.onnx")).unwrap();
    // Nobody has asked the edge for it yet.
    assert!(matches!(through(&edge, &mut end), Err(TrustError::Missing { .. })));
    search(&mut edge, &site.files(), "detector/2/model.onnx").unwrap();
    end.begin(START.after(Duration::from_secs(60)));
    through(&edge, &mut end).unwrap();
    end.search(&name("detector/2/model.onnx")).unwrap();
    through(&edge, &mut end).unwrap();
    assert_eq!(end.found().unwrap().role, "detector");
    for file in
        ["0.root.json", "9.root.json", "x.root.json", "9.snapshot.json", "9.detector.json", "seen", "../seen", ""]
    {
        assert_eq!(edge.mirror(file), None, "{file}");
    }
}
