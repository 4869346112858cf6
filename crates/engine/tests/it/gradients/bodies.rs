//! What a branch or a body reads of the graph around it: the gradient of If,
//! refusals of loops, and weights that aren't trained, told of.

use tierline_engine::LoadOptions;
use tierline_graph::emit::{Attribute, node};
use tierline_graph::fold::{Evaluate, Purpose, fold_for};
use tierline_graph::gradient::backward;
use tierline_graph::onnx::{GraphProto, NodeProto};
use tierline_graph::step::{Loss, Recipe, Role, StepError, trainable};
use tierline_graph::{DataType, Elements, Model, Tensor};

use super::cases::{Case, value, whole};
use crate::support::{engines, f32s};

fn body(nodes: Vec<NodeProto>, inputs: &[(&str, DataType)], outputs: &[(&str, DataType)]) -> GraphProto {
    GraphProto {
        name: Some("body".into()),
        node: nodes,
        input: inputs.iter().map(|(name, dtype)| value(name, *dtype, None)).collect(),
        output: outputs.iter().map(|(name, dtype)| value(name, *dtype, None)).collect(),
        ..GraphProto::default()
    }
}

fn branches(then: Vec<NodeProto>, other: Vec<NodeProto>) -> Vec<(&'static str, Attribute)> {
    let made = [("o", DataType::F32)];
    vec![
        ("then_branch", Attribute::Graph(body(then, &[], &made))),
        ("else_branch", Attribute::Graph(body(other, &[], &made))),
    ]
}

/// `y = a + (c ? a * a : (c ? a : -w))` with `a = x w`.
fn branching() -> Model {
    let inner = branches(vec![node("Identity", &["a"], &["o2"], &[])], vec![node("Neg", &["w"], &["o2"], &[])]);
    let inner: Vec<_> = inner
        .into_iter()
        .map(|(name, graph)| {
            let Attribute::Graph(mut graph) = graph else { unreachable!("branches are graphs") };
            graph.output = vec![value("o2", DataType::F32, None)];
            (name, Attribute::Graph(graph))
        })
        .collect();
    let other = vec![node("If", &["c"], &["n"], &inner), node("Identity", &["n"], &["o"], &[])];
    let graph = GraphProto {
        name: Some("branching".into()),
        input: vec![
            value("x", DataType::F32, Some("2 2")),
            value("w", DataType::F32, Some("2 2")),
            value("c", DataType::Bool, Some("")),
        ],
        node: vec![
            node("MatMul", &["x", "w"], &["a"], &[]),
            node("If", &["c"], &["b"], &branches(vec![node("Mul", &["a", "a"], &["o"], &[])], other)),
            node("Add", &["a", "b"], &["y"], &[]),
        ],
        output: vec![value("y", DataType::F32, None)],
        ..GraphProto::default()
    };
    whole(18, graph)
}

#[test]
fn branches_have_the_gradients_of_what_they_read() {
    let made = backward(&branching(), &["y"], &["w"]).unwrap();
    let x = f32s(&[2, 2], &[1.0, 2.0, 0.5, -1.0]);
    let w = f32s(&[2, 2], &[0.5, 0.0, -1.0, 2.0]);
    let dy = f32s(&[2, 2], &[1.0, 1.0, 1.0, 1.0]);
    // a = [[-1.5, 4], [1.25, -2]]; dw = x' (1 + 2 a), or x' 1 - 1.
    let expected = [(1, [-0.25, 7.5, -7.5, 21.0]), (0, [0.5, 0.5, 0.0, 0.0])];
    for engine in engines() {
        for (condition, expected) in expected {
            let c = Tensor::new([], Elements::Bool(vec![condition])).unwrap();
            let given = [("x", &x), ("w", &w), ("c", &c), (made.upstream[0].1.as_str(), &dy)];
            let found = engine
                .load(&made.model, &LoadOptions::with_threads(1))
                .and_then(|mut session| session.run(&given))
                .unwrap_or_else(|e| panic!("{}: {e}", engine.name()));
            assert_eq!(found[1], f32s(&[2, 2], &expected), "{} {condition}", engine.name());
        }
    }
}

