//! What members say of their work: what is believed, and that it stays finite.

use proptest::prelude::*;
use tierline_federate::report::{BYTES_MAX, EXAMPLES_MAX, LOSS_MAX, STEPS_MAX};
use tierline_federate::{Contribution, Counted, FederateError, HeldOut, Report, aggregate};

fn good() -> Report {
    Report { examples: 10, steps: 2, effective_steps: 2.0, loss: 1.0, accuracy: Some(0.5), ..Report::default() }
}

#[test]
fn what_cannot_be_true_is_refused() {
    type Spoil = fn(&mut Report);

    assert_eq!(good().check(), Ok(()));
    let held_out = HeldOut { examples: 5, loss: 1.0, accuracy: Some(1.0) };
    let cases: [(&str, Spoil); 16] = [
        ("examples", |r| r.examples = 0),
        ("examples", |r| r.examples = EXAMPLES_MAX + 1),
        ("steps", |r| r.steps = 0),
        ("steps", |r| r.steps = STEPS_MAX + 1),
        ("effective steps", |r| r.effective_steps = 0.0),
        ("effective steps", |r| r.effective_steps = f64::NAN),
        ("effective steps", |r| r.effective_steps = 1e20),
        ("loss", |r| r.loss = f64::INFINITY),
        ("loss", |r| r.loss = f64::NAN),
        ("loss", |r| r.loss = -1e31),
        ("accuracy", |r| r.accuracy = Some(1.5)),
        ("accuracy", |r| r.accuracy = Some(f64::NAN)),
        ("seconds", |r| r.seconds = -1.0),
        ("seconds", |r| r.seconds = f64::INFINITY),
        ("bytes up", |r| r.bytes_up = u64::MAX),
        ("bytes down", |r| r.bytes_down = BYTES_MAX + 1),
    ];
    for (name, change) in cases {
        let mut report = good();
        change(&mut report);
        let error = report.check().unwrap_err();
        assert!(matches!(error, FederateError::Report { what, .. } if what == name), "{name}: {error}");
    }
    for wrong in [
        HeldOut { examples: 0, ..held_out },
        HeldOut { examples: u64::MAX, ..held_out },
        HeldOut { loss: f64::INFINITY, ..held_out },
        HeldOut { accuracy: Some(-0.1), ..held_out },
    ] {
        assert_eq!(Report { held_out: Some(wrong), ..good() }.check(), Err(FederateError::HeldOut), "{wrong:?}");
    }
    // An evaluation is no work, but what it says must be as sound.
    let look = |report| aggregate::check_evaluation(&Contribution { report, ..Contribution::default() });
    let evaluated = Report { examples: 3, held_out: Some(held_out), ..Report::default() };
    assert_eq!(look(evaluated), Ok(()));
    assert!(look(Report { loss: f64::NAN, ..evaluated }).is_err());
}

fn reports() -> impl Strategy<Value = Report> {
    let number = || prop_oneof![-LOSS_MAX..=LOSS_MAX, Just(LOSS_MAX), Just(-LOSS_MAX), -10.0..10.0f64, Just(-0.0)];
    let share = || proptest::option::of(prop_oneof![0.0..=1.0f64, Just(1.0)]);
    let count = |max: u64| prop_oneof![1..=max, Just(max), 1..100u64];
    let held_out = (count(EXAMPLES_MAX), number(), share());
    let held_out = held_out.prop_map(|(examples, loss, accuracy)| HeldOut { examples, loss, accuracy });
    let counts = (count(EXAMPLES_MAX), count(STEPS_MAX), count(BYTES_MAX), count(BYTES_MAX));
    let numbers = (1e-300..(1u64 << 50) as f64, number(), share(), 0.0..LOSS_MAX);
    (counts, numbers, proptest::option::of(held_out)).prop_map(|(counts, numbers, held_out)| {
        let (examples, steps, bytes_up, bytes_down) = counts;
        let (effective_steps, loss, accuracy, seconds) = numbers;
        Report { examples, steps, effective_steps, loss, accuracy, seconds, bytes_up, bytes_down, held_out }
    })
}

proptest! {
    #[test]
    fn what_is_believed_can_be_kept_and_passed_on(reports in proptest::collection::vec(reports(), 1..20)) {
        for report in &reports {
            prop_assert_eq!(report.check(), Ok(()));
            let json = serde_json::to_string(report).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Report>(&json).unwrap(), report);
        }
        let counted = |(i, report): (usize, &Report)| Counted { member: i.to_string(), report: *report, staleness: 0 };
        let counted: Vec<Counted> = reports.iter().enumerate().map(counted).collect();
        prop_assert_eq!(Report::together(&counted).check(), Ok(()), "{:?}", Report::together(&counted));
    }
}
