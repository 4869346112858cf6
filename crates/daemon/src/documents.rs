//! Documents that nodes keep and give each other as JSON: manifests, profiles,
//! jobs, records of journals.
//!
//! Programs write them, and a newer program may have more to say than this one
//! knows. So each carries the number of its schema: the oldest that a reader
//! must know to understand it. Fields are added without raising it, and who
//! doesn't know one passes it by; what changes the meaning of the others raises
//! it, and then an older reader says that it can't, rather than that the
//! document is damaged. Files that people write are read strictly, elsewhere.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tierline_graph::profile::ModelProfile;
use tierline_plan::Service;
use tierline_proto::limits::DOCUMENT_BYTES_MAX;
use tierline_proto::v1::{Code, Failure};

use crate::models::Manifest;

/// The newest schema that this version writes and understands, of every kind.
pub const SCHEMA: u64 = 1;

/// Where the number stands.
const KEY: &str = "schema";

/// A document.
pub trait Document: Serialize + DeserializeOwned {
    /// What it is, for messages.
    const WHAT: &'static str;

    /// What it means that one can't be read: that it is damaged, or, where its
    /// digest rules that out, that it says what this version doesn't know.
    const UNREADABLE: Code = Code::Corrupt;

    /// Refuses what can't be, where that can be seen.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Document for ModelProfile {
    const WHAT: &'static str = "the model's profile";

    fn check(&self) -> Result<(), String> {
        Self::check(self).map_err(|e| e.to_string())
    }
}

impl Document for Service {
    const WHAT: &'static str = "the service";

    fn check(&self) -> Result<(), String> {
        Self::check(self).map_err(|e| e.to_string())
    }
}

impl Document for Manifest {
    const WHAT: &'static str = "the model's manifest";

    fn check(&self) -> Result<(), String> {
        Self::check(self)
    }
}

/// A document as it is kept and travels.
///
/// # Errors
/// [`Code::Internal`] when it can't be written.
pub fn write<D: Document>(document: &D) -> Result<String, Failure> {
    let internal = |e: serde_json::Error| Failure::new(Code::Internal, e.to_string());
    let mut value = serde_json::to_value(document).map_err(internal)?;
    if let Value::Object(fields) = &mut value {
        fields.insert(KEY.to_owned(), SCHEMA.into());
    }
    serde_json::to_string(&value).map_err(internal)
}

/// A document as it was kept or came.
///
/// # Errors
/// [`Code::VersionMismatch`] when a newer version wrote it for newer readers,
/// [`Code::TooLarge`], [`Code::Corrupt`].
pub fn read<D: Document>(json: &[u8]) -> Result<D, Failure> {
    if json.len() as u64 > DOCUMENT_BYTES_MAX {
        let text = format!("{} has {} bytes; at most {DOCUMENT_BYTES_MAX} are read", D::WHAT, json.len());
        return Err(Failure::new(Code::TooLarge, text));
    }
    let damaged = |e: &dyn std::fmt::Display| {
        let failure = Failure::new(D::UNREADABLE, format!("{}: {e}", D::WHAT));
        if D::UNREADABLE == Code::VersionMismatch { failure.with_help("update this node") } else { failure }
    };
    let mut value: Value = serde_json::from_slice(json).map_err(|e| damaged(&e))?;
    let schema = value.as_object_mut().and_then(|fields| fields.remove(KEY));
    match schema.as_ref().map_or(Some(1), Value::as_u64) {
        Some(1..=SCHEMA) => {}
        Some(newer) if newer > SCHEMA => {
            let text = format!("{} has schema {newer}, this version knows {SCHEMA}", D::WHAT);
            return Err(Failure::new(Code::VersionMismatch, text).with_help("update this node"));
        }
        _ => return Err(damaged(&format!("`{KEY}` is {}", schema.unwrap_or_default()))),
    }
    let document: D = serde_json::from_value(value).map_err(|e| damaged(&e))?;
    document.check().map_err(|e| damaged(&e))?;
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Note {
        text: String,
    }

    impl Document for Note {
        const WHAT: &'static str = "the note";

        fn check(&self) -> Result<(), String> {
            if self.text.is_empty() { Err("it says nothing".to_owned()) } else { Ok(()) }
        }
    }

    #[test]
    fn a_document_says_which_readers_understand_it() {
        let note = Note { text: "a".into() };
        let json = write(&note).unwrap();
        assert_eq!(json, r#"{"schema":1,"text":"a"}"#);
        assert_eq!(read::<Note>(json.as_bytes()).unwrap(), note);
        // Of before documents had a number, and of a newer version with more to say.
        for json in [r#"{"text":"a"}"#, r#"{"schema":1,"text":"a","mood":{"good":true}}"#] {
            assert_eq!(read::<Note>(json.as_bytes()).unwrap(), note);
        }
        let code = |json: &str| {
            let failure = read::<Note>(json.as_bytes()).unwrap_err();
            (failure.code(), failure.to_string())
        };
        let (newer, text) = code(r#"{"schema":2,"text":7}"#);
        assert_eq!(newer, Code::VersionMismatch);
        assert_eq!(text, "the note has schema 2, this version knows 1; update this node");
        for damaged in [r#"{"schema":0,"text":"a"}"#, r#"{"schema":"x","text":"a"}"#, r#"{"text":""}"#, "{}", "x", ""] {
            assert_eq!(code(damaged).0, Code::Corrupt, "{damaged}");
        }
    }
}
