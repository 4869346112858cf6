//! Distribution functions that tests and bounds need.
//!
//! Accurate to about 1e-12 relative where a test could tell; held against
//! scipy.

/// Logarithm of the gamma function of `x > 0` (Lanczos, 1964, with Godfrey's
/// coefficients).
pub(crate) fn ln_gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // Reflection.
        return (std::f64::consts::PI / (std::f64::consts::PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let sum = COEFFICIENTS[1..]
        .iter()
        .zip(1u8..)
        .fold(COEFFICIENTS[0], |sum, (coefficient, i)| sum + coefficient / (x + f64::from(i)));
    let t = x + 7.5;
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// Chance that a gamma variable of this shape (and scale 1) exceeds `x`: series
/// below the shape, continued fraction above.
pub(crate) fn gamma_above(shape: f64, x: f64) -> f64 {
    if x <= 0.0 || shape <= 0.0 {
        return 1.0;
    }
    let front = (shape * x.ln() - x - ln_gamma(shape)).exp();
    if x < shape + 1.0 {
        let (mut term, mut sum, mut a) = (1.0 / shape, 1.0 / shape, shape);
        for _ in 0..STEPS_MAX {
            a += 1.0;
            term *= x / a;
            sum += term;
            if term < sum * f64::EPSILON {
                break;
            }
        }
        (1.0 - front * sum).clamp(0.0, 1.0)
    } else {
        let fraction = lentz(x + 1.0 - shape, |i| (-i * (i - shape), x + 2.0 * i + 1.0 - shape));
        (front / fraction).clamp(0.0, 1.0)
    }
}

/// Chance that a chi-squared variable exceeds `x`.
pub(crate) fn chi_squared_above(freedom: f64, x: f64) -> f64 {
    gamma_above(freedom / 2.0, x / 2.0)
}

/// Chance that a beta(`a`, `b`) variable is at most `x`.
pub(crate) fn beta_below(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_below(b, a, 1.0 - x);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp() / a;
    // Even and odd steps of the fraction (Numerical Analysis' form of DiDonato, Morris).
    let fraction = lentz(1.0, |i| {
        let m = (i / 2.0).floor();
        let step = if i % 2.0 == 0.0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        (step, 1.0)
    });
    (front / fraction).clamp(0.0, 1.0)
}

/// Chance that a standard normal variable exceeds `x`.
pub(crate) fn normal_above(x: f64) -> f64 {
    let tail = 0.5 * gamma_above(0.5, x * x / 2.0);
    if x >= 0.0 { tail } else { 1.0 - tail }
}

/// The number that a standard normal variable exceeds with chance `p`.
pub(crate) fn normal_quantile_above(p: f64) -> f64 {
    bisect(-40.0, 40.0, |x| normal_above(x) > p)
}

/// Chance that a Student variable of `freedom` degrees exceeds `t`.
pub(crate) fn student_above(freedom: f64, t: f64) -> f64 {
    let tail = 0.5 * beta_below(freedom / 2.0, 0.5, freedom / (freedom + t * t));
    if t >= 0.0 { tail } else { 1.0 - tail }
}

/// The number that a Student variable of `freedom` degrees exceeds with chance
/// `p`.
pub(crate) fn student_quantile_above(freedom: f64, p: f64) -> f64 {
    bisect(-1e6, 1e6, |t| student_above(freedom, t) > p)
}

/// Chance of `k` or more successes in `n` trials of chance `p`.
pub(crate) fn binomial_at_least(n: u64, k: u64, p: f64) -> f64 {
    if k == 0 {
        1.0
    } else if k > n {
        0.0
    } else {
        beta_below(k as f64, (n - k + 1) as f64, p)
    }
}

/// A p-value as people read it.
pub(crate) fn in_words(p: f64) -> String {
    if p < 1e-16 {
        "below 1e-16".to_owned()
    } else if p < 1e-3 {
        format!("{p:.0e}")
    } else {
        format!("{p:.3}")
    }
}

/// Where a function that is true first and false later turns.
pub(crate) fn bisect(mut low: f64, mut high: f64, before: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if before(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Steps of a series or fraction at most; shapes of millions need thousands.
const STEPS_MAX: u32 = 100_000;

/// The continued fraction `b0 + a1 / (b1 + a2 / (b2 + ...))` by Lentz' method;
/// `step` gives `(a_i, b_i)`.
fn lentz(b0: f64, step: impl Fn(f64) -> (f64, f64)) -> f64 {
    const TINY: f64 = 1e-300;
    let keep_off_zero = |x: f64| if x.abs() < TINY { TINY } else { x };
    let mut value = keep_off_zero(b0);
    let (mut c, mut d) = (value, 0.0);
    for i in 1..=STEPS_MAX {
        let (a, b) = step(f64::from(i));
        d = 1.0 / keep_off_zero(b + a * d);
        c = keep_off_zero(b + a / c);
        let change = c * d;
        value *= change;
        if (change - 1.0).abs() < 4.0 * f64::EPSILON {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-30), "{found} for {expected}");
    }

    /// Values of scipy 1.14 (`special.gammaln`, `gammaincc`, `betainc`,
    /// `stats.norm.sf`, `t.sf`, `t.isf`, `binom.sf`).
    #[test]
    fn equals_scipy() {
        for (x, y) in [
            (0.1, 2.252_712_651_734_206),
            (0.5, 0.572_364_942_924_7),
            (3.7, 1.428_072_326_665_388),
            (1e6, 12_815_504.569_147_611),
        ] {
            close(ln_gamma(x), y);
        }
        for (shape, x, p) in [
            (0.5, 0.1, 0.654_720_846_018_576_8),
            (0.5, 30.0, 9.485_737_571_073_857e-15),
            (3.0, 2.0, 0.676_676_416_183_063_4),
            (20.0, 45.0, 1.023_704_644_107_913_7e-5),
            (1000.0, 990.0, 0.620_478_621_462_036),
            (1000.0, 1200.0, 1.288_160_608_628_143e-9),
            (1e5, 1e5 + 500.0, 0.057_103_269_976_028_69),
        ] {
            close(gamma_above(shape, x), p);
        }
        for (a, b, x, p) in [
            (0.5, 0.5, 0.3, 0.369_010_119_565_545_36),
            (2.0, 5.0, 0.9, 0.999_945),
            (300.0, 200.0, 0.55, 0.011_853_654_379_737_36),
            (10.0, 0.5, 0.98, 0.530_152_576_132_390_4),
            (5e4, 5e4, 0.499, 0.263_544_938_297_042),
            (1.0, 1.0, 0.25, 0.25),
        ] {
            close(beta_below(a, b, x), p);
        }
        for (x, p) in
            [(-3.0, 0.998_650_101_968_369_9), (1.0, 0.158_655_253_931_457_07), (10.0, 7.619_853_024_160_47e-24)]
        {
            close(normal_above(x), p);
        }
        for (freedom, t, p) in
            [(1.0, 1.0, 0.25), (4.0, -2.0, 0.941_941_738_241_592_2), (1e4, 4.0, 3.189_933_441_156_974e-5)]
        {
            close(student_above(freedom, t), p);
        }
        for (freedom, p, t) in [(3.0, 0.025, 3.182_446_305_284_263_8), (10.0, 0.9, -1.372_183_641_110_286_3)] {
            close(student_quantile_above(freedom, p), t);
        }
        for (n, k, p, chance) in [
            (10, 7, 0.5, 0.171_875),
            (1000, 540, 0.5, 0.006_222_073_138_585_911),
            (200_000, 101_000, 0.5, 3.912_164_257_690_502e-6),
            (5, 0, 0.3, 1.0),
            (5, 6, 0.3, 0.0),
            (5, 5, 0.3, 0.002_43),
        ] {
            close(binomial_at_least(n, k, p), chance);
        }
        close(normal_quantile_above(0.025), 1.959_963_984_540_054);
    }
}
