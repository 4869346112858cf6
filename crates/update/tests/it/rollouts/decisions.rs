//! What the orchestrator decides, case by case, with devices that do as they
//! are told at once.

use std::collections::BTreeMap;

use tierline_update::rollout::fleet::{Fact, Standing, admit};
use tierline_update::rollout::{
    Action, Ask, Attributes, Command, Event, Failed, Fleet, Health, Kind, Latency, Now, Outcome, Record, Report,
    RolloutError, Spec, Want,
};

use super::device::version;

struct Site {
    fleet: Fleet,
    now_ms: u64,
    unix_ms: u64,
    records: Vec<Record>,
    /// What each device runs, and the sequence of its reports.
    devices: BTreeMap<String, (String, u64)>,
    wants: Vec<(String, Want)>,
    prefetches: Vec<String>,
    notes: Vec<String>,
    finished: Vec<Outcome>,
    /// Devices that refuse the new version, and how often yet.
    refuse: BTreeMap<String, u32>,
    /// Devices that don't answer.
    deaf: Vec<String>,
    errors: u64,
}

const HOUR: u64 = 3_600_000;

impl Site {
    fn new(text: &str) -> Self {
        Self::with(text, 7)
    }

    fn with(text: &str, rollout: u64) -> Self {
        let head = "model = \"m\"\nfrom = \"v1\"\nto = \"v2\"\n";
        let spec = Spec::parse(&format!("{head}{text}")).unwrap();
        let now = Now { monotonic_ms: 0, unix_ms: Some(12 * HOUR) };
        let (fleet, actions) = Fleet::new(spec, rollout, now).unwrap();
        let mut site = Self {
            fleet,
            now_ms: 0,
            unix_ms: 12 * HOUR,
            records: Vec::new(),
            devices: BTreeMap::new(),
            wants: Vec::new(),
            prefetches: Vec::new(),
            notes: Vec::new(),
            finished: Vec::new(),
            refuse: BTreeMap::new(),
            deaf: Vec::new(),
            errors: 0,
        };
        site.does(actions);
        site
    }

    fn step(&mut self, event: Event) {
        let now = Now { monotonic_ms: self.now_ms, unix_ms: Some(self.unix_ms + self.now_ms) };
        let actions = self.fleet.step(now, event);
        self.does(actions);
    }

    fn does(&mut self, actions: Vec<Action>) {
        let mut behind = false;
        for action in actions {
            assert!(!(behind && matches!(action, Action::Keep(_))), "records come first");
            behind |= !matches!(action, Action::Keep(_));
            match action {
                Action::Keep(record) => self.records.push(record),
                Action::Want { device, want } => self.wants.push((device, want)),
                Action::Prefetch { edge, .. } => self.prefetches.push(edge),
                Action::Notify { text } => self.notes.push(text),
                Action::Finished(outcome) => self.finished.push(outcome),
            }
        }
    }

    fn report(&mut self, device: &str, ask: Option<Ask>) -> Report {
        let (running, sequence) = self.devices.get_mut(device).unwrap();
        *sequence += 1;
        let running = Some(version(running));
        Report { session: 1, sequence: *sequence, running, confirmed: true, ask, ..Report::default() }
    }

    fn sees(&mut self, device: &str, running: &str, site: Option<&str>) {
        self.devices.insert(device.into(), (running.into(), 0));
        let report = self.report(device, None);
        let role = if site.is_some() || device.starts_with("end") { "end" } else { "edge" };
        let attributes =
            Attributes { role: role.into(), tier: 2, site: site.map(str::to_owned), ..Attributes::default() };
        self.step(Event::Seen { device: device.into(), attributes, report });
    }

    fn sample(&mut self, device: &str, of: &str, errors: u64) {
        let mut latency = Latency::default();
        (0..200).for_each(|_| latency.note_ns(10_000_000));
        let health = Health { runs: 200 + errors, errors, latency, labelled: 200, correct: 190, ..Health::default() };
        self.step(Event::Health { device: device.into(), session: 1, version: version(of), health });
    }

