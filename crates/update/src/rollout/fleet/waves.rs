//! How a rollout goes on: waves, gates, what follows success and errors.

use super::index::Class;
use super::ledger::{Closed, Fact, Stage, State, Stop};
use super::{Fleet, JUDGE_MS, Outcome};
use crate::rollout::Verdict;
use crate::rollout::spec::{OnError, OnSuccess};

impl Fleet {
    /// Does all that can be done now.
    pub(super) fn advance(&mut self) {
        self.expire();
        self.judge();
        self.waits_for = None;
        while self.turn() {}
    }

    /// Devices that took too long.
    fn expire(&mut self) {
        let deadline_ms = self.ledger.spec.limits.deadline_s.ms();
        while let Some((at, device)) = self.index.first_asked() {
            if at + deadline_ms > self.open_ms {
                break;
            }
            let device = device.to_owned();
            let there = self.seen.get(&device).is_some_and(|seen| seen.present);
            let reason = format!(
                "it had not confirmed {} s after it was asked{}",
                deadline_ms as f64 / 1e3,
                if there { "" } else { ", and is out of reach" }
            );
            self.note(Fact::Failed { device: device.clone(), reason: reason.clone() });
            self.say(format!("device `{device}` failed: {reason}"));
        }
    }

    /// Puts the measures of groups together whose devices said something new.
    fn judge(&mut self) {
        let elapsed = self.clock.elapsed_ms();
        if self.changed.is_empty() || elapsed < self.judged_ms {
            return;
        }
        // All measures are added up anew: less often where there are many.
        self.judged_ms = elapsed + JUDGE_MS * (1 + self.ledger.members.len() as u64 / 1_000);
        let current = self.ledger.current();
        for group in std::mem::take(&mut self.changed) {
            if self.ledger.groups[group].wave.is_none() && current != Some(group) {
                continue;
            }
            let gate = self.ledger.spec.gate_of(&self.ledger.spec.groups[group]);
            let measured = self.measured(group);
            self.verdicts.insert(group, gate.judge(&measured));
            self.lacks.insert(group, gate.lacks(&measured.old));
        }
    }

    /// One move; whether there may be another.
    fn turn(&mut self) -> bool {
        match self.ledger.stage.clone() {
            Stage::Stopped { .. } => false,
            Stage::Finished(Outcome::Succeeded) => {
                self.catch_up();
                false
            }
            Stage::Finished(_) => false,
            Stage::Returning { group, outcome, since_ms, .. } => self.return_on(group, outcome, since_ms),
            Stage::Running => self.go_on(),
        }
    }

    /// Whether all that can be reached have gone back; then what follows.
    fn return_on(&mut self, group: Option<usize>, outcome: Outcome, since_ms: u64) -> bool {
        let concerned = |at: &usize| group.is_none_or(|group| group == *at);
        let groups: Vec<usize> = (0..self.ledger.groups.len()).filter(concerned).collect();
        let here: usize = groups.iter().map(|at| self.index.present(*at, Class::Returning)).sum();
        let left: usize = groups.iter().map(|at| self.index.count(*at, Class::Returning)).sum();
        let late = self.clock.elapsed_ms() >= since_ms + self.ledger.spec.limits.deadline_s.ms();
        // Behind a restart, those that were not seen yet may be there.
        let unseen = |at: &usize| self.index.all(*at, Class::Returning).any(|device| !self.seen.contains_key(device));
        if !late && (here > 0 || groups.iter().any(unseen)) {
            return false;
        }
        let rest = if left == 0 {
            "all are back".to_owned()
        } else {
            format!("{left} aren't back yet, and are told when they are seen")
        };
        match group {
            Some(group) => {
                self.note(Fact::Closed { group, how: Closed::RolledBack, stop: Some(Stop::Pause) });
                let name = &self.ledger.spec.groups[group].name;
                self.say(format!("group `{name}` is rolled back, {rest}; the rollout pauses"));
            }
            None => self.finish(outcome, rest),
        }
        true
    }

