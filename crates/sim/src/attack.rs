//! Ends that mean harm.

use std::str::FromStr;

use tierline_federate::{Channel, Vectors};
use tierline_train::data::{DataError, Dataset};

/// What some ends do to everybody's model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attack {
    /// What they do.
    pub kind: Harm,
    /// Share of the ends that do it.
    pub share: f64,
}

/// A way to do harm.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Harm {
    /// Changes of weights are sent the other way round.
    SignFlip,
    /// Examples of class c are learned as the last class less c.
    LabelFlip,
    /// Changes are sent this many times as large.
    Scale(f64),
}

impl Attack {
    /// The examples that such an end learns from.
    pub(crate) fn examples(&self, data: Dataset) -> Result<Dataset, DataError> {
        match self.kind {
            Harm::LabelFlip => data.relabelled(|class, count| count - 1 - class),
            Harm::SignFlip | Harm::Scale(_) => Ok(data),
        }
    }

    /// What such an end sends.
    pub(crate) fn spoil(&self, vectors: &mut Vectors) {
        let times = match self.kind {
            Harm::SignFlip => -1.0,
            Harm::Scale(times) => times as f32,
            Harm::LabelFlip => return,
        };
        for (channel, vector) in vectors {
            if *channel != Channel::Statistics {
                vector.iter_mut().for_each(|x| *x *= times);
            }
        }
    }
}

impl FromStr for Attack {
    type Err = String;

    /// Reads `sign-flip:SHARE`, `label-flip:SHARE` or `scale:SHARE:TIMES`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no attack; say sign-flip:SHARE, label-flip:SHARE or scale:SHARE:TIMES");
        let words: Vec<&str> = text.split(':').collect();
        let number = |word: &str| word.parse::<f64>().ok().filter(|n| n.is_finite());
        let (kind, share) = match words[..] {
            ["sign-flip", share] => (Harm::SignFlip, share),
            ["label-flip", share] => (Harm::LabelFlip, share),
            ["scale", share, times] => (Harm::Scale(number(times).ok_or_else(wrong)?), share),
            _ => return Err(wrong()),
        };
        let share = number(share).filter(|s| (0.0..1.0).contains(s)).ok_or_else(wrong)?;
        Ok(Self { kind, share })
    }
}
