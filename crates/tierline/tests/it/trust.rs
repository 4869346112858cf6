//! `tierline trust`: a repository by hand, from keys to what a client believes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Ran, tierline};

struct Hand {
    folder: tempfile::TempDir,
}

impl Hand {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Words with `@` in front are files in the folder.
    fn run(&self, words: &str) -> Ran {
        let word = |word: &str| word.strip_prefix('@').map_or_else(|| word.to_owned(), |file| self.path(file));
        tierline(["trust".to_owned()].into_iter().chain(words.split_whitespace().map(word)))
    }

    fn done(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, 0, "{words}: {ran:?}");
        ran.stdout
    }
}

fn hand() -> Hand {
    let hand = Hand { folder: tempfile::tempdir().expect("a folder") };
    for key in ["root-1", "root-2", "targets", "online", "detector", "new"] {
        hand.done(&format!("key @{key}"));
    }
    hand.done(
        "init @site --root @root-1.pub --root @root-2.pub --root-threshold 2 --targets @targets.pub --online @online.pub",
    );
    hand
}

#[test]
fn from_keys_to_what_a_client_believes() {
    let hand = hand();
    let mode = |file: &str| fs::metadata(hand.path(file)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode("root-1"), mode("root-1.pub")), (0o600, 0o644));
    // Each holder signs where the key is; nothing is out before all have.
    assert_eq!(hand.done("sign @site --key @root-1 --quiet"), "signed: root\nwaiting: root 1/2, targets 0/1\n");
    assert_eq!(hand.done("sign @site --key @targets --quiet"), "signed: targets\nwaiting: root 1/2, targets 1/1\n");
    assert_eq!(hand.done("sign @site --key @root-2 --quiet"), "signed: root\nwaiting: root 2/2, targets 1/1\n");
    assert!(!Path::new(&hand.path("site/1.root.json")).exists());
    let first = "published: root, targets, snapshot, timestamp\n";
    assert_eq!(hand.done("sign @site --key @online"), first);
    hand.done("verify @site --root @site/1.root.json");
    assert_eq!(hand.done("sign @site --key @online"), "nothing was to be done\n");

    fs::write(hand.path("model.onnx"), b"a model").expect("it is written");
    hand.done("delegate @site detector --holder @detector.pub --path detector/*/* --terminating");
    hand.done("add @site detector/2/model.onnx @model.onnx --role detector --job job-1");
    hand.done("sign @site --key @targets --key @detector --key @online");
    let shown = hand.run("verify @site --root @site/1.root.json --target detector/2/model.onnx --json").json();
    assert_eq!((shown["target"]["role"].as_str(), shown["target"]["bytes"].as_u64()), (Some("detector"), Some(7)));
    let digest = blake3::hash(b"a model").to_hex();
    assert_eq!(shown["target"]["custom"]["tierline"]["blake3"], digest.as_str());
    let shown = hand.run("show @site --json").json();
    assert_eq!(shown["targets"][0]["blake3"], digest.as_str());
    assert_eq!(shown["roles"].as_array().map(Vec::len), Some(5));
    assert!(hand.done("show @site").contains("detector/2/model.onnx"));

    // A root key is lost: the other one and a new one stay.
    hand.done("rotate @site root --holder @root-2.pub --holder @new.pub --threshold 2");
    hand.done("sign @site --key @root-1 --key @root-2 --key @new --key @online");
    hand.done("rotate @site detector --holder @new.pub");
    hand.done("sign @site --key @targets --key @new --key @online");
    hand.done("rm @site detector/2/model.onnx --role detector");
    hand.done("renew @site targets");
    hand.done("sign @site --key @targets --key @new --key @online");
    let shown = hand.run("verify @site --root @site/1.root.json --json").json();
    assert_eq!(shown["root"], 2);
    let gone = hand.run("verify @site --root @site/1.root.json --target detector/2/model.onnx");
    assert_eq!(gone.code, 6, "{gone:?}");
}

#[test]
fn what_is_refused() {
    let hand = hand();
    fs::write(hand.path("model.onnx"), b"a model").expect("it is written");
    for (words, code) in [
        ("key @root-1", 1),
        ("init @site --root @root-1.pub --targets @targets.pub --online @online.pub", 2),
        ("init @other --root @root-1.pub --root-threshold 2 --targets @targets.pub --online @online.pub", 2),
        ("init @other --root @model.onnx --targets @targets.pub --online @online.pub", 2),
        ("add @site ../escaped @model.onnx", 2),
        ("add @site a @missing", 2),
        ("add @site a @model.onnx --role nobody", 2),
        ("add @site a @model.onnx --parent x", 2),
        ("rm @site a", 2),
        ("delegate @site root --holder @new.pub --path *", 2),
        ("rotate @site nobody --holder @new.pub", 2),
        ("sign @site --key @root-1.pub", 2),
        ("show @nothing", 2),
        ("verify @site --root @model.onnx", 6),
    ] {
        let ran = hand.run(words);
        assert_eq!(ran.code, code, "{words}: {ran:?}");
    }
    for key in ["root-1", "root-2", "targets", "online"] {
        hand.done(&format!("sign @site --key @{key}"));
    }
    // Another site's root, and a file that somebody changed.
    let other = self::hand();
    for key in ["root-1", "root-2", "targets", "online"] {
        other.done(&format!("sign @site --key @{key}"));
    }
    fs::copy(other.path("site/1.root.json"), hand.path("foreign.json")).expect("it is copied");
    assert_eq!(hand.run("verify @site --root @foreign.json").code, 6);
    fs::copy(other.path("site/timestamp.json"), hand.path("site/timestamp.json")).expect("it is copied");
    assert_eq!(hand.run("verify @site --root @site/1.root.json").code, 6);
    assert_eq!(hand.run("show @site").code, 6);
}
