//! What people read about a plan.

use tierline_plan::request::Exit;
use tierline_plan::{Explanation, LinkCondition, Measured, explain, plan};

use crate::support::by_hand;

fn fast() -> [LinkCondition; 2] {
    [LinkCondition::symmetric(2.5e6, 5_000_000), LinkCondition::symmetric(1e6, 20_000_000)]
}

#[test]
fn readable_with_and_without_measurements() {
    let mut request = by_hand();
    request.limits.private_segments = 1;
    let plan = plan(&request, &fast()).unwrap();
    let predicted = explain(&request, &plan, None);
    let measured = Measured {
        stage_ns: [("camera".to_owned(), 112e6), ("gateway".to_owned(), 30e6)].into(),
        link_ns: [("camera".to_owned(), 90e6)].into(),
        latency_ns: Some(240e6),
    };
    let compared = explain(&request, &plan, Some(&measured));
    insta::assert_snapshot!(format!("{predicted}\n\n{compared}"));
    let back: Explanation = serde_json::from_str(&serde_json::to_string(&compared).unwrap()).unwrap();
    assert_eq!(back, compared);
}

#[test]
fn an_exit_is_worth_what_the_best_plan_without_it_takes_more() {
    let mut request = by_hand();
    let head_ns = vec![1_000_000; request.tiers.len()];
    request.exits = vec![
        Exit { number: 1, segment: 0, go_on: 0.4, head_ns: head_ns.clone() },
        Exit { number: 2, segment: 1, go_on: 0.5, head_ns },
    ];
    let chosen = plan(&request, &fast()).unwrap();
    let explanation = explain(&request, &chosen, None).with_exits(&request, &chosen, &fast(), None);
    let [first, second] = &explanation.exits[..] else { panic!("two exits") };
    assert!((first.leave - 0.6).abs() < 1e-12 && (second.reach - 0.4).abs() < 1e-12);
    assert!((second.leave - 0.2).abs() < 1e-12);
    for (at, exit) in explanation.exits.iter().enumerate() {
        let mut others = request.clone();
        others.exits.remove(at);
        let without = plan(&others, &fast()).unwrap().objective_value;
        assert_eq!(exit.without, Some(without));
        assert!((exit.worth.unwrap() - (without / chosen.objective_value - 1.0)).abs() < 1e-12);
    }
    insta::assert_snapshot!(explanation);
}

#[test]
fn the_numbers_are_the_plans() {
    let request = by_hand();
    let plan = plan(&request, &fast()).unwrap();
    let explanation = explain(&request, &plan, None);
    let steps: f64 = explanation.steps.iter().map(|s| s.predicted_ns).sum();
    assert!((steps - explanation.predicted_ns).abs() < 1.0, "steps add up to the whole");
    assert_eq!(explanation.gap, 0.0);
    assert!(explanation.binding.is_none());
    let runner_up = explanation.runner_up.unwrap();
    assert!(runner_up.more >= 0.0 && runner_up.objective_value >= explanation.objective_value);
    let most = explanation.steps.iter().map(|s| s.predicted_ns).fold(0.0, f64::max);
    assert_eq!(explanation.steps.iter().find(|s| s.name == explanation.slowest).unwrap().predicted_ns, most);
}

#[test]
fn each_limit_is_named_when_it_binds() {
    type Change = fn(&mut tierline_plan::PlanRequest);
    let cases: [(&str, Change); 4] = [
        ("memory", |r| r.tiers[1].memory_max = 10),
        ("privacy", |r| r.limits.private_tensors = vec!["stem".into()]),
        ("loss", |r| r.limits.max_loss = 0.0),
        ("deadline", |r| {
            r.objective = tierline_plan::Objective::Energy;
            r.tiers[0].watts = 0.001;
            r.limits.deadline_ns = Some(350_000_000);
        }),
    ];
    let text = cases.map(|(name, change)| {
        let mut request = by_hand();
        change(&mut request);
        let plan = plan(&request, &fast()).unwrap();
        let binding = explain(&request, &plan, None).binding;
        format!(
            "{name}: {}",
            binding.map_or("does not bind".into(), |b| format!("{} ({})", b.reason, b.refused.placement))
        )
    });
    insta::assert_snapshot!(text.join("\n"));
}
