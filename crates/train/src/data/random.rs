//! Draws that depend on what they are for, not on what was drawn before.

use tierline_federate::seed::seed_of;

/// A generator for one purpose: equal words give equal draws.
pub(super) fn generator(words: &[u64]) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed_of(words))
}

/// Two independent draws from the standard normal distribution (Box and
/// Muller, 1958).
pub(super) fn normals(rng: &mut fastrand::Rng) -> (f64, f64) {
    let radius = (-2.0 * open(rng).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * rng.f64()).sin_cos();
    (radius * cos, radius * sin)
}

/// The logarithm of a draw from Gamma(`shape`, 1), for any shape above 0.
///
/// Marsaglia and Tsang, 2000. The logarithm, because draws of small shapes
/// are smaller than any float.
pub(super) fn log_gamma_draw(rng: &mut fastrand::Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        // Gamma(a) is Gamma(a + 1) times a uniform draw to the power 1/a.
        return log_gamma_draw(rng, shape + 1.0) + open(rng).ln() / shape;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normals(rng).0;
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && open(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d.ln() + v.ln();
        }
    }
}

/// Uniform in (0, 1]: its logarithm is finite.
fn open(rng: &mut fastrand::Rng) -> f64 {
    1.0 - rng.f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_draws_have_the_mean_of_their_shape() {
        let mut rng = generator(&[7]);
        for shape in [0.1, 0.5, 1.0, 4.0, 50.0] {
            let mean = (0..20_000).map(|_| log_gamma_draw(&mut rng, shape).exp()).sum::<f64>() / 20_000.0;
            assert!((mean - shape).abs() < 0.05 * shape + 0.01, "{shape}: {mean}");
        }
    }

    #[test]
    fn draws_of_tiny_shapes_are_finite_logarithms() {
        let mut rng = generator(&[8]);
        assert!((0..1_000).all(|_| log_gamma_draw(&mut rng, 1e-6).is_finite()));
    }

    #[test]
    fn equal_words_give_equal_draws() {
        let draw = |words: &[u64]| generator(words).u64(..);
        assert_eq!(draw(&[1, 2, 3]), draw(&[1, 2, 3]));
        assert_ne!(draw(&[1, 2, 3]), draw(&[1, 3, 2]));
        assert_ne!(draw(&[0, 0]), draw(&[0]));
    }
}
