//! Names of a job's classes, where the job's file and the node that
//! coordinates it say none: agreed on by those who have examples.
//!
//! A member says which classes its data set names, until it knows the job's
//! numbers for them. Whoever coordinates takes down what members say, decides
//! before the first work is given out, and from then on only adds: a number
//! that was told never changes. An edge that coordinates asks above. Start at
//! [`Classes`]; [`Asked`] is a member's side.

use std::collections::BTreeMap;

use tierline_proto::v1::{Code, Failure};
use tierline_train::data::{CLASSES_MAX, DataError, names_together};
use tierline_train::job::CLASS_NAME_BYTES_MAX;

/// Bytes of all names together, as they travel in messages.
const NAMES_BYTES_MAX: usize = 512 << 10;

/// Checked names: each once, short, and all together fit a message.
///
/// # Errors
/// [`Code::Protocol`] for what no data set has, [`Code::Infeasible`] for more
/// than can be agreed upon.
pub(super) fn checked(names: Vec<String>) -> Result<Vec<String>, Failure> {
    let plain = |name: &String| (1..=CLASS_NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    if !names.iter().all(plain) {
        return Err(Failure::new(Code::Protocol, "a class has no name, or one that is too long or no plain text"));
    }
    let bytes: usize = names.iter().map(String::len).sum();
    if names.len() > CLASSES_MAX || bytes > NAMES_BYTES_MAX {
        let text = format!("{} names of classes are too many to be agreed upon", names.len());
        return Err(Failure::new(Code::Infeasible, text).with_help("name them in the job's file: data.classes"));
    }
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != names.len() {
        return Err(Failure::new(Code::Protocol, "a class is named twice"));
    }
    Ok(names)
}

/// A coordinator's side.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Classes {
    /// By number; only grows.
    pub(super) names: Vec<String>,
    /// Whether they are decided: those who ask are told.
    pub(super) decided: bool,
    /// How many there may be.
    most: usize,
    /// What members say that don't know their numbers yet.
    asked: BTreeMap<String, Vec<String>>,
}

impl Classes {
    /// Of a model that tells so many apart.
    pub(super) fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// What was decided before.
    pub(super) fn decided(names: Vec<String>, most: usize) -> Self {
        Self { names, decided: true, most, asked: BTreeMap::new() }
    }

    /// A member says which classes it has; whether that makes more of them.
    pub(super) fn hear(&mut self, member: &str, names: Vec<String>) -> bool {
        if names.is_empty() {
            self.asked.remove(member);
            return false;
        }
        let more = self.decided && self.add(&names);
        self.asked.insert(member.to_owned(), names);
        more
    }

    /// Decides, of what members have said so far.
    pub(super) fn decide(&mut self) {
        let all = names_together(self.asked.values().map(Vec::as_slice));
        self.decided = true;
        self.add(&all);
    }

    /// Adds what is new, as long as the model has room for all of it.
    fn add(&mut self, names: &[String]) -> bool {
        let new: Vec<&String> = names.iter().filter(|name| !self.names.contains(name)).collect();
        let fits = !new.is_empty() && self.names.len() + new.len() <= self.most;
        if fits {
            self.names.extend(new.into_iter().cloned());
        }
        fits
    }

    /// Whether anybody waits for a decision.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.decided && !self.asked.is_empty()
    }

    /// What a member is told: nothing where it hasn't asked, or where nothing
    /// is decided.
    pub(super) fn told(&self, member: &str) -> Vec<String> {
        if self.decided && self.asked.contains_key(member) { self.names.clone() } else { Vec::new() }
    }
}

/// A member's side.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    /// Those of its data sets, or of the members below it.
    wanted: Vec<String>,
    /// The job's, as far as it knows.
    known: Vec<String>,
}

impl Asked {
    /// That knows these from before.
    pub(super) fn knowing(known: Vec<String>) -> Self {
        Self { wanted: Vec::new(), known }
    }

    /// What its data sets name; whether there is something to ask.
    pub(super) fn want(&mut self, names: &[String]) -> bool {
        let new: Vec<&String> = names.iter().filter(|name| !self.wanted.contains(name)).collect();
        let news = !new.is_empty();
        self.wanted.extend(new.into_iter().cloned());
        news && !self.open().is_empty()
    }

    /// What it asks for: all that its data sets name, while it doesn't know all
    /// of their numbers.
    pub(super) fn open(&self) -> &[String] {
        let known = self.wanted.iter().all(|name| self.known.contains(name));
        if known { &[] } else { &self.wanted }
    }

    /// What it lacks isn't asked for any more: such examples are left out.
    pub(super) fn give_up(&mut self) {
        let known = &self.known;
        self.wanted.retain(|name| known.contains(name));
    }

    /// That a data set has a class which the job doesn't know.
    pub(super) fn unknown(&self, data: &str) -> Option<DataError> {
        let class = self.wanted.iter().find(|name| !self.known.contains(name))?;
        Some(DataError::Unnamed { name: data.to_owned(), class: class.clone(), known: self.known.join(", ") })
    }

    /// It was told.
    pub(super) fn hear(&mut self, names: Vec<String>) {
        self.known = names;
    }

    /// The job's names, as far as it knows them.
    pub(super) fn known(&self) -> &[String] {
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_that_were_told_never_change() {
        let mut classes = Classes::new(4);
        assert!(!classes.hear("a", names(&["bee", "cow"])) && classes.is_waited_for());
        assert_eq!(classes.told("a"), names(&[]), "nothing is decided yet");
        classes.hear("b", names(&["ant", "bee"]));
        classes.decide();
        assert_eq!(classes.told("a"), names(&["ant", "bee", "cow"]), "as one data set of all of them would");
        assert_eq!(classes.told("c"), names(&[]), "it has not asked");
        // Who comes later adds, and doesn't move the others.
        assert!(classes.hear("c", names(&["aardvark", "bee"])));
        assert_eq!(classes.told("c"), names(&["ant", "bee", "cow", "aardvark"]));
        // What the model has no room for isn't added: its member finds that out.
        assert!(!classes.hear("d", names(&["ant", "zebra"])));
        assert!(!classes.told("d").contains(&"zebra".to_owned()));
        classes.hear("c", names(&[]));
        assert_eq!(classes.told("c"), names(&[]), "it knows");
    }

    #[test]
    fn a_member_asks_until_it_knows() {
        let mut asked = Asked::default();
        assert!(asked.open().is_empty());
        assert!(asked.want(&names(&["bee", "cow"])));
        assert!(!asked.want(&names(&["bee"])), "nothing new");
        assert_eq!(asked.open(), names(&["bee", "cow"]));
        asked.hear(names(&["ant", "bee"]));
        assert_eq!(asked.open(), names(&["bee", "cow"]));
        asked.hear(names(&["ant", "bee", "cow"]));
        assert!(asked.open().is_empty());
    }

    #[test]
    fn names_from_elsewhere_are_checked() {
        assert!(checked(names(&["ant", "bee"])).is_ok());
        let long = "x".repeat(CLASS_NAME_BYTES_MAX + 1);
        for wrong in [names(&["a", "a"]), names(&[""]), names(&["x\u{1b}[2J"]), vec![long], vec!["y".repeat(200); 3]] {
            assert!(checked(wrong).is_err());
        }
        let many: Vec<String> = (0..CLASSES_MAX).map(|i| format!("class number {i:07}")).collect();
        assert_eq!(checked(many).unwrap_err().code(), Code::Infeasible);
    }
}