    fn go_on(&mut self) -> bool {
        if let Some((group, reason)) = self.error() {
            return self.on_error(group, reason);
        }
        self.catch_up();
        let Some(group) = self.ledger.current() else {
            self.finish(Outcome::Succeeded, "all groups are through".into());
            return true;
        };
        let state = &self.ledger.groups[group];
        match state.wave {
            None if self.index.members(group) == 0 => {
                self.hold(group, "it has no devices yet".into());
                false
            }
            None if self.clock.elapsed_ms() < self.gathered_ms() => false,
            None => match self.lacks.get(&group) {
                Some(None) => self.begin_wave(group, 0),
                Some(Some(reason)) => {
                    self.hold(group, format!("there is too little to compare with: {reason}"));
                    false
                }
                None => {
                    let _new = self.changed.insert(group);
                    false
                }
            },
            Some(wave) if state.passed => self.begin_wave(group, wave + 1),
            Some(_) if state.settled_ms.is_none() => {
                self.fill(group);
                self.settle(group)
            }
            Some(wave) => self.gate(group, wave),
        }
    }

    /// When devices had time to be seen.
    fn gathered_ms(&self) -> u64 {
        self.began_ms + self.ledger.spec.gather_s.ms()
    }

    /// Devices that came late, in groups that are through.
    fn catch_up(&mut self) {
        for group in 0..self.ledger.groups.len() {
            if matches!(self.ledger.groups[group].closed, Some(Closed::Through | Closed::WithError)) {
                self.fill(group);
            }
        }
    }

    /// What went wrong, in which group.
    fn error(&self) -> Option<(Option<usize>, String)> {
        let failed = |group: usize| self.index.count(group, Class::Failed);
        let groups = || 0..self.ledger.groups.len();
        if let Some(max) = self.ledger.spec.failures_max {
            let excused = |group: usize| self.ledger.groups[group].excused.len();
            let failed: usize = groups().map(|group| failed(group).saturating_sub(excused(group))).sum();
            let all = groups().map(|group| self.index.members(group)).sum();
            if failed > max.floor(all) {
                return Some((None, format!("{failed} of all {all} devices failed; {} may", max.floor(all))));
            }
        }
        for group in groups() {
            let (spec, state) = (&self.ledger.spec.groups[group], &self.ledger.groups[group]);
            if !matches!(state.closed, None | Some(Closed::Through)) {
                continue;
            }
            let members = self.index.members(group);
            let (failed, max) = (self.failed(group), spec.failures_max.floor(members));
            if failed > max {
                let last = self.why_failed(group);
                return Some((
                    Some(group),
                    format!("{failed} of {members} devices of group `{}` failed; {max} may ({last})", spec.name),
                ));
            }
            if let Some(Verdict::Breach(reason)) = self.verdicts.get(&group) {
                return Some((Some(group), format!("group `{}`: {reason}", spec.name)));
            }
            let stalls = self.index.present(group, Class::Due) > 0
                && self.index.count(group, Class::Asked) == 0
                && self.failed(group) >= self.places(group);
            if state.closed.is_none() && stalls {
                let last = self.why_failed(group);
                return Some((
                    Some(group),
                    format!("failed devices hold every place of group `{}` ({last})", spec.name),
                ));
            }
            let hold_max = self.ledger.spec.gate_of(spec).hold_max_s;
            if let (Some(since), Some(max), None, false) = (state.settled_ms, hold_max, state.closed, state.passed)
                && self.clock.elapsed_ms() >= since + max.ms()
            {
                let holds = match self.verdicts.get(&group) {
                    Some(Verdict::Hold(reason)) => reason.clone(),
                    _ => "no device of the wave confirmed".into(),
                };
                return Some((Some(group), format!("the gate of group `{}` held for too long: {holds}", spec.name)));
            }
        }
        None
    }

    /// Failures that neither an operator nor the group's end excused.
    fn failed(&self, group: usize) -> usize {
        let state = &self.ledger.groups[group];
        self.index.count(group, Class::Failed).saturating_sub(state.excused.len() + state.closed_with.len())
    }

