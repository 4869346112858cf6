//! What a repository says of a model beside its length and its hash: where it
//! comes from, how well it did, where its card is.
//!
//! Stands under `custom.tierline` of a target. Numbers with fractions are text
//! there, since the form that is signed has none.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::Malformed;
use super::key::unhex;
use super::metadata::{Hashes, Target};

/// Entries of each list of a record.
const ENTRIES_MAX: usize = 64;

/// Bytes of each text of a record.
const TEXT_BYTES_MAX: usize = 256;

/// What is said of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// BLAKE3 of its bytes in hexadecimal: the name by which nodes fetch it.
    pub blake3: String,
    /// The model that it was made from, by its BLAKE3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The data that it learned from: names with digests, as the job knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// The job that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// How it was made smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// How well it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
    /// Its card, by BLAKE3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
}

/// One measurement of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The data that it was measured on.
    pub on: String,
    /// What was measured, as in `accuracy`.
    pub metric: String,
    /// The value as a decimal number.
    pub value: String,
    /// Examples that it was measured on.
    pub examples: u64,
}

impl Record {
    /// What a target says of a model, if it says it.
    ///
    /// # Errors
    /// When it says it in another form, or at greater length, than a record has.
    pub fn of(target: &Target) -> Result<Option<Self>, Malformed> {
        let Some(value) = target.custom.as_ref().and_then(|custom| custom.get("tierline")) else { return Ok(None) };
        let record = Self::deserialize(value).map_err(Malformed::json)?;
        record.check()?;
        Ok(Some(record))
    }

    /// A target that says so, of a file with this length and SHA-256.
    ///
    /// # Errors
    /// When the record breaks a rule.
    pub fn target(&self, length: u64, sha256: &str) -> Result<Target, Malformed> {
        self.check()?;
        let custom: Value = json!({"tierline": self});
        Ok(Target { length, hashes: Hashes([("sha256".to_owned(), sha256.to_owned())].into()), custom: Some(custom) })
    }

    fn check(&self) -> Result<(), Malformed> {
        let wrong = |what: &str| Err(Malformed::text(format!("a model's record: {what}")));
        let digest = |text: &String| {
            unhex(text).is_some_and(|bytes| bytes.len() == 32) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
        };
        if ![Some(&self.blake3), self.parent.as_ref(), self.card.as_ref()].into_iter().flatten().all(digest) {
            return wrong("a digest has 64 digits of hexadecimal in lower case");
        }
        if self.data.len() > ENTRIES_MAX || self.evaluations.len() > ENTRIES_MAX {
            return wrong("a list has more than 64 entries");
        }
        let measured = self.evaluations.iter().flat_map(|evaluation| [&evaluation.on, &evaluation.metric]);
        let texts = self.data.iter().chain(&self.job).chain(&self.compression).chain(measured);
        if texts.into_iter().any(|text| text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control)) {
            return wrong("a text is longer than 256 bytes or has control characters");
        }
        if !self.evaluations.iter().all(|evaluation| number(&evaluation.value)) {
            return wrong("a value is no decimal number");
        }
        // Beyond what the signed form can write.
        if self.evaluations.iter().any(|evaluation| i64::try_from(evaluation.examples).is_err()) {
            return wrong("a number of examples is beyond 63 bits");
        }
        Ok(())
    }
}

fn number(text: &str) -> bool {
    text.len() <= TEXT_BYTES_MAX && text.parse::<f64>().is_ok_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let evaluation =
            Evaluation { on: "test".into(), metric: "accuracy".into(), value: "0.981".into(), examples: 10_000 };
        Record {
            blake3: "ab".repeat(32),
            parent: Some("cd".repeat(32)),
            evaluations: vec![evaluation],
            ..Record::default()
        }
    }

    #[test]
    fn comes_back() {
        let target = record().target(7, &"00".repeat(32)).unwrap();
        assert_eq!(Record::of(&target).unwrap(), Some(record()));
        assert_eq!(Record::of(&Target { custom: None, ..target.clone() }).unwrap(), None);
        assert_eq!(Record::of(&Target { custom: Some(json!([1])), ..target }).unwrap(), None);
    }

    #[test]
    fn what_is_refused() {
        let broken: [fn(&mut Record); 8] = [
            |record| record.blake3 = "AB".repeat(32),
            |record| record.blake3.clear(),
            |record| record.parent = Some("xy".repeat(32)),
            |record| record.data = vec![String::new(); 65],
            |record| record.job = Some("a".repeat(257)),
            |record| record.job = Some("\n".into()),
            |record| record.evaluations[0].value = "NaN".into(),
            |record| record.evaluations[0].examples = u64::MAX,
        ];
        for (at, breaking) in broken.iter().enumerate() {
            let mut record = record();
            breaking(&mut record);
            assert!(record.target(7, "00").is_err(), "{at}");
            let target = Target { length: 7, hashes: Hashes::default(), custom: Some(json!({"tierline": record})) };
            assert!(Record::of(&target).is_err(), "{at}");
        }
    }
}
