//! Boxes drawn onto a picture.

use image::imageops::{FilterType, resize};
use image::{Rgb, RgbImage};

use crate::boxes::{Point, TextBox};

/// Small pictures are enlarged to about this width, so that lines stay thin
/// beside letters.
const WIDTH: u32 = 1_280;

/// Outline and tint.
const COLOR: [f32; 3] = [225.0, 30.0, 60.0];

/// Half the outline's width, pixels.
const REACH: f32 = 1.6;

/// How much of the tint lies over the text.
const TINT: f32 = 0.12;

/// The picture with its boxes, enlarged if it is small.
pub fn boxes(picture: &RgbImage, boxes: &[TextBox]) -> RgbImage {
    let factor = (WIDTH / picture.width().max(1)).max(1);
    let (width, height) = (picture.width() * factor, picture.height() * factor);
    let mut canvas = resize(picture, width, height, FilterType::CatmullRom);
    for text in boxes {
        draw(&mut canvas, text.clone().scaled(factor as f32).corners);
    }
    canvas
}

fn draw(canvas: &mut RgbImage, corners: [Point; 4]) {
    let range = |axis: usize, limit: u32| {
        let ends = corners.map(|c| c[axis]);
        let low = ends.into_iter().fold(f32::INFINITY, f32::min) - REACH - 1.0;
        let high = ends.into_iter().fold(0f32, f32::max) + REACH + 1.0;
        low.max(0.0) as u32..(high as u32 + 1).min(limit)
    };
    for y in range(1, canvas.height()) {
        for x in range(0, canvas.width()) {
            let point = [x as f32, y as f32];
            let sides = (0..4).map(|i| (corners[i], corners[(i + 1) % 4]));
            let distance = sides.clone().map(|(a, b)| to_segment(point, a, b)).fold(f32::INFINITY, f32::min);
            let inside = sides.clone().all(|(a, b)| cross(a, b, point) >= 0.0);
            // The last pixel of the outline fades: no stairs.
            let outline = (REACH + 0.5 - distance).clamp(0.0, 1.0);
            blend(canvas.get_pixel_mut(x, y), outline.max(if inside { TINT } else { 0.0 }));
        }
    }
}

fn blend(pixel: &mut Rgb<u8>, share: f32) {
    for (channel, color) in pixel.0.iter_mut().zip(COLOR) {
        *channel = (f32::from(*channel) * (1.0 - share) + color * share).round() as u8;
    }
}

fn cross(a: Point, b: Point, p: Point) -> f32 {
    (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])
}

fn to_segment(p: Point, a: Point, b: Point) -> f32 {
    let [dx, dy] = [b[0] - a[0], b[1] - a[1]];
    let length = (dx * dx + dy * dy).max(f32::MIN_POSITIVE);
    let t = (((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / length).clamp(0.0, 1.0);
    (p[0] - a[0] - t * dx).hypot(p[1] - a[1] - t * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_lie_on_the_box_and_tint_inside() {
        let white = RgbImage::from_pixel(1_300, 100, Rgb([255; 3]));
        let corners = [[10.0, 20.0], [60.0, 20.0], [60.0, 40.0], [10.0, 40.0]];
        let drawn = boxes(&white, &[TextBox { corners, score: 1.0 }]);
        assert_eq!(drawn.get_pixel(30, 20).0, COLOR.map(|c| c as u8));
        assert_eq!(drawn.get_pixel(30, 60).0, [255; 3]);
        assert!(drawn.get_pixel(30, 30).0[1] < 255);
    }

    #[test]
    fn boxes_beyond_the_picture_are_cut() {
        let corners = [[-50.0, -50.0], [5_000.0, -50.0], [5_000.0, 500.0], [-50.0, 500.0]];
        let drawn = boxes(&RgbImage::new(8, 8), &[TextBox { corners, score: 1.0 }]);
        assert_eq!(drawn.width(), WIDTH);
    }
}
