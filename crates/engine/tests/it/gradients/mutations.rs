//! Damaged models, differentiated: an error or a step, never a panic.

use fastrand::Rng;
use tierline_graph::Model;
use tierline_graph::step::{Loss, Recipe, trainable};
use tierline_zoo::{Batch, Bn, Options};

/// Damages per network.
const ROUNDS: usize = 150;

#[test]
fn damaged_models_are_refused_or_differentiated() {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: Some(32), seed: 1 };
    let mut rng = Rng::with_seed(7);
    let mut steps = 0;
    for name in ["lenet", "lstm", "unet_small", "text_classifier"] {
        let model = tierline_zoo::by_name(name, &options).unwrap();
        for _ in 0..ROUNDS {
            let mut proto = model.proto().clone();
            let graph = proto.graph.as_mut().unwrap();
            for _ in 0..rng.usize(1..4) {
                damage(graph, &mut rng);
            }
            let Ok(damaged) = Model::from_proto(proto) else { continue };
            let loss = if rng.bool() { Recipe::default().loss } else { Loss::Mse };
            steps += usize::from(trainable(&damaged, &Recipe { loss, ..Recipe::default() }).is_ok());
        }
    }
    assert!(steps > 0, "damage leaves some models whole");
}

fn damage(graph: &mut tierline_graph::onnx::GraphProto, rng: &mut Rng) {
    let at = rng.usize(0..graph.node.len());
    let others: Vec<String> = graph.node.iter().flat_map(|n| n.output.clone()).collect();
    let kinds: Vec<String> = graph.node.iter().map(|n| n.op_type().to_owned()).collect();
    let node = &mut graph.node[at];
    let number = |rng: &mut Rng| [0, 1, -1, 2, 3, 7, -9, i64::MAX, i64::MIN, 1 << 40][rng.usize(0..10)];
    match rng.u8(0..6) {
        0 if !node.attribute.is_empty() => {
            let which = rng.usize(0..node.attribute.len());
            let attribute = &mut node.attribute[which];
            attribute.i = attribute.i.map(|_| number(rng));
            for value in &mut attribute.ints {
                *value = number(rng);
            }
        }
        1 if !node.attribute.is_empty() => drop(node.attribute.remove(rng.usize(0..node.attribute.len()))),
        2 if !node.input.is_empty() => {
            let which = rng.usize(0..node.input.len());
            node.input[which] = others[rng.usize(0..others.len())].clone();
        }
        3 => node.op_type = Some(kinds[rng.usize(0..kinds.len())].clone()),
        4 if !node.input.is_empty() => node.input.truncate(rng.usize(0..node.input.len())),
        _ => {
            let which = rng.usize(0..graph.initializer.len());
            let tensor = &mut graph.initializer[which];
            if let Some(size) = tensor.dims.first_mut() {
                *size = number(rng);
            }
        }
    }
}
