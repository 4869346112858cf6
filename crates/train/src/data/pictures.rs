//! Encoded pictures (PNG, JPEG, BMP, GIF, PNM, TIFF, WebP) to planes of bytes.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use gif::DecodeOptions as GifOptions;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
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
        reader.limits(limits.clone());
        let format = reader.format();
        if format.is_some_and(|format| holds_several(format, encoded, &limits)) {
            let what = "holds several pictures, and an example is one; save each as a file of its own";
            return Err(DataError::Stray { path: path.into(), what: what.to_owned() });
        }
        let mut decoder = reader.into_decoder().map_err(|e| broken(&e))?;
        if decoder.total_bytes() > DECODED_BYTES_MAX {
            return Err(broken(&format!("decoded it would take {} bytes", decoder.total_bytes())));
        }
        // As cameras held it, and viewers show it.
        let orientation = decoder.orientation().map_err(|e| broken(&e))?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| broken(&e))?;
        picture.apply_orientation(orientation);
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
        let [height, width] = self.size.filter(|_| self.count > 0).ok_or(DataError::Empty {
            path,
            hint: "a folder per class with pictures (png, jpeg, bmp, gif, pnm, tiff, webp) is read",
        })?;
        let channels = if self.options.color == Color::Rgb { 3 } else { 1 };
        Ok(Tensor::new([self.count, channels, height as usize, width as usize], Elements::U8(self.planes))?)
    }
}

/// Extensions of pictures that are read.
const READ: [&str; 14] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "bmp", "gif", "pbm", "pgm", "ppm", "pnm", "tif", "tiff", "webp"];

/// Extensions of pictures that aren't.
const UNREAD: [&str; 27] = [
    "apng", "arw", "avif", "cr2", "cr3", "dds", "dib", "dng", "exr", "hdr", "heic", "heif", "ico", "j2k", "jp2", "jpx",
    "jxl", "nef", "orf", "pcx", "psd", "qoi", "raw", "rw2", "svg", "tga", "xcf",
];

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Whether the name says that it is a picture, one that is read or not.
pub(super) fn says_picture(path: &Path) -> bool {
    let extension = extension(path);
    !files::is_hidden(path) && READ.iter().chain(&UNREAD).any(|known| *known == extension)
}

/// What a file is to those who look for pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A picture that is read.
    Picture,
    /// One of a kind that isn't.
    Unread,
    /// Something else.
    Other,
}

/// Tells by its name what a file is, and where that says nothing by how it
/// begins.
pub(super) fn kind(path: &Path, begins: &[u8]) -> Kind {
    let extension = extension(path);
    let strong = matches!(
        image::guess_format(begins),
        Ok(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::WebP | ImageFormat::Tiff)
    );
    if strong || READ.contains(&extension.as_str()) {
        Kind::Picture
    } else if UNREAD.contains(&extension.as_str()) || matches!(image::guess_format(begins), Ok(ImageFormat::Avif)) {
        Kind::Unread
    } else {
        Kind::Other
    }
}

/// Whether a file holds more pictures than the one that would be decoded:
/// frames of an animation, or pages. Nothing is decoded for that: a header may
/// declare any size.
fn holds_several(format: ImageFormat, encoded: &[u8], limits: &Limits) -> bool {
    let bytes = || Cursor::new(encoded);
    match format {
        ImageFormat::Gif => has_second_frame(encoded).unwrap_or(false),
        ImageFormat::Png => {
            PngDecoder::with_limits(bytes(), limits.clone()).is_ok_and(|png| png.is_apng().unwrap_or(false))
        }
        ImageFormat::WebP => WebPDecoder::new(bytes()).is_ok_and(|webp| webp.has_animation()),
        ImageFormat::Tiff => has_second_page(encoded).unwrap_or(false),
        _ => false,
    }
}

/// Whether a GIF file has a second image, one that is cut off too.
fn has_second_frame(gif: &[u8]) -> Result<bool, gif::DecodingError> {
    let mut options = GifOptions::new();
    options.skip_frame_decoding(true);
    let mut gif = options.read_info(Cursor::new(gif))?;
    Ok(gif.next_frame_info()?.is_some() && gif.next_frame_info()?.is_some())
}

/// Whether a TIFF file's first directory names a next one (TIFF 6.0, section
/// 2); `None` where it ends before that.
fn has_second_page(tiff: &[u8]) -> Option<bool> {
    let little = tiff.starts_with(b"II");
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = tiff.get(at..at.checked_add(size)?)?;
        let value = |value: usize, byte: &u8| value << 8 | usize::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, value) } else { bytes.iter().fold(0, value) })
    };
    let first = number(4, 4)?;
    let entries = number(first, 2)?;
    Some(number(first.checked_add(2 + 12 * entries)?, 4)? != 0)
}
