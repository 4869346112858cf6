//! DiLoCo (Douillard et al., "Distributed low-communication training of
//! language models", 2023): many local steps, then Nesterov's momentum on the
//! mean change. Without Nesterov it is FedAvgM (Hsu, Qi and Brown, 2019).

use serde::{Deserialize, Serialize};

use super::{Behaviour, Round, in_range, kept, mix};
use crate::{Channel, FederateError, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiLoCo {
    /// The server's learning rate.
    pub rate: f64,
    /// How much of the last direction is kept, below 1.
    pub momentum: f64,
    /// Looks ahead along the direction.
    pub nesterov: bool,
}

impl Default for DiLoCo {
    fn default() -> Self {
        Self { rate: 0.7, momentum: 0.9, nesterov: true }
    }
}

impl Behaviour for DiLoCo {
    fn check(&self) -> Result<(), FederateError> {
        in_range("diloco's rate", self.rate, self.rate > 0.0, "above 0")?;
        in_range("diloco's momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "at least 0 and below 1")
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        mix(server, round, 1.0);
        let Some(change) = round.means.get(&Channel::Model) else { return };
        let mut direction = std::mem::take(kept(server, "diloco.direction"));
        if let Some(model) = server.model.get_mut(&Channel::Model) {
            for ((x, m), &d) in model.iter_mut().zip(&mut direction).zip(change) {
                let d = f64::from(d);
                let next = self.momentum * f64::from(*m) + d;
                let step = if self.nesterov { d + self.momentum * next } else { next };
                *x = (f64::from(*x) + self.rate * step) as f32;
                *m = next as f32;
            }
        }
        server.kept.insert("diloco.direction".to_owned(), direction);
    }
}
