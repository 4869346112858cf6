//! An example that a service keeps: its tensors, why it was kept, and what the
//! models said. One file: a line of JSON, then the tensors as NumPy files, one
//! behind the other.

use serde::{Deserialize, Serialize};
use tierline_graph::Tensor;

/// Bytes of the line of JSON.
const HEAD_BYTES_MAX: usize = 1 << 20;

/// Tensors of one example.
const PARTS_MAX: usize = 256;

/// The newest form of the file that is known here.
const SCHEMA: u32 = 1;

/// What an example is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The form of the file.
    schema: u32,
    /// The service's name.
    pub service: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The node that the request entered at.
    pub node: String,
    /// Why it was kept.
    pub why: String,
    /// What is kept of it.
    pub policy: String,
    /// The class of each example of the batch, as a later model says; none where none answered.
    #[serde(default)]
    pub labels: Vec<u64>,
    /// The class of each example of the batch, as the first model says.
    #[serde(default)]
    pub guesses: Vec<u64>,
    /// How sure the first model was.
    pub sureness: f64,
    parts: Vec<Part>,
}

/// Where a tensor comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The member whose output it is; empty: an input of the service.
    pub member: String,
    /// Its name.
    pub name: String,
    length: u64,
}

/// An example with its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What it is.
    pub head: Head,
    /// Its tensors, and where each comes from.
    pub tensors: Vec<(Part, Tensor)>,
}

/// What is said of an example when it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// The service's name.
    pub service: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The node that the request entered at.
    pub node: String,
    /// Why it is kept.
    pub why: &'static str,
    /// What is kept of it.
    pub policy: &'static str,
    /// See [`Head::labels`].
    pub labels: Vec<u64>,
    /// See [`Head::guesses`].
    pub guesses: Vec<u64>,
    /// See [`Head::sureness`].
    pub sureness: f64,
}

/// An example as it is kept; `tensors` name their member, or nobody.
///
/// # Errors
/// When a tensor has no form as a NumPy file, or there are too many.
pub fn write(said: Said, tensors: &[(String, String, Tensor)]) -> Result<Vec<u8>, String> {
    if tensors.len() > PARTS_MAX {
        return Err(format!("{} tensors; at most {PARTS_MAX} are kept", tensors.len()));
    }
    let (mut parts, mut data) = (Vec::new(), Vec::new());
    for (member, name, tensor) in tensors {
        let npy = tierline_codec::npy::write(tensor).map_err(|e| format!("`{name}`: {e}"))?;
        parts.push(Part { member: member.clone(), name: name.clone(), length: npy.len() as u64 });
        data.extend_from_slice(&npy);
    }
    let Said { service, time_ms, node, why, policy, labels, guesses, sureness } = said;
    let (why, policy) = (why.to_owned(), policy.to_owned());
    let head = Head { schema: SCHEMA, service, time_ms, node, why, policy, labels, guesses, sureness, parts };
    let mut out = serde_json::to_vec(&head).map_err(|e| e.to_string())?;
    if out.len() > HEAD_BYTES_MAX {
        return Err(format!("a head of {} bytes; at most {HEAD_BYTES_MAX} are kept", out.len()));
    }
    out.push(b'\n');
    out.append(&mut data);
    Ok(out)
}

/// Reads an example.
///
/// # Errors
/// When it is none, or of a newer form.
pub fn read(bytes: &[u8]) -> Result<Example, String> {
    let line = bytes.iter().take(HEAD_BYTES_MAX + 1).position(|byte| *byte == b'\n');
    let line = line.ok_or("no example: its head doesn't end")?;
    let head: Head = serde_json::from_slice(&bytes[..line]).map_err(|e| format!("no example: {e}"))?;
    if head.schema != SCHEMA {
        return Err(format!("an example of form {}; this version knows {SCHEMA}", head.schema));
    }
    if head.parts.len() > PARTS_MAX {
        return Err(format!("{} tensors; at most {PARTS_MAX} are read", head.parts.len()));
    }
    let (mut rest, mut tensors) = (&bytes[line + 1..], Vec::new());
    for part in &head.parts {
        let length = usize::try_from(part.length).ok().filter(|length| *length <= rest.len());
        let (own, behind) = rest.split_at(length.ok_or("an example that ends early")?);
        rest = behind;
        let tensor = tierline_codec::npy::read(own).map_err(|e| format!("`{}`: {e}", part.name))?;
        tensors.push((part.clone(), tensor));
    }
    if !rest.is_empty() {
        return Err(format!("an example with {} bytes more than it declares", rest.len()));
    }
    Ok(Example { head, tensors })
}

#[cfg(test)]
mod tests {
    use tierline_graph::Elements;

    use super::*;

    fn example() -> Vec<u8> {
        let said = Said {
            service: "digits".into(),
            time_ms: 7,
            node: "end-1".into(),
            why: "unsure",
            policy: "raw",
            labels: vec![3, 1],
            guesses: vec![2, 1],
            sureness: 0.25,
        };
        let x = Tensor::new([2, 2], Elements::F32(vec![1.0, 2.0, 3.0, 4.0])).unwrap();
        let y = Tensor::new([2], Elements::I64(vec![-1, 5])).unwrap();
        write(said, &[(String::new(), "x".into(), x), ("small".into(), "y".into(), y)]).unwrap()
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let example = read(&example()).unwrap();
        assert_eq!((&*example.head.service, &*example.head.labels), ("digits", &[3, 1][..]));
        assert_eq!(example.tensors[1].0.member, "small");
        assert_eq!(example.tensors[1].1.as_i64(), Some(&[-1, 5][..]));
    }

    #[test]
    fn what_is_none_is_refused() {
        let good = example();
        for cut in 0..good.len() {
            assert!(read(&good[..cut]).is_err(), "{cut}");
        }
        assert!(read(&[&good[..], b"x"].concat()).unwrap_err().contains("1 bytes more"));
        let line = good.iter().position(|byte| *byte == b'\n').unwrap();
        let head = String::from_utf8(good[..line].to_vec()).unwrap();
        let with = |from: &str, to: &str| [head.replacen(from, to, 1).as_bytes(), &good[line..]].concat();
        assert!(read(&with("\"schema\":1", "\"schema\":2")).unwrap_err().contains("form 2"));
        assert!(read(&with("\"length\":", "\"length\":9999999999")).is_err());
        assert!(read(&vec![b'x'; HEAD_BYTES_MAX + 2]).unwrap_err().contains("head doesn't end"));
    }
}
