//! The repository: drafts, thresholds, rotation, and what becomes due.

use std::collections::{BTreeMap, BTreeSet};

use tierline_update::trust::{Change, Founders, Holders, Life, Policy, Record, Repository, SignError, UnixTime};

use super::{DAY, START, Site, name, search, update};

fn holders(site: &Site, keys: &[&str], threshold: usize) -> Holders {
    Holders { keys: keys.iter().map(|key| site.keys[key].public().clone()).collect(), threshold }
}

#[test]
fn targets_by_their_digests() {
    let mut site = Site::new();
    site.set("targets", "detector/2/model.onnx", b"model", START);
    assert_eq!(site.publish(START), ["targets", "snapshot", "timestamp"]);
    let mut client = site.client();
    update(&mut client, &site.files(), START).unwrap();
    search(&mut client, &site.files(), "detector/2/model.onnx").unwrap();
    let found = client.found().unwrap();
    let record = Record::of(&found.target).unwrap().unwrap();
    assert_eq!(record.blake3, blake3::hash(b"model").to_hex().as_str());
    assert_eq!(found.file, format!("detector/2/{}.model.onnx", found.target.hashes.get("sha256").unwrap()));
    site.repository.remove_target("targets", &name("detector/2/model.onnx"), START).unwrap();
    assert!(site.repository.remove_target("targets", &name("detector/2/model.onnx"), START).is_err());
    site.sign(&["targets"]);
    site.publish(START);
    update(&mut client, &site.files(), START).unwrap();
    assert!(search(&mut client, &site.files(), "detector/2/model.onnx").is_err());
    // Nothing to do: nothing is written.
    assert_eq!(site.publish(START), [""; 0]);
}

#[test]
fn roots_with_thresholds_signed_one_by_one() {
    let mut site = Site::new();
    site.repository.rotate("root", &holders(&site, &["root-2", "root-3", "spare"], 2), START).unwrap();
    // Its old key, then two of the new ones; each holder has the draft as a file only.
    for (at, key) in ["root", "root-2", "spare"].into_iter().enumerate() {
        let waiting = site.repository.waiting();
        assert!(!waiting[0].is_complete(), "{at}");
        assert_eq!(site.publish(START), [""; 0]);
        site.repository = Repository::open(site.files(), Policy::default()).unwrap();
        assert_eq!(site.sign(&[key]), 1);
        assert_eq!(site.sign(&[key, "targets"]), 0);
    }
    assert!(site.repository.waiting()[0].is_complete());
    assert_eq!(site.publish(START), ["root", "timestamp"]);
    let mut client = site.client();
    update(&mut client, &site.files(), START).unwrap();
    assert_eq!(client.root().head.version, 2);
    // The old key alone makes no third one.
    site.repository.renew("root", START).unwrap();
    assert_eq!(site.sign(&["root"]), 0);
    site.sign(&["root-2"]);
    assert_eq!(site.publish(START), [""; 0]);
    site.sign(&["root-3"]);
    site.publish(START);
    update(&mut client, &site.files(), START).unwrap();
    assert_eq!(client.root().head.version, 3);
}

