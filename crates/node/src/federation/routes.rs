//! Through which child a member is reached that may be further below.

use std::collections::{BTreeMap, BTreeSet};

use tierline_proto::{Code, Failure};

/// Members known by one node for one job.
pub const ROUTES_MAX: usize = 1 << 20;

/// The child that vouches for each member: itself, or one that passes on what
/// the member says.
///
/// Invariant: a member has one child at a time; another one is believed only
/// when the first lets go, and nobody but the member itself when it is a child
/// of this node.
#[derive(Debug, Clone, Default)]
pub struct Routes(BTreeMap<String, String>);

impl Routes {
    /// A child speaks for a member; whether it is believed.
    pub fn claim(&mut self, child: &str, member: &str) -> bool {
        match self.0.get(member) {
            Some(known) if known == child => true,
            // A child that is here speaks for itself.
            Some(_) if child != member => false,
            None if self.0.len() >= ROUTES_MAX => false,
            _ => {
                self.0.insert(member.to_owned(), child.to_owned());
                true
            }
        }
    }

    /// Whether a child speaks for a member: for itself, always.
    #[must_use]
    pub fn speaks(&self, child: &str, member: &str) -> bool {
        child == member || self.via(member) == Some(child)
    }

    /// The child through which a member is reached.
    #[must_use]
    pub fn via(&self, member: &str) -> Option<&str> {
        self.0.get(member).map(String::as_str)
    }

    /// The children that members are reached through.
    #[must_use]
    pub fn children(&self) -> BTreeSet<String> {
        self.0.values().cloned().collect()
    }

    /// A child says that a member is gone; whether it was its to say.
    pub fn release(&mut self, child: &str, member: &str) -> bool {
        let speaks = self.speaks(child, member);
        if speaks {
            self.0.remove(member);
        }
        speaks
    }

    /// A child is gone; the members that are gone with it.
    pub fn lost(&mut self, child: &str) -> Vec<String> {
        let gone: Vec<String> = self.0.iter().filter(|(_, via)| *via == child).map(|(m, _)| m.clone()).collect();
        gone.iter().for_each(|member| drop(self.0.remove(member)));
        gone
    }
}

/// A child speaks for a member that isn't known to be below it.
#[must_use]
pub fn stranger(child: &str, member: &str) -> Failure {
    // It may be believed soon: what it said of the member may be on its way.
    Failure::new(Code::Unreachable, format!("{child} has not said that {member} is below it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_the_child_that_it_came_through() {
        let mut routes = Routes::default();
        assert!(routes.claim("edge-a", "end-1") && routes.claim("edge-a", "end-1"));
        assert!(!routes.claim("edge-b", "end-1"), "another edge can't take it");
        assert!(!routes.release("edge-b", "end-1"));
        assert!(routes.release("edge-a", "end-1"));
        assert!(routes.claim("edge-b", "end-1"), "it moved");
        assert!(routes.claim("end-1", "end-1"), "it is here itself");
        assert!(!routes.claim("edge-a", "end-1") && !routes.claim("edge-b", "end-1"));
    }

    #[test]
    fn members_are_lost_with_the_child_they_came_through() {
        let mut routes = Routes::default();
        for (child, member) in [("edge-a", "end-1"), ("edge-a", "end-2"), ("edge-b", "end-3"), ("end-4", "end-4")] {
            assert!(routes.claim(child, member));
        }
        assert_eq!(routes.lost("edge-a"), ["end-1", "end-2"]);
        assert_eq!(routes.lost("end-4"), ["end-4"]);
        assert_eq!((routes.via("end-1"), routes.via("end-3")), (None, Some("edge-b")));
    }
}
