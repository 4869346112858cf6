//! Curves of a run, as a picture.
//!
//! One description of what is drawn, two ways to draw it: SVG for pages, PNG
//! for everything else.

use std::fmt::Write as _;

use font8x8::legacy::BASIC_LEGACY;
use image::{Rgb, RgbImage};

use tierline_federate::RoundScores;
use tierline_graph::exits::Calibration;

use crate::run::Epoch;
use crate::trainer::Scores;

const WIDTH: f64 = 720.0;
const PANEL: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;

const INK: [u8; 3] = [40, 44, 52];
const GRID: [u8; 3] = [225, 228, 232];
/// Blue and orange: told apart by those who see no red or green.
const TRAINED: [u8; 3] = [31, 110, 190];
const HELD_OUT: [u8; 3] = [225, 120, 20];

/// A place on the curves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Epoch or round, from 1.
    pub at: u64,
    /// On what is learned from.
    pub loss: f64,
    /// On what is learned from.
    pub accuracy: Option<f64>,
    /// On the examples held out.
    pub test: Option<Scores>,
}

impl From<&Epoch> for Point {
    fn from(epoch: &Epoch) -> Self {
        Self { at: epoch.epoch, loss: epoch.loss, accuracy: epoch.accuracy, test: epoch.test }
    }
}

impl From<&RoundScores> for Point {
    fn from(round: &RoundScores) -> Self {
        let test = round.loss.map(|loss| Scores { loss, accuracy: round.accuracy });
        Self { at: round.round, loss: round.train_loss, accuracy: None, test }
    }
}

/// Something to draw, in points from the upper left corner.
enum Mark {
    Line { points: Vec<(f64, f64)>, color: [u8; 3], width: f64 },
    Text { at: (f64, f64), text: String, color: [u8; 3], anchor: Anchor },
}

#[derive(Clone, Copy, PartialEq)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// Curves of loss, and of accuracy where there is one, over epochs or rounds
/// (`unit`), as SVG.
#[must_use]
pub fn svg(points: &[Point], unit: &str) -> String {
    let (marks, height) = marks(points, unit);
    written(marks, height)
}

/// How accuracy depends on work, beside the model's end alone, as SVG.
#[must_use]
pub fn calibration_svg(calibration: &Calibration) -> String {
    let share = |macs: f64| 100.0 * macs / calibration.macs.max(1.0);
    let curve: Vec<(f64, f64)> = calibration.points.iter().map(|p| (share(p.macs), p.accuracy)).collect();
    let (first, last) = curve.iter().fold((0.0f64, 100.0f64), |(l, h), (x, _)| (l.min(*x), h.max(*x)));
    let end = [(first, calibration.accuracy), (last, calibration.accuracy)];
    let mut marks = Vec::new();
    let text = ["accuracy", "multiply-adds, % of the model without exits"];
    panel(&mut marks, 0.0, text, ["the end alone", "with exits"], &end, &curve);
    written(marks, PANEL)
}

fn written(marks: Vec<Mark>, height: f64) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>"##
    );
    let hex = |c: [u8; 3]| format!("#{:02x}{:02x}{:02x}", c[0], c[1], c[2]);
    for mark in marks {
        let _ = match mark {
            Mark::Line { points, color, width } => {
                let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                writeln!(
                    out,
                    r#"<polyline fill="none" stroke="{}" stroke-width="{width}" points="{}"/>"#,
                    hex(color),
                    points.join(" ")
                )
            }
            Mark::Text { at: (x, y), text, color, anchor } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                writeln!(
                    out,
                    r#"<text x="{x:.1}" y="{y:.1}" fill="{}" text-anchor="{anchor}">{text}</text>"#,
                    hex(color)
                )
            }
        };
    }
    out.push_str("</svg>\n");
    out
}

/// The same curves as pixels.
#[must_use]
pub fn picture(points: &[Point], unit: &str) -> RgbImage {
    let (marks, height) = marks(points, unit);
    let mut image = RgbImage::from_pixel(WIDTH as u32, height as u32, Rgb([255; 3]));
    for mark in marks {
        match mark {
            Mark::Line { points, color, width } => {
                for pair in points.windows(2) {
                    stroke(&mut image, pair[0], pair[1], color, width);
                }
                if let [only] = points[..] {
                    stroke(&mut image, only, only, color, width + 2.0);
                }
            }
            Mark::Text { at, text, color, anchor } => write_text(&mut image, at, &text, color, anchor),
        }
    }
    image
}

fn marks(points: &[Point], unit: &str) -> (Vec<Mark>, f64) {
    let curve = |of: &dyn Fn(&Point) -> Option<f64>| -> Vec<(f64, f64)> {
        points.iter().filter_map(|e| Some((e.at as f64, of(e).filter(|y| y.is_finite())?))).collect()
    };
    let mut panels = vec![("loss", curve(&|e| Some(e.loss)), curve(&|e| e.test.map(|t| t.loss)))];
    let (trained, held_out) = (curve(&|e| e.accuracy), curve(&|e| e.test.and_then(|t| t.accuracy)));
    if !trained.is_empty() || !held_out.is_empty() {
        panels.push(("accuracy", trained, held_out));
    }
    let mut marks = Vec::new();
    for (i, (title, trained, held_out)) in panels.iter().enumerate() {
        panel(&mut marks, i as f64 * PANEL, [title, unit], ["training", "held out"], trained, held_out);
    }
    (marks, panels.len() as f64 * PANEL)
}

