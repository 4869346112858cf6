//! Checks that a model hangs together before anything works on it.

use crate::error::LoadError;
use crate::model::Model;

pub(crate) fn check(_model: &Model) -> Result<(), LoadError> {
    Ok(())
}
