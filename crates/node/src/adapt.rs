//! Which plan now? Watches links and loads, switches plans, keeps sessions
//! of the likely ones loaded.
//!
//! The plans were all computed beforehand (`tierline-plan`'s table); this
//! machine only compares their predictions, which takes microseconds. A
//! switch must pay ([`GAIN`]) and last ([`HOLD`]), unless a change was
//! detected or the plan in use has lost a tier. The next plan's sessions are
//! loaded *before* it is used, so that a switch is never a gap: requests run
//! the old plan until the new one is ready.
//!
//! Memory: sessions in use come first, then those about to be, then the whole
//! model (the answer when the link is cut), then plans for the link a few
//! times faster or slower. What is no longer wanted stays loaded until the
//! room is needed.
//!
//! Start at [`Adapt`] and [`Plans`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_proto::Digest;
use tierline_proto::limits::MODELS_MAX;

use crate::Span;
use crate::calibrate::Ratios;
use crate::time::Time;

/// A switch must be predicted to save this share of the time.
pub const GAIN: f64 = 0.10;

/// ... for so long, before it is made.
pub const HOLD: Duration = Duration::from_millis(1_000);

/// Not so soon after the last switch, unless a change was detected.
pub const DWELL: Duration = Duration::from_millis(2_000);

/// A session that could not be loaded is not tried again for so long.
pub const WARM_RETRY: Duration = Duration::from_secs(60);

/// A session that no plan has wanted for so long, now or if a link is lost or
/// changes, is let go: conditions that come and go don't load it anew each time.
pub const IDLE: Duration = Duration::from_secs(60);

/// Sessions being loaded at once: loading takes whole cores.
pub const WARMING_MAX: usize = 1;

/// Link conditions for which plans are kept warm: each link as it is, and
/// these many times as fast.
pub const LIKELY_FACTORS: [f64; 2] = [0.2, 5.0];

/// Names a session: segments of a prepared model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The prepared model.
    pub model: Digest,
    /// Its segments.
    pub span: Span,
}

/// A session and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub key: SessionKey,
    /// Weights and activations, bytes.
    pub bytes: u64,
}

/// One link on the path upwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bytes per second upwards.
    pub up: f64,
    /// Bytes per second downwards.
    pub down: f64,
    /// Round trip.
    pub rtt: Duration,
}

/// The path upwards as it is now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    /// Links to tiers that can be reached, nearest first.
    pub links: Vec<Link>,
    /// Expected wait on this tier and those above, nearest first; missing
    /// ones are zero.
    pub waits: Vec<Duration>,
    /// How much longer models take on tiers than was measured of them.
    pub ratios: Ratios,
}

/// The plans of one model on this node's path.
pub trait Plans {
    /// How many there are.
    fn count(&self) -> usize;
    /// Expected time of a request under plan `plan`; `None` when it needs a
    /// tier beyond `conditions.links`.
    fn predicted(&self, plan: usize, conditions: &Conditions) -> Option<Duration>;
    /// Sessions that the plan needs on this node.
    fn sessions(&self, plan: usize) -> Vec<Session>;
    /// The session that answers alone here, when this node can hold it.
    fn whole(&self) -> Option<Session>;
}

/// What happens.
#[derive(Debug)]
pub enum Event<P> {
    /// A model can be run from now on, or its plans are new.
    Model {
        /// The prepared model.
        model: Digest,
        /// Its plans.
        plans: P,
    },
    /// A model is gone.
    Gone {
        /// The prepared model.
        model: Digest,
    },
    /// A request for it arrived (for what to keep warm).
    Requested {
        /// The prepared model.
        model: Digest,
    },
    /// Links or loads moved.
    Conditions {
        /// What they are now.
        conditions: Conditions,
        /// Whether a change was detected (see [`crate::estimate`]).
        changed: bool,
    },
    /// Answer to `Warm`: the bytes it takes, or why it could not be loaded.
    Warmed {
        /// Which.
        key: SessionKey,
        /// Memory in bytes; 0 keeps the stated size.
        result: Result<u64, String>,
    },
    /// Answer to `Evict`, or the shell dropped it by itself.
    Evicted {
        /// Which.
        key: SessionKey,
    },
    /// The time [`Adapt::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Requests for `model` run this plan from now on.
    Use {
        /// The prepared model.
        model: Digest,
        /// The plan's index.
        plan: usize,
        /// Why.
        why: Why,
    },
    /// Nothing can run the model now: its requests are refused.
    Unusable {
        /// The prepared model.
        model: Digest,
    },
    /// Load a session; report `Warmed`.
    Warm(SessionKey),
    /// Drop a session once idle; report `Evicted`.
    Evict(SessionKey),
}