fn error(model: &Model) -> String {
    trainable(model, &Recipe { loss: Loss::Mse, ..Recipe::default() }).expect_err("it is refused").to_string()
}

/// A loop whose body reads a weight of the graph around it.
fn looped() -> Model {
    let inside = body(
        vec![node("Identity", &["go"], &["on"], &[]), node("MatMul", &["h", "w"], &["next"], &[])],
        &[("i", DataType::I64), ("go", DataType::Bool), ("h", DataType::F32)],
        &[("on", DataType::Bool), ("next", DataType::F32)],
    );
    Case::new()
        .input("x", "batch 2")
        .floats("v", &[2, 2], &[1.0; 4])
        .floats("w", &[2, 2], &[1.0; 4])
        .numbers("times", &[], &[3])
        .through("MatMul", &["x", "v"], "a", vec![])
        .op_at(18, "Loop", &["times", "", "x"], 1, vec![("body", Attribute::Graph(inside))])
}

#[test]
fn loops_that_read_weights_are_refused_by_name() {
    let said = error(&looped());
    assert!(said.contains("operator `Loop`") && said.contains("its body reads `w`"), "{said}");
}

/// Both branches have a weight `v` of their own; trained, they are two.
#[test]
fn weights_within_branches_are_trained_once_folded() {
    let branch = |factor: f32| {
        let mut graph = body(vec![node("MatMul", &["a", "v"], &["o"], &[])], &[], &[("o", DataType::F32)]);
        graph.initializer.push(tierline_graph::constant::tensor_to_proto("v", &f32s(&[2, 2], &[factor; 4])));
        Attribute::Graph(graph)
    };
    let mut model = Case::new()
        .input("x", "batch 2")
        .floats("w", &[2, 2], &[1.0; 4])
        .flag("c")
        .through("MatMul", &["x", "w"], "a", vec![])
        .op_at(18, "If", &["c"], 1, vec![("then_branch", branch(1.0)), ("else_branch", branch(2.0))]);
    let mse = Recipe { loss: Loss::Mse, ..Recipe::default() };
    let told = trainable(&model, &mse).unwrap().spec.untrained;
    assert_eq!(told.iter().map(|u| u.weight.as_str()).collect::<Vec<_>>(), ["v", "v"]);
    struct Nobody;
    impl Evaluate for Nobody {
        fn evaluate(&mut self, _: &Model) -> Result<Vec<Tensor>, String> {
            Err("there is nothing to compute".into())
        }
    }
    fold_for(&mut model, &mut Nobody, Purpose::Training).unwrap();
    let step = trainable(&model, &mse).unwrap();
    let trained: Vec<&str> =
        step.spec.state.iter().filter(|s| s.role == Role::Parameter).map(|s| s.input.as_str()).collect();
    assert_eq!(trained, ["w", "v.1", "v.2"]);
    assert!(step.spec.untrained.is_empty(), "{:?}", step.spec.untrained);
    // Of the branch that isn't taken nothing changes.
    for engine in engines() {
        let (graph, state) = step.divided().unwrap();
        let c = Tensor::new([], Elements::Bool(vec![1])).unwrap();
        let (x, target) = (f32s(&[1, 2], &[1.0, 2.0]), f32s(&[1, 2], &[0.0, 0.0]));
        let mut given = vec![("x", &x), ("c", &c), ("target", &target)];
        given.extend(step.spec.state.iter().map(|s| s.input.as_str()).zip(&state));
        let mut session = engine.load(&graph, &LoadOptions::with_threads(1)).unwrap();
        let names: Vec<String> = session.outputs().iter().map(|o| o.name.clone()).collect();
        let made = session.run(&given).unwrap();
        let next = |name: &str| &made[names.iter().position(|n| n == name).unwrap()];
        // y = 6; dv = a' (2 / 2) y = 3 * 6.
        assert_eq!(*next("v.1.next"), f32s(&[2, 2], &[1.0 - 0.01 * 18.0; 4]), "{}", engine.name());
        assert_eq!(*next("v.2.next"), f32s(&[2, 2], &[2.0; 4]), "{}", engine.name());
    }
}

