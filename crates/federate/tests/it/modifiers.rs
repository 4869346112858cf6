//! What client modifiers make of updates, on small numbers, and what they go
//! with.

use tierline_federate::{Channel, Contribution, Federation, Modifier, Report, Vectors};

fn read(modifier: &str) -> Modifier {
    toml::from_str(modifier).unwrap()
}

fn modified(modifier: &str, vectors: Vectors) -> Vectors {
    let mut contribution = Contribution { vectors, report: Report::default() };
    read(modifier).behaviour().modify(&mut contribution).unwrap();
    contribution.vectors
}

#[test]
fn clip_shortens_what_is_too_long_and_nothing_else() {
    let of = |change: &[f32]| Vectors::from([(Channel::Model, change.to_vec()), (Channel::Statistics, vec![70.0])]);
    let clip = "kind = 'clip'\nnorm = 1.0";
    // 3, 4 is 5 long.
    assert_eq!(modified(clip, of(&[3.0, -4.0])), of(&[0.6, -0.8]));
    for short in [[0.6, -0.8], [0.0, 0.0], [1e-30, 0.0]] {
        assert_eq!(modified(clip, of(&short)), of(&short));
    }
    // Squares that a 32-bit number doesn't hold.
    let long = &modified(clip, of(&[3e30, 4e30]))[&Channel::Model];
    assert!((long[0] - 0.6).abs() < 1e-6 && (long[1] - 0.8).abs() < 1e-6, "{long:?}");
    assert_eq!(modified(clip, Vectors::new()), Vectors::new());
}

#[test]
fn modifiers_go_with_strategies_or_say_why_not() {
    for (settings, reason) in [
        ("[[modifiers]]\nkind = 'clip'\nnorm = 0.5", ""),
        ("[cloud]\nstrategy = { kind = 'fedprox' }\nup = ['int8']\n[[modifiers]]\nkind = 'clip'\nnorm = 0.5", ""),
        ("[[modifiers]]\nkind = 'clip'\nnorm = 0.0", "above 0"),
        ("[[modifiers]]\nkind = 'clip'\nnorm = nan", "above 0"),
        ("[[modifiers]]\nkind = 'clip'", "missing field `norm`"),
        ("[[modifiers]]\nkind = 'clip'\nnorm = 1.0\nfactor = 2.0", "unknown field `factor`"),
        ("[[modifiers]]\nkind = 'blur'", "unknown variant `blur`"),
        ("[cloud]\nstrategy = { kind = 'scaffold' }\n[[modifiers]]\nkind = 'clip'\nnorm = 1.0", "control variates"),
        (
            "[cloud]\nstrategy = { kind = 'fedgkt', features = 'f' }\n[[modifiers]]\nkind = 'clip'\nnorm = 1.0",
            "none travel",
        ),
        // The strategy that counts is that of ends.
        (
            "[cloud]\n[edge]\nstrategy = { kind = 'scaffold' }\n[[modifiers]]\nkind = 'clip'\nnorm = 1.0",
            "control variates",
        ),
    ] {
        let found = toml::from_str::<Federation>(settings).map_err(|e| e.to_string());
        let found = found.and_then(|federation| federation.check().map_err(|e| e.to_string()));
        match found {
            Ok(()) => assert_eq!(reason, "", "{settings}"),
            Err(error) => assert!(!reason.is_empty() && error.contains(reason), "{settings}: {error}"),
        }
    }
}
