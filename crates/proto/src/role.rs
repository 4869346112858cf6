//! What a node is on its site, in words: in certificates, on command lines, in
//! messages.

use crate::v1::Role;

impl Role {
    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::End => "end",
            Self::Edge => "edge",
            Self::Cloud => "cloud",
            Self::Operator => "operator",
            Self::Application => "application",
        }
    }

    /// The role of that word, if there is one.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::End, Self::Edge, Self::Cloud, Self::Operator, Self::Application]
            .into_iter()
            .find(|role| role.word() == word)
    }
}
