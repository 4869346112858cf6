//! What is read of a SERVICE.toml, and what is refused.

use tierline_plan::Service;
use tierline_plan::service::{Kind, Policy};

const CASCADE: &str = r#"
kind = "cascade"
[[member]]
model = "small"
criterion = "margin"
threshold = 0.6
[[member]]
model = "large"
"#;

const CHAIN: &str = r#"
kind = "chain"
[[member]]
model = "finder"
[[member]]
model = "reader"
crops = { of = "finder", boxes = "boxes", image = "image", input = "x", size = [32, 100] }
"#;

#[test]
fn what_is_written_is_read_again() {
    let more = "[examples]\npolicy = 'features'\nmax_mb = 1.5\n[quality]\ninput = 'x'\nblur_min = 0.01\n";
    for text in [CASCADE.to_owned(), CHAIN.to_owned(), format!("audit = 0.25{CASCADE}{more}")] {
        let service = Service::parse(&text).unwrap();
        assert_eq!(Service::parse(&service.write().unwrap()).unwrap(), service, "{text}");
    }
    let service = Service::parse(&format!("{CASCADE}{more}")).unwrap();
    assert_eq!((service.kind, service.models()), (Kind::Cascade, vec!["small", "large"]));
    let examples = service.examples.unwrap();
    assert_eq!((examples.policy, examples.max_count), (Policy::Features, 1_000));
    let chain = Service::parse(CHAIN).unwrap();
    assert_eq!((chain.before(0), chain.before(1)), (vec![], vec![0]));
}

#[test]
fn what_means_nothing_is_refused() {
    let cascade = |from: &str, to: &str| CASCADE.replacen(from, to, 1);
    let chain = |from: &str, to: &str| CHAIN.replacen(from, to, 1);
    let many: String = (0..10_000).map(|n| format!("[[member]]\nmodel = 'm{n}'\n")).collect();
    let (crowd, _) = many[..2_000].rsplit_once("[[").unwrap();
    let member = |text: &str| format!("{CASCADE}{text}");
    let cases = [
        (String::new(), "missing field `kind`"),
        ("kind = 'heap'".into(), "unknown variant `heap`"),
        (cascade("kind", "knd"), "unknown key `knd` in the service; did you mean `kind`?"),
        (cascade("threshold", "treshold"), "unknown key `treshold` in [[member]] 1; did you mean `threshold`?"),
        (cascade("0.6", "'high'"), "invalid type"),
        (cascade("0.6", "nan"), "`threshold` is NaN"),
        (cascade("0.6", "7"), "member `small`: `threshold` is 7; it must be from 0 to 1, or 2 for never"),
        (cascade("margin", "patience"), "`criterion` is patience"),
        (cascade("threshold = 0.6", ""), "member `small` needs `criterion` and `threshold`"),
        (member("threshold = 0.5"), "`large` is the last of the cascade"),
        (cascade("large", "small"), "two members are called `small`"),
        (
            cascade("model = \"large\"", "model = \"large\"\nweight = 2"),
            "`weight` is of a service of kind ensemble; this one is of kind cascade",
        ),
        (cascade("kind = \"cascade\"", "kind = 'ensemble'"), "`criterion` is of a service of kind cascade"),
        (cascade("kind = \"cascade\"", "kind = 'cascade'\nleast = 1"), "`least` is of a service of kind ensemble"),
        (cascade("kind = \"cascade\"", "kind = 'cascade'\naudit = -1"), "`audit` is -1; it must be from 0 to 1"),
        (format!("{CASCADE}[examples]\npolcy = 'raw'"), "unknown key `polcy` in [examples]; did you mean `policy`?"),
        (format!("{CASCADE}[examples]\nmax_mb = inf"), "`max_mb` is inf"),
        ("kind = 'cascade'\n[[member]]\nmodel = 'a'".into(), "two [[member]] or more; this one has 1"),
        (format!("kind = 'ensemble'\n{many}"), "bytes; at most 65536 are taken"),
        (format!("kind = 'ensemble'\n{crowd}"), "members; at most 16 are taken"),
        (chain("of = \"finder\"", "of = \"findr\""), "`findr`, which is no member before it; did you mean `finder`?"),
        (chain("of = \"finder\"", "of = \"reader\""), "`reader`, which is no member before it"),
        (chain("size = [32, 100]", "size = [0, 100]"), "`size` is [0, 100]"),
        (chain("size =", "std = [0.0], size ="), "`std` is [0.0]"),
        (chain("size =", "boxes_max = 4000000000, size ="), "`boxes_max` is 4000000000"),
        (chain("size =", "sizes ="), "unknown key `sizes` in `crops` of [[member]] 2; did you mean `size`?"),
    ];
    for (text, part) in cases {
        let error = Service::parse(&text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:.200}\n{error}");
    }
}

#[test]
fn a_circle_can_not_be_written() {
    // Members take only of members before them, so each of these names one that isn't there yet.
    let text = "kind = 'chain'\n[[member]]\nmodel = 'a'\ninputs = { x = { of = 'b', output = 'y' } }\n\
                [[member]]\nmodel = 'b'\ninputs = { x = { of = 'a', output = 'y' } }";
    assert!(Service::parse(text).unwrap_err().to_string().contains("`b`, which is no member before it"));
    let itself = text.replacen("of = 'b'", "of = 'a'", 1);
    assert!(Service::parse(&itself).unwrap_err().to_string().contains("`a`, which is no member before it"));
}
