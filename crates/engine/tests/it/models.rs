//! A real model on every engine.

use tierline_engine::LoadOptions;
use tierline_graph::Model;

use crate::support::{asset, engines, f32s};

#[test]
fn text_detection_agrees_between_engines() {
    let Some(path) = asset("models/ppocr-det.onnx") else { return };
    let model = Model::load(&path).unwrap();
    let side = 96;
    let x =
        f32s(&[1, 3, side, side], &(0..3 * side * side).map(|i| ((i % 977) as f32 / 488.) - 1.).collect::<Vec<_>>());
    let name = model.inputs()[0].name.clone();
    let made: Vec<_> = engines()
        .iter()
        .map(|e| e.load(&model, &LoadOptions::default()).unwrap().run(&[(&name, &x)]).unwrap().remove(0))
        .collect();
    for other in &made {
        assert_eq!(other.shape(), [1, 1, side, side]);
        let worst = made[0]
            .as_f32()
            .unwrap()
            .iter()
            .zip(other.as_f32().unwrap())
            .map(|(a, b)| (a - b).abs())
            .fold(0., f32::max);
        assert!(worst < 1e-4, "{worst}");
    }
}
