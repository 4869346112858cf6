//! The two-sample Kolmogorov-Smirnov test: the largest distance between two
//! empirical distributions, and how likely chance makes it.

/// Product of sizes up to which p-values are exact.
const EXACT_MAX: usize = 1 << 20;

/// Largest distance between the empirical distributions of two samples, each
/// sorted; 0 where one is empty. Equal numbers are stepped over together.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let (n, m) = (a.len() as f64, b.len() as f64);
    let (mut i, mut j, mut largest) = (0, 0, 0.0f64);
    while i < a.len() && j < b.len() {
        let x = a[i].min(b[j]);
        while i < a.len() && a[i] <= x {
            i += 1;
        }
        while j < b.len() && b[j] <= x {
            j += 1;
        }
        largest = largest.max((i as f64 / n - j as f64 / m).abs());
    }
    largest
}

/// Chance that samples of `n` and `m` numbers from one distribution lie at
/// least `distance` apart; 1 where one is empty.
///
/// Exact by counting lattice paths up to n m = 2^20, for distributions without
/// ties (with ties, the chance is smaller); beyond by Kolmogorov's limit with
/// Stephens' correction (1970), within 6% of the exact value from 1e-7 to 0.1
/// and within 0.012 above.
pub fn p_value(n: usize, m: usize, distance: f64) -> f64 {
    if n == 0 || m == 0 || distance <= 0.0 {
        return 1.0;
    }
    if distance > 1.0 {
        return 0.0;
    }
    match n.checked_mul(m) {
        Some(product) if product <= EXACT_MAX => p_exact(n, m, distance),
        _ => {
            let (n, m) = (n as f64, m as f64);
            let root = (n / (n + m) * m).sqrt();
            kolmogorov((root + 0.12 + 0.11 / root) * distance)
        }
    }
}

/// Chance that two samples of `n` numbers each lie at least `steps / n` apart.
pub(crate) fn p_equal(n: usize, steps: usize) -> f64 {
    if steps == 0 {
        return 1.0;
    }
    // Reflections (Gnedenko, Korolyuk, 1951):
    // 2 sum over k >= 1 of (-1)^(k-1) C(2n, n - k steps) / C(2n, n).
    let mut p = 0.0;
    let mut ratio = 1.0;
    let mut at = 0usize;
    let mut sign = 1.0;
    while at + steps <= n {
        for j in at + 1..=at + steps {
            // C(2n, n - j) / C(2n, n - j + 1)
            ratio *= (n - j + 1) as f64 / (n + j) as f64;
        }
        at += steps;
        p += 2.0 * sign * ratio;
        sign = -sign;
    }
    p.clamp(0.0, 1.0)
}

/// Counts, as shares, the paths from (0, 0) to (n, m) that touch a point at
/// least `distance` off the diagonal.
fn p_exact(n: usize, m: usize, distance: f64) -> f64 {
    let product = (n * m) as f64;
    // Distances are whole multiples of 1 / (n m); rounding must not lose one.
    let limit = (distance * product).round();
    let touches = |i: usize, j: usize| ((i * m) as f64 - (j * n) as f64).abs() >= limit;
    // outside[j]: chance that a random path's part up to (i, j) has touched,
    // given that it goes through (i, j).
    let mut outside = vec![0.0f64; m + 1];
    for i in 0..=n {
        for j in 0..=m {
            outside[j] = if touches(i, j) {
                1.0
            } else if i == 0 && j == 0 {
                0.0
            } else {
                // A path through (i, j) comes from (i-1, j) with chance i / (i + j).
                let from_left = if i == 0 { 0.0 } else { i as f64 / (i + j) as f64 * outside[j] };
                let from_below = if j == 0 { 0.0 } else { j as f64 / (i + j) as f64 * outside[j - 1] };
                from_left + from_below
            };
        }
    }
    outside[m].clamp(0.0, 1.0)
}

/// Chance that a Brownian bridge leaves a band of half-width `x`.
fn kolmogorov(x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    if x < 1.0 {
        // The sum below converges slowly here; its theta transform doesn't.
        let pi = std::f64::consts::PI;
        let t = -pi * pi / (8.0 * x * x);
        let sum: f64 = [1.0, 9.0, 25.0, 49.0].iter().map(|k| (t * k).exp()).sum();
        return (1.0 - (2.0 * pi).sqrt() / x * sum).clamp(0.0, 1.0);
    }
    let mut p = 0.0;
    for k in 1..=20 {
        let k = f64::from(k);
        let term = 2.0 * (-2.0 * k * k * x * x).exp();
        p += if k % 2.0 == 1.0 { term } else { -term };
    }
    p.clamp(0.0, 1.0)
}