    /// Devices do what they were told, and say so; whether there was anything.
    fn obey(&mut self) -> bool {
        let wants = std::mem::take(&mut self.wants);
        let some = !wants.is_empty();
        for (device, want) in wants {
            if self.deaf.contains(&device) {
                continue;
            }
            let refuses = self.refuse.get_mut(&device).filter(|left| **left > 0 && want.kind == Kind::Update);
            let mut report;
            if let Some(left) = refuses {
                *left -= 1;
                report = self.report(&device, Some(want.ask));
                let reason = "its self-test failed".into();
                report.failed = Some(Failed { ask: want.ask, version: want.version, reason });
            } else {
                self.devices.get_mut(&device).unwrap().0 = want.version.to_string();
                report = self.report(&device, Some(want.ask));
            }
            self.step(Event::Report { device: device.clone(), report: report.clone() });
            self.step(Event::Report { device: device.clone(), report });
            let errors = self.errors;
            self.sample(&device, "v2", errors);
        }
        some
    }

    /// Some seconds, in which devices obey.
    fn passes(&mut self, seconds: u64) {
        let end = self.now_ms + seconds * 1_000;
        while self.now_ms < end {
            while self.obey() {}
            let next = self.fleet.next_deadline().unwrap_or(end);
            self.now_ms = next.clamp(self.now_ms + 1, end.max(self.now_ms + 1));
            self.step(Event::Tick);
        }
        while self.obey() {}
    }

    fn ends(&mut self, count: usize) {
        for at in 0..count {
            self.sees(&format!("end-{at}"), "v1", None);
        }
    }

    fn on_new(&self) -> usize {
        self.devices.values().filter(|(running, _)| running == "v2").count()
    }

    fn says(&self, part: &str) -> bool {
        self.notes.iter().any(|note| note.contains(part))
    }

    fn stage(&self) -> Standing {
        self.fleet.progress().stage
    }

    fn command(&mut self, command: Command) {
        self.step(Event::Command(command));
    }

    /// Killed, and taken up again with every device seen anew.
    fn restarts(&mut self) {
        self.fleet = Fleet::recover(self.records.clone()).unwrap().unwrap();
        self.wants.clear();
        let devices: Vec<String> = self.devices.keys().cloned().collect();
        for device in devices {
            let report = self.report(&device, None);
            let attributes = Attributes { role: "end".into(), tier: 2, ..Attributes::default() };
            self.step(Event::Seen { device, attributes, report });
        }
    }
}

const SHORT: &str = "[limits]\ndeadline_s = 60\n[health]\nwindow_s = 10\n";

fn one(group: &str) -> String {
    format!("{SHORT}[[group]]\nname = \"all\"\nconcurrency = 100\n{group}")
}

#[test]
fn waves_follow_each_other_behind_their_gates() {
    let mut site = Site::new(&one("canary = 1\nwaves = [50, 100]"));
    site.ends(10);
    site.passes(8);
    assert_eq!(site.on_new(), 1);
    site.passes(10);
    assert_eq!(site.on_new(), 5);
    site.passes(12);
    assert_eq!(site.on_new(), 10);
    site.passes(12);
    assert_eq!(site.finished, [Outcome::Succeeded]);
    let total = site.fleet.progress().total;
    assert_eq!((total.percent, total.capacity_percent), (100.0, 100.0));
}

#[test]
fn what_follows_success_is_as_the_file_says() {
    for (keys, command, other) in [
        ("on_wave = \"approve\"", Command::Approve, Command::Resume),
        ("on_wave = \"pause\"", Command::Resume, Command::Approve),
    ] {
        let mut site = Site::new(&one(&format!("waves = [50, 100]\n{keys}")));
        site.ends(4);
        site.passes(100);
        assert_eq!(site.on_new(), 2, "{keys}");
        site.command(other);
        site.passes(100);
        assert_eq!(site.on_new(), 2, "{keys}");
        site.restarts();
        site.passes(100);
        assert_eq!(site.on_new(), 2, "{keys}: a restart approves nothing");
        site.command(command);
        site.passes(100);
        assert_eq!((site.on_new(), site.finished.as_slice()), (4, [Outcome::Succeeded].as_slice()), "{keys}");
    }
    let mut site = Site::new(&one("on_success = \"approve\""));
    site.ends(4);
    site.passes(100);
    assert_eq!((site.on_new(), site.stage()), (4, Standing::Approval));
    site.command(Command::Approve);
    site.passes(1);
    assert_eq!(site.finished, [Outcome::Succeeded]);
}

