//! The gate beside scipy (`gate.py` wrote what it says), its error rates by
//! counting every outcome, and what it says in words.

use serde::Deserialize;
use tierline_update::drift::random::Random;
use tierline_update::gate::{Answers, Decision, Domain, Evidence, GateError, Losses, Policy, Reason, Verdict};

#[derive(Deserialize)]
struct Said {
    answers: Vec<OfAnswers>,
    losses: Vec<OfLosses>,
}

#[derive(Deserialize)]
struct OfAnswers {
    answers: [u32; 4],
    mcnemar: f64,
    score: Vec<(f64, Option<f64>)>,
    low: Option<f64>,
    high: Option<f64>,
}

#[derive(Deserialize)]
struct OfLosses {
    old: Vec<f64>,
    new: Vec<f64>,
    required: f64,
    p: f64,
    low: f64,
    high: f64,
}

fn said() -> Said {
    serde_json::from_str(include_str!("gate.json")).unwrap()
}

fn answers([both, only_new, only_old, neither]: [u32; 4]) -> Answers {
    Answers { both, only_new, only_old, neither }
}

fn domain(name: &str, counts: [u32; 4]) -> Domain {
    Domain { name: name.to_owned(), evidence: Evidence::Answers(answers(counts)) }
}

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{found} for {expected}");
}

/// A policy that decides on few examples and looks at one bound.
fn lenient() -> Policy {
    Policy { new_examples_min: 2, old_examples_min: 2, ..Policy::default() }
}

fn judged(new: [u32; 4], old: [u32; 4]) -> Decision {
    Policy::default().judge(&domain("night", new), &[domain("day", old)]).unwrap()
}

#[test]
fn answers_equal_scipy() {
    for row in said().answers {
        let counts = answers(row.answers);
        close(counts.mcnemar(), row.mcnemar, 1e-9);
        for (difference, score) in row.score {
            if let Some(score) = score {
                close(counts.score(difference), score, 1e-4 * (1.0 + score.abs()));
            }
        }
        let old = domain("old", row.answers);
        if counts.n() < 2 {
            continue;
        }
        let decision = lenient().judge(&old, std::slice::from_ref(&old)).unwrap();
        let finding = &decision.losses[0];
        close(finding.low, row.low.unwrap_or(-1.0), 1e-5);
        close(finding.high, row.high.unwrap_or(1.0), 1e-5);
        close(decision.gain.p, row.mcnemar, 1e-9);
    }
}

#[test]
fn losses_equal_scipy() {
    for row in said().losses {
        let losses = Losses::of(&row.old, &row.new).unwrap();
        // Both requirements of the rows, as a margin of the mean loss.
        let policy = Policy { loss_margin: -row.required / losses.of_old(), ..lenient() };
        let domain = Domain { name: "x".to_owned(), evidence: Evidence::Losses(losses) };
        let decision = policy.judge(&domain, std::slice::from_ref(&domain)).unwrap();
        let finding = &decision.losses[0];
        close(finding.required, row.required, 1e-12);
        close(finding.p, row.p, 1e-9);
        close(finding.low, row.low, 1e-9);
        close(finding.high, row.high, 1e-9);
    }
}

/// Chance of `counts` among all ways that examples fall, given the shares.
fn chance(n: u32, gained: u32, lost: u32, share_gained: f64, share_lost: f64) -> f64 {
    let ln_factorial = |k: u32| (1..=k).map(|i| f64::from(i).ln()).sum::<f64>();
    let rest = n - gained - lost;
    let power = |share: f64, k: u32| if k == 0 { 0.0 } else { f64::from(k) * share.ln() };
    let ways = ln_factorial(n) - ln_factorial(gained) - ln_factorial(lost) - ln_factorial(rest);
    (ways + power(share_gained, gained) + power(share_lost, lost) + power(1.0 - share_gained - share_lost, rest)).exp()
}

/// Every outcome of 60 and 150 examples, weighted by its chance: a candidate
/// that gains nothing, or that loses just the margin, passes as often as alpha
/// says. McNemar's test is exact; Tango's score is asymptotic.
#[test]
fn a_bad_candidate_passes_with_chance_alpha_at_most() {
    for n in [60u32, 150] {
        for spread in [0.02, 0.1, 0.3] {
            let (mut gain_passes, mut loss_passes) = (0.0, 0.0);
            let margin = 0.05;
            for gained in 0..=n {
                for lost in 0..=n - gained {
                    // Loses the margin more than it gains, on the old domain.
                    let at_margin = chance(n, gained, lost, spread, spread + margin);
                    let without_gain = chance(n, gained, lost, spread, spread);
                    if at_margin < 1e-12 && without_gain < 1e-12 {
                        continue;
                    }
                    let counts = domain("x", [n - gained - lost, gained, lost, 0]);
                    let policy = Policy { margin, ..lenient() };
                    let decision = policy.judge(&counts, std::slice::from_ref(&counts)).unwrap();
                    gain_passes += if decision.gain.low > 0.0 { without_gain } else { 0.0 };
                    loss_passes += if decision.losses[0].low > -margin { at_margin } else { 0.0 };
                }
            }
            println!("n = {n}, {spread} gained: gain {gain_passes:.4}, margin {loss_passes:.4}");
            assert!(gain_passes <= 0.05, "{n} {spread}: {gain_passes}");
            assert!(loss_passes <= 0.06, "{n} {spread}: {loss_passes}");
        }
    }
}

