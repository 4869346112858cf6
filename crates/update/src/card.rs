//! What is said of a version of a model: its lineage, how well it does, what it
//! is for. The registry keeps it beside the version; nothing is decided by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of one text in a card.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Entries of one list in a card.
const ENTRIES_MAX: usize = 100;

/// A version's card.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Card {
    /// The version that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// The job that trained it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The data that it learned from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// How it was made smaller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// Numbers that it was measured by, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// What measured it, and on what.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
    /// Who answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Under which terms it may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// What it is for, and what it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intended_use: Option<String>,
    /// Anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// One evaluation of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The data.
    pub data: String,
    /// What was measured: `accuracy`, `loss`.
    pub metric: String,
    /// What came out.
    pub value: f64,
    /// Of how many examples.
    pub examples: u64,
}

/// What is wrong with a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// A number that isn't one.
    #[error("the card's `{0}` is not a finite number")]
    Number(String),
    /// More than anybody reads.
    #[error("the card's `{0}` is longer than a card's may be")]
    Long(&'static str),
}

impl Card {
    /// Refuses what no card has.
    ///
    /// # Errors
    /// [`CardError`].
    pub fn check(&self) -> Result<(), CardError> {
        let texts = [
            ("job", &self.job),
            ("compression", &self.compression),
            ("owner", &self.owner),
            ("license", &self.license),
            ("intended_use", &self.intended_use),
            ("notes", &self.notes),
        ];
        for (name, text) in texts {
            if text.as_ref().is_some_and(|text| text.len() > TEXT_BYTES_MAX) {
                return Err(CardError::Long(name));
            }
        }
        let long = |text: &String| text.len() > TEXT_BYTES_MAX;
        if self.data.len() > ENTRIES_MAX || self.data.iter().any(long) {
            return Err(CardError::Long("data"));
        }
        if self.metrics.len() > ENTRIES_MAX || self.metrics.keys().any(long) {
            return Err(CardError::Long("metrics"));
        }
        let texts = |evaluation: &Evaluation| long(&evaluation.data) || long(&evaluation.metric);
        if self.evaluations.len() > ENTRIES_MAX || self.evaluations.iter().any(texts) {
            return Err(CardError::Long("evaluations"));
        }
        let metrics = self.metrics.iter().map(|(name, value)| (name, *value));
        let evaluations = self.evaluations.iter().map(|evaluation| (&evaluation.metric, evaluation.value));
        match metrics.chain(evaluations).find(|(_, value)| !value.is_finite()) {
            Some((name, _)) => Err(CardError::Number(name.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_what_people_write_and_no_more() {
        let toml = "parent = 1\ndata = [\"fashion\"]\nowner = \"the line's engineers\"\n[metrics]\naccuracy = 0.91\n\
                    [[evaluations]]\ndata = \"fashion-test\"\nmetric = \"accuracy\"\nvalue = 0.9\nexamples = 10000\n";
        let card: Card = toml::from_str(toml).unwrap();
        card.check().unwrap();
        assert_eq!(toml::from_str::<Card>(&toml::to_string(&card).unwrap()).unwrap(), card);
        assert!(toml::from_str::<Card>("acuracy = 1").is_err());
        assert_eq!(Card::default().check(), Ok(()));
        let nan: Card = toml::from_str("[metrics]\naccuracy = nan").unwrap();
        assert_eq!(nan.check(), Err(CardError::Number("accuracy".into())));
        let long = Card { notes: Some("x".repeat(TEXT_BYTES_MAX + 1)), ..Card::default() };
        assert_eq!(long.check(), Err(CardError::Long("notes")));
    }
}
