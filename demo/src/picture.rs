//! A picture as the input of PP-OCR's text detector, and positions on the
//! detector's canvas back on the picture.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::imageops::{FilterType, resize};
use tierline_graph::{Elements, Tensor};

/// Sides that the detector halves five times must be multiples of this.
const SIDE_STEP: u32 = 32;

/// Mean and deviation of the pictures it was trained on (ImageNet's), in the
/// order blue, green, red, as PaddleOCR feeds them.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// A picture fitted onto the detector's canvas.
pub struct Fitted {
    /// f32 `[1, 3, height, width]`, normalised; zero where the picture isn't.
    pub tensor: Tensor,
    /// Picture pixels per canvas pixel.
    pub scale: f32,
    /// Part of the canvas that the picture covers, `[width, height]`.
    pub covered: [u32; 2],
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

    let plane = (height * width) as usize;
    let mut values = vec![0f32; 3 * plane];
    for (x, y, pixel) in small.enumerate_pixels() {
        let at = (y * width + x) as usize;
        for channel in 0..3 {
            let value = f32::from(pixel.0[2 - channel]) / 255.0;
            values[channel * plane + at] = (value - MEAN[channel]) / DEVIATION[channel];
        }
    }
    let tensor = Tensor::new([1, 3, height as usize, width as usize], Elements::F32(values))?;
    Ok(Fitted { tensor, scale, covered })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_proportions() {
        let fitted = fit(&RgbImage::from_pixel(200, 100, image::Rgb([255, 0, 0])), [64, 64]).unwrap();
        assert_eq!((fitted.covered, fitted.scale), ([64, 32], 200.0 / 64.0));
        assert_eq!(fitted.tensor.shape(), [1, 3, 64, 64]);
        let values = fitted.tensor.as_f32().unwrap();
        // Red comes last, and the uncovered half is zero.
        assert!((values[2 * 64 * 64] - (1.0 - 0.406) / 0.225).abs() < 1e-6);
        assert!(values[40 * 64..64 * 64].iter().all(|v| *v == 0.0));
    }

    #[test]
    fn odd_canvases_are_refused() {
        assert!(fit(&RgbImage::new(10, 10), [60, 64]).is_err());
        assert!(fit(&RgbImage::new(0, 0), [64, 64]).is_err());
    }
}
