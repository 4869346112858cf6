//! Pictures cut out of a picture: boxes, bilinear resizing, normalising.
//!
//! A pixel covers `[i, i + 1)`. Each pixel of a crop is the picture at its centre, bilinear
//! between the four pixels around it, the picture's edge going on for ever; nothing is
//! averaged. That is ONNX's `RoiAlign` with `half_pixel` and one sample for each pixel.

use std::ops::Range;

use tierline_graph::{DataType, Elements, Tensor};

use super::numbers::{TensorsError, f32s, named, numbers_of};
use super::{Boxes, Crops};

/// Numbers of the crops of one request of the model.
const BATCH_NUMBERS_MAX: usize = 64 << 20;

/// Boxes that are looked at.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chosen {
    /// Their places among all boxes.
    pub places: Vec<usize>,
    /// Left, top, right, bottom, in pixels, within the picture.
    pub boxes: Vec<[f64; 4]>,
}

impl Chosen {
    /// Batches of at most `most` boxes.
    #[must_use]
    pub fn batches(&self, most: usize) -> usize {
        self.places.len().div_ceil(most.max(1))
    }

    /// The boxes of a batch.
    #[must_use]
    pub fn batch(&self, batch: usize, most: usize) -> Range<usize> {
        let first = (batch * most).min(self.places.len());
        first..(first + most).min(self.places.len())
    }
}

impl Crops {
    /// The boxes to look at: those with the highest scores, as far as they are in the
    /// picture and a pixel wide and high there.
    ///
    /// # Errors
    /// When boxes, scores or the picture aren't what they should be.
    pub fn choose(&self, outputs: &[(String, Tensor)], picture: &Tensor) -> Result<Chosen, TensorsError> {
        let [_, height, width] = self.picture(picture)?;
        let boxes = named(outputs, &self.boxes)?;
        let rows = match boxes.shape() {
            [rows, 4] | [1, rows, 4] => *rows,
            shape => return Err(wrong(&self.boxes, shape, "[n, 4] or [1, n, 4]".to_owned())),
        };
        let values = numbers_of(&self.boxes, boxes)?;
        let scores = match &self.scores {
            None => vec![f64::INFINITY; rows],
            Some(name) => {
                let scores = named(outputs, name)?;
                if scores.len() != rows {
                    return Err(wrong(name, scores.shape(), format!("one score for each of the {rows} boxes")));
                }
                numbers_of(name, scores)?
            }
        };
        let (across, down) = if self.relative { (width as f64, height as f64) } else { (1.0, 1.0) };
        let mut found: Vec<(usize, [f64; 4])> = Vec::new();
        for (place, numbers) in values.chunks_exact(4).enumerate() {
            let &[a, b, c, d] = numbers else { continue };
            let [left, top, right, bottom] = match self.format {
                Boxes::Xyxy => [a, b, c, d],
                Boxes::Xywh => [a, b, a + c, b + d],
                Boxes::Cxcywh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
                Boxes::Yxyx => [b, a, d, c],
            };
            let (w, h) = (width as f64, height as f64);
            let inside = [left * across, top * down, right * across, bottom * down];
            let known = inside.iter().all(|edge| edge.is_finite());
            let [left, top, right, bottom] =
                [inside[0].clamp(0.0, w), inside[1].clamp(0.0, h), inside[2].clamp(0.0, w), inside[3].clamp(0.0, h)];
            // A score that is no number is none.
            if known && scores[place] >= self.score_min && right - left >= 1.0 && bottom - top >= 1.0 {
                found.push((place, [left, top, right, bottom]));
            }
        }
        // Stable: of equal scores the first comes first.
        found.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]));
        found.truncate(self.boxes_max);
        let (places, boxes) = found.into_iter().unzip();
        Ok(Chosen { places, boxes })
    }

    /// Crops `[boxes, channels, height, width]`, in the model's type.
    ///
    /// # Errors
    /// When the picture isn't one, or the model takes no pictures.
    pub fn cut(&self, picture: &Tensor, boxes: &[[f64; 4]], dtype: DataType) -> Result<Tensor, TensorsError> {
        let [channels, height, width] = self.picture(picture)?;
        let [rows, columns] = self.size;
        let numbers = [boxes.len(), channels, rows, columns].iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let Some(numbers) = numbers.filter(|n| *n <= BATCH_NUMBERS_MAX) else {
            let text = format!(
                "{} crops of [{channels}, {rows}, {columns}] are more than {BATCH_NUMBERS_MAX} numbers",
                boxes.len()
            );
            return Err(TensorsError::TooLarge(text));
        };
        for (key, list) in [("mean", &self.mean), ("std", &self.std)] {
            if list.len() > 1 && list.len() != channels {
                let needed = format!("of as many channels as `{key}` has numbers, {}", list.len());
                return Err(wrong(&self.image, picture.shape(), needed));
            }
        }
        let of = |list: &[f64], channel: usize, none: f64| match list {
            [] => none,
            [all] => *all,
            each => each[channel],
        };
        let values = numbers_of(&self.image, picture)?;
        let mut out = Vec::with_capacity(numbers);
        for &[left, top, right, bottom] in boxes {
            let ys: Vec<_> = (0..rows).map(|y| between(top, bottom, y, rows, height)).collect();
            let xs: Vec<_> = (0..columns).map(|x| between(left, right, x, columns, width)).collect();
            for channel in 0..channels {
                let plane = &values[channel * height * width..][..height * width];
                let (mean, std) = (of(&self.mean, channel, 0.0), of(&self.std, channel, 1.0));
                for &(above, below, down) in &ys {
                    for &(before, behind, across) in &xs {
                        let row =
                            |y: usize| plane[y * width + before] * (1.0 - across) + plane[y * width + behind] * across;
                        let value = row(above) * (1.0 - down) + row(below) * down;
                        out.push((value * self.scale - mean) / std);
                    }
                }
            }
        }
        let shape = vec![boxes.len(), channels, rows, columns];
        match dtype {
            DataType::F32 => f32s(shape, &out),
            DataType::U8 => {
                let bytes = out.iter().map(|v| v.round_ties_even().clamp(0.0, 255.0) as u8).collect();
                Tensor::new(shape, Elements::U8(bytes)).map_err(|e| TensorsError::TooLarge(e.to_string()))
            }
            dtype => Err(TensorsError::Type { name: self.input.clone(), dtype }),
        }
    }

    /// Channels, height and width of a picture.
    fn picture(&self, picture: &Tensor) -> Result<[usize; 3], TensorsError> {
        match *picture.shape() {
            [1, channels, height, width] if channels * height * width > 0 => Ok([channels, height, width]),
            _ => Err(wrong(&self.image, picture.shape(), "[1, channels, height, width]".to_owned())),
        }
    }
}