/// Why a plan is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The first one for this model.
    First,
    /// It is faster by enough and for long enough.
    Faster,
    /// The one in use needs a tier that cannot be reached.
    Lost,
    /// The one in use has a session that cannot be loaded here.
    Refused,
}

#[derive(Debug)]
struct Model<P> {
    plans: P,
    current: Option<usize>,
    switched: Time,
    /// The fastest plan, and since when the one in use has been beaten.
    better: Option<(usize, Time)>,
    /// Decided on, waiting for its sessions.
    next: Option<usize>,
    requested: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Warming,
    Warm,
    Evicting,
}

/// Plans and sessions of one node.
///
/// Invariants: no session is loaded beyond the room that there is for sessions
/// loaded, loading and being dropped, as far as their stated sizes are right; a plan replaces
/// a usable one only when its sessions here are warm, or when both plans'
/// sessions would not fit together.
#[derive(Debug)]
pub struct Adapt<P> {
    /// What sessions may take.
    memory_max: u64,
    /// What is left of it for them now.
    room: u64,
    models: BTreeMap<Digest, Model<P>>,
    conditions: Conditions,
    loaded: BTreeMap<SessionKey, (Loaded, u64)>,
    /// Loaded sessions that no plan wants any more, and since when.
    idle: BTreeMap<SessionKey, Time>,
    /// Sessions that could not be loaded, and until when not to try.
    refused: BTreeMap<SessionKey, Time>,
}

impl<P: Plans> Adapt<P> {
    /// A node that may use `memory_max` bytes for sessions.
    #[must_use]
    pub fn new(memory_max: u64) -> Self {
        Self {
            memory_max,
            room: memory_max,
            models: BTreeMap::new(),
            conditions: Conditions::default(),
            loaded: BTreeMap::new(),
            idle: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// What sessions may take beside what else the node keeps: less of them are
    /// kept loaded. A plan may still need all of [`Adapt::new`]'s memory.
    pub fn set_room(&mut self, bytes: u64) {
        self.room = bytes.min(self.memory_max);
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event<P>) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        let mut hurry = false;
        match event {
            Event::Model { model, plans } => self.add(now, model, plans),
            Event::Gone { model } => {
                self.models.remove(&model);
            }
            Event::Requested { model } => {
                if let Some(model) = self.models.get_mut(&model) {
                    model.requested = now;
                }
                // On every request's path: it counts from the next event on.
                return actions;
            }
            Event::Conditions { conditions, changed } => {
                self.conditions = conditions;
                hurry = changed;
            }
            Event::Warmed { key, result } => self.warmed(now, key, result),
            Event::Evicted { key } => {
                self.loaded.remove(&key);
            }
            Event::Wake => {}
        }
        self.refused.retain(|_, until| now < *until);
        let models: Vec<Digest> = self.models.keys().copied().collect();
        for model in models {
            self.decide(now, model, hurry, out);
        }
        self.arrange(now, out);
        actions
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let due = |model: &Model<P>| {
            let (_, since) = model.better.filter(|_| model.next.is_none())?;
            Some((since + HOLD).max(model.switched + DWELL))
        };
        let idle = self.idle.iter().filter(|(key, _)| self.is_warm(**key)).map(|(_, since)| *since + IDLE);
        self.models.values().filter_map(due).chain(self.refused.values().copied()).chain(idle).min()
    }

    /// The plan in use.
    #[must_use]
    pub fn current(&self, model: Digest) -> Option<usize> {
        self.models.get(&model)?.current
    }

    /// The plans of a model.
    #[must_use]
    pub fn plans(&self, model: Digest) -> Option<&P> {
        self.models.get(&model).map(|model| &model.plans)
    }

    /// The same, to be added to: plans keep their places. `Conditions` makes
    /// the machine look at what is new.
    pub fn plans_mut(&mut self, model: Digest) -> Option<&mut P> {
        self.models.get_mut(&model).map(|model| &mut model.plans)
    }

    /// Conditions as last reported.
    #[must_use]
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Bytes of sessions loaded, loading and being dropped.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.loaded.values().map(|(_, bytes)| bytes).sum()
    }

    /// Whether a session is ready.
    #[must_use]
    pub fn is_warm(&self, key: SessionKey) -> bool {
        self.loaded.get(&key).is_some_and(|(state, _)| *state == Loaded::Warm)
    }

