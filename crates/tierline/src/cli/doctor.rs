//! `tierline doctor`: what works on this device, and how to get the rest.

use serde::Serialize;
use tierline_engine::CandidateState;

use super::Global;
use super::engines;
use crate::output::CommandResult;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    engines: Vec<EngineLine>,
    chosen: Option<String>,
    data_folder: String,
    joined: bool,
    threads: usize,
}

#[derive(Serialize)]
struct EngineLine {
    name: String,
    available: bool,
    detail: String,
}

pub fn doctor(global: &Global) -> CommandResult {
    let data = global.data_folder();
    let found = engines::engines(global)?;
    let engines = found
        .considered
        .iter()
        .map(|c| {
            let place =
                c.path.as_ref().map_or_else(|| c.origin.to_owned(), |p| format!("{} ({})", p.display(), c.origin));
            let (available, detail) = match &c.state {
                CandidateState::Chosen => (true, place),
                CandidateState::Passed => (true, format!("{place}, passed over")),
                CandidateState::Rejected(why) => (false, format!("{place}: {why}")),
            };
            EngineLine { name: c.engine.to_owned(), available, detail }
        })
        .collect();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        engines,
        chosen: Some(format!("{} {}", found.engine.name(), found.engine.version())).filter(|_| !found.fallback),
        joined: data.join("identity").join("node.pem").exists(),
        data_folder: data.display().to_string(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    global.output().data(&report, |r| {
        let mut text = format!("tierline {}\n\n", r.version);
        for e in &r.engines {
            text.push_str(&format!("  {:<12} {:<5} {}\n", e.name, if e.available { "yes" } else { "no" }, e.detail));
        }
        text.push_str(&format!("\nengine   {}\n", r.chosen.as_deref().unwrap_or("none")));
        text.push_str(&format!("threads  {}\n", r.threads));
        text.push_str(&format!(
            "data     {} ({})\n",
            r.data_folder,
            if r.joined {
                "joined"
            } else {
                "no node yet: `tierline node --role cloud` starts a site here, `tierline join URL --token-file FILE` joins one"
            }
        ));
        text
    })
}
