//! A picture as the input of PP-OCR's text detector, and positions on the
//! detector's canvas back on the picture.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::imageops::{FilterType, resize};
use tierline_graph::{Elements, Tensor};

/// Sides that the detector halves five times must be multiples of this.
const SIDE_STEP: u32 = 32;

/// Fills what the picture doesn't cover: about the mean of the pictures that
/// the detector was trained on, in its order blue, green, red.
const PADDING: [u8; 3] = [124, 116, 104];

/// A picture fitted onto the detector's canvas.
pub struct Fitted {
    /// u8 `[1, height, width, 3]`, blue, green, red, as cameras give them.
    pub tensor: Tensor,
    /// Picture pixels per canvas pixel.
    pub scale: f32,
}

/// Reads a picture; grey ones become coloured.
pub fn load(path: &Path) -> Result<RgbImage> {
    let picture = image::open(path).with_context(|| format!("cannot read the picture {}", path.display()))?;
    Ok(picture.to_rgb8())
}

/// Fits a picture into the upper left of a canvas of `[height, width]`, its
/// proportions kept: one shape of input for every picture.
pub fn fit(picture: &RgbImage, [height, width]: [u32; 2]) -> Result<Fitted> {
    ensure!(
        height > 0 && width > 0 && height % SIDE_STEP == 0 && width % SIDE_STEP == 0,
        "the detector takes sides that are multiples of {SIDE_STEP}, not {height}x{width}"
    );
    ensure!(picture.width() > 0 && picture.height() > 0, "the picture is empty");
    let scale = (picture.width() as f32 / width as f32).max(picture.height() as f32 / height as f32);
    let side = |n: u32, limit: u32| ((n as f32 / scale).round() as u32).clamp(1, limit);
    let covered = [side(picture.width(), width), side(picture.height(), height)];
    let small = resize(picture, covered[0], covered[1], FilterType::Triangle);

    let mut values: Vec<u8> = PADDING.iter().copied().cycle().take(3 * (height * width) as usize).collect();
    for (x, y, pixel) in small.enumerate_pixels() {
        let at = 3 * (y * width + x) as usize;
        values[at..at + 3].copy_from_slice(&[pixel.0[2], pixel.0[1], pixel.0[0]]);
    }
    let tensor = Tensor::new([1, height as usize, width as usize, 3], Elements::U8(values))?;
    Ok(Fitted { tensor, scale })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_proportions() {
        let fitted = fit(&RgbImage::from_pixel(200, 100, image::Rgb([255, 0, 0])), [64, 64]).unwrap();
        assert_eq!(fitted.scale, 200.0 / 64.0);
        assert_eq!(fitted.tensor.shape(), [1, 64, 64, 3]);
        let Elements::U8(values) = fitted.tensor.elements() else { panic!("no pixels") };
        assert_eq!((&values[..3], &values[3 * 40 * 64..][..3]), (&[0, 0, 255][..], &PADDING[..]));
    }

    #[test]
    fn odd_canvases_are_refused() {
        assert!(fit(&RgbImage::new(10, 10), [60, 64]).is_err());
        assert!(fit(&RgbImage::new(0, 0), [64, 64]).is_err());
    }
}
