//! The command line: one file per verb, conventions in one place.
//!
//! stdout is data, stderr is messages; `--json` gives one document with
//! `schema_version`. Exit codes are [`ExitCode`]'s.

mod administer;
mod aims;
mod apart;
mod apps;
mod args;
mod bench;
mod bottleneck;
mod calibrate;
mod catalogue;
pub mod client;
mod completions;
mod data;
mod delta;
mod doctor;
mod drift;
mod engines;
mod examples;
mod exits;
pub mod infer;
mod job;
mod link;
mod model;
mod node;
mod planning;
mod rollout;
mod running;
mod serve;
mod site;
mod top;
mod train;
mod trainable;
mod trust;
mod versions;
mod zoo;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::output::{self, CommandError, CommandResult, ExitCode, Output};

/// Deep learning across end devices, edge nodes and the cloud.
#[derive(Debug, Parser)]
#[command(name = "tierline", version, propagate_version = true, disable_help_subcommand = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 configuration, 4 unreachable, 5 infeasible, \
6 verification failed, 124 timeout, 130 interrupted.")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options that every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Print one JSON document instead of text
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// No messages or progress on stderr
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
    /// The data folder of this device's node
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TIERLINE_DATA",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub data: Option<PathBuf>,
    /// The engine to use: `auto`, `onnxruntime` or `rten`
    #[arg(
        long,
        global = true,
        default_value = "auto",
        env = "TIERLINE_ENGINE",
        hide_env_values = true,
        help_heading = "Everywhere"
    )]
    pub engine: String,
}

impl Global {
    /// Where data and messages go.
    #[must_use]
    pub fn output(&self) -> Output {
        Output { json: self.json, quiet: self.quiet }
    }

    /// The data folder: `--data`, else the user's own.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(default_data_folder)
    }
}

fn default_data_folder() -> PathBuf {
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| home().map(|h| h.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("."))
        .join("tierline")
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what works on this device and how to get what doesn't
    Doctor,
    /// Run this device's node until it is stopped, look at one that runs, or stop it
    Node(Box<node::NodeArgs>),
    /// Watch a node and its site, live
    Top(top::Top),
    /// What happened on a node
    Logs(running::Logs),
    /// Tokens that let devices join the site
    #[command(subcommand)]
    Token(site::TokenVerb),
    /// Applications that ask nodes: give them an identity, or take it back
    #[command(subcommand)]
    App(apps::AppVerb),
    /// Who asked a node for what, and what became of it
    Audit(administer::Audit),
    /// Make this device a member of a site
    Join(node::Join),
    /// List the site's nodes, or shut one out
    Nodes(site::Nodes),
    /// Look into models, cut them, and give them to the site
    #[command(subcommand)]
    Model(model::ModelVerb),
    /// Signed metadata of models by hand: keys, roles, targets, signatures
    #[command(subcommand)]
    Trust(trust::TrustVerb),
    /// Name data sets on this device, and look into them
    #[command(subcommand)]
    Data(data::DataVerb),
    /// Notice that what a model sees has changed
    #[command(subcommand)]
    Drift(drift::DriftVerb),
    /// What services kept to train on: examples that small models weren't sure of
    #[command(subcommand)]
    Examples(examples::ExamplesVerb),
    /// A new version of a file as what differs from the old one
    #[command(subcommand)]
    Delta(delta::DeltaVerb),
    /// Measure a model on this device
    Profile(planning::Profile),
    /// Find the best placement of a model on the tiers
    Plan(planning::Plan),
    /// The same, with what decided it
    Explain(planning::Plan),
    /// Train a model, as a job's file says
    Train(train::Train),
    /// Jobs of the site: list, look, follow, pause, resume, cancel
    #[command(subcommand)]
    Job(job::JobVerb),
    /// Bring another version of a model to nodes, step by step
    #[command(subcommand)]
    Rollout(rollout::RolloutVerb),
    /// Bring every node back to the version that it ran before
    Rollback(rollout::Rollback),
    /// Try a federation in one process: any number of ends, links and devices as wished
    Sim(train::Sim),
    /// Send a request to a node
    Infer(infer::Infer),
    /// Serve models to applications, with nothing to set up
    Serve(serve::Serve),
    /// Measure how fast a node answers
    Bench(bench::Bench),
    /// A link in userspace, as slow and broken as wished
    #[command(subcommand)]
    Link(link::LinkVerb),
    /// Run a model for the node that started this process
    #[command(hide = true)]
    Apart(apart::Apart),
    /// Print shell completions
    Completions(completions::Completions),
    /// Write manual pages
    Manual(completions::Manual),
}

/// Parses the command line, runs it, and gives its exit code.
#[must_use]
pub fn run() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are answers; everything else is wrong usage.
            let code = if e.use_stderr() { ExitCode::Usage as u8 } else { 0 };
            let _ = e.print();
            return code.into();
        }
    };
    match dispatch(cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => output::report(&failure),
    }
}

fn dispatch(cli: Cli) -> CommandResult {
    let global = &cli.global;
    match cli.verb {
        Verb::Doctor => doctor::doctor(global),
        Verb::Node(args) => node::node(global, &args),
        Verb::Top(args) => top::top(global, &args),
        Verb::Logs(args) => running::logs(global, &args),
        Verb::Token(verb) => site::token(global, verb),
        Verb::App(verb) => apps::app(global, verb),
        Verb::Audit(args) => administer::audit(global, &args),
        Verb::Join(args) => node::join(global, &args),
        Verb::Nodes(args) => site::nodes(global, &args),
        Verb::Model(verb) => model::model(global, verb),
        Verb::Trust(verb) => trust::trust(global, verb),
        Verb::Data(verb) => data::data(global, verb),
        Verb::Drift(verb) => drift::drift(global, &verb),
        Verb::Examples(verb) => examples::examples(global, verb),
        Verb::Delta(verb) => delta::delta(global, verb),
        Verb::Profile(args) => planning::profile(global, &args),
        Verb::Plan(args) => planning::plan(global, &args, false),
        Verb::Explain(args) => planning::plan(global, &args, true),
        Verb::Train(args) => train::train(global, &args),
        Verb::Job(verb) => job::job(global, verb),
        Verb::Rollout(verb) => rollout::rollout(global, verb),
        Verb::Rollback(args) => rollout::rollback(global, &args),
        Verb::Sim(args) => train::simulate(global, &args),
        Verb::Infer(args) => infer::infer(global, &args),
        Verb::Serve(args) => serve::serve(global, &args),
        Verb::Bench(args) => bench::bench(global, &args),
        Verb::Link(verb) => link::link(global, verb),
        Verb::Apart(args) => apart::apart(&args),
        Verb::Completions(args) => completions::completions(&args),
        Verb::Manual(args) => completions::manual(&args),
    }
}

/// A wrong argument that clap couldn't see.
fn usage(text: impl std::fmt::Display) -> CommandError {
    CommandError::message(ExitCode::Usage, text)
}

/// Runs a command that talks to nodes.
fn block_on<T>(command: impl Future<Output = CommandResult<T>>) -> CommandResult<T> {
    // Four workers at least: one may encode tensors while others keep leases.
    let threads = std::thread::available_parallelism().map_or(4, |n| n.get().max(4));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let outcome = runtime.block_on(command);
    // Work that nobody waits for any more must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    outcome
}
