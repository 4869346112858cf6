//! Encoded pictures (PNG, JPEG) to planes of bytes.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader, Limits};
use tierline_graph::{Elements, Tensor};

use super::error::DataError;
use super::files;

/// Pixels along a side of a picture, decoded or resized.
pub const PICTURE_SIDE_MAX: u32 = 16_384;

/// Memory of one decoded picture; a header may declare any size.
const DECODED_BYTES_MAX: u64 = 512 << 20;

/// Channels of pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Color {
    /// Three channels: red, green, blue.
    #[default]
    Rgb,
    /// One channel.
    Grey,
}

/// What pictures are made into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PictureOptions {
    /// `[height, width]` in pixels to which all are resized (bilinear, without
    /// keeping proportions). Left out, all must have one size.
    pub size: Option<[u32; 2]>,
    /// Channels.
    pub color: Color,
}

/// Collects pictures into u8 of `[n, channels, height, width]`.
pub(super) struct Pictures {
    options: PictureOptions,
    /// `[height, width]`.
    size: Option<[u32; 2]>,
    count: usize,
    planes: Vec<u8>,
}

impl Pictures {
    pub fn new(options: PictureOptions) -> Result<Self, DataError> {
        if let Some(size) = options.size.filter(|size| size.iter().any(|s| *s == 0 || *s > PICTURE_SIDE_MAX)) {
            let reason = format!("{size:?} is no [height, width] of 1 to {PICTURE_SIDE_MAX} pixels");
            return Err(DataError::Option { option: "size", reason });
        }
        Ok(Self { options, size: options.size, count: 0, planes: Vec::new() })
    }

    /// Decodes one more; `path` is for errors.
    pub fn push(&mut self, path: &Path, encoded: &[u8]) -> Result<(), DataError> {
        let broken = |e: &dyn std::fmt::Display| DataError::Picture { path: path.into(), reason: e.to_string() };
        let mut reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format().map_err(|e| broken(&e))?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODED_BYTES_MAX);
        (limits.max_image_width, limits.max_image_height) = (Some(PICTURE_SIDE_MAX), Some(PICTURE_SIDE_MAX));
        reader.limits(limits);
        let picture = reader.decode().map_err(|e| broken(&e))?;
        let actual = [picture.height(), picture.width()];
        let size = *self.size.get_or_insert(actual);
        if self.options.size.is_none() && size != actual {
            let ([height, width], [actual_height, actual_width]) = (size, actual);
            return Err(DataError::PictureSizes { path: path.into(), height, width, actual_height, actual_width });
        }
        let picture =
            if actual == size { picture } else { picture.resize_exact(size[1], size[0], FilterType::Triangle) };
        let channels = if self.options.color == Color::Rgb { 3 } else { 1 };
        let more = u64::from(size[0]) * u64::from(size[1]) * channels as u64;
        files::limit(path, "bytes of pictures", self.planes.len() as u64 + more)?;
        self.append(&picture);
        self.count += 1;
        Ok(())
    }

    fn append(&mut self, picture: &DynamicImage) {
        match self.options.color {
            Color::Grey => self.planes.extend_from_slice(picture.to_luma8().as_raw()),
            Color::Rgb => {
                let pixels = picture.to_rgb8();
                (0..3).for_each(|channel| self.planes.extend(pixels.pixels().map(|pixel| pixel.0[channel])));
            }
        }
    }

    /// All pictures; `path` is for the error that there are none.
    pub fn into_tensor(self, path: PathBuf) -> Result<Tensor, DataError> {
        let [height, width] = self
            .size
            .filter(|_| self.count > 0)
            .ok_or(DataError::Empty { path, hint: "a folder per class with .png, .jpg or .jpeg files is read" })?;
        let channels = if self.options.color == Color::Rgb { 3 } else { 1 };
        Ok(Tensor::new([self.count, channels, height as usize, width as usize], Elements::U8(self.planes))?)
    }
}