#[test]
fn what_follows_errors_is_as_the_file_says() {
    for (action, stage, on_new) in [
        ("next", Standing::Finished(Outcome::Succeeded), 3),
        ("approve", Standing::Approval, 3),
        ("pause", Standing::Paused, 3),
        ("roll-back-group", Standing::Paused, 0),
        ("roll-back-all", Standing::Finished(Outcome::RolledBack), 0),
    ] {
        let mut site = Site::new(&one(&format!("on_error = \"{action}\"")));
        site.refuse.insert("end-1".into(), 9);
        site.ends(4);
        site.passes(100);
        assert_eq!((site.stage(), site.on_new()), (stage, on_new), "{action}: {:?}", site.notes);
        assert!(site.says("its self-test failed"), "{:?}", site.notes);
    }
    // What an operator lets go on goes on, with its failures excused.
    let mut site = Site::new(&one("on_error = \"pause\"\nwaves = [50, 100]"));
    site.refuse = (0..4).map(|at| (format!("end-{at}"), u32::from(at == 1))).collect();
    site.ends(4);
    site.passes(100);
    site.command(Command::Resume);
    site.passes(100);
    assert!(site.on_new() >= 3, "{:?}", site.notes);
    assert_eq!(site.finished, [Outcome::Succeeded]);
}

#[test]
fn a_breach_acts_at_once_and_no_data_never() {
    let mut site = Site::new(&one("waves = [25, 100]"));
    site.errors = 50;
    site.ends(4);
    site.passes(9);
    assert_eq!(site.finished, [Outcome::RolledBack]);
    assert_eq!(site.on_new(), 0);
    assert!(site.says("share of requests that fail"), "{:?}", site.notes);

    let text = format!("{SHORT}runs_min = 100000\n[[group]]\nname = \"all\"\nwaves = [25, 100]\n");
    let mut site = Site::new(&text);
    site.ends(4);
    site.passes(100_000);
    assert_eq!((site.on_new(), site.stage()), (1, Standing::Running));
    assert!(site.says("holds"));

    let text = format!("{SHORT}runs_min = 100000\nhold_max_s = 300\n[[group]]\nname = \"all\"\nwaves = [25, 100]\n");
    let mut site = Site::new(&text);
    site.ends(4);
    site.passes(400);
    assert_eq!((site.on_new(), site.finished.as_slice()), (0, [Outcome::RolledBack].as_slice()));
}

#[test]
fn nobody_is_asked_before_there_is_something_to_compare_with() {
    let text = format!("{SHORT}latency_p95_ratio_max = 1.5\n[[group]]\nname = \"all\"\nconcurrency = 9\n");
    let mut site = Site::new(&text);
    site.ends(4);
    site.passes(100);
    assert_eq!(site.on_new(), 0);
    assert!(site.says("too little to compare with"), "{:?}", site.notes);
    site.sample("end-2", "v1", 0);
    site.passes(100);
    assert_eq!((site.on_new(), site.finished.as_slice()), (4, [Outcome::Succeeded].as_slice()));
}

#[test]
fn a_device_is_asked_again_as_often_as_the_file_says() {
    let mut site = Site::new(&one("attempts = 3"));
    site.refuse.insert("end-1".into(), 2);
    site.ends(3);
    site.passes(100);
    assert_eq!((site.on_new(), site.finished.as_slice()), (3, [Outcome::Succeeded].as_slice()));
}

#[test]
fn failed_devices_keep_their_place_and_late_ones_count_as_failed() {
    let text = format!("{SHORT}[[group]]\nname = \"all\"\nconcurrency = 2\nfailures_max = 5\n");
    let mut site = Site::new(&text);
    site.deaf = (0..9).map(|at| format!("end-{at}")).collect();
    site.ends(10);
    site.passes(50);
    assert_eq!(site.fleet.progress().total.asked, 2);
    site.passes(10_000);
    assert_eq!(site.finished, [Outcome::RolledBack], "every place is held by a failed device");
    assert!(site.says("hold every place"), "{:?}", site.notes);
    let asked = site.records.iter().filter(|record| matches!(record.fact, Fact::Asked { .. })).count();
    assert!(asked <= 3, "{asked}");
}