#[test]
fn every_role_rotates() {
    let mut site = Site::new();
    let mut client = site.client();
    site.repository
        .delegate("targets", "detector", &holders(&site, &["detector"], 1), &["detector/*/*".into()], false, START)
        .unwrap();
    site.sign(&["targets"]);
    site.set("detector", "detector/1/model.onnx", b"1", START);
    site.publish(START);
    update(&mut client, &site.files(), START).unwrap();
    search(&mut client, &site.files(), "detector/1/model.onnx").unwrap();

    // Targets: signed anew by the new keys, or nothing is published.
    site.repository.rotate("targets", &holders(&site, &["root-2", "root-3"], 2), START).unwrap();
    site.sign(&["root", "root-2"]);
    let error = site.repository.publish(&site.some(&["online"]), START, &site.random).unwrap_err();
    assert!(matches!(error, SignError::TooFewKeys { have: 1, need: 2, .. }), "{error}");
    update(&mut client, &site.files(), START).unwrap();
    assert_eq!(client.root().head.version, 1);
    site.sign(&["root-3"]);
    assert_eq!(site.publish(START), ["root", "targets", "snapshot", "timestamp"]);
    update(&mut client, &site.files(), START).unwrap();

    // A delegated role: its namer's draft and its own.
    site.repository.rotate("detector", &holders(&site, &["spare"], 1), START).unwrap();
    site.sign(&["root-2", "root-3", "spare"]);
    assert_eq!(site.publish(START), ["targets", "detector", "snapshot", "timestamp"]);
    update(&mut client, &site.files(), START).unwrap();
    search(&mut client, &site.files(), "detector/1/model.onnx").unwrap();

    // The online ones: another publishes nothing.
    for role in ["snapshot", "timestamp"] {
        site.repository.rotate(role, &holders(&site, &["spare"], 1), START).unwrap();
    }
    site.sign(&["root"]);
    assert!(site.repository.publish(&site.some(&["online"]), START, &site.random).is_err());
    let spare = site.some(&["spare"]);
    assert_eq!(site.repository.publish(&spare, START, &site.random).unwrap(), ["root", "snapshot", "timestamp"]);
    update(&mut client, &site.files(), START).unwrap();
    search(&mut client, &site.files(), "detector/1/model.onnx").unwrap();

    // And back: what was given is taken.
    site.repository.undelegate("detector", START).unwrap();
    site.sign(&["root-2", "root-3"]);
    site.repository.publish(&spare, START, &site.random).unwrap();
    update(&mut client, &site.files(), START).unwrap();
    assert!(search(&mut client, &site.files(), "detector/1/model.onnx").is_err());
    // Under the same name again, its versions go on.
    site.repository
        .delegate("targets", "detector", &holders(&site, &["detector"], 1), &["*".into()], false, START)
        .unwrap();
    site.sign(&["root-2", "root-3", "detector"]);
    site.repository.publish(&spare, START, &site.random).unwrap();
    update(&mut client, &site.files(), START).unwrap();
    assert!(Repository::open(site.files(), Policy::default()).is_ok());
}

#[test]
fn a_year_in_which_the_cloud_signs_by_itself() {
    let mut site = Site::new();
    let mut client = site.client();
    let online = site.some(&["online"]);
    let ids: BTreeSet<String> = online.iter().map(|key| key.id().to_owned()).collect();
    let (mut signed, mut warned) = (0, BTreeMap::new());
    for hour in 0..24 * 364 {
        let now = UnixTime(START.0 + hour * 3_600);
        let (published, due) = site.repository.tend(&online, now, &site.random).unwrap();
        signed += published.len();
        for ending in due.warnings() {
            warned.entry(ending.role.clone()).or_insert(ending.expires.left(now).as_secs() / 86_400);
        }
        if hour % 24 == 0 {
            update(&mut client, &site.files(), now).unwrap_or_else(|error| panic!("hour {hour}: {error}"));
            let quiet = site.repository.due(&ids, now);
            assert!(quiet.ending.iter().all(|ending| !ending.can_sign) && quiet.next.is_some_and(|next| next > now));
        }
    }
    // Daily timestamps and a snapshot every ten days.
    assert!((390..=410).contains(&signed), "{signed}");
    // What people have to sign is said three and two months ahead.
    assert_eq!(warned, BTreeMap::from([("root".to_owned(), 90), ("targets".to_owned(), 60)]));
    assert!(site.files().len() < 60, "{}", site.files().len());
    assert!(Repository::open(site.files(), Policy::default()).is_ok());
}

#[test]
fn a_cloud_that_cannot_sign_says_so_long_before() {
    let mut site = Site::new();
    let foreign = site.some(&["spare"]);
    let (published, due) = site.repository.tend(&foreign, START.after(DAY), &site.random).unwrap();
    assert!(published.is_empty());
    let warning: Vec<_> = due.warnings().collect();
    assert_eq!(warning.len(), 1);
    assert_eq!((warning[0].role.as_str(), warning[0].expires.left(START.after(DAY))), ("timestamp", DAY * 6));
    // Once it can, it does; also after everything has ended.
    let online = site.some(&["online"]);
    let late = START.after(DAY * 100);
    let (published, _) = site.repository.tend(&online, late, &site.random).unwrap();
    assert_eq!(published, ["snapshot", "timestamp"]);
    update(&mut site.client(), &site.files(), late).unwrap();
}

#[test]
fn an_end_that_a_wrong_clock_made_is_signed_anew() {
    let mut site = Site::new();
    let online = site.some(&["online"]);
    let wrong = START.after(DAY * 3_650);
    site.repository.tend(&online, wrong, &site.random).unwrap();
    let (published, _) = site.repository.tend(&online, START.after(DAY), &site.random).unwrap();
    assert_eq!(published, ["snapshot", "timestamp"]);
    let mut client = site.client();
    update(&mut client, &site.files(), START.after(DAY)).unwrap();
    assert_eq!(client.timestamp().unwrap().head.expires, START.after(DAY * 8));
}

