//! Numbers of services.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::runtime::numbers;

/// Counted so far: answers, by the member that they are of.
#[derive(Default)]
pub struct Numbers(Mutex<BTreeMap<String, u64>>);

impl Numbers {
    /// A request was answered by these members.
    pub fn answered(&self, member: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(member.to_owned()).or_default() += 1;
    }

    /// Answers of a service that are of this member.
    pub fn of(&self, service: &str, member: &str) -> u64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&format!("{service}/{member}")).copied().unwrap_or_default()
    }

    /// Answers of a service.
    pub fn of_all(&self, service: &str) -> u64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.iter().filter(|(member, _)| member.split_once('/').is_some_and(|(of, _)| of == service));
        own.map(|(_, count)| count).sum()
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, out: &mut String) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Answers of services, by the models that they are of.";
        let counts = counts.iter().map(|(member, count)| (member.as_str(), count));
        numbers::labelled(out, ("tierline_service_answers_total", "counter", help), "member", counts);
    }
}
