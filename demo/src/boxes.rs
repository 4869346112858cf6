//! Boxes around text from the detector's map of probabilities.
//!
//! The steps of DB's post-processing (Liao et al., 2020): threshold,
//! connected regions, their mean probability, the smallest rectangle of each,
//! and growth by the margin that the detector was trained to leave out.

/// A pixel above this is text.
const PIXEL_MIN: f32 = 0.3;

/// A region whose mean probability is below this is dropped.
const SCORE_MIN: f32 = 0.5;

/// Growth: distance = area * ratio / perimeter.
const UNCLIP_RATIO: f32 = 1.5;

/// Boxes with a shorter side, in map pixels, are noise.
const SIDE_MIN: f32 = 3.0;

/// Regions looked at; a map with more is no page.
const REGIONS_MAX: usize = 1_000;

/// A point, `[x, y]`.
pub type Point = [f32; 2];

/// A box around a line of text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextBox {
    /// Corners in order around the box.
    pub corners: [Point; 4],
    /// Mean probability of its pixels.
    pub score: f32,
}

impl TextBox {
    /// The box on a plane that is `factor` times larger.
    pub fn scaled(mut self, factor: f32) -> Self {
        self.corners.iter_mut().flatten().for_each(|c| *c *= factor);
        self
    }
}

/// Probabilities, row-major.
#[derive(Clone, Copy)]
pub struct Map<'a> {
    /// One per pixel.
    pub values: &'a [f32],
    /// Pixels per row.
    pub width: usize,
}

