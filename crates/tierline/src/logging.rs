//! What a node writes to stderr while it runs: which of it, and in which form.
//!
//! Start at [`Log::start`].

use std::cell::RefCell;

use crate::exit::{CommandError, CommandResult, ExitCode};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::output::Output;

/// Where the filter may be given from outside; it goes before the file's.
pub const FILTER_VARIABLE: &str = "TIERLINE_LOG";

/// What is logged unless somebody says otherwise.
const FILTER_DEFAULT: &str = "warn,tierline=info";

/// The form of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON document a line, with `timestamp`, `level`, `target` and `message`
    Json,
}

/// The log of a node that runs.
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    in_force: RefCell<String>,
    format: Format,
    output: Output,
}

impl Log {
    /// Begins to log; `filter` is the file's.
    ///
    /// # Errors
    /// [`ExitCode::Configuration`] for a filter that can't be read.
    pub fn start(filter: Option<&str>, format: Format, output: Output) -> CommandResult<Self> {
        let (layer, handle) = reload::Layer::new(targets(filter)?);
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
        let plain = || fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
        let json =
            || plain().with_ansi(false).json().flatten_event(true).with_current_span(false).with_span_list(false);
        let registry = tracing_subscriber::registry().with(layer);
        // A second subscriber in one process (tests) is refused; the first stays.
        let _ = match format {
            Format::Text => registry.with(plain()).try_init(),
            Format::Json => registry.with(json()).try_init(),
        };
        Ok(Self { filter: handle, in_force: RefCell::new(text(filter).0), format, output })
    }

    /// Logs by another filter from now on.
    ///
    /// # Errors
    /// As [`Log::start`]; then the filter stays.
    pub fn refilter(&self, filter: Option<&str>) -> CommandResult {
        self.filter.reload(targets(filter)?).map_err(|e| CommandError::message(ExitCode::Failure, e))?;
        self.in_force.replace(text(filter).0);
        Ok(())
    }

    /// Logs by exactly this filter from now on, whatever the environment says.
    ///
    /// # Errors
    /// As [`Log::start`]; then the filter stays.
    pub fn set(&self, filter: &str) -> CommandResult {
        self.filter.reload(parsed(filter, "the filter")?).map_err(|e| CommandError::message(ExitCode::Failure, e))?;
        self.in_force.replace(filter.to_owned());
        Ok(())
    }

    /// The filter in force.
    #[must_use]
    pub fn in_force(&self) -> String {
        self.in_force.borrow().clone()
    }

    /// Says something to whoever started the node.
    pub fn say(&self, text: impl std::fmt::Display) {
        match self.format {
            Format::Text => self.output.say(text),
            Format::Json if self.output.quiet => {}
            Format::Json => tracing::info!("{text}"),
        }
    }
}

/// The filter in force.
fn targets(file: Option<&str>) -> CommandResult<Targets> {
    let (text, from) = text(file);
    parsed(&text, from)
}

/// The filter in force, and whose it is: the environment's, else the file's, else the default.
fn text(file: Option<&str>) -> (String, &'static str) {
    match (std::env::var(FILTER_VARIABLE), file) {
        (Ok(text), _) => (text, FILTER_VARIABLE),
        (Err(_), Some(text)) => (text.to_owned(), "log"),
        (Err(_), None) => (FILTER_DEFAULT.to_owned(), "the default"),
    }
}

fn parsed(text: &str, from: &str) -> CommandResult<Targets> {
    text.parse().map_err(|e| {
        CommandError::message(ExitCode::Configuration, format!("{from}: `{text}` says not what to log: {e}"))
            .hint("write levels, and targets with one, as in `warn,tierline=debug`")
    })
}
