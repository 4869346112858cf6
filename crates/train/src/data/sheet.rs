//! A contact sheet: some pictures of each class, for people to look at.

use std::io::Cursor;

use image::imageops::{FilterType, replace, resize};
use image::{ImageFormat, Rgb, RgbImage};

use super::dataset::Dataset;
use super::error::DataError;
use crate::chart::word;

/// Pixels along a side of a sheet; larger ones are for no screen.
pub const SHEET_SIDE_MAX: usize = 16_384;

/// Pixels between pictures.
const GAP: usize = 2;

/// Pixels below which a picture is enlarged, by a whole factor.
const LEGIBLE: usize = 48;

const BACKGROUND: Rgb<u8> = Rgb([32, 32, 32]);

/// Of classes' names.
const INK: [u8; 3] = [230, 230, 230];

/// Letters of a class's name that are shown.
const LETTERS_MAX: usize = 20;

/// Pixels along a letter's side: twice those of the font.
const LETTER: usize = 16;

/// The first `per_class` pictures of each class, a row per class behind its
/// name, in order of the classes. Small pictures are enlarged. Without
/// classes: one row.
///
/// # Errors
/// When examples aren't pictures, or the sheet would exceed [`SHEET_SIDE_MAX`].
pub fn sheet(dataset: &Dataset, per_class: usize) -> Result<RgbImage, DataError> {
    let [channels, height, width] = dataset.picture_shape()?;
    let classes = dataset.classes().unwrap_or_else(|| vec![0; dataset.len()]);
    let rows = dataset.class_count().unwrap_or(1);
    let names: Vec<String> = match dataset.class_count() {
        Some(count) => (0..count).map(|class| dataset.class_name(class).chars().take(LETTERS_MAX).collect()).collect(),
        None => Vec::new(),
    };
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let margin = if longest > 0 { GAP + LETTER * longest + LETTER / 2 } else { 0 };
    let factor = LEGIBLE.div_ceil(height.min(width)).max(1);
    let side = |count: usize, pixels: usize| {
        let side = count.saturating_mul(pixels.saturating_mul(factor).saturating_add(GAP)).saturating_add(GAP);
        if side <= SHEET_SIDE_MAX && count > 0 {
            return Ok(side as u32);
        }
        let reason = format!(
            "{rows} classes by {per_class} pictures of {height}x{width} make a sheet that is empty, \
             or exceeds {SHEET_SIDE_MAX} pixels a side; show fewer"
        );
        Err(DataError::Option { option: "per_class", reason })
    };
    let across = side(per_class, width)? + margin as u32;
    let mut sheet = RgbImage::from_pixel(across, side(rows, height)?, BACKGROUND);
    for (class, name) in names.iter().enumerate() {
        let word = word(name, INK, BACKGROUND.0);
        let enlarged = resize(&word, 2 * word.width(), 2 * word.height(), FilterType::Nearest);
        let middle = GAP + class * (height * factor + GAP) + height * factor / 2;
        replace(&mut sheet, &enlarged, GAP as i64, middle as i64 - LETTER as i64 / 2);
    }
    let mut shown = vec![0; rows];
    let elements = dataset.store().features.elements().as_bytes().unwrap_or_default();
    for (example, &class) in classes.iter().enumerate() {
        if shown[class] == per_class {
            continue;
        }
        let picture = &elements[dataset.row(example) * channels * height * width..][..channels * height * width];
        let (left, top) = (margin + GAP + shown[class] * (width * factor + GAP), GAP + class * (height * factor + GAP));
        shown[class] += 1;
        for y in 0..height * factor {
            for x in 0..width * factor {
                let at = |channel: usize| picture[((channel % channels) * height + y / factor) * width + x / factor];
                sheet.put_pixel((left + x) as u32, (top + y) as u32, Rgb([at(0), at(1), at(2)]));
            }
        }
    }
    Ok(sheet)
}

/// A [`sheet`] as the bytes of a PNG file.
///
/// # Errors
/// As [`sheet`].
pub fn sheet_png(dataset: &Dataset, per_class: usize) -> Result<Vec<u8>, DataError> {
    let mut png = Cursor::new(Vec::new());
    sheet(dataset, per_class)?
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|e| DataError::Picture { path: dataset.name().into(), reason: e.to_string() })?;
    Ok(png.into_inner())
}