#[test]
fn a_place_isnt_free_while_a_failed_device_holds_it() {
    let text = format!("{SHORT}[[group]]\nname = \"all\"\nconcurrency = 2\nfailures_max = 5\n");
    let mut site = Site::new(&text);
    // The first two that are asked: one fails at once, the other says nothing.
    site.ends(10);
    site.deaf = (0..10).map(|at| format!("end-{at}")).collect();
    site.passes(6);
    let asked = |site: &Site| site.records.iter().filter(|record| matches!(record.fact, Fact::Asked { .. })).count();
    assert_eq!(asked(&site), 2);
    let fails = site.records.iter().find_map(|record| match &record.fact {
        Fact::Asked { device, number, .. } => Some((device.clone(), Ask { rollout: 7, number: *number })),
        _ => None,
    });
    let (device, ask) = fails.unwrap();
    let mut report = site.report(&device, Some(ask));
    report.failed = Some(Failed { ask, version: version("v2"), reason: "its self-test failed".into() });
    site.step(Event::Report { device, report });
    site.passes(20);
    let total = site.fleet.progress().total;
    assert_eq!((asked(&site), total.asked, total.failed), (2, 1, 1));
}

#[test]
fn a_wave_whose_devices_are_all_away_holds() {
    let mut site = Site::new(&one("waves = [50, 100]\non_wave = \"pause\""));
    site.ends(4);
    site.passes(60);
    assert_eq!((site.on_new(), site.stage()), (2, Standing::Paused));
    let old: Vec<String> =
        site.devices.iter().filter(|(_, (running, _))| running == "v1").map(|(device, _)| device.clone()).collect();
    old.iter().for_each(|device| site.step(Event::Lost { device: device.clone() }));
    site.command(Command::Resume);
    site.passes(1_000);
    assert_eq!((site.on_new(), site.stage()), (2, Standing::Running), "{:?}", site.notes);
    assert!(site.says("no device of the wave has confirmed"), "{:?}", site.notes);
}

#[test]
fn what_was_lost_is_said_again() {
    let mut site = Site::new(&one(""));
    site.deaf = vec!["end-0".into(), "end-1".into()];
    site.ends(2);
    site.passes(6);
    assert_eq!((site.fleet.progress().total.asked, site.on_new()), (2, 0));
    site.deaf.clear();
    site.passes(20);
    assert_eq!(site.on_new(), 2, "nobody said anything meanwhile");
}

#[test]
fn success_counts_for_what_was_asked_only() {
    let mut site = Site::new(&one("waves = [50, 100]\non_wave = \"pause\""));
    site.deaf = (0..4).map(|at| format!("end-{at}")).collect();
    site.ends(4);
    site.passes(6);
    let asked: Vec<String> = site.wants.iter().map(|(device, _)| device.clone()).collect();
    let sent: Vec<(String, Want)> = site
        .records
        .iter()
        .filter_map(|record| match &record.fact {
            Fact::Asked { device, number, .. } => {
                let ask = Ask { rollout: 7, number: *number };
                Some((
                    device.clone(),
                    Want {
                        ask,
                        version: version("v2"),
                        kind: Kind::Update,
                        limits: Default::default(),
                        terms: Default::default(),
                    },
                ))
            }
            _ => None,
        })
        .collect();
    assert_eq!(sent.len(), 2);
    let confirmed = |site: &Site| site.fleet.progress().total.confirmed;
    let (first, want) = sent[0].clone();
    let say = |site: &mut Site, device: &str, running: &str, sure: bool, ask: Option<Ask>| {
        site.devices.get_mut(device).unwrap().0 = running.into();
        let report = Report { confirmed: sure, ..site.report(device, ask) };
        site.step(Event::Report { device: device.into(), report });
    };
    // Of a device that wasn't asked; for another want; of the old version; on
    // trial; with an older report behind.
    let other =
        (0..4).map(|at| format!("end-{at}")).find(|device| sent.iter().all(|(asked, _)| asked != device)).unwrap();
    say(&mut site, &other, "v2", true, Some(want.ask));
    say(&mut site, &first, "v2", true, None);
    say(&mut site, &first, "v2", true, Some(Ask { rollout: 6, number: want.ask.number }));
    say(&mut site, &first, "v2", true, Some(Ask { rollout: 7, number: want.ask.number + 1 }));
    say(&mut site, &first, "v1", true, Some(want.ask));
    say(&mut site, &first, "v2", false, Some(want.ask));
    assert_eq!(confirmed(&site), 0);
    assert!(site.says("without having been asked"), "{:?} {asked:?}", site.notes);
    say(&mut site, &first, "v2", true, Some(want.ask));
    assert_eq!(confirmed(&site), 1);
    // What comes late says nothing.
    let stale = Report { session: 1, sequence: 1, running: Some(version("v1")), confirmed: true, ..Report::default() };
    site.step(Event::Report { device: first.clone(), report: stale });
    assert_eq!(confirmed(&site), 1);
    // What was confirmed and runs no more is a failure.
    say(&mut site, &first, "v1", true, Some(want.ask));
    assert_eq!((confirmed(&site), site.stage()), (0, Standing::Returning), "{:?}", site.notes);
}