#[test]
fn a_family_that_the_cloud_holds_is_renewed_by_it() {
    let mut site = Site::new();
    site.repository
        .delegate("targets", "detector", &holders(&site, &["online"], 1), &["detector/*/*".into()], true, START)
        .unwrap();
    site.sign(&["targets", "online"]);
    site.publish(START);
    let online = site.some(&["online"]);
    let now = START.after(DAY * 61);
    let (published, due) = site.repository.tend(&online, now, &site.random).unwrap();
    assert!(published.contains(&"detector".to_owned()), "{published:?}");
    assert_eq!(due.warnings().count(), 0);
    update(&mut site.client(), &site.files(), now).unwrap();
}

#[test]
fn files_are_written_in_an_order_that_clients_can_read_meanwhile() {
    let mut site = Site::new();
    let mut disk = BTreeMap::new();
    let apply = |disk: &mut BTreeMap<String, Vec<u8>>, change: Change| match change {
        Change::Store(file, bytes) => drop(disk.insert(file, bytes)),
        Change::Remove(file) => drop(disk.remove(&file)),
    };
    for change in site.repository.changes() {
        apply(&mut disk, change);
    }
    assert_eq!(disk, site.files());
    let mut client = site.client();
    for round in 0..40 {
        site.set("targets", "a", &[round], START);
        if round % 10 == 5 {
            site.repository.renew("root", START).unwrap();
            site.sign(&["root"]);
        }
        site.publish(START);
        for change in site.repository.changes() {
            apply(&mut disk, change);
            update(&mut client, &disk, START).unwrap();
            assert!(Repository::open(disk.clone(), Policy::default()).is_ok());
        }
    }
    assert_eq!(disk, site.files());
}

#[test]
fn what_is_refused() {
    let mut site = Site::new();
    let one = |keys: &[&str], threshold| holders(&site, keys, threshold);
    let founders = |root| Founders {
        root,
        targets: one(&["targets"], 1),
        snapshot: one(&["online"], 1),
        timestamp: one(&["online"], 1),
    };
    for root in [one(&["root"], 0), one(&["root"], 2), one(&[], 1), one(&["root", "root"], 2)] {
        assert!(matches!(
            Repository::create(&founders(root), Policy::default(), START),
            Err(SignError::BadThreshold { .. })
        ));
    }
    let endless = Policy { timestamp: Life { valid: DAY, renew: DAY }, ..Policy::default() };
    assert!(matches!(Repository::create(&founders(one(&["root"], 1)), endless, START), Err(SignError::BadPolicy)));
    let key = one(&["detector"], 1);
    for role in ["root", "targets", "", "a/b", "../a", "A", ".a", &"a".repeat(129)] {
        let refused = site.repository.delegate("targets", role, &key, &["*".into()], false, START);
        assert!(matches!(refused, Err(SignError::BadRole { .. })), "{role}");
    }
    assert!(matches!(site.repository.renew("nobody", START), Err(SignError::NoRole(_))));
    assert!(matches!(site.repository.rotate("nobody", &key, START), Err(SignError::NoRole(_))));
    assert!(matches!(site.repository.undelegate("targets", START), Err(SignError::NoRole(_))));
    // Fractions have no form that could be signed.
    let mut target = Record { blake3: "ab".repeat(32), ..Record::default() }.target(1, "00").unwrap();
    target.custom = Some(serde_json::json!({"accuracy": 0.9}));
    assert!(matches!(site.repository.set_target("targets", &name("a"), target, START), Err(SignError::Custom(_))));
    assert_eq!(site.publish(START), [""; 0]);

    // Files that somebody else changed aren't opened.
    let good = site.files();
    for file in good.keys().filter(|file| !file.starts_with("drafts/")) {
        let mut files = good.clone();
        let bytes = files.get_mut(file).unwrap();
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
        assert!(Repository::open(files, Policy::default()).is_err(), "{file}");
        let mut files = good.clone();
        files.remove(file);
        let opened = Repository::open(files, Policy::default());
        assert!(
            opened.is_err() || file == "1.root.json" && opened.is_ok_and(|opened| opened.root().is_none()),
            "{file}"
        );
    }
}
