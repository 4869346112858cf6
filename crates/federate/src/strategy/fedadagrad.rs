//! FedAdagrad: the second moment only grows.

use serde::{Deserialize, Serialize};

use super::fedopt::Adaptive;
use super::{Behaviour, Round};
use crate::{FederateError, Server};

/// Settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FedAdagrad(pub Adaptive);

impl Behaviour for FedAdagrad {
    fn check(&self) -> Result<(), FederateError> {
        self.0.check()
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        self.0.apply(server, round, "fedadagrad", |v, square| v + square);
    }
}
