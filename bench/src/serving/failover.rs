//! How long an application waits when the cable of its device is cut: clients
//! ask a device whose plan runs a model on the cloud, the link is cut under
//! them, and the time to the first answer of the device alone is taken. Start
//! at [`run`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tierline_demo::site::{Tierline, wait};
use tierline_zoo::{Options, by_name};

use super::load::Load;
use super::{asked, quantile};

/// A small model on a slow device near the cloud: the plan runs it there, and
/// the device is quick to answer by itself.
const MODEL: &str = "lenet";
const SLOWER: &str = "200";
const LINK: [&str; 4] = ["--bandwidth", "1gbit", "--delay", "1 ms"];

const CLIENTS: usize = 4;

/// Cuts, each at another time within a client's request.
const CUTS: u32 = 12;

/// Time of a cut, and of asking before it and after.
const CUT: Duration = Duration::from_millis(1_500);
const AROUND: Duration = Duration::from_secs(2);

/// Time for the device to find its parent again, and to know it for quick.
const MENDED: Duration = Duration::from_secs(8);

/// The goal, milliseconds.
const GOAL_MS: f64 = 50.0;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Per cut: from the cut to the first degraded answer, milliseconds.
    pub first_ms: Vec<f64>,
    /// Per cut: the longest that any request took, milliseconds.
    pub slowest_ms: Vec<f64>,
    /// Requests in all, and degraded ones. None failed: that is an error.
    pub requests: [usize; 2],
    /// Degraded ones while the link was whole.
    pub false_alarms: usize,
}

/// Measures.
///
/// # Errors
/// When the site can't be started, or a request fails or is answered wrongly.
pub fn run() -> Result<Report> {
    let binary = std::env::var_os("TIERLINE_BINARY").map(PathBuf::from);
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(binary.context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?, folder.path());
    let cloud =
        tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0", "--http", "off", "--grpc", "off"])?;
    let link = tierline.link("link", &cloud.url, &LINK)?;
    let serve = ["--slowdown", SLOWER, "--http", "off", "--grpc", "127.0.0.1:0"];
    let end = tierline.join(&cloud, "end", "end", &link.url(), &serve)?;
    let model = by_name(MODEL, &Options::default()).with_context(|| format!("no {MODEL} in the zoo"))?;
    let file = folder.path().join("model.onnx");
    model.save(&file)?;
    cloud.ask(&["model", "add", &file.to_string_lossy(), "--name", MODEL])?;
    let offloaded = || {
        let plan = end.ask(&["explain", MODEL]).ok()?;
        plan["in_force"].as_str()?.ends_with("on cloud").then_some(())
    };
    wait(Duration::from_secs(120), offloaded).context("the plan doesn't run the model on the cloud")?;
    let asked = asked(MODEL, &model, tierline_engine::onnxruntime(None)?.as_ref())?;
    let address: SocketAddr = end.grpc.trim_start_matches("http://").parse()?;
    let load = Load::new(CLIENTS)?;
    load.run(address, &asked, MENDED)?;

    let (mut first_ms, mut slowest_ms, mut requests, mut false_alarms) = (Vec::new(), Vec::new(), [0, 0], 0);
    for cut in 0..CUTS {
        // A cut before the plan is back on the cloud would meet nobody.
        wait(Duration::from_secs(120), offloaded).context("the plan doesn't come back to the cloud")?;
        let (link, before) = (&link, AROUND + Duration::from_micros(371) * cut);
        let (answers, [cut_at, whole_at]) = std::thread::scope(|scope| {
            let cutting = scope.spawn(move || {
                std::thread::sleep(before);
                link.set(&["--cut"])?;
                let cut_at = Instant::now();
                std::thread::sleep(CUT);
                link.set(&["--restore"])?;
                Ok::<_, anyhow::Error>([cut_at, Instant::now()])
            });
            let answers = load.answers(address, &asked, before + CUT + AROUND)?;
            let times = cutting.join().map_err(|_| anyhow::anyhow!("cutting the link panicked"))??;
            Ok::<_, anyhow::Error>((answers, times))
        })?;
        let degraded = || answers.iter().filter(|answer| answer.degraded);
        let first = degraded().map(|a| a.at).filter(|at| *at >= cut_at).min();
        let first = first.with_context(|| format!("cut {cut} went unnoticed"))?;
        first_ms.push((first - cut_at).as_secs_f64() * 1e3);
        let around = answers.iter().filter(|a| a.at >= cut_at && a.at <= whole_at);
        slowest_ms.push(around.map(|a| a.ms).fold(0.0, f64::max));
        requests = [requests[0] + answers.len(), requests[1] + degraded().count()];
        false_alarms += degraded().filter(|a| a.at < cut_at).count();
        // The device knows its parent for quick again.
        load.run(address, &asked, MENDED)?;
        wait(Duration::from_secs(60), offloaded).context("the plan did not come back")?;
    }
    ensure!(first_ms.len() == CUTS as usize, "not every cut was measured");
    Ok(Report { first_ms, slowest_ms, requests, false_alarms })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = self.first_ms.iter().filter(|ms| **ms <= GOAL_MS).count();
        writeln!(
            f,
            "{MODEL} on a device {SLOWER}x slower than the cloud, 2 ms of round trip away from it; the plan runs it on the\n\
             cloud. {CLIENTS} clients ask over gRPC, one request at a time each; the link is cut {CUTS} times for {:.1} s. Every answer\n\
             is compared with the engine's.\n",
            CUT.as_secs_f64()
        )?;
        writeln!(f, "| | median | 90th percentile | most |")?;
        writeln!(f, "|---|---|---|---|")?;
        for (what, values) in
            [("cut to the first answer, ms", &self.first_ms), ("slowest request meanwhile, ms", &self.slowest_ms)]
        {
            let [median, late, most] = [0.5, 0.9, 1.0].map(|q| quantile(values, q));
            writeln!(f, "| {what} | {median:.0} | {late:.0} | {most:.0} |")?;
        }
        writeln!(
            f,
            "\n{} requests, none failed; {} answered by the device alone and flagged, {} of them before a cut. Within the goal of\n\
             {GOAL_MS:.0} ms: {reached} of {} cuts.",
            self.requests[0],
            self.requests[1],
            self.false_alarms,
            self.first_ms.len()
        )
    }
}