#[test]
fn a_closed_window_asks_nobody_and_no_deadline_passes_in_it() {
    let text = "[limits]\ndeadline_s = 3600\nwindow = { from = \"22:00\", to = \"23:00\", utc_offset = \"+00:00\" }\n\
                [health]\nwindow_s = 10\n[[group]]\nname = \"all\"\nconcurrency = 9\n";
    let mut site = Site::new(text);
    site.deaf = vec!["end-0".into()];
    site.ends(2);
    site.passes(9 * 3_600);
    assert_eq!(site.fleet.progress().total.asked, 0);
    site.passes(3_600 + 600);
    assert_eq!((site.fleet.progress().total.asked, site.on_new()), (1, 1));
    // The window is closed for 23 hours: what was asked has time left.
    site.passes(20 * 3_600);
    assert_eq!(site.fleet.progress().total.failed, 0);
    site.passes(6 * 3_600);
    assert_eq!(site.finished, [Outcome::RolledBack]);
}

#[test]
fn a_site_fetches_once_and_its_devices_wait_for_its_edge() {
    let mut site = Site::new(&one("match = { roles = [\"end\"] }"));
    for at in 0..6 {
        site.sees(&format!("end-{at}"), "v1", Some(["edge-a", "edge-b"][at % 2]));
    }
    site.passes(6);
    assert_eq!((site.prefetches.len(), site.on_new()), (2, 0), "{:?}", site.prefetches);
    site.step(Event::Holds { edge: "edge-a".into(), version: version("v1"), holds: true });
    site.passes(1);
    assert_eq!(site.on_new(), 0, "those are another version's bytes");
    site.step(Event::Holds { edge: "edge-a".into(), version: version("v2"), holds: true });
    let through = site.wants.iter().all(|(_, want)| want.limits.through.as_deref() == Some("edge-a"));
    assert!(through && site.wants.len() == 3);
    site.passes(1);
    assert_eq!(site.on_new(), 3);
    site.step(Event::Holds { edge: "edge-b".into(), version: version("v2"), holds: true });
    site.passes(100);
    assert_eq!(site.finished, [Outcome::Succeeded]);
}

#[test]
fn devices_that_come_late_get_the_right_version() {
    for (abort, late) in [(false, "v2"), (true, "v1")] {
        let mut site = Site::new(&one(""));
        site.ends(2);
        site.deaf = vec!["end-1".into()];
        if !abort {
            site.deaf.clear();
        }
        site.passes(30);
        if abort {
            site.command(Command::Abort { reason: "it looks odd".into() });
            site.step(Event::Lost { device: "end-1".into() });
            site.passes(100);
            assert_eq!(site.finished, [Outcome::Aborted]);
            site.deaf.clear();
            // It took the version up while it was away.
            site.sees("end-1", "v2", None);
        }
        site.sees("end-8", "v1", None);
        site.sees("end-9", "v1", None);
        site.passes(100);
        let runs: Vec<&str> = site.devices.values().map(|(running, _)| running.as_str()).collect();
        assert_eq!(runs, [late; 4], "{:?}", site.notes);
        assert_eq!(site.finished.len(), 1);
    }
    // A group that isn't dynamic leaves them as they are.
    let mut site = Site::new(&one("dynamic = false"));
    site.ends(2);
    site.passes(100);
    site.sees("end-9", "v1", None);
    site.passes(100);
    assert_eq!(site.on_new(), 2);
}