    fn why_failed(&self, group: usize) -> String {
        let state = &self.ledger.groups[group];
        let counts = |device: &&str| !state.excused.contains(*device) && !state.closed_with.contains(*device);
        let found = self.index.all(group, Class::Failed).find(counts);
        match found.and_then(|device| Some((device, &self.ledger.members.get(device)?.state))) {
            Some((device, State::Failed { reason })) => format!("`{device}`: {reason}"),
            _ => "no reason was given".into(),
        }
    }

    fn on_error(&mut self, group: Option<usize>, reason: String) -> bool {
        let action = group.map_or(OnError::RollBackAll, |group| self.ledger.spec.groups[group].on_error);
        match (action, group) {
            (OnError::Next, Some(group)) => {
                self.note(Fact::Closed { group, how: Closed::WithError, stop: None });
                self.say(format!("it goes on with the next group in spite of an error: {reason}"));
            }
            (OnError::Approve, _) => {
                self.note(Fact::Stopped { stop: Stop::Approval, reason: reason.clone() });
                self.say(format!("it waits for approval: {reason}"));
            }
            (OnError::Pause, _) => {
                self.note(Fact::Stopped { stop: Stop::Pause, reason: reason.clone() });
                self.say(format!("it pauses: {reason}"));
            }
            (OnError::RollBackGroup, Some(group)) => self.roll_back(Some(group), Outcome::RolledBack, reason),
            (OnError::RollBackAll | OnError::RollBackGroup | OnError::Next, _) => {
                self.roll_back(None, Outcome::RolledBack, reason);
            }
        }
        true
    }

    /// Begins the first wave from `wave` on that adds devices, or closes the
    /// group.
    fn begin_wave(&mut self, group: usize, wave: usize) -> bool {
        let spec = &self.ledger.spec.groups[group];
        let members = self.index.members(group);
        let pool = self.index.count(group, Class::Pool);
        let found =
            (wave..spec.stages()).map(|wave| (wave, (spec.asked_by(wave, members) + pool).saturating_sub(members)));
        let Some((wave, more)) = found.into_iter().find(|(_, more)| *more > 0) else {
            let stop = stop_for(spec.on_success);
            let name = spec.name.clone();
            self.note(Fact::Closed { group, how: Closed::Through, stop });
            self.say(format!("group `{name}` is through{}", waits(stop)));
            return true;
        };
        let devices: Vec<String> = self.index.all(group, Class::Pool).take(more).map(str::to_owned).collect();
        let text = format!(
            "wave {} of {} of group `{}` begins with {} of its {members} devices",
            wave + 1,
            spec.stages(),
            spec.name,
            devices.len()
        );
        self.note(Fact::Wave { group, wave, devices });
        self.say(text);
        true
    }

    /// Places that devices at work and failed ones share.
    fn places(&self, group: usize) -> usize {
        self.ledger.spec.groups[group].concurrency.floor(self.index.members(group)).max(1)
    }

    /// Asks devices that are due, as many as may be at work.
    fn fill(&mut self, group: usize) {
        let members = self.index.members(group);
        let places = self.places(group);
        let unavailable_max = self.ledger.spec.groups[group].unavailable_max.map(|amount| amount.floor(members).max(1));
        while self.index.present(group, Class::Due) > 0 {
            if !self.window_is_open() {
                self.waits_for = Some("the maintenance window is closed".into());
                return;
            }
            let taken = self.index.count(group, Class::Asked) + self.failed(group);
            if taken >= places {
                return;
            }
            let unavailable = members - self.index.available(group);
            if unavailable_max.is_some_and(|max| unavailable >= max) {
                let name = self.ledger.spec.groups[group].name.clone();
                self.waits_for =
                    Some(format!("{unavailable} devices of group `{name}` are away, at work or failed already"));
                return;
            }
            let Some(device) = self.index.first_present(group, Class::Due).map(str::to_owned) else { return };
            self.ask(&device);
        }
    }

    /// Whether all devices of the wave that can be asked have answered.
    fn settle(&mut self, group: usize) -> bool {
        let open = self.index.count(group, Class::Asked) + self.index.present(group, Class::Due);
        let away = self.index.count(group, Class::Due) - self.index.present(group, Class::Due);
        if open > 0 || away > 0 && self.open_ms < self.away_until_ms(group) {
            return false;
        }
        self.note(Fact::Settled { group });
        true
    }