/// The two pixels that a crop's pixel `at` of `count` lies between, and how far behind the first.
fn between(from: f64, to: f64, at: usize, count: usize, pixels: usize) -> (usize, usize, f64) {
    let last = (pixels - 1) as f64;
    let place = (from + (at as f64 + 0.5) * (to - from) / count as f64 - 0.5).clamp(0.0, last);
    let first = place.floor();
    (first as usize, (first + 1.0).min(last) as usize, place - first)
}

fn wrong(name: &str, shape: &[usize], needed: String) -> TensorsError {
    TensorsError::Shape { name: name.to_owned(), shape: shape.to_vec(), needed }
}

/// Puts answers to batches together again, along their first axis. Of no batches, `none`
/// says what an answer to nothing looks like.
///
/// # Errors
/// When they don't fit each other.
pub fn join(
    batches: &[Vec<(String, Tensor)>],
    none: &[(String, DataType, Vec<usize>)],
) -> Result<Vec<(String, Tensor)>, TensorsError> {
    let large = |e: tierline_graph::TensorError| TensorsError::TooLarge(e.to_string());
    let Some(first) = batches.first() else {
        let empty = |(name, dtype, rest): &(String, DataType, Vec<usize>)| {
            let shape: Vec<usize> = std::iter::once(0).chain(rest.iter().copied()).collect();
            let tensor = match dtype {
                DataType::String => Tensor::new(shape, Elements::String(Vec::new())),
                dtype => Tensor::from_bytes(*dtype, shape, &[]),
            };
            Ok((name.clone(), tensor.map_err(large)?))
        };
        return none.iter().map(empty).collect();
    };
    first
        .iter()
        .map(|(name, like)| {
            let [_, rest @ ..] = like.shape() else {
                return Err(wrong(name, like.shape(), "[batch, ...], to be put together".to_owned()));
            };
            let (mut rows, mut bytes, mut strings) = (0, Vec::new(), Vec::new());
            for batch in batches {
                let part = named(batch, name)?;
                match part.shape() {
                    [count, others @ ..] if others == rest && part.dtype() == like.dtype() => rows += count,
                    shape => return Err(wrong(name, shape, format!("[batch] and {rest:?}, as in the first batch"))),
                }
                match part.elements() {
                    Elements::String(part) => strings.extend(part.iter().cloned()),
                    elements => bytes.extend_from_slice(elements.as_bytes().unwrap_or_default()),
                }
            }
            let shape: Vec<usize> = std::iter::once(rows).chain(rest.iter().copied()).collect();
            let tensor = match like.dtype() {
                DataType::String => Tensor::new(shape, Elements::String(strings)),
                dtype => Tensor::from_bytes(dtype, shape, &bytes),
            };
            Ok((name.clone(), tensor.map_err(large)?))
        })
        .collect()
}