#[test]
fn devices_on_neither_version_are_said_and_left_or_updated() {
    let mut site = Site::new(&one(""));
    site.ends(2);
    site.sees("end-7", "v0", None);
    site.passes(100);
    assert_eq!((site.on_new(), site.fleet.progress().others), (2, 1));
    assert!(site.says("`end-7` runs v0"), "{:?}", site.notes);
    let mut site = Site::new(&format!("other = \"update\"\n{}", one("")));
    site.ends(2);
    site.sees("end-7", "v0", None);
    site.passes(100);
    assert_eq!((site.on_new(), site.fleet.progress().others), (3, 0));
}

#[test]
fn one_rollout_of_a_model_at_a_time_unless_the_file_says_so() {
    let mut first = Site::new(&one(""));
    first.ends(2);
    let head = "model = \"m\"\nfrom = \"v2\"\nto = \"v3\"\n";
    let refused = Spec::parse(&format!("{head}[[group]]\nname = \"all\"")).unwrap();
    assert!(matches!(admit(&refused, [&first.fleet]), Err(RolloutError::Busy { rollout: 7, .. })));
    let other = Spec::parse("model = \"n\"\nfrom = \"v1\"\nto = \"v2\"\n[[group]]\nname = \"all\"").unwrap();
    assert_eq!(admit(&other, [&first.fleet]), Ok(vec![]));
    let next = format!("{head}supersede = true\nother = \"update\"\n[[group]]\nname = \"all\"");
    let supersedes = Spec::parse(&next).unwrap();
    assert_eq!(admit(&supersedes, [&first.fleet]), Ok(vec![7]));
    first.command(Command::Supersede { by: 8 });
    assert_eq!(first.finished, [Outcome::Superseded]);
    first.passes(100);
    assert_eq!((first.on_new(), first.fleet.next_deadline()), (0, None), "it says nothing any more");
    assert_eq!(admit(&refused, [&first.fleet]), Ok(vec![]));
}

#[test]
fn too_many_failures_of_all_roll_everything_back() {
    let mut site = Site::new(&format!("failures_max = 1\n{}failures_max = 3\non_error = \"pause\"", one("")));
    site.refuse = [("end-1".to_owned(), 9), ("end-2".to_owned(), 9)].into();
    site.ends(8);
    site.passes(200);
    assert_eq!((site.on_new(), site.finished.as_slice()), (0, [Outcome::RolledBack].as_slice()));
}

#[test]
fn a_group_keeps_as_many_in_service_as_the_file_says() {
    let mut site = Site::new(&one("unavailable_max = 2"));
    site.ends(6);
    for away in ["end-4", "end-5"] {
        site.step(Event::Lost { device: away.into() });
    }
    site.passes(30);
    assert_eq!(site.on_new() + site.fleet.progress().total.asked, 0, "two are away already");
    assert!(site.fleet.progress().waits_for.unwrap().contains("away"));
    site.sees("end-4", "v1", None);
    site.passes(100);
    assert!(site.on_new() >= 5, "{:?}", site.fleet.progress());
}

#[test]
fn a_journal_of_something_else_is_refused() {
    let mut site = Site::new(&one(""));
    site.ends(2);
    site.passes(100);
    let records = site.records.clone();
    for cut in 1..=records.len() {
        assert!(Fleet::recover(records[..cut].to_vec()).unwrap().is_some(), "{cut}");
    }
    assert!(Fleet::recover(Vec::new()).unwrap().is_none());
    assert!(Fleet::recover(records[1..].to_vec()).is_err());
    let mut wrong = records;
    wrong.push(Record { at_ms: 0, open_ms: 0, fact: Fact::Returned { device: "nobody".into() } });
    assert!(Fleet::recover(wrong).is_err());
}

#[test]
fn what_devices_say_of_themselves_is_bounded() {
    let mut site = Site::new(&one(""));
    let long = "x".repeat(1_000);
    site.step(Event::Seen { device: long.clone(), attributes: Attributes::default(), report: Report::default() });
    let labels = (0..100).map(|at| (at.to_string(), String::new())).collect();
    let attributes = Attributes { labels, ..Attributes::default() };
    site.step(Event::Seen { device: "end-1".into(), attributes, report: Report::default() });
    site.ends(1);
    let health = Health { runs: 1, errors: 2, ..Health::default() };
    site.step(Event::Health { device: "end-0".into(), session: 1, version: version("v2"), health });
    site.step(Event::Holds { edge: long, version: version("v2"), holds: true });
    assert_eq!(site.fleet.progress().total.devices, 1);
    assert!(site.says("left out"), "{:?}", site.notes);
}
