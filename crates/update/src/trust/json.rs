//! JSON as metadata has it: read strictly, and the canonical form that is
//! signed.
//!
//! Reading refuses what two readers could take differently: a key that occurs
//! twice in an object, and numbers that aren't whole. The canonical form is
//! that of OLPC, as The Update Framework's tools write it: keys in the order of
//! their code points, no space, and only the quotation mark and the backslash
//! escaped, so that line breaks within keys in PEM stand as they are.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::Malformed;

/// Values in one document, containers and keys counted. Five million bytes of targets have some 330,000; in memory each
/// takes many times what the shortest takes in a document.
const VALUES_MAX: u32 = 1 << 19;

/// Levels of containers. Metadata has seven; what is custom may have some more.
const DEPTH_MAX: u32 = 32;

/// Reads a document.
///
/// # Errors
/// When it isn't JSON, has a key twice, a number that isn't a whole one of 64
/// bits with a sign, more than half a million values or more than 32 levels.
pub(super) fn read(bytes: &[u8]) -> Result<Value, Malformed> {
    let values = Cell::new(VALUES_MAX);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { values: &values, depth: DEPTH_MAX }.deserialize(&mut reader).map_err(Malformed::json)?;
    reader.end().map_err(Malformed::json)?;
    Ok(value)
}

/// The bytes that signatures are made over.
///
/// # Errors
/// When a number isn't whole, which [`read`] never gives.
pub(super) fn canonical(value: &Value) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::new();
    write(value, &mut bytes)?;
    Ok(bytes)
}

/// A document as it is kept in a file: plain JSON.
pub(super) fn file(value: &Value) -> Vec<u8> {
    // Writing to memory what was built from strings and whole numbers.
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            let whole = number.as_i64().ok_or_else(|| Malformed::text(format!("{number} isn't a whole number")))?;
            out.extend_from_slice(whole.to_string().as_bytes());
        }
        Value::String(text) => quote(text, out),
        Value::Array(list) => {
            out.push(b'[');
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // Sorted here, since how a map is ordered depends on features of the crate. The order of bytes in
            // UTF-8 is that of code points.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by(|a, b| a.0.cmp(b.0));
            out.push(b'{');
            for (at, (key, item)) in entries.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                quote(key, out);
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    values: &'a Cell<u32>,
    depth: u32,
}

impl Strict<'_> {
    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self.values.get().checked_sub(1);
        self.values.set(left.ok_or_else(|| E::custom(format_args!("more than {VALUES_MAX} values")))?);
        Ok(())
    }

    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1);
        Ok(Self { depth: depth.ok_or_else(|| E::custom(format_args!("more than {DEPTH_MAX} levels")))?, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.count()?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON without fractions")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value).map(Into::into).map_err(|_| E::custom("a number is beyond 64 bits with a sign"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut list = Vec::new();
        while let Some(item) = from.next_element_seed(inside)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut map = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            self.count()?;
            let value = from.next_value_seed(inside)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{}` twice in one object", short(&key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The beginning of what somebody else wrote, for a message.
pub(super) fn short(text: &str) -> String {
    text.chars().take(80).map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form() {
        // Made with securesystemslib 1.6 (`encode_canonical`).
        for (json, expected) in [
            ("{}", "{}"),
            ("[ ]", "[]"),
            (r#"{"b": [1, -2, true], "a": null, "aa": ""}"#, r#"{"a":null,"aa":"","b":[1,-2,true]}"#),
            (r#""a\nb\t\"\\\u00e9\ud83d\ude00""#, "\"a\nb\t\\\"\\\\é😀\""),
            // Code points, where UTF-16 units would be in the other order.
            (r#"{"\ud83d\ude00": 1, "\uff61": 2}"#, "{\"\u{ff61}\":2,\"😀\":1}"),
            ("9223372036854775807", "9223372036854775807"),
        ] {
            let value = read(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!(String::from_utf8(canonical(&value).unwrap()).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn what_is_refused() {
        let deep = "[".repeat(33) + &"]".repeat(33);
        let deeper = "[".repeat(200_000);
        let many = format!("[{}1]", "1,".repeat(VALUES_MAX as usize));
        for json in [
            "",
            "{",
            "{} {}",
            "1.0",
            "1e3",
            "-0.5",
            "NaN",
            "9223372036854775808",
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#""\ud800""#,
            "\"\u{1}\"",
            &deep,
            &deeper,
            &many,
        ] {
            assert!(read(json.as_bytes()).is_err(), "{}", short(json));
        }
        assert!(read(b"\"\xff\"").is_err());
        assert!(read(("[".repeat(32) + &"]".repeat(32)).as_bytes()).is_ok());
    }
}
