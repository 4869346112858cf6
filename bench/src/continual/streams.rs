//! Streams of tasks of Fashion-MNIST: new classes, and new looks of the same
//! classes.

use anyhow::{Context, Result};
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{Dataset, Targets};

/// Height and width of a picture.
const SIDE: usize = 28;

/// A task: what is learned, and what is tested.
pub struct Part {
    pub train: Dataset,
    pub test: Dataset,
}

/// Five tasks of two classes each, in the order of their numbers.
pub fn classes(train: &Dataset, test: &Dataset) -> Result<Vec<Part>> {
    let of = |dataset: &Dataset, task: usize| -> Result<Dataset> {
        let classes = dataset.classes().context("pictures have classes")?;
        let own: Vec<usize> = (0..dataset.len()).filter(|&at| classes[at] / 2 == task).collect();
        Ok(dataset.subset(&own)?)
    };
    (0..5).map(|task| Ok(Part { train: of(train, task)?, test: of(test, task)? })).collect()
}

/// How pictures of a domain look.
#[derive(Clone, Copy)]
pub enum Look {
    Plain,
    /// Turned about their middle, by degrees.
    Turned(f32),
    /// Normally distributed noise of this deviation, of white.
    Noisy(f32),
    /// Of this share of the contrast, about the middle grey.
    Pale(f32),
    /// Black for white.
    Inverted,
}

/// The domains, in their order.
pub const LOOKS: [(&str, Look); 5] = [
    ("as they are", Look::Plain),
    ("rotated by 45 degrees", Look::Turned(45.0)),
    ("noise of deviation 0.3", Look::Noisy(0.3)),
    ("a fifth of the contrast", Look::Pale(0.2)),
    ("inverted", Look::Inverted),
];

/// Five tasks of all classes, each with pictures of its own that look another
/// way.
pub fn looks(train: &Dataset, test: &Dataset, seed: u64) -> Result<Vec<Part>> {
    let share = train.len() / LOOKS.len();
    let mut order: Vec<usize> = (0..train.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let parts = LOOKS.iter().zip(order.chunks(share)).zip(1..).map(|(((_, look), own), at)| {
        Ok(Part { train: seen(&train.subset(own)?, *look, seed + at)?, test: seen(test, *look, at)? })
    });
    parts.collect()
}

/// All parts as one.
pub fn together(parts: &[Part]) -> Result<Dataset> {
    let mut pixels: Vec<u8> = Vec::new();
    let mut classes: Vec<u32> = Vec::new();
    for part in parts {
        let rows: Vec<usize> = (0..part.train.len()).collect();
        pixels.extend_from_slice(bytes(&part.train.features(&rows)?)?);
        classes.extend(part.train.classes().context("pictures have classes")?.into_iter().map(|c| c as u32));
    }
    let features = Tensor::new([classes.len(), 1, SIDE, SIDE], Elements::U8(pixels))?;
    Ok(Dataset::new("all tasks", features, Targets::Classes { classes, count: 10, names: Vec::new() })?)
}

fn bytes(features: &Tensor) -> Result<&[u8]> {
    match features.elements() {
        Elements::U8(pixels) => Ok(pixels),
        _ => anyhow::bail!("pictures are bytes"),
    }
}

fn seen(dataset: &Dataset, look: Look, seed: u64) -> Result<Dataset> {
    let rows: Vec<usize> = (0..dataset.len()).collect();
    let features = dataset.features(&rows)?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let pixels = bytes(&features)?.chunks_exact(SIDE * SIDE).flat_map(|picture| changed(picture, look, &mut rng));
    let features = Tensor::new(features.shape(), Elements::U8(pixels.collect()))?;
    let classes = dataset.classes().context("pictures have classes")?.into_iter().map(|c| c as u32).collect();
    Ok(Dataset::new(dataset.name(), features, Targets::Classes { classes, count: 10, names: Vec::new() })?)
}

fn changed(picture: &[u8], look: Look, rng: &mut fastrand::Rng) -> Vec<u8> {
    let each = |of: &mut dyn FnMut(f32) -> f32| -> Vec<u8> {
        picture.iter().map(|&p| of(f32::from(p) / 255.0).clamp(0.0, 1.0)).map(|x| (255.0 * x).round() as u8).collect()
    };
    match look {
        Look::Plain => picture.to_vec(),
        Look::Turned(degrees) => turned(picture, degrees),
        Look::Noisy(deviation) => each(&mut |x| x + deviation * normal(rng)),
        Look::Pale(share) => each(&mut |x| 0.5 + share * (x - 0.5)),
        Look::Inverted => each(&mut |x| 1.0 - x),
    }
}

/// Box and Muller, 1958.
fn normal(rng: &mut fastrand::Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.f64()).cos()) as f32
}

/// Each place takes what was where it came from, between four pixels; black from
/// outside.
fn turned(picture: &[u8], degrees: f32) -> Vec<u8> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let middle = (SIDE - 1) as f32 / 2.0;
    let at = |x: i32, y: i32| {
        let inside = (0..SIDE as i32).contains(&x) && (0..SIDE as i32).contains(&y);
        if inside { f32::from(picture[y as usize * SIDE + x as usize]) } else { 0.0 }
    };
    let mut out = Vec::with_capacity(picture.len());
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (dx, dy) = (x as f32 - middle, y as f32 - middle);
            let (from_x, from_y) = (cos * dx + sin * dy + middle, cos * dy - sin * dx + middle);
            let (left, top) = (from_x.floor(), from_y.floor());
            let (right, below) = (from_x - left, from_y - top);
            let (left, top) = (left as i32, top as i32);
            let row = |y: i32| (1.0 - right) * at(left, y) + right * at(left + 1, y);
            out.push(((1.0 - below) * row(top) + below * row(top + 1)).round() as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_moves_pixels_whole() {
        let mut picture = vec![0; SIDE * SIDE];
        picture[3 * SIDE + 5] = 200;
        let once = turned(&picture, 90.0);
        assert_eq!(once.iter().filter(|&&p| p > 0).count(), 1);
        let back = (0..3).fold(once, |picture, _| turned(&picture, 90.0));
        assert_eq!(back, picture);
    }

    #[test]
    fn looks_stay_within_bytes() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(changed(&[0, 255], Look::Inverted, &mut rng), [255, 0]);
        assert_eq!(changed(&[0, 255], Look::Pale(0.2), &mut rng), [102, 153]);
        assert_eq!(changed(&[9, 200], Look::Plain, &mut rng), [9, 200]);
        let noisy = changed(&[128; SIDE * SIDE], Look::Noisy(0.3), &mut rng);
        let mean = noisy.iter().map(|&p| f64::from(p)).sum::<f64>() / noisy.len() as f64;
        assert!((mean - 128.0).abs() < 15.0, "{mean}");
    }
}
