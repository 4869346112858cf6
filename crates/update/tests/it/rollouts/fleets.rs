//! Fleets under seeded faults.

use fastrand::Rng;
use tierline_update::rollout::{Command, Outcome, Spec};

use super::world::{Nature, Setting, World};

/// Runs `test` for each of `count` seeds; a panic names its seed.
/// `TIERLINE_SEED` runs that one alone, `TIERLINE_SEEDS` so many.
fn seeds(count: u64, test: impl Fn(u64)) {
    let given = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    if let Some(seed) = given("TIERLINE_SEED") {
        return test(seed);
    }
    for seed in 0..given("TIERLINE_SEEDS").unwrap_or(count) {
        let run = std::panic::AssertUnwindSafe(|| test(seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed} failed; TIERLINE_SEED={seed} runs it alone");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A specification of a seed.
fn spec(rng: &mut Rng, failures: &str) -> Spec {
    let concurrency = ["\"10%\"", "\"30%\"", "3", "12"][rng.usize(0..4)];
    let through_edge = rng.bool();
    let canary = ["", "canary = 2", "canary = \"5%\""][rng.usize(0..3)];
    let waves = ["[100]", "[20, 100]", "[10, 50, 100]"][rng.usize(0..3)];
    let attempts = rng.u32(1..3);
    let text = format!(
        r#"
model = "detector"
from = "v1"
to = "v2"

[limits]
deadline_s = 40
through_edge = {through_edge}

[trial]
window_s = 3
load_s = 5
self_test_s = 5

[health]
window_s = 10
runs_min = 30
errors_max = 0.02
latency_p95_ratio_max = 1.5
latency_p99_ratio_max = 2
accuracy_drop_max = 0.2
accuracy_samples_min = 30

[[group]]
name = "edges"
match = {{ roles = ["edge"] }}
concurrency = 1
failures_max = {failures}
attempts = 2

[[group]]
name = "line a"
match = {{ labels = {{ line = "a" }} }}
concurrency = {concurrency}
{canary}
waves = {waves}
failures_max = {failures}
attempts = {attempts}

[[group]]
name = "rest"
match = {{ roles = ["end"] }}
concurrency = "50%"
failures_max = {failures}
"#
    );
    Spec::parse(&text).unwrap()
}

fn setting(rng: &mut Rng, failures: &str) -> Setting {
    Setting {
        spec: spec(rng, failures),
        ends: if rng.u8(0..6) == 0 { rng.usize(46..190) } else { rng.usize(46..80) },
        edges: rng.usize(2..8),
        late: rng.usize(0..6),
        strangers: rng.usize(0..4),
        liars: 0,
        nature: Nature::Good,
        bad: 0.0,
        mute: false,
        loss: [0.0, 0.02, 0.2][rng.usize(0..3)],
        doubled: [0.0, 0.1, 0.5][rng.usize(0..3)],
        delay_max_ms: [20, 500, 4_000][rng.usize(0..3)],
        cloud_kill: [0.0, 0.001, 0.01][rng.usize(0..3)],
        device_kill: [0.0, 0.001, 0.01][rng.usize(0..3)],
        faults: [0.0, 0.05, 0.3][rng.usize(0..3)],
        tight_memory: rng.bool(),
        beat_ms: 5_000,
        heal_ms: 200_000,
        end_ms: 900_000,
        commands: Vec::new(),
        strict: false,
    }
}

fn say(world: &World) {
    if std::env::var("TIERLINE_SEED").is_ok() {
        world.notes.iter().for_each(|note| eprintln!("{note}"));
        eprintln!("{:#?}", world.fleet().progress());
    }
}

#[test]
fn a_good_version_reaches_everybody_whatever_fails() {
    let succeeded = std::cell::Cell::new(0);
    seeds(250, |seed| {
        let mut rng = Rng::with_seed(seed);
        let world = World::new(setting(&mut rng, "\"40%\""), seed).run();
        say(&world);
        world.rests();
        match world.outcome() {
            Some(Outcome::Succeeded) => succeeded.set(succeeded.get() + 1),
            Some(Outcome::RolledBack) => {}
            outcome => panic!("{outcome:?} of {:?}", world.fleet().progress()),
        }
    });
    eprintln!("{} succeeded", succeeded.get());
    let all = std::env::var("TIERLINE_SEED").is_err() && std::env::var("TIERLINE_SEEDS").is_err();
    assert!(!all || succeeded.get() > 150, "{} of 250", succeeded.get());
}

#[test]
fn a_bad_version_never_gets_through_and_is_taken_back() {
    seeds(300, |seed| {
        let mut rng = Rng::with_seed(seed ^ 0xbad);
        let natures = [
            Nature::Corrupt,
            Nature::FailsTest,
            Nature::HangsTest,
            Nature::KillsOnLoad,
            Nature::KillsOnTest,
            Nature::Errors,
            Nature::Slow,
            Nature::Wrong,
        ];
        let nature = natures[rng.usize(0..natures.len())];
        let world = World::new(Setting { nature, bad: 1.0, ..setting(&mut rng, "\"10%\"") }, seed).run();
        say(&world);
        world.rests();
        assert_eq!(world.outcome(), Some(Outcome::RolledBack), "{nature:?}: {:?}", world.fleet().progress());
    });
}

#[test]
fn without_data_nothing_ever_passes() {
    seeds(100, |seed| {
        let mut rng = Rng::with_seed(seed ^ 0xdada);
        let mut setting = Setting { mute: true, ..setting(&mut rng, "\"90%\"") };
        let bounded = rng.bool();
        if bounded {
            let health = &mut setting.spec.health;
            (health.latency_p95_ratio_max, health.latency_p99_ratio_max, health.accuracy_drop_max) = (None, None, None);
            setting.spec.health.hold_max_s = Some(tierline_update::rollout::Seconds::new(60.0).unwrap());
        }
        let world = World::new(setting, seed).run();
        say(&world);
        world.rests();
        assert_eq!(world.passed(), 0);
        if bounded {
            assert_eq!(world.outcome(), Some(Outcome::RolledBack), "{:?}", world.fleet().progress());
        } else {
            assert_ne!(world.outcome(), Some(Outcome::Succeeded));
        }
    });
}

#[test]
fn operators_stop_it_and_take_it_back_at_any_time() {
    seeds(250, |seed| {
        let mut rng = Rng::with_seed(seed ^ 0x0b0e);
        let mut setting = setting(&mut rng, "\"40%\"");
        let mut at = rng.u64(1_000..200_000);
        let mut commands = Vec::new();
        for _ in 0..rng.usize(0..4) {
            let command = match rng.usize(0..4) {
                0 => Command::Pause,
                1 => Command::Resume,
                2 => Command::Approve,
                _ => Command::Skip { group: "line a".into() },
            };
            commands.push((at, command));
            at += rng.u64(100..60_000);
        }
        commands.push((at, Command::Abort { reason: "it looks odd".into() }));
        setting.commands = commands;
        let world = World::new(setting, seed).run();
        say(&world);
        world.rests();
        let outcome = world.outcome();
        assert!(matches!(outcome, Some(Outcome::Aborted | Outcome::RolledBack)), "{outcome:?}");
    });
}

#[test]
fn liars_count_only_for_what_they_were_asked() {
    seeds(100, |seed| {
        let mut rng = Rng::with_seed(seed ^ 0x11a2);
        let liars = rng.usize(1..10);
        let world = World::new(Setting { liars, strangers: 0, ..setting(&mut rng, "\"40%\"") }, seed).run();
        say(&world);
        world.rests();
    });
}

#[test]
fn ten_thousand_devices_in_one_run() {
    let mut rng = Rng::with_seed(1);
    let base = setting(&mut rng, "\"2%\"");
    let mut spec = base.spec.clone();
    spec.groups[0].concurrency = tierline_update::rollout::Amount::Percent(20.0);
    spec.groups[1].concurrency = tierline_update::rollout::Amount::Percent(10.0);
    spec.limits.through_edge = true;
    let setting = Setting {
        spec,
        ends: 9_900,
        edges: 100,
        late: 100,
        strangers: 10,
        loss: 0.01,
        doubled: 0.01,
        delay_max_ms: 500,
        cloud_kill: 0.0,
        device_kill: 0.0,
        faults: 0.0,
        beat_ms: 30_000,
        heal_ms: 1,
        end_ms: 2_000_000,
        ..base
    };
    let begun = std::time::Instant::now();
    let world = World::new(setting, 1).run();
    say(&world);
    world.rests();
    let total = world.fleet().progress().total;
    eprintln!(
        "{} devices, {} events, journal {} bytes: {:.1?}",
        total.devices,
        world.events,
        world.journal_bytes(),
        begun.elapsed()
    );
    assert_eq!(world.outcome(), Some(Outcome::Succeeded), "{total:?}");
    assert_eq!((total.confirmed, total.devices, world.asked()), (9_990, 9_990, 9_990));
}
