//! Combining, cropping and judging, against `reference.json`.

use serde_json::Value;
use tierline_graph::exits::{Criterion, Scores};
use tierline_graph::{DataType, Elements, Tensor};
use tierline_plan::exits::Reading;
use tierline_plan::service::combine::{Voice, combine};
use tierline_plan::service::crops::join;
use tierline_plan::service::judge::pictures;
use tierline_plan::service::{Boxes, Combine, Crops, Member, Quality, Service};

fn reference(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("reference.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect()
}

fn tensor(value: &Value) -> Tensor {
    let shape: Vec<usize> = floats(&value["shape"]).iter().map(|n| *n as usize).collect();
    Tensor::new(shape, Elements::F32(floats(&value["values"]).iter().map(|v| *v as f32).collect())).unwrap()
}

#[track_caller]
fn close(got: &Tensor, wanted: &Value, within: f64) {
    let wanted = tensor(wanted);
    assert_eq!(got.shape(), wanted.shape());
    let pairs = got.as_f32().unwrap().iter().zip(wanted.as_f32().unwrap());
    let apart = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(apart <= within, "{apart} apart");
}

#[test]
fn answers_are_combined_as_numpy_does() {
    for case in reference("combined") {
        let answers: Vec<Tensor> = case["answers"].as_array().unwrap().iter().map(tensor).collect();
        let weights = floats(&case["weights"]);
        let reading = Reading { axis: case["axis"].as_i64().unwrap(), scores: Scores::Logits };
        let voices: Vec<Voice<'_>> = answers
            .iter()
            .zip(&weights)
            .map(|(answer, weight)| Voice { name: "m", answer, reading, weight: *weight })
            .collect();
        for (how, word) in [(Combine::Mean, "mean"), (Combine::Vote, "vote"), (Combine::Values, "values")] {
            close(&combine(&voices, how).unwrap(), &case["wanted"][word], 1e-6);
        }
    }
}

#[test]
fn what_is_no_distribution_makes_no_answer() {
    let reading = Reading { axis: -1, scores: Scores::Logits };
    let good = Tensor::new([2, 2], Elements::F32(vec![0.0, 0.0, 0.0, 0.0])).unwrap();
    let bad = Tensor::new([2, 2], Elements::F32(vec![f32::NAN, 0.0, 0.0, 0.0])).unwrap();
    let voice = |answer| Voice { name: "m", answer, reading, weight: 1.0 };
    let mean = combine(&[voice(&good), voice(&bad)], Combine::Mean).unwrap();
    let [a, b, c, d] = mean.as_f32().unwrap() else { panic!("four") };
    assert!(a.is_nan() && b.is_nan() && [c, d] == [&0.5, &0.5]);
    let other = Tensor::new([2, 3], Elements::F32(vec![0.0; 6])).unwrap();
    let error = combine(&[voice(&good), voice(&other)], Combine::Mean).unwrap_err();
    assert_eq!(error.to_string(), "`m` has shape [2, 3]; it must be [2, 2], as that of `m`");
    let words = Tensor::new([2, 2], Elements::I64(vec![0; 4])).unwrap();
    assert!(combine(&[voice(&words)], Combine::Mean).is_err());
    assert!(combine(&[], Combine::Mean).is_err());
}

fn crops(size: [usize; 2]) -> Crops {
    Crops {
        of: "detector".into(),
        boxes: "boxes".into(),
        format: Boxes::Xyxy,
        relative: false,
        scores: None,
        score_min: 0.0,
        boxes_max: 64,
        image: "image".into(),
        input: "x".into(),
        size,
        scale: 1.0,
        mean: Vec::new(),
        std: Vec::new(),
        batch_max: 8,
    }
}

#[test]
fn crops_are_those_of_roi_align() {
    for case in reference("crops") {
        let (picture, boxes) = (tensor(&case["picture"]), tensor(&case["boxes"]));
        let size = floats(&case["size"]);
        let plain = crops([size[0] as usize, size[1] as usize]);
        let chosen = plain.choose(&[("boxes".to_owned(), boxes.clone())], &picture).unwrap();
        assert_eq!(chosen.places, (0..boxes.shape()[0]).collect::<Vec<_>>());
        close(&plain.cut(&picture, &chosen.boxes, DataType::F32).unwrap(), &case["plain"], 1e-3);
        let normal = Crops { scale: 1.0 / 255.0, mean: floats(&case["mean"]), std: floats(&case["std"]), ..plain };
        close(&normal.cut(&picture, &chosen.boxes, DataType::F32).unwrap(), &case["normal"], 1e-5);
    }
}

#[test]
fn a_crop_of_everything_at_its_own_size_is_the_picture() {
    let values: Vec<u8> = (0..2 * 3 * 4).collect();
    let picture = Tensor::new([1, 2, 3, 4], Elements::U8(values.clone())).unwrap();
    let cut = crops([3, 4]).cut(&picture, &[[0.0, 0.0, 4.0, 3.0]], DataType::U8).unwrap();
    assert_eq!(cut.elements(), &Elements::U8(values));
    assert!(crops([3, 4]).cut(&picture, &[[0.0, 0.0, 4.0, 3.0]], DataType::I64).is_err());
    let many = Crops { mean: vec![0.0; 3], ..crops([3, 4]) };
    let error = many.cut(&picture, &[[0.0, 0.0, 4.0, 3.0]], DataType::F32).unwrap_err().to_string();
    assert!(error.contains("as many channels as `mean` has numbers, 3"), "{error}");
    let huge = vec![[0.0, 0.0, 4.0, 3.0]; 64];
    assert!(crops([4_096, 4_096]).cut(&picture, &huge, DataType::F32).unwrap_err().to_string().contains("more than"));
}

#[test]
fn boxes_are_chosen_by_score_and_within_the_picture() {
    let picture = Tensor::new([1, 1, 10, 20], Elements::F32(vec![0.0; 200])).unwrap();
    let rows: [[f32; 4]; 6] = [
        [-5.0, -5.0, 5.0, 5.0],
        [0.0, 0.0, 30.0, 30.0],
        [2.0, 2.0, 2.5, 8.0],
        [f32::NAN, 0.0, 5.0, 5.0],
        [25.0, 0.0, 30.0, 5.0],
        [1.0, 1.0, 4.0, 4.0],
    ];
    let boxes = Tensor::new([1, 6, 4], Elements::F32(rows.concat())).unwrap();
    let scores = Tensor::new([6], Elements::F32(vec![0.5, 0.9, 0.9, 0.9, 0.9, 0.9])).unwrap();
    let outputs = [("boxes".to_owned(), boxes), ("scores".to_owned(), scores)];
    let by_score = Crops { scores: Some("scores".into()), ..crops([2, 2]) };
    let chosen = by_score.choose(&outputs, &picture).unwrap();
    // Too narrow, no number, outside: not looked at. Of equal scores the first goes first.
    assert_eq!(chosen.places, [1, 5, 0]);
    assert_eq!(chosen.boxes, [[0.0, 0.0, 20.0, 10.0], [1.0, 1.0, 4.0, 4.0], [0.0, 0.0, 5.0, 5.0]]);
    let few = Crops { score_min: 0.6, boxes_max: 1, ..by_score.clone() };
    assert_eq!(few.choose(&outputs, &picture).unwrap().places, [1]);
    assert_eq!((chosen.batches(2), chosen.batch(1, 2)), (2, 2..3));

    // The same box in every form.
    for (format, relative, numbers) in [
        (Boxes::Xyxy, false, [4.0, 2.0, 10.0, 6.0]),
        (Boxes::Xywh, false, [4.0, 2.0, 6.0, 4.0]),
        (Boxes::Cxcywh, false, [7.0, 4.0, 6.0, 4.0]),
        (Boxes::Yxyx, false, [2.0, 4.0, 6.0, 10.0]),
        (Boxes::Xyxy, true, [0.2, 0.2, 0.5, 0.6]),
    ] {
        let one = Tensor::new([1, 4], Elements::F64(numbers.to_vec())).unwrap();
        let form = Crops { format, relative, ..crops([2, 2]) };
        let chosen = form.choose(&[("boxes".to_owned(), one)], &picture).unwrap();
        let apart = chosen.boxes[0].iter().zip([4.0, 2.0, 10.0, 6.0]).map(|(a, b): (&f64, f64)| (a - b).abs());
        assert!(apart.fold(0.0, f64::max) < 1e-9, "{format:?}");
    }
    let wrong = Tensor::new([2, 3], Elements::F32(vec![0.0; 6])).unwrap();
    let error = crops([2, 2]).choose(&[("boxes".to_owned(), wrong)], &picture).unwrap_err().to_string();
    assert_eq!(error, "`boxes` has shape [2, 3]; it must be [n, 4] or [1, n, 4]");
    let error = by_score.choose(&outputs[..1], &picture).unwrap_err().to_string();
    assert_eq!(error, "there is no `scores`; there are `boxes`");
}

#[test]
fn batches_are_put_together_again() {
    let part = |rows: usize| {
        vec![("y".to_owned(), Tensor::new([rows, 2], Elements::I64(vec![rows as i64; rows * 2])).unwrap())]
    };
    let joined = join(&[part(2), part(1)], &[]).unwrap();
    assert_eq!(joined[0].1, Tensor::new([3, 2], Elements::I64(vec![2, 2, 2, 2, 1, 1])).unwrap());
    let none = join(&[], &[("y".to_owned(), DataType::I64, vec![2])]).unwrap();
    assert_eq!(none[0].1.shape(), [0, 2]);
    let other = vec![("y".to_owned(), Tensor::new([1, 3], Elements::I64(vec![0; 3])).unwrap())];
    assert!(join(&[part(2), other], &[]).is_err());
}

#[test]
fn pictures_are_measured_as_numpy_does() {
    for case in reference("pictures") {
        let found = pictures("x", &tensor(&case["pictures"]), case["white"].as_f64().unwrap()).unwrap();
        let wanted = floats(&case["sharpness"]).into_iter().zip(floats(&case["brightness"]));
        for (found, (sharpness, brightness)) in found.iter().zip(wanted) {
            let apart = (found.sharpness - sharpness).abs().max((found.brightness - brightness).abs());
            assert!(apart < 1e-9, "{found:?} {sharpness} {brightness}");
        }
    }
    let flat = |value: f32| [("x".to_owned(), Tensor::new([1, 1, 4, 4], Elements::F32(vec![value; 16])).unwrap())];
    let quality = |blur, dark, bright| Quality {
        input: "x".into(),
        blur_min: blur,
        dark_max: dark,
        bright_min: bright,
        white: 1.0,
    };
    let poor = |quality: Quality, value| quality.poor(&flat(value)).unwrap();
    assert_eq!(poor(quality(Some(0.01), None, None), 0.5), Some("blurred"));
    assert_eq!(poor(quality(None, Some(0.2), None), 0.1), Some("too dark"));
    assert_eq!(poor(quality(None, None, Some(0.8)), 0.9), Some("too bright"));
    assert_eq!(poor(quality(None, Some(0.2), Some(0.8)), 0.5), None);
    assert!(quality(None, None, None).poor(&[]).is_err());
}

#[test]
fn a_member_is_judged_by_its_rule() {
    let text = "kind = 'cascade'\n[[member]]\nmodel = 'a'\ncriterion = 'confidence'\nthreshold = 0.75\n\
                scores = 'probabilities'\n[[member]]\nmodel = 'b'";
    let service = Service::parse(text).unwrap();
    let answer = |values: [f32; 2]| [("p".to_owned(), Tensor::new([1, 2], Elements::F32(values.to_vec())).unwrap())];
    let says = |member: &Member, values| member.judge(&answer(values)).unwrap().sure;
    assert!(says(&service.members[0], [0.25, 0.75]) && !says(&service.members[0], [0.3, 0.7]));
    assert_eq!(service.members[0].rule().unwrap().criterion, Criterion::Confidence);
    assert!(service.members[0].judge(&[]).is_err());
}
