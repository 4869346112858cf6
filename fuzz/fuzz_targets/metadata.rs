//! Signed metadata from a repository: no input may panic, whoever signed it,
//! and what a client believes leads nowhere else. The first byte says in whose
//! place the rest stands: as a whole file, or signed by the key of that role.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use tierline_update::trust::{Answer, Client, Founders, Holders, Policy, Record, Repository, SigningKey, TargetCheck, TargetName, TrustError, UnixTime};

/// A key that everybody knows signs for every role.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n-----END PRIVATE KEY-----\n";

const NOW: UnixTime = UnixTime(1_796_000_000);

/// In whose place an input stands, by number.
const FILES: [&str; 6] = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.site.json", "drafts/site.json"];

struct Site {
    files: BTreeMap<String, Vec<u8>>,
    id: String,
    pair: Ed25519KeyPair,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let random = SystemRandom::new();
    let key = SigningKey::from_pem(KEY, &random).expect("a key");
    let one = || Holders::one(key.public());
    let founders = Founders { root: one(), targets: one(), snapshot: one(), timestamp: one() };
    let mut repository = Repository::create(&founders, Policy::default(), NOW).expect("a repository");
    repository.delegate("targets", "site", &one(), &["*/*".to_owned()], false, NOW).expect("a role");
    let keys = [SigningKey::from_pem(KEY, &random).expect("a key")];
    repository.sign(&keys, &random).expect("signatures");
    repository.publish(&keys, NOW, &random).expect("files");
    let mut files = repository.files().clone();
    // Announced by their versions only, so that another file in their place comes to be read.
    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).expect("a key");
    let mut site = Site { files: BTreeMap::new(), id: key.id().to_owned(), pair };
    for (file, meta) in [("1.snapshot.json", &["targets.json", "site.json"][..]), ("timestamp.json", &["snapshot.json"][..])] {
        let mut document: serde_json::Value = serde_json::from_slice(&files[file]).expect("JSON");
        let meta: serde_json::Map<_, _> = meta.iter().map(|name| ((*name).to_owned(), serde_json::json!({"version": 1}))).collect();
        document["signed"]["meta"] = meta.into();
        files.insert(file.to_owned(), site.signed(&document["signed"]));
    }
    site.files = files;
    site
});

impl Site {
    /// The same as the canonical form, where nothing must be escaped.
    fn signed(&self, body: &serde_json::Value) -> Vec<u8> {
        let signature = self.pair.sign(&serde_json::to_vec(body).expect("JSON"));
        let hex: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let signed = serde_json::json!({"signed": body, "signatures": [{"keyid": self.id, "sig": hex}]});
        serde_json::to_vec(&signed).expect("JSON")
    }
}

fn fetch(client: &mut Client, files: &BTreeMap<String, Vec<u8>>) -> Result<(), TrustError> {
    while let Some(wanted) = client.next() {
        assert!(!wanted.name.contains('/') && wanted.name.ends_with(".json") && wanted.bytes_max <= 5_000_000);
        client.feed(files.get(&wanted.name).map_or(Answer::Missing, |bytes| Answer::Bytes(bytes)))?;
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else { return };
    let site = &*SITE;
    let file = FILES[usize::from(choice) % FILES.len()];
    let bytes = match serde_json::from_slice::<serde_json::Value>(rest) {
        Ok(body) if choice >= 128 => site.signed(&body),
        _ => rest.to_vec(),
    };
    let _ = Client::new(&bytes);
    let mut files = site.files.clone();
    files.insert(file.to_owned(), bytes);
    if let Ok(mut repository) = Repository::open(files.clone(), Policy::default()) {
        let random = SystemRandom::new();
        let _ = repository.tend(&[SigningKey::from_pem(KEY, &random).expect("a key")], NOW, &random);
    }
    let mut client = Client::new(&site.files["1.root.json"]).expect("a root");
    client.begin(NOW);
    if fetch(&mut client, &files).is_err() {
        assert!(client.next().is_none() && client.found().is_none());
        return;
    }
    for name in ["a", "site/model.onnx"] {
        let name = TargetName::new(name).expect("a name");
        if client.search(&name).and_then(|()| fetch(&mut client, &files)).is_ok() {
            let found = client.found().expect("a target").clone();
            let _ = Record::of(&found.target);
            let mut check = TargetCheck::new("a", &found.target);
            let _ = check.update(rest).and_then(|()| check.finish());
        }
    }
    // What was kept comes to the same.
    let kept = client.changes().into_iter().filter_map(|change| match change {
        tierline_update::trust::Change::Store(file, bytes) => Some((file, bytes)),
        tierline_update::trust::Change::Remove(_) => None,
    });
    let mut again = Client::new(&site.files["1.root.json"]).expect("a root").with_kept(kept);
    again.begin(NOW);
    assert_eq!(fetch(&mut again, &files), Ok(()));
    assert_eq!((again.root(), again.timestamp(), again.snapshot()), (client.root(), client.timestamp(), client.snapshot()));
});
