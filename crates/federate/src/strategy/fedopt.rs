//! Adaptive optimisers on the mean change, seen as a gradient (Reddi et al.,
//! "Adaptive federated optimization", 2021). What differs is the second moment.

use serde::{Deserialize, Serialize};

use super::{Round, in_range, kept, mix};
use crate::{Channel, FederateError, Server};

/// Settings that the three have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// The server's learning rate.
    pub rate: f64,
    /// How much of the mean change is carried on, below 1.
    pub beta1: f64,
    /// How much of its square is carried on, below 1.
    pub beta2: f64,
    /// How adaptive: small is more.
    pub tau: f64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

impl Adaptive {
    pub(super) fn check(&self) -> Result<(), FederateError> {
        in_range("the server's rate", self.rate, self.rate > 0.0, "above 0")?;
        in_range("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "at least 0 and below 1")?;
        in_range("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "at least 0 and below 1")?;
        in_range("tau", self.tau, self.tau > 0.0, "above 0")
    }

    /// One step; `next` gives the second moment from the last one and the
    /// square of the change.
    pub(super) fn apply(&self, server: &mut Server, round: &Round<'_>, name: &str, next: impl Fn(f64, f64) -> f64) {
        mix(server, round, 1.0);
        let Some(change) = round.means.get(&Channel::Model) else { return };
        let (first, second) = (format!("{name}.mean"), format!("{name}.square"));
        // Starts at tau squared, as in the paper.
        if !server.kept.contains_key(&second) {
            kept(server, &second).fill((self.tau * self.tau) as f32);
        }
        let mut mean = std::mem::take(kept(server, &first));
        let mut square = std::mem::take(kept(server, &second));
        if let Some(model) = server.model.get_mut(&Channel::Model) {
            for (((x, m), v), &d) in model.iter_mut().zip(&mut mean).zip(&mut square).zip(change) {
                let d = f64::from(d);
                let moved = self.beta1 * f64::from(*m) + (1.0 - self.beta1) * d;
                let spread = next(f64::from(*v), d * d);
                *x = (f64::from(*x) + self.rate * moved / (spread.sqrt() + self.tau)) as f32;
                (*m, *v) = (moved as f32, spread as f32);
            }
        }
        server.kept.insert(first, mean);
        server.kept.insert(second, square);
    }
}