fn panel(
    marks: &mut Vec<Mark>,
    top: f64,
    [title, unit]: [&str; 2],
    names: [&str; 2],
    trained: &[(f64, f64)],
    held_out: &[(f64, f64)],
) {
    let all = || trained.iter().chain(held_out);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(l, h), (_, y)| (l.min(*y), h.max(*y)));
    let last = all().fold(1.0f64, |last, (x, _)| last.max(*x));
    let first = all().fold(last, |first, (x, _)| first.min(*x));
    let step = pleasant((high - low).max(1e-9) / 4.0);
    let (low, high) = if low > high { (0.0, 1.0) } else { ((low / step).floor() * step, (high / step).ceil() * step) };
    let span = if high > low { high - low } else { step };
    let (bottom, width) = (top + PANEL - BOTTOM, WIDTH - LEFT - RIGHT);
    let x = |epoch: f64| LEFT + width * if last > first { (epoch - first) / (last - first) } else { 0.5 };
    let y = |value: f64| bottom - (bottom - top - TOP) * (value - low) / span;

    let mut line = low;
    while line <= high + step / 2.0 {
        marks.push(Mark::Line { points: vec![(LEFT, y(line)), (WIDTH - RIGHT, y(line))], color: GRID, width: 1.0 });
        let text = format!("{line:.*}", decimals(step));
        marks.push(Mark::Text { at: (LEFT - 8.0, y(line) + 4.0), text, color: INK, anchor: Anchor::End });
        line += step;
    }
    let every = pleasant((last - first) / 8.0).max(1.0).round();
    let mut epoch = (first / every).ceil() * every;
    while epoch <= last {
        let text = format!("{epoch:.0}");
        marks.push(Mark::Text { at: (x(epoch), bottom + 16.0), text, color: INK, anchor: Anchor::Middle });
        epoch += every;
    }
    let say = |at: (f64, f64), text: &str, color, anchor| Mark::Text { at, text: text.to_owned(), color, anchor };
    marks.push(say((LEFT, top + 20.0), title, INK, Anchor::Start));
    marks.push(say((WIDTH - RIGHT, bottom + 30.0), unit, INK, Anchor::End));
    if !trained.is_empty() {
        marks.push(say((WIDTH - RIGHT - 80.0, top + 20.0), names[0], TRAINED, Anchor::End));
    }
    if !held_out.is_empty() {
        marks.push(say((WIDTH - RIGHT, top + 20.0), names[1], HELD_OUT, Anchor::End));
    }
    for (curve, color) in [(trained, TRAINED), (held_out, HELD_OUT)] {
        let points: Vec<(f64, f64)> = curve.iter().map(|&(e, v)| (x(e), y(v))).collect();
        if !points.is_empty() {
            marks.push(Mark::Line { points, color, width: 2.0 });
        }
    }
}

/// The least of 1, 2, 5 times a power of ten that isn't below `x`.
fn pleasant(x: f64) -> f64 {
    if !(x > 0.0 && x.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= x * 0.999_999).unwrap_or(10.0 * power)
}

fn decimals(step: f64) -> usize {
    (-step.log10().floor()).clamp(0.0, 8.0) as usize
}

fn stroke(image: &mut RgbImage, from: (f64, f64), to: (f64, f64), color: [u8; 3], width: f64) {
    let length = (to.0 - from.0).hypot(to.1 - from.1);
    let steps = (length * 2.0).ceil().max(1.0);
    let reach = (width / 2.0).max(0.5);
    for i in 0..=steps as u32 {
        let share = f64::from(i) / steps;
        let (x, y) = (from.0 + (to.0 - from.0) * share, from.1 + (to.1 - from.1) * share);
        for py in (y - reach).round() as i64..(y + reach).round().max((y - reach).round() + 1.0) as i64 {
            for px in (x - reach).round() as i64..(x + reach).round().max((x - reach).round() + 1.0) as i64 {
                put(image, px, py, color);
            }
        }
    }
}

fn put(image: &mut RgbImage, x: i64, y: i64, color: [u8; 3]) {
    if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
        && let Some(pixel) = image.get_pixel_mut_checked(x, y)
    {
        *pixel = Rgb(color);
    }
}

/// A word in letters of 8 by 8 pixels, on a picture of just its size.
pub(crate) fn word(text: &str, ink: [u8; 3], paper: [u8; 3]) -> RgbImage {
    let width = 8 * text.chars().count().max(1) as u32;
    let mut image = RgbImage::from_pixel(width, 8, Rgb(paper));
    write_text(&mut image, (0.0, 8.0), text, ink, Anchor::Start);
    image
}

/// Letters of 8 by 8 pixels, their feet at `at`.
fn write_text(image: &mut RgbImage, at: (f64, f64), text: &str, color: [u8; 3], anchor: Anchor) {
    let length = 8.0 * text.chars().count() as f64;
    let start = match anchor {
        Anchor::Start => at.0,
        Anchor::Middle => at.0 - length / 2.0,
        Anchor::End => at.0 - length,
    };
    for (i, letter) in text.chars().enumerate() {
        let rows = BASIC_LEGACY.get(letter as usize).copied().unwrap_or_default();
        for (row, bits) in rows.into_iter().enumerate() {
            for column in (0..8).filter(|c| bits >> c & 1 == 1) {
                put(image, start as i64 + 8 * i as i64 + column, at.1 as i64 - 8 + row as i64, color);
            }
        }
    }
}