impl Map<'_> {
    fn height(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

/// The boxes in a map, from top to bottom.
pub fn find(map: Map<'_>) -> Vec<TextBox> {
    let mut boxes: Vec<TextBox> =
        regions(map).iter().take(REGIONS_MAX).filter_map(|region| text_box(map, region)).collect();
    boxes.sort_by(|a, b| top(a).total_cmp(&top(b)));
    boxes
}

fn top(text: &TextBox) -> f32 {
    text.corners.iter().map(|c| c[1]).fold(f32::INFINITY, f32::min)
}

fn text_box(map: Map<'_>, region: &[(usize, usize)]) -> Option<TextBox> {
    let rectangle = smallest_rectangle(&hull(region))?;
    if rectangle.sides.iter().any(|s| *s < SIDE_MIN) {
        return None;
    }
    let score = mean(map, region);
    if score < SCORE_MIN {
        return None;
    }
    let [w, h] = rectangle.sides;
    let distance = w * h * UNCLIP_RATIO / (2.0 * (w + h));
    let grown = Rectangle { sides: [w + 2.0 * distance, h + 2.0 * distance], ..rectangle };
    Some(TextBox { corners: grown.corners(), score })
}

/// Connected pixels above the threshold, diagonals included.
fn regions(map: Map<'_>) -> Vec<Vec<(usize, usize)>> {
    let (width, height) = (map.width, map.height());
    let mut open: Vec<bool> = map.values.iter().map(|v| *v > PIXEL_MIN).collect();
    let mut regions = Vec::new();
    for start in 0..width * height {
        if !std::mem::take(&mut open[start]) {
            continue;
        }
        let (mut region, mut stack) = (Vec::new(), vec![start]);
        while let Some(at) = stack.pop() {
            let (x, y) = (at % width, at / width);
            region.push((x, y));
            for ny in y.saturating_sub(1)..(y + 2).min(height) {
                for nx in x.saturating_sub(1)..(x + 2).min(width) {
                    if std::mem::take(&mut open[ny * width + nx]) {
                        stack.push(ny * width + nx);
                    }
                }
            }
        }
        regions.push(region);
    }
    regions
}

/// Convex hull by monotone chain (Andrew, 1979).
fn hull(region: &[(usize, usize)]) -> Vec<Point> {
    let mut points: Vec<Point> = region.iter().map(|&(x, y)| [x as f32, y as f32]).collect();
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    let turn = |a: Point, b: Point, c: Point| (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
    let chain = |points: &mut dyn Iterator<Item = Point>| {
        let mut chain: Vec<Point> = Vec::new();
        for point in points {
            while let [.., a, b] = chain[..]
                && turn(a, b, point) <= 0.0
            {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
        chain
    };
    let mut hull = chain(&mut points.iter().copied());
    hull.extend(chain(&mut points.iter().rev().copied()));
    hull
}

/// A rectangle in any direction.
#[derive(Debug, Clone, Copy)]
struct Rectangle {
    center: Point,
    /// Unit vector along the first side.
    along: Point,
    sides: [f32; 2],
}

impl Rectangle {
    fn corners(&self) -> [Point; 4] {
        let across = [-self.along[1], self.along[0]];
        [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]].map(|[a, b]: Point| {
            [0, 1].map(|i| self.center[i] + a * self.sides[0] * self.along[i] + b * self.sides[1] * across[i])
        })
    }
}

/// The rectangle of least area around a convex polygon: one of its sides lies
/// on a side of the polygon (Freeman and Shapira, 1975).
fn smallest_rectangle(hull: &[Point]) -> Option<Rectangle> {
    let next = hull.iter().cycle().skip(1);
    let rectangles = hull.iter().zip(next).filter_map(|(a, b)| {
        let [dx, dy] = [b[0] - a[0], b[1] - a[1]];
        let length = dx.hypot(dy);
        (length > 0.0).then(|| around(hull, [dx / length, dy / length]))
    });
    rectangles.min_by(|a, b| (a.sides[0] * a.sides[1]).total_cmp(&(b.sides[0] * b.sides[1])))
}

fn around(hull: &[Point], along: Point) -> Rectangle {
    let across = [-along[1], along[0]];
    let range = |axis: Point| {
        let on_axis = hull.iter().map(|p| p[0] * axis[0] + p[1] * axis[1]);
        on_axis.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let [u, v] = [range(along), range(across)];
    let middle = [(u.0 + u.1) / 2.0, (v.0 + v.1) / 2.0];
    let center = [0, 1].map(|i| middle[0] * along[i] + middle[1] * across[i]);
    // Points are pixel centres: half a pixel lies outside on either side.
    Rectangle { center, along, sides: [u.1 - u.0 + 1.0, v.1 - v.0 + 1.0] }
}

/// Mean probability of a region's own pixels: the rectangle around a line that
/// a bent page curves holds much that is no text.
fn mean(map: Map<'_>, region: &[(usize, usize)]) -> f32 {
    let sum: f64 = region.iter().map(|&(x, y)| f64::from(map.values[y * map.width + x])).sum();
    (sum / region.len().max(1) as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of 60 columns from a drawing by coordinates.
    fn map(height: usize, value: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        (0..60 * height).map(|i| value((i % 60) as f32, (i / 60) as f32)).collect()
    }

    fn found(values: &[f32]) -> Vec<TextBox> {
        find(Map { values, width: 60 })
    }

    fn extent(text: &TextBox) -> [f32; 4] {
        let ends = |axis: usize| text.corners.map(|c| c[axis]);
        let low = |axis| ends(axis).into_iter().fold(f32::INFINITY, f32::min);
        let high = |axis| ends(axis).into_iter().fold(f32::NEG_INFINITY, f32::max);
        [low(0), low(1), high(0), high(1)]
    }

    #[test]
    fn a_line_grows_by_its_margin() {
        // 20 x 6 pixels: distance 120 * 1.5 / 52.
        let values = map(40, |x, y| if (10.0..30.0).contains(&x) && (20.0..26.0).contains(&y) { 0.9 } else { 0.05 });
        let boxes = found(&values);
        assert_eq!(boxes.len(), 1);
        assert!((boxes[0].score - 0.9).abs() < 1e-4);
        let d = 120.0 * 1.5 / 52.0;
        for (actual, expected) in extent(&boxes[0]).into_iter().zip([9.5 - d, 19.5 - d, 29.5 + d, 25.5 + d]) {
            assert!((actual - expected).abs() < 1e-3, "{actual} {expected}");
        }
    }

    #[test]
    fn boxes_follow_slanted_lines() {
        let (cos, sin) = (0.3f32.cos(), 0.3f32.sin());
        let values = map(60, |x, y| {
            let (u, v) = ((x - 30.0) * cos + (y - 30.0) * sin, (y - 30.0) * cos - (x - 30.0) * sin);
            if u.abs() < 20.0 && v.abs() < 4.0 { 0.95 } else { 0.0 }
        });
        let boxes = found(&values);
        assert_eq!(boxes.len(), 1);
        let [a, b, c, _] = boxes[0].corners;
        let side = |p: Point, q: Point| (q[0] - p[0]).hypot(q[1] - p[1]);
        let (long, short) = (side(a, b).max(side(b, c)), side(a, b).min(side(b, c)));
        let d = 40.0 * 8.0 * 1.5 / 96.0;
        // Whole pixels stick out of a slanted edge by up to a pixel each side.
        assert!((long - 40.0 - 2.0 * d).abs() < 2.5 && (short - 8.0 - 2.0 * d).abs() < 2.5, "{long} {short}");
    }

    #[test]
    fn regions_are_apart_and_from_top_to_bottom() {
        let band = |y: f32, from: f32| (from..from + 5.0).contains(&y);
        let values = map(60, |x, y| if x < 40.0 && (band(y, 40.0) || band(y, 10.0)) { 0.8 } else { 0.0 });
        let tops: Vec<bool> = found(&values).iter().map(|b| extent(b)[1] < 20.0).collect();
        assert_eq!(tops, [true, false]);
    }

    #[test]
    fn a_line_that_is_bent_is_one_box() {
        // Half of the rectangle around it is no text.
        let values = map(40, |x, y| if (y - 10.0 - 0.01 * (x - 30.0).powi(2)).abs() < 3.0 { 0.9 } else { 0.0 });
        let boxes = found(&values);
        assert_eq!(boxes.len(), 1);
        assert!((boxes[0].score - 0.9).abs() < 1e-4, "{}", boxes[0].score);
    }

    #[test]
    fn noise_and_doubt_are_dropped() {
        for (name, values) in [
            ("nothing", map(20, |_, _| 0.0)),
            ("a dot", map(20, |x, y| if x == 5.0 && y == 5.0 { 1.0 } else { 0.0 })),
            ("a hair", map(20, |_, y| if y == 5.0 { 1.0 } else { 0.0 })),
            ("a doubt", map(20, |x, y| if x < 20.0 && y < 8.0 { 0.4 } else { 0.0 })),
        ] {
            assert_eq!(found(&values), [], "{name}");
        }
        assert_eq!(find(Map { values: &[], width: 0 }), []);
    }
}
