//! What the world watches from outside: what must never happen.

use super::*;

impl World {
    pub(super) fn hears(&mut self, device: &str, message: &Message) {
        if let (Message::Health { session, version: of, health }, true) = (message, self.cloud.is_some())
            && of.as_str() == TO
        {
            let heard = self.watch.heard.entry(device.to_owned()).or_default().entry(*session).or_default();
            if health.runs >= heard.runs {
                *heard = health.clone();
            }
        }
    }

    /// A half-written end may have been lost: what was watched goes by what is
    /// durable.
    pub(super) fn watch_recovered(&mut self, records: &[Record]) {
        let started = records.iter().filter(|record| matches!(record.fact, Fact::Started { .. })).count();
        assert!(started <= 1);
    }

    pub(super) fn watch_record(&mut self, record: &Record) {
        let now_ms = self.now_ms;
        match &record.fact {
            Fact::Placed { device, group } => {
                self.watch.groups.insert(device.clone(), *group);
                let dev = &self.devices[self.by_name[device]];
                if self.setting.spec.other == tierline_update::rollout::spec::Other::Skip && !dev.liar {
                    assert_ne!(dev.installed.as_str(), "v0", "{device} runs neither version");
                }
            }
            Fact::Asked { device, .. } => {
                let _new = self.watch.asked.insert(device.clone());
            }
            Fact::Confirmed { device, .. } => {
                assert!(self.watch.asked.contains(device), "{device} was never asked");
                let dev = &self.devices[self.by_name[device]];
                let there = dev.device.as_ref().map_or(&dev.committed, |device| &device.committed);
                assert!(dev.liar || there.contains(&version(TO)), "{device} counts, and never ran the new version");
                let _new = self.watch.confirmed.insert(device.clone());
                let group = self.watch.groups[device];
                *self.watch.wave_confirmed.entry(group).or_default() += 1;
            }
            Fact::Failed { device, .. } if self.watch.confirmed.contains(device) => {
                *self.watch.failed_after.entry(self.watch.groups[device]).or_default() += 1;
            }
            Fact::Wave { group, wave, devices } => {
                if let Some(before) = self.watch.waves.get(group) {
                    assert!(wave > before);
                    assert!(self.watch.passed.get(group) == Some(before), "wave {wave} begins before its gate");
                }
                for before in 0..*group {
                    assert!(self.watch.closed.contains(&before), "group {group} begins before group {before} is over");
                }
                assert!(!devices.is_empty());
                self.watch.waves.insert(*group, *wave);
                self.watch.wave_confirmed.insert(*group, 0);
            }
            Fact::Passed { group, .. } => self.watch_gate(*group),
            Fact::Closed { group, how, .. } => {
                if *how == Closed::Through {
                    assert_eq!(self.watch.passed.get(group), self.watch.waves.get(group), "closed before its gate");
                }
                let _new = self.watch.closed.insert(*group);
            }
            Fact::Returning { .. } => self.watch.returned_ms = Some(now_ms),
            _ => {}
        }
    }

    /// Whether a gate may pass, by the world's own count.
    pub(super) fn watch_gate(&mut self, group: usize) {
        assert!(!self.setting.mute, "a gate passes without data");
        let gate = self.setting.spec.gate_of(&self.setting.spec.groups[group]);
        let confirmed = self.watch.wave_confirmed.get(&group).copied().unwrap_or(0);
        assert!(confirmed > 0, "a wave passes in which no device confirmed");
        let mut sum = Health::default();
        for (device, starts) in &self.watch.heard {
            if self.watch.confirmed.contains(device) && self.watch.groups.get(device) == Some(&group) {
                starts.values().for_each(|health| sum.add(health));
            }
        }
        assert!(sum.runs >= gate.runs_min, "a gate passes with {} runs", sum.runs);
        // Counts of a device that has failed since are in the sum as well.
        if self.setting.nature == Nature::Good {
            let share = sum.errors as f64 / sum.runs as f64;
            assert!(share <= gate.errors_max + 0.01, "a gate passes with {share} errors");
        }
        let wave = self.watch.waves[&group];
        self.watch.passed.insert(group, wave);
    }

    /// Never more at work than there are places.
    pub(super) fn watch_places(&self) {
        let Some(fleet) = &self.cloud else { return };
        // What an operator excuses gives its place up.
        if self.watch.resumed || self.watch.returned_ms.is_some() {
            return;
        }
        let progress = fleet.progress();
        for (at, group) in progress.groups.iter().enumerate() {
            if group.closed.is_some() {
                continue;
            }
            let places = self.setting.spec.groups[at].concurrency.floor(group.counts.devices).max(1);
            let taken = group.counts.asked + group.counts.failed;
            // Devices that fail behind their success had given up their place.
            let places = places + self.watch.failed_after.get(&at).copied().unwrap_or(0);
            assert!(taken <= places, "{taken} at work or failed in {places} places");
            // What devices themselves are at.
            let at_work = self
                .devices
                .iter()
                .filter(|dev| self.watch.groups.get(&dev.name) == Some(&at) && !dev.liar)
                .filter(|dev| dev.device.as_ref().is_some_and(|device| device.swap.wanted().is_some()))
                .count();
            assert!(at_work <= places, "{at_work} devices at work in {places} places");
            let c = &group.counts;
            assert_eq!(c.devices, c.waiting + c.asked + c.confirmed + c.failed + c.returning + c.returned);
        }
    }
}
