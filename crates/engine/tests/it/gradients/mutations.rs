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

/// Every kind of random model, its attributes emptied, left out, turned into
/// numbers that make no sense, its axes of size zero or unknown.
#[test]
fn damaged_operators_are_refused_or_differentiated() {
    let mut rng = Rng::with_seed(11);
    let mut made = 0;
    for round in 0..3 {
        for (_, model) in super::cases::random(round) {
            let mut proto = model.proto().clone();
            let graph = proto.graph.as_mut().unwrap();
            for _ in 0..rng.usize(1..3) {
                twist(graph, &mut rng);
            }
            let Ok(damaged) = Model::from_proto(proto) else { continue };
            let float = |v: &tierline_graph::ValueInfo| v.dtype.is_some_and(|d| d.is_float());
            let inputs: Vec<String> = damaged.inputs().into_iter().filter(float).map(|v| v.name).collect();
            let wanted: Vec<&str> = inputs.iter().map(String::as_str).collect();
            made += usize::from(tierline_graph::gradient::backward(&damaged, &["y"], &wanted).is_ok());
        }
    }
    assert!(made > 100, "damage leaves some models whole: {made}");
}

fn number(rng: &mut Rng) -> i64 {
    [0, 1, -1, 2, 3, 7, -9, i64::MAX, i64::MIN, 1 << 40, 1 << 20, i64::from(i32::MAX)][rng.usize(0..12)]
}

fn twist(graph: &mut tierline_graph::onnx::GraphProto, rng: &mut Rng) {
    let attributes = &mut graph.node[0].attribute;
    match rng.u8(0..6) {
        0 if !attributes.is_empty() => {
            let which = rng.usize(0..attributes.len());
            match rng.u8(0..4) {
                0 => drop(attributes.remove(which)),
                1 => attributes[which].ints.clear(),
                2 => {
                    attributes[which].ints.push(number(rng));
                }
                _ => attributes[which].s = Some("nonsense".to_owned().into_bytes().into()),
            }
        }
        1 | 2 if !attributes.is_empty() => {
            let which = rng.usize(0..attributes.len());
            let attribute = &mut attributes[which];
            attribute.i = attribute.i.map(|_| number(rng));
            if !attribute.ints.is_empty() {
                let at = rng.usize(0..attribute.ints.len());
                attribute.ints[at] = number(rng);
            }
        }
        3 if !graph.initializer.is_empty() => {
            // Axes, pads, sizes, places.
            let which = rng.usize(0..graph.initializer.len());
            let tensor = &mut graph.initializer[which];
            if let (7, Some(raw)) = (tensor.data_type(), &tensor.raw_data) {
                let mut bytes = raw.to_vec();
                let numbers = bytes.len() / 8;
                if numbers > 0 {
                    let at = 8 * rng.usize(0..numbers);
                    bytes[at..at + 8].copy_from_slice(&number(rng).to_le_bytes());
                }
                tensor.raw_data = Some(bytes.into());
            }
        }
        4 => {
            let which = rng.usize(0..graph.input.len());
            let kind = graph.input[which].type_.as_mut().unwrap().mut_tensor_type();
            let dims = &mut kind.shape.mut_or_insert_default().dim;
            if !dims.is_empty() {
                let at = rng.usize(0..dims.len());
                match rng.u8(0..4) {
                    0 => dims[at].set_dim_param("other".into()),
                    1 => dims[at].set_dim_value(1),
                    2 => dims[at].set_dim_value(1 << 40),
                    _ => dims[at].set_dim_value(0),
                }
            }
        }
        _ => {
            let which = rng.usize(0..graph.input.len());
            graph.input[which].type_.as_mut().unwrap().mut_tensor_type().shape = None.into();
        }
    }
}

fn damage(graph: &mut tierline_graph::onnx::GraphProto, rng: &mut Rng) {
    let at = rng.usize(0..graph.node.len());
    let others: Vec<String> = graph.node.iter().flat_map(|n| n.output.clone()).collect();
    let kinds: Vec<String> = graph.node.iter().map(|n| n.op_type().to_owned()).collect();
    let node = &mut graph.node[at];
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
