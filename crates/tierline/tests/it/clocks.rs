//! Nodes whose clock is set back while they run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::applications::{Http, config};
use crate::harness::{Node, Site, binary, tierline, until, until_planned};
use crate::serve::Served;

/// A wall clock that a test sets: what programs ask of the system is less by as
/// many seconds as a file says. Clocks that only go on are left alone.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long back(void) {
    long seconds = 0;
    const char *path = getenv("TEST_CLOCK");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*of_system)(clockid_t, struct timespec *);
    if (!of_system) of_system = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = of_system(clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec -= back();
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    static int (*of_system)(struct timeval *, void *);
    if (!of_system) of_system = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int result = of_system(time, zone);
    time->tv_sec -= back();
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"#;

struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// None where there is no compiler.
    fn make(folder: &Path) -> Option<Self> {
        let (source, library, file) = (folder.join("clock.c"), folder.join("clock.so"), folder.join("clock"));
        fs::write(&source, SOURCE).expect("a file");
        fs::write(&file, "0").expect("a file");
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
        if !made.is_ok_and(|made| made.success()) {
            eprintln!("skipped: there is no C compiler to make a clock with");
            return None;
        }
        let clock = Self { library, file };
        clock.set_back(3 * 86_400);
        let now = |mut command: Command| -> u64 {
            let output = command.args(["-c", "import time; print(int(time.time()))"]).output().expect("Python runs");
            String::from_utf8(output.stdout).expect("text").trim().parse().expect("a number")
        };
        let python = std::env::var_os("TIERLINE_PYTHON").unwrap_or_else(|| "python3".into());
        let behind = now(Command::new(&python)) - now(clock.of(Command::new(&python)));
        assert!((3 * 86_400 - 5..=3 * 86_400).contains(&behind), "the clock doesn't go by the file: {behind}");
        clock.set_back(0);
        Some(clock)
    }

    fn of(&self, mut command: Command) -> Command {
        command.env("LD_PRELOAD", &self.library).env("TEST_CLOCK", &self.file);
        command
    }

    fn set_back(&self, seconds: u64) {
        // In one piece: it may be read meanwhile.
        let next = self.file.with_extension("next");
        fs::write(&next, seconds.to_string()).expect("a file");
        fs::rename(next, &self.file).expect("it is replaced");
    }
}

#[test]
fn what_has_expired_stays_so_and_what_counts_goes_on_counting() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(clock) = Clock::make(folder.path()) else { return };
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (mlp, kept, ca) = (path("mlp.onnx"), path("kept"), path("ca.pem"));
    assert_eq!(tierline(["model", "zoo", "mlp", "--out", &mlp]).code, 0);
    let served = Served::start(clock.of(binary()), &[&mlp, "--keep", &kept, "--tls", "own", "--require", "all"]);
    let app = |name: &str, valid: &str| {
        let create = ["--data", &kept, "app", "create", name, "--model", "*", "--valid", valid, "--ca", &ca, "--json"];
        tierline(create).json()["token"].as_str().expect("a token").to_owned()
    };
    let (short, long) = (app("short", "1 s"), app("long", "1 h"));
    let address = served.http.strip_prefix("https://").expect("TLS").to_owned();
    // A connection of its own each time: certificates are looked at anew.
    let asks = |token: &str| Http::tls(&address, &config(Path::new(&ca), None, b"http/1.1")).get("/v2", token).status;
    until("the short one expires", || (asks(&short) == 401).then_some(()));
    assert_eq!(asks(&long), 200);
    for seconds in [60, 7_200] {
        clock.set_back(seconds);
        assert_eq!((asks(&short), asks(&long)), (401, 200), "{seconds} s back");
    }
    // Made by the clock that is behind, it counts as well.
    let late = app("late", "1 h");
    assert_eq!(asks(&late), 200);
    clock.set_back(0);
    assert_eq!((asks(&short), asks(&long), asks(&late)), (401, 200, 200));
}

#[test]
fn leases_deadlines_and_connections_do_not_go_by_the_clock() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(clock) = Clock::make(folder.path()) else { return };
    let mut site = Site::new();
    let model = site.add_model();
    let data = site.join("end", "cam", &site.cloud.url);
    let end = Node::start_by(clock.of(binary()), &data, &["--metrics", "127.0.0.1:0"]);
    until_planned(&end);
    let ask = || {
        let args = ["infer", "--model", "digits", "--placement", "cloud", "--deadline", "5 s", "--json"];
        let mut command = end.command(&args);
        command.args(["--input", &model.input]).stdin(Stdio::null());
        crate::harness::Ran::of(command.output().expect("the binary runs"))
    };
    until("the cloud answers", || (ask().code == 0).then_some(()));
    let lost = |node: &Node| node.log().matches("lost cloud").count();
    let before = lost(&end);
    clock.set_back(7_200);
    for _ in 0..8 {
        let answer = ask().json();
        assert_eq!(answer["degraded"], false, "{answer}");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(lost(&end), before, "the lease is held: {}", end.log());
    // Another connection, whose certificates are younger than this clock.
    site.cloud.restart();
    until("the end is back", || (ask().code == 0 && ask().json()["degraded"] == false).then_some(()));
    clock.set_back(0);
    assert_eq!(ask().json()["degraded"], false);
}
