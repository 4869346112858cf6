//! `tierline link`: a link in userspace, as slow and broken as wished.

use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;

use super::infer::parse_time;
use super::{Global, block_on};
use crate::link::control::{self, State};
use crate::link::{Change, LinkConfig, LinkError, Shaper, parse_bandwidth, parse_loss};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Subcommand)]
pub enum LinkVerb {
    /// Forward connections over a shaped link until stopped
    Start(Start),
    /// Change a running link
    Set(Set),
    /// Print a running link's state
    Show(Control),
}

/// What a link is like, on the command line.
#[derive(Debug, clap::Args)]
struct Shape {
    /// Bandwidth both ways, as in 10mbit; `unlimited` lifts the limit
    #[arg(long, value_name = "RATE", value_parser = parse_bandwidth)]
    bandwidth: Option<f64>,
    /// Bandwidth towards the target
    #[arg(long, value_name = "RATE", value_parser = parse_bandwidth)]
    up: Option<f64>,
    /// Bandwidth back
    #[arg(long, value_name = "RATE", value_parser = parse_bandwidth)]
    down: Option<f64>,
    /// One-way delay, as in `20 ms`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    delay: Option<Duration>,
    /// Up to so much more
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    jitter: Option<Duration>,
    /// Share of segments lost, as in 1%
    #[arg(long, value_name = "SHARE", value_parser = parse_loss)]
    loss: Option<f64>,
}

impl Shape {
    fn change(&self, cut: Option<bool>) -> Change {
        Change {
            up_bits_per_s: self.up.or(self.bandwidth),
            down_bits_per_s: self.down.or(self.bandwidth),
            delay_s: self.delay.map(|d| d.as_secs_f64()),
            jitter_s: self.jitter.map(|d| d.as_secs_f64()),
            loss: self.loss,
            cut,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Start {
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// Where connections go
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Address for `tierline link set`
    #[arg(long, value_name = "HOST:PORT")]
    control: Option<String>,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, clap::Args)]
pub struct Control {
    /// The running link's control address
    #[arg(long, value_name = "HOST:PORT")]
    control: String,
}

#[derive(Debug, clap::Args)]
pub struct Set {
    #[command(flatten)]
    target: Control,
    #[command(flatten)]
    shape: Shape,
    /// Let nothing pass
    #[arg(long, conflicts_with = "restore")]
    cut: bool,
    /// Let things pass again
    #[arg(long)]
    restore: bool,
}

#[derive(Serialize)]
struct Ready {
    event: &'static str,
    listen: String,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<String>,
}

fn failure(error: LinkError) -> CommandError {
    let exit = match error {
        LinkError::Control { .. } => ExitCode::Unreachable,
        LinkError::Value { .. } => ExitCode::Usage,
        LinkError::Listen { .. } => ExitCode::Configuration,
        _ => ExitCode::Failure,
    };
    CommandError::new(exit, error)
}

pub fn link(global: &Global, verb: LinkVerb) -> CommandResult {
    block_on(async {
        match verb {
            LinkVerb::Start(args) => start(global, args).await,
            LinkVerb::Set(args) => {
                let cut = if args.cut { Some(true) } else { args.restore.then_some(false) };
                let state = control::change(&args.target.control, &args.shape.change(cut)).await.map_err(failure)?;
                show(global, &state)
            }
            LinkVerb::Show(args) => {
                let state = control::change(&args.control, &Change::default()).await.map_err(failure)?;
                show(global, &state)
            }
        }
    })
}

async fn start(global: &Global, args: Start) -> CommandResult {
    let config = LinkConfig::default().with(&args.shape.change(None)).map_err(failure)?;
    let shaper = Shaper::start(&args.listen, args.to.clone(), config).await.map_err(failure)?;
    let listener = match &args.control {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(
                bound
                    .map_err(|e| anyhow::anyhow!("cannot listen on {address}: {e}"))
                    .exit_with(ExitCode::Configuration)?,
            )
        }
        None => None,
    };
    let control = listener.as_ref().and_then(|l| l.local_addr().ok()).map(|a| a.to_string());
    let ready = Ready { event: "ready", listen: shaper.address().to_string(), to: args.to, control };
    if global.json {
        global.output().event(&ready)?;
    } else {
        global.output().say(format!("{} leads to {}", ready.listen, ready.to));
        global.output().say(describe(&shaper.state()));
    }
    match listener {
        Some(listener) => control::serve(&shaper, listener).await,
        None => std::future::pending().await,
    }
    Ok(())
}

fn show(global: &Global, state: &State) -> CommandResult {
    global.output().data(state, describe)
}

fn describe(state: &State) -> String {
    let rate = |bits: Option<f64>| bits.map_or_else(|| "unlimited".to_owned(), |b| format!("{} Mbit/s", b / 1e6));
    let c = &state.config;
    if c.cut {
        return "cut: nothing passes".to_owned();
    }
    format!(
        "{} up, {} down, delay {} ms + up to {} ms, loss {}%; {} up and {} down so far",
        rate(c.up_bits_per_s),
        rate(c.down_bits_per_s),
        c.delay_s * 1e3,
        c.jitter_s * 1e3,
        c.loss * 100.0,
        output::bytes(state.counters.up_bytes),
        output::bytes(state.counters.down_bytes)
    )
}