    fn add(&mut self, now: Time, model: Digest, plans: P) {
        if self.models.len() < MODELS_MAX || self.models.contains_key(&model) {
            // New plans have new indices: what was in use means nothing now.
            let fresh = Model { plans, current: None, switched: now, better: None, next: None, requested: now };
            self.models.insert(model, fresh);
        }
    }

    fn warmed(&mut self, now: Time, key: SessionKey, result: Result<u64, String>) {
        let Some((state, bytes)) = self.loaded.get_mut(&key) else { return };
        match result {
            Ok(measured) => {
                if *state == Loaded::Warming {
                    *state = Loaded::Warm;
                }
                if measured > 0 {
                    *bytes = measured;
                }
            }
            Err(_) => {
                self.loaded.remove(&key);
                self.refused.insert(key, now + WARM_RETRY);
            }
        }
    }

    fn decide(&mut self, now: Time, id: Digest, hurry: bool, out: &mut Vec<Action>) {
        let Some(model) = self.models.get(&id) else { return };
        let best = self.best(model, &self.conditions);
        let current = model.current.map(|plan| (plan, self.usable(model, plan, &self.conditions)));
        let faster = match (current, best) {
            (Some((_, Some(now_s))), Some((_, best_s))) => best_s.as_secs_f64() < now_s.as_secs_f64() * (1.0 - GAIN),
            _ => false,
        };
        let refused = model.current.is_some_and(|plan| self.is_refused(model, plan));
        let next_is_good = model.next.is_some_and(|plan| Some(plan) == best.map(|(plan, _)| plan));
        let Some(model) = self.models.get_mut(&id) else { return };
        match (current, best) {
            (None, None) => {}
            (None, Some((plan, _))) => switch(now, id, model, plan, Why::First, out),
            (Some((_, None)), None) => {
                model.current = None;
                model.next = None;
                model.better = None;
                out.push(Action::Unusable { model: id });
            }
            // Nothing to wait for: the plan in use answers nobody.
            (Some((_, None)), Some((plan, _))) => {
                let why = if refused { Why::Refused } else { Why::Lost };
                switch(now, id, model, plan, why, out);
            }
            (Some(_), Some((plan, _))) if faster => {
                // Since when some plan has been faster, whichever is fastest now.
                let since = model.better.map_or(now, |(_, since)| since);
                model.better = Some((plan, since));
                let held = now.since(since) >= HOLD && now.since(model.switched) >= DWELL;
                model.next = (hurry || held || next_is_good).then_some(plan);
            }
            (Some(_), _) => {
                model.better = None;
                model.next = None;
            }
        }
        self.advance(now, id, out);
    }

    /// Uses the next plan once its sessions are warm.
    fn advance(&mut self, now: Time, id: Digest, out: &mut Vec<Action>) {
        let Some(model) = self.models.get(&id) else { return };
        let Some(next) = model.next else { return };
        let mut both: BTreeMap<SessionKey, u64> = BTreeMap::new();
        for plan in model.current.into_iter().chain([next]) {
            both.extend(model.plans.sessions(plan).iter().map(|session| (session.key, session.bytes)));
        }
        // Both at once would never fit: the better plan is worth a cold start.
        let crowded = both.values().sum::<u64>() > self.memory_max;
        let ready = model.plans.sessions(next).iter().all(|session| self.is_warm(session.key));
        if (ready || crowded)
            && let Some(model) = self.models.get_mut(&id)
        {
            switch(now, id, model, next, Why::Faster, out);
        }
    }

    /// The fastest usable plan.
    fn best(&self, model: &Model<P>, conditions: &Conditions) -> Option<(usize, Duration)> {
        let all = (0..model.plans.count()).filter_map(|plan| Some((plan, self.usable(model, plan, conditions)?)));
        all.min_by_key(|(plan, time)| (*time, *plan))
    }

    /// The plan's time, if it can be used.
    fn usable(&self, model: &Model<P>, plan: usize, conditions: &Conditions) -> Option<Duration> {
        let time = model.plans.predicted(plan, conditions)?;
        let fits = model.plans.sessions(plan).iter().map(|session| session.bytes).sum::<u64>() <= self.memory_max;
        (fits && !self.is_refused(model, plan)).then_some(time)
    }

    fn is_refused(&self, model: &Model<P>, plan: usize) -> bool {
        model.plans.sessions(plan).iter().any(|session| self.refused.contains_key(&session.key))
    }