/// The t bounds, on skewed losses, by drawing.
#[test]
fn bounds_of_losses_hold_on_skewed_losses() {
    let mut random = Random::new(4);
    let (mut missed, rounds, n) = (0, 4_000, 200);
    for _ in 0..rounds {
        let mut losses = Losses::default();
        for _ in 0..n {
            let old = -(1.0 - random.uniform()).ln();
            losses.push(old, -(1.0 - random.uniform()).ln()).unwrap();
        }
        let evidence = Domain { name: "x".to_owned(), evidence: Evidence::Losses(losses) };
        let decision = Policy::default().judge(&evidence, &[]).unwrap();
        missed += u32::from(decision.gain.low > 0.0);
    }
    println!("{missed} of {rounds} without gain show one");
    // 200 expected; beyond 250 lies a chance of 2 in 10,000.
    assert!(missed <= 250, "{missed}");
}

#[test]
fn verdicts_in_words() {
    // Gains 20 points at night, loses a tenth of a point by day.
    insta::assert_snapshot!(judged([400, 130, 30, 40], [9_000, 95, 105, 800]), @r"
    The candidate passes.
      new, night: 71.67% before, 88.33% now on 600 examples, +16.67 points (between +13.41 and +20.00; above +0.00 is required, p = 2e-16)
      old, day: 91.05% before, 90.95% now on 10000 examples, -0.10 points (between -0.33 and +0.13; above -1.00 is required, p = 2e-9)
    ");
    // The same gain, and 3 points lost by day.
    insta::assert_snapshot!(judged([400, 130, 30, 40], [1_700, 20, 80, 200]), @r"
    The candidate is refused.
      2000 examples of day show a loss beyond the margin.
      new, night: 71.67% before, 88.33% now on 600 examples, +16.67 points (between +13.41 and +20.00; above +0.00 is required, p = 2e-16)
      old, day: 89.00% before, 86.00% now on 2000 examples, -3.00 points (between -3.86 and -2.21; above -1.00 is required, p = 1.000)
    ");
    // Few examples by day, and a small gain.
    insta::assert_snapshot!(judged([300, 20, 14, 66], [140, 1, 2, 57]), @r"
    The candidate is held.
      400 examples of night don't show a gain; about 1051 would show it, if the difference stays.
      200 examples of day don't show that the loss is within the margin; about 3321 would show it, if the difference stays.
      new, night: 78.50% before, 80.00% now on 400 examples, +1.50 points (between -0.93 and +4.01; above +0.00 is required, p = 0.196)
      old, day: 71.00% before, 70.50% now on 200 examples, -0.50 points (between -2.54 and +1.32; above -1.00 is required, p = 0.297)
    ");
    insta::assert_snapshot!(judged([30, 9, 0, 1], [0; 4]), @r"
    The candidate is held.
      night has 40 examples of the 100 that are needed.
      day has 0 examples of the 200 that are needed.
      new, night: 75.00% before, 97.50% now on 40 examples, +22.50 points (between +13.59 and +34.90; above +0.00 is required, p = 0.002)
      old, day: 0.00% before, 0.00% now on 0 examples, +0.00 points (between -100.00 and +100.00; above -1.00 is required, p = 1.000)
    ");
}

#[test]
fn no_data_never_passes() {
    let policy = lenient();
    let good = domain("night", [500, 100, 0, 0]);
    let decision = policy.judge(&good, &[]).unwrap();
    assert_eq!(decision.verdict, Verdict::Hold(vec![Reason::NoOldDomain]));
    let empty = domain("day", [0; 4]);
    for (new, old) in [(&good, &empty), (&empty, &good), (&empty, &empty)] {
        let decision = policy.judge(new, std::slice::from_ref(old)).unwrap();
        assert!(matches!(decision.verdict, Verdict::Hold(_)), "{decision}");
    }
    let nothing = Domain { name: "x".to_owned(), evidence: Evidence::Losses(Losses::default()) };
    let decision = policy.judge(&nothing, std::slice::from_ref(&nothing)).unwrap();
    assert!(matches!(decision.verdict, Verdict::Hold(_)), "{decision}");
    // What is written comes back, nothing's infinite bounds included.
    let written = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<Decision>(&written).unwrap(), decision);
}

/// Whatever is counted: no verdict contradicts its numbers, and no candidate
/// passes that is worse.
#[test]
fn verdicts_follow_their_numbers() {
    let mut random = Random::new(8);
    let mut passed = 0;
    for _ in 0..3_000 {
        let mut draw = |most: usize| random.below(most) as u32;
        let new = [draw(400), draw(60), draw(40), draw(300)];
        let old = [draw(3_000), draw(20), draw(20), draw(900)];
        let decision = judged(new, old);
        for finding in decision.losses.iter().chain([&decision.gain]) {
            assert!(finding.low <= finding.better + 1e-9 && finding.better <= finding.high + 1e-9, "{decision}");
            assert!((0.0..=1.0).contains(&finding.p));
        }
        let enough = answers(new).n() >= 100 && answers(old).n() >= 200;
        let shown = decision.gain.low > 0.0 && decision.losses[0].low > -0.01;
        assert_eq!(decision.passed(), enough && shown, "{decision}");
        if decision.passed() {
            passed += 1;
            assert!(new[1] > new[2] && decision.gain.p <= 0.05);
        }
    }
    assert!(passed > 300, "{passed}");
}

#[test]
fn more_examples_are_asked_for_and_suffice() {
    // Twelve more than lost among 100: shown with `enough` of the same kind.
    let Verdict::Hold(reasons) = judged([300, 22, 14, 64], [9_800, 100, 100, 0]).verdict else { panic!() };
    let [Reason::GainNotShown { enough: Some(enough), .. }] = reasons[..] else { panic!("{reasons:?}") };
    let times = enough as f64 / 400.0 * 1.2;
    let scaled = [300.0, 22.0, 14.0, 64.0].map(|k: f64| (k * times).round() as u32);
    assert!(judged(scaled, [9_800, 100, 100, 0]).passed(), "{enough}");
    // At the end of patience it is refused.
    let impatient = Policy { examples_max: 400, ..Policy::default() };
    let decision =
        impatient.judge(&domain("night", [300, 22, 14, 64]), &[domain("day", [9_800, 100, 100, 0])]).unwrap();
    assert!(matches!(decision.verdict, Verdict::Refuse(_)));
    // Looking five times takes more evidence each time.
    let five = Policy { looks: 5, ..Policy::default() };
    let once = judged([300, 30, 14, 56], [9_800, 100, 100, 0]);
    let often = five.judge(&domain("night", [300, 30, 14, 56]), &[domain("day", [9_800, 100, 100, 0])]).unwrap();
    assert!(once.passed() && !often.passed());
    assert!(often.gain.low <= once.gain.low);
}

#[test]
fn bad_input_is_refused() {
    assert_eq!(Answers::of(&[true], &[]), Err(GateError::Unpaired { old: 1, new: 0 }));
    assert_eq!(Losses::of(&[1.0], &[f64::NAN]), Err(GateError::Loss(0)));
    assert_eq!(Losses::of(&[1.0, 2.0], &[1.0]), Err(GateError::Unpaired { old: 2, new: 1 }));
    assert!(Losses::of(&[1e300], &[0.0]).is_err());
    let one = domain("x", [1; 4]);
    assert!(matches!(lenient().judge(&one, &vec![one.clone(); 65]), Err(GateError::Domains(65))));
    for policy in [
        Policy { alpha: 0.0, ..lenient() },
        Policy { alpha: 0.5, ..lenient() },
        Policy { alpha: f64::NAN, ..lenient() },
        Policy { margin: -0.1, ..lenient() },
        Policy { loss_margin: f64::INFINITY, ..lenient() },
        Policy { gain_min: 2.0, ..lenient() },
        Policy { looks: 0, ..lenient() },
        Policy { new_examples_min: 0, ..lenient() },
    ] {
        assert!(policy.judge(&one, std::slice::from_ref(&one)).is_err(), "{policy:?}");
    }
    let hostile = r#"{"name":"x","evidence":{"losses":{"n":5,"old":1e300,"better":0,"squares":1}}}"#;
    assert!(serde_json::from_str::<Domain>(hostile).is_err());
    let hostile = r#"{"name":"x","evidence":{"answers":{"both":-1,"only_new":0,"only_old":0,"neither":0}}}"#;
    assert!(serde_json::from_str::<Domain>(hostile).is_err());
    // The most that can be counted.
    let most = domain("x", [u32::MAX; 4]);
    let decision = lenient().judge(&most, std::slice::from_ref(&most)).unwrap();
    assert!(matches!(decision.verdict, Verdict::Refuse(_)), "{decision}");
}