    /// Until when, in open milliseconds, devices that are away are waited for.
    fn away_until_ms(&self, group: usize) -> u64 {
        self.ledger.groups[group].wave_open_ms + self.ledger.spec.limits.deadline_s.ms()
    }

    /// Whether the wave passes.
    fn gate(&mut self, group: usize, wave: usize) -> bool {
        let (spec, state) = (&self.ledger.spec.groups[group], &self.ledger.groups[group]);
        let window_ms = self.ledger.spec.gate_of(spec).window_s.ms();
        let over = self.clock.elapsed_ms() >= state.settled_ms.unwrap_or(0) + window_ms;
        if !over {
            self.waits_for = Some(format!("wave {} of group `{}` is watched", wave + 1, spec.name));
            return false;
        }
        if self.index.count(group, Class::Confirmed) <= state.confirmed_before {
            self.hold(group, "no device of the wave has confirmed".into());
            return false;
        }
        // What changed since is judged within a second.
        let verdict = self.verdicts.get(&group).cloned().filter(|_| !self.changed.contains(&group));
        match verdict {
            Some(Verdict::Pass) => {}
            Some(Verdict::Hold(reason) | Verdict::Breach(reason)) => {
                self.hold(group, reason);
                return false;
            }
            None => return false,
        }
        let more = self.index.count(group, Class::Pool) > 0;
        let stop = stop_for(spec.on_wave).filter(|_| more);
        let text = format!("wave {} of group `{}` is through its gate{}", wave + 1, spec.name, waits(stop));
        self.note(Fact::Passed { group, stop });
        self.say(text);
        true
    }

    /// The group waits; said once for each wave, shown always.
    fn hold(&mut self, group: usize, reason: String) {
        let text = format!("group `{}` holds: {reason}", self.ledger.spec.groups[group].name);
        let key = Some((group, self.ledger.groups[group].wave));
        if self.said_hold != key {
            self.said_hold = key;
            self.say(text.clone());
        }
        self.waits_for = Some(text);
    }

    /// Times, of the machine's clock, at which something may be due.
    pub(super) fn deadlines(&self) -> Vec<u64> {
        let elapsed = self.clock.elapsed_ms();
        let open = self.window_is_open();
        let mut times = Vec::new();
        let mut in_open = |at: u64| {
            if open {
                times.push(elapsed + at.saturating_sub(self.open_ms));
            }
        };
        if let Some((at, _)) = self.index.first_asked() {
            in_open(at + self.ledger.spec.limits.deadline_s.ms());
        }
        let running = self.ledger.stage == Stage::Running;
        let current = self.ledger.current().filter(|_| running);
        if let Some(group) = current.filter(|group| self.ledger.groups[*group].wave.is_some()) {
            let state = &self.ledger.groups[group];
            let gate = self.ledger.spec.gate_of(&self.ledger.spec.groups[group]);
            match state.settled_ms {
                None => in_open(self.away_until_ms(group)),
                Some(since) => {
                    times.push(since + gate.window_s.ms());
                    times.extend(gate.hold_max_s.map(|max| since + max.ms()));
                }
            }
        }
        if running {
            times.push(self.gathered_ms());
        }
        if running && !self.changed.is_empty() {
            times.push(self.judged_ms.max(elapsed + 1));
        }
        if let Stage::Returning { since_ms, .. } = self.ledger.stage {
            times.push(since_ms + self.ledger.spec.limits.deadline_s.ms());
        }
        times.retain(|at| *at > elapsed);
        times
    }
}

fn stop_for(action: OnSuccess) -> Option<Stop> {
    match action {
        OnSuccess::Next => None,
        OnSuccess::Approve => Some(Stop::Approval),
        OnSuccess::Pause => Some(Stop::Pause),
    }
}

fn waits(stop: Option<Stop>) -> &'static str {
    match stop {
        None => "",
        Some(Stop::Approval) => ", and the rollout waits for approval",
        Some(Stop::Pause) => ", and the rollout pauses",
    }
}