    /// Loads what is wanted and not there, dropping what is there and not
    /// wanted where room is needed, or once it has not been wanted for long.
    fn arrange(&mut self, now: Time, out: &mut Vec<Action>) {
        let wanted = self.wanted();
        let keys: BTreeSet<SessionKey> = wanted.iter().map(|session| session.key).collect();
        self.let_go(now, &keys, out);
        // A session turned out larger than stated.
        self.make_room(0, &keys, out);
        for session in wanted {
            if self.loaded.contains_key(&session.key) {
                continue;
            }
            let warming = self.loaded.values().filter(|(state, _)| *state == Loaded::Warming).count();
            if warming >= WARMING_MAX || !self.make_room(session.bytes, &keys, out) {
                // In order: a large session is not starved by small ones.
                return;
            }
            self.loaded.insert(session.key, (Loaded::Warming, session.bytes));
            out.push(Action::Warm(session.key));
        }
    }

    /// Drops what no plan has wanted for [`IDLE`].
    fn let_go(&mut self, now: Time, wanted: &BTreeSet<SessionKey>, out: &mut Vec<Action>) {
        let Self { loaded, idle, .. } = self;
        let is_idle = |key: &SessionKey, state: Loaded| state == Loaded::Warm && !wanted.contains(key);
        idle.retain(|key, _| loaded.get(key).is_some_and(|(state, _)| is_idle(key, *state)));
        for (key, (state, _)) in loaded.iter_mut().filter(|(key, (state, _))| is_idle(key, *state)) {
            let since = *idle.entry(*key).or_insert(now);
            if now.since(since) >= IDLE {
                *state = Loaded::Evicting;
                out.push(Action::Evict(*key));
            }
        }
    }

    /// Whether `bytes` more fit now; asks for what is not in `keep` to be
    /// dropped otherwise.
    fn make_room(&mut self, bytes: u64, keep: &BTreeSet<SessionKey>, out: &mut Vec<Action>) -> bool {
        let staying = self.loaded.values().filter(|(state, _)| *state != Loaded::Evicting);
        let mut staying: u64 = staying.map(|(_, bytes)| bytes).sum();
        for (key, (state, size)) in &mut self.loaded {
            if staying + bytes <= self.room {
                break;
            }
            if *state == Loaded::Warm && !keep.contains(key) {
                *state = Loaded::Evicting;
                staying -= *size;
                out.push(Action::Evict(*key));
            }
        }
        self.memory() + bytes <= self.room
    }

    /// Sessions worth their memory, most urgent first, within the limit.
    fn wanted(&self) -> Vec<Session> {
        let mut models: Vec<&Model<P>> = self.models.values().collect();
        models.sort_by_key(|model| std::cmp::Reverse(model.requested));
        let mut urgent: Vec<Session> = Vec::new();
        for model in &models {
            let plans = model.current.into_iter().chain(model.next).chain(model.better.map(|(plan, _)| plan));
            urgent.extend(plans.flat_map(|plan| model.plans.sessions(plan)));
        }
        urgent.extend(models.iter().filter_map(|model| model.plans.whole()));
        let likely = self.likely();
        for model in &models {
            let plans = likely.iter().filter_map(|conditions| self.best(model, conditions));
            urgent.extend(plans.flat_map(|(plan, _)| model.plans.sessions(plan)));
        }
        let mut left = self.room;
        let mut chosen: BTreeSet<SessionKey> = BTreeSet::new();
        let size = |session: &Session| self.loaded.get(&session.key).map_or(session.bytes, |(_, bytes)| *bytes);
        urgent.retain(|session| {
            let bytes = size(session);
            let take = bytes <= left && !self.refused.contains_key(&session.key) && chosen.insert(session.key);
            left -= if take { bytes } else { 0 };
            take
        });
        urgent
    }

    /// Conditions that may come next: a link lost, slower or faster.
    fn likely(&self) -> Vec<Conditions> {
        let links = self.conditions.links.len();
        let cut = (0..links).map(|kept| {
            let mut conditions = self.conditions.clone();
            conditions.links.truncate(kept);
            conditions
        });
        let scaled = (0..links).flat_map(|at| {
            LIKELY_FACTORS.map(|factor| {
                let mut conditions = self.conditions.clone();
                conditions.links[at].up *= factor;
                conditions.links[at].down *= factor;
                conditions
            })
        });
        scaled.chain(cut).collect()
    }
}

fn switch<P>(now: Time, id: Digest, model: &mut Model<P>, plan: usize, why: Why, out: &mut Vec<Action>) {
    model.current = Some(plan);
    model.switched = now;
    model.better = None;
    model.next = None;
    out.push(Action::Use { model: id, plan, why });
}
