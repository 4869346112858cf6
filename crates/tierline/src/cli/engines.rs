//! What models are loaded with and run on, as the command line says.

use std::path::Path;
use std::sync::Arc;

use tierline_daemon::models::{self, Prepared};
use tierline_engine::{Discovered, Engine};
use tierline_graph::Model;

use super::Global;
use crate::output::CommandResult;

/// Which engines this device has.
///
/// # Errors
/// When `--engine` names none.
pub fn engines(global: &Global) -> CommandResult<Discovered> {
    Ok(models::discover(&global.engine, &global.data_folder())?)
}

/// The engine to run on.
///
/// # Errors
/// When the one asked for isn't available.
pub fn engine(global: &Global) -> CommandResult<Arc<dyn Engine>> {
    Ok(models::usable(engines(global)?, &global.engine)?)
}

/// A model file, checked; what it declares wrongly is said.
///
/// # Errors
/// When it is no valid model.
pub fn load(global: &Global, path: &Path) -> CommandResult<Model> {
    let output = global.output();
    Ok(models::load(path, &mut |warning| output.say(warning))?)
}

/// As [`load`], with its constants folded.
///
/// # Errors
/// Those of [`load`], and when folding breaks it.
pub fn prepared(global: &Global, path: &Path, engine: &Arc<dyn Engine>) -> CommandResult<Prepared> {
    Ok(Prepared::fold(load(global, path)?, engine)?)
}
