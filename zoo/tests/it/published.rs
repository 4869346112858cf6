//! Parameters and multiply-adds against the published figures.

use std::collections::BTreeMap;

use tierline_graph::{cost, infer_types_with};
use tierline_zoo::{Bn, Options, by_name};

/// Name, published parameters, published multiply-adds.
///
/// Sources: LeNet-5, perceptron and LSTM by hand; torchvision's tables for
/// MobileNetV2 and the ResNets; timm's for ViT-tiny; MiniLM-L6's model card
/// for the encoder (22.7 M with the pooler of 0.15 M that we leave out), its
/// multiply-adds at 128 tokens by hand: 6 * (4 * 384^2 + 2 * 384 * 1536 + 2 *
/// 128 * 384) * 128.
const PUBLISHED: &[(&str, u64, u64)] = &[
    ("mlp", 101_770, 101_632),
    ("lenet", 61_706, 416_520),
    ("mobilenet_v2", 3_504_872, 300_774_272),
    ("resnet18", 11_689_512, 1_814_073_344),
    ("resnet50", 25_557_032, 4_089_184_256),
    ("vit_tiny", 5_717_416, 1_258_000_000),
    ("minilm", 22_565_376, 1_434_451_968),
];

/// Folding a normalisation leaves one number per channel where there were
/// two; activations and scalings bring a few scalars along.
const TOLERANCE: f64 = 0.01;

#[test]
fn sizes_are_the_published_ones() {
    for &(name, parameters, macs) in PUBLISHED {
        let model = by_name(name, &Options::default()).unwrap();
        let shapes: BTreeMap<_, _> = match name {
            "minilm" => model.inputs().into_iter().map(|i| (i.name, vec![1, 128])).collect(),
            _ => BTreeMap::new(),
        };
        let types = infer_types_with(&model, &shapes).unwrap();
        let counted = cost::total_macs(&cost::cost(&model, &types)).expect("every shape is known");
        for (what, counted, published) in
            [("parameters", cost::parameters(&model), parameters), ("macs", counted, macs)]
        {
            let off = (counted as f64 / published as f64 - 1.0).abs();
            assert!(off <= TOLERANCE, "{name}: {counted} {what}, published {published}");
        }
    }
}

#[test]
fn normalisation_is_kept_on_request() {
    let count = |bn| {
        let model = by_name("resnet18", &Options { bn, ..Options::default() }).unwrap();
        model.graph().node.iter().filter(|n| n.op_type() == "BatchNormalization").count()
    };
    assert_eq!((count(Bn::Folded), count(Bn::Kept)), (0, 20));
}

#[test]
fn the_seed_decides_the_weights() {
    let bytes = |seed| by_name("lenet", &Options { seed, ..Options::default() }).unwrap().to_bytes().unwrap();
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}
