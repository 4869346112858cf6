//! Changes to examples that leave their class what it is.

use super::error::DataError;
use super::random::normals;

/// Degrees beyond which a rotation repeats.
const ROTATION_MAX: f32 = 180.0;

/// How examples are varied, each time they come; nothing by default.
///
/// Crop, flip and rotation are for pictures; what they uncover is black (0).
/// Noise is for all features.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Pictures are padded by so many pixels on each side, and cropped to
    /// their size at a random place.
    pub crop_padding: usize,
    /// Half of the pictures are mirrored, left to right.
    pub flip: bool,
    /// Pictures are turned by up to so many degrees either way, about their
    /// centre, with bilinear sampling.
    pub rotation_degrees: f32,
    /// Standard deviation of normal noise, in units of the scaled features
    /// (before mean and deviation are taken out).
    pub noise: f32,
}

impl Augment {
    /// Whether it moves pixels.
    pub(super) fn moves(&self) -> bool {
        self.crop_padding > 0 || self.flip || self.rotation_degrees > 0.0
    }

    /// Whether the options make sense; `shape` of pictures, `None` for other
    /// examples.
    pub(super) fn check(&self, shape: Option<[usize; 3]>) -> Result<(), DataError> {
        let wrong = |option, reason: String| Err(DataError::Option { option, reason });
        if !(0.0..=ROTATION_MAX).contains(&self.rotation_degrees) {
            let reason = format!("{} degrees; give 0 to {ROTATION_MAX}", self.rotation_degrees);
            return wrong("rotation_degrees", reason);
        }
        if !(self.noise >= 0.0 && self.noise.is_finite()) {
            return wrong("noise", format!("{} is no standard deviation; give 0 or more", self.noise));
        }
        match shape {
            None if self.moves() => {
                wrong("augment", "crop, flip and rotation need pictures [channels, height, width]".to_owned())
            }
            Some([_, height, width]) if self.crop_padding > height.min(width) => {
                let reason = format!("{} pixels, of pictures of {height}x{width}; give fewer", self.crop_padding);
                wrong("crop_padding", reason)
            }
            _ => Ok(()),
        }
    }

    /// Moves the pixels of one picture, `[channels, height, width]`, from
    /// `source` to `target`.
    pub(super) fn geometry(
        &self,
        rng: &mut fastrand::Rng,
        [_, height, width]: [usize; 3],
        source: &[f32],
        target: &mut [f32],
    ) {
        let padding = self.crop_padding as isize;
        let (down, right) = (rng.isize(-padding..=padding), rng.isize(-padding..=padding));
        let mirrored = rng.bool() && self.flip;
        let angle = (2.0 * rng.f32() - 1.0) * self.rotation_degrees.to_radians();
        let mirror = |x: isize| if mirrored { width as isize - 1 - x } else { x };
        let planes = source.chunks_exact(height * width).zip(target.chunks_exact_mut(height * width));
        // Where the picture is not, it is black.
        let pixel = |plane: &[f32], y: isize, x: isize| {
            let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
            if inside { plane[y as usize * width + x as usize] } else { 0.0 }
        };
        let (sin, cos) = angle.sin_cos();
        let (middle_y, middle_x) = ((height as f32 - 1.0) / 2.0, (width as f32 - 1.0) / 2.0);
        for (from, to) in planes {
            for (y, row) in to.chunks_exact_mut(width).enumerate() {
                for (x, out) in row.iter_mut().enumerate() {
                    if angle == 0.0 {
                        *out = pixel(from, y as isize + down, mirror(x as isize + right));
                        continue;
                    }
                    // Backwards from each pixel: turn, crop, mirror.
                    let (from_y, from_x) = (y as f32 - middle_y, x as f32 - middle_x);
                    let source_y = cos * from_y - sin * from_x + middle_y + down as f32;
                    let source_x = sin * from_y + cos * from_x + middle_x + right as f32;
                    let (top, left) = (source_y.floor(), source_x.floor());
                    let (part_y, part_x) = (source_y - top, source_x - left);
                    let at = |dy, dx| pixel(from, top as isize + dy, mirror(left as isize + dx));
                    let above = at(0, 0) * (1.0 - part_x) + at(0, 1) * part_x;
                    let below = at(1, 0) * (1.0 - part_x) + at(1, 1) * part_x;
                    *out = above * (1.0 - part_y) + below * part_y;
                }
            }
        }
    }

    /// Adds noise to one example.
    pub(super) fn add_noise(&self, rng: &mut fastrand::Rng, features: &mut [f32]) {
        if self.noise == 0.0 {
            return;
        }
        for pair in features.chunks_mut(2) {
            let (first, second) = normals(rng);
            pair.iter_mut().zip([first, second]).for_each(|(x, n)| *x += self.noise * n as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::generator;
    use super::*;

    fn moved(augment: Augment, seed: u64, source: &[f32], shape: [usize; 3]) -> Vec<f32> {
        let mut target = vec![f32::NAN; source.len()];
        augment.geometry(&mut generator(&[seed]), shape, source, &mut target);
        target
    }

    #[test]
    fn a_flip_mirrors_or_leaves() {
        let flip = Augment { flip: true, ..Augment::default() };
        let seen: std::collections::BTreeSet<String> =
            (0..20).map(|seed| format!("{:?}", moved(flip, seed, &[1.0, 2.0, 3.0, 4.0], [1, 2, 2]))).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["[1.0, 2.0, 3.0, 4.0]", "[2.0, 1.0, 4.0, 3.0]"]);
    }

    #[test]
    fn a_crop_moves_by_whole_pixels_and_pads_with_black() {
        let crop = Augment { crop_padding: 1, ..Augment::default() };
        let source = [1.0, 2.0, 3.0, 4.0];
        let seen: std::collections::BTreeSet<String> =
            (0..200).map(|seed| format!("{:?}", moved(crop, seed, &source, [1, 2, 2]))).collect();
        assert_eq!(seen.len(), 9);
        assert!(seen.contains("[4.0, 0.0, 0.0, 0.0]") && seen.contains("[0.0, 0.0, 0.0, 1.0]"));
    }

    #[test]
    fn a_rotation_keeps_the_centre_and_what_is_even() {
        let turn = Augment { rotation_degrees: 30.0, ..Augment::default() };
        let source = vec![0.5; 2 * 9 * 9];
        for seed in 0..10 {
            let turned = moved(turn, seed, &source, [2, 9, 9]);
            for y in 3..6 {
                for x in 3..6 {
                    assert!((turned[y * 9 + x] - 0.5).abs() < 1e-6);
                }
            }
            assert!(turned.iter().all(|v| (0.0..=0.500_001).contains(v)));
        }
    }
}