#[test]
fn normalisations_within_branches_are_refused() {
    let inputs = ["a", "scale", "bias", "mean", "variance"];
    let then = vec![node("BatchNormalization", &inputs, &["o"], &[])];
    let other = vec![node("Neg", &["a"], &["o"], &[])];
    let model = Case::new()
        .input("x", "batch 2")
        .flag("c")
        .floats("w", &[2, 2], &[1.0; 4])
        .floats("scale", &[2], &[1.0; 2])
        .floats("bias", &[2], &[0.0; 2])
        .floats("mean", &[2], &[0.0; 2])
        .floats("variance", &[2], &[1.0; 2])
        .through("MatMul", &["x", "w"], "a", vec![])
        .op_at(18, "If", &["c"], 1, branches(then, other));
    assert!(error(&model).contains("it can't keep running statistics; freeze `scale`"), "{}", error(&model));
    let frozen = Recipe { loss: Loss::Mse, freeze: vec!["scale".into(), "bias".into()], ..Recipe::default() };
    assert!(trainable(&model, &frozen).is_ok());
}

#[test]
fn integers_that_stand_for_trained_numbers_go_nowhere_else() {
    let quantised = || {
        Case::new()
            .input("x", "batch 2")
            .floats("w", &[2, 2], &[1.0; 4])
            .floats("s", &[], &[0.1])
            .through("MatMul", &["x", "w"], "a", vec![])
            .through("QuantizeLinear", &["a", "s"], "q", vec![])
    };
    let cast = quantised().op_at(18, "Cast", &["q"], 1, vec![("to", Attribute::Int(1))]);
    assert!(error(&cast).contains("it reads `q`, integers that stand for numbers which are trained"));
    let other = quantised().floats("t", &[], &[0.2]).op_at(18, "DequantizeLinear", &["q", "t"], 1, vec![]);
    assert!(error(&other).contains("another scale"), "{}", error(&other));
    let pair = quantised().op_at(18, "DequantizeLinear", &["q", "s"], 1, vec![]);
    let step = trainable(&pair, &Recipe { loss: Loss::Mse, ..Recipe::default() }).unwrap();
    assert_eq!(step.spec.state[0].input, "w");
}

#[test]
fn weights_that_are_not_trained_are_told_of() {
    let model = Case::new()
        .input("x", "batch 2")
        .floats("w", &[2, 2], &[1.0; 4])
        .floats("v", &[2, 2], &[1.0; 4])
        .floats("u", &[2, 2], &[1.0; 4])
        .through("MatMul", &["x", "w"], "a", vec![])
        .through("Round", &["a"], "r", vec![])
        .through("MatMul", &["x", "u"], "unused", vec![])
        .op_at(18, "MatMul", &["r", "v"], 1, vec![]);
    let step = trainable(&model, &Recipe { loss: Loss::Mse, ..Recipe::default() }).unwrap();
    let said: Vec<String> = step.spec.untrained.iter().map(|u| format!("{}: {}", u.weight, u.reason)).collect();
    assert_eq!(said, ["w: nothing flows back through Round `Round:r`", "u: the loss doesn't depend on it"]);
    // The file says it, too.
    assert_eq!(tierline_graph::step::Step::read(step.model.clone()).unwrap().spec, step.spec);
    let frozen = Recipe { loss: Loss::Mse, freeze: vec!["w".into(), "u".into()], ..Recipe::default() };
    assert!(trainable(&model, &frozen).unwrap().spec.untrained.is_empty());
    let only = Case::new().input("x", "batch 2").floats("w", &[2, 2], &[1.0; 4]);
    let only = only.through("MatMul", &["x", "w"], "a", vec![]).op_at(18, "Floor", &["a"], 1, vec![]);
    let refused = trainable(&only, &Recipe { loss: Loss::Mse, ..Recipe::default() });
    assert!(matches!(&refused, Err(StepError::NoParameters { reason }) if reason.contains("Floor")), "{refused:?}");
}
