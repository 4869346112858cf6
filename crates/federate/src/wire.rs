//! Vectors as bytes: what updates and models are on the wire and on disks.
//!
//! A version, a number of channels, and for each its name's length, name,
//! bytes' length and bytes. Start at [`encode`] and [`decode`].

use std::collections::BTreeMap;

use crate::{Channel, FederateError, Layout, Vectors};

/// The first byte; others are refused.
const VERSION: u8 = 1;

/// Appends vectors to `out`, each as little-endian f32.
pub fn encode(vectors: &Vectors, out: &mut Vec<u8>) {
    out.extend_from_slice(&[VERSION, vectors.len() as u8]);
    for (channel, vector) in vectors {
        let name = channel.name().as_bytes();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(&(4 * vector.len() as u64).to_le_bytes());
        vector.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    }
}

/// The vectors that bytes hold, cut as `layout` says.
///
/// # Errors
/// When the bytes are broken or of another model. Nothing larger than the
/// layout's vectors is allocated, whatever the bytes say.
pub fn decode(bytes: &[u8], layout: &Layout) -> Result<Vectors, FederateError> {
    let mut rest = bytes;
    let mut take = |count: usize| -> Result<&[u8], FederateError> {
        let (head, tail) = rest.split_at_checked(count).ok_or(FederateError::Broken("it ends too early"))?;
        rest = tail;
        Ok(head)
    };
    if take(1)?[0] != VERSION {
        return Err(FederateError::Broken("it is of another version; update this node"));
    }
    let count = take(1)?[0];
    let mut vectors = Vectors::new();
    for _ in 0..count {
        let length = take(1)?[0];
        let name = std::str::from_utf8(take(length.into())?).unwrap_or_default();
        let channel = Channel::by_name(name).ok_or(FederateError::Broken("it holds an unknown channel"))?;
        let declared = u64::from_le_bytes(take(8)?.try_into().unwrap_or_default());
        let expected = layout.len(channel);
        if declared != 4 * expected as u64 {
            let given = usize::try_from(declared / 4).unwrap_or(usize::MAX);
            return Err(FederateError::Length { channel: channel.name(), expected, given });
        }
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let vector = take(4 * expected)?.chunks_exact(4).map(number).collect();
        if vectors.insert(channel, vector).is_some() {
            return Err(FederateError::Broken("it holds a channel twice"));
        }
    }
    if rest.is_empty() { Ok(vectors) } else { Err(FederateError::Broken("bytes follow its end")) }
}

/// Appends vectors by name, as [`decode_named`] reads them: what nodes keep for
/// themselves between rounds.
pub fn encode_named(vectors: &BTreeMap<String, Vec<f32>>, out: &mut Vec<u8>) {
    out.push(VERSION);
    for (name, vector) in vectors {
        out.extend_from_slice(&(name.len() as u64).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(vector.len() as u64).to_le_bytes());
        vector.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    }
}

/// Vectors by name.
///
/// # Errors
/// When the bytes are broken.
pub fn decode_named(bytes: &[u8]) -> Result<BTreeMap<String, Vec<f32>>, FederateError> {
    let short = FederateError::Broken("it ends too early");
    let [VERSION, rest @ ..] = bytes else {
        return Err(FederateError::Broken("it is of another version; update this node"));
    };
    let mut rest = rest;
    let mut take = |count: u64| -> Option<&[u8]> {
        let (head, tail) = rest.split_at_checked(usize::try_from(count).ok()?)?;
        rest = tail;
        Some(head)
    };
    let mut vectors = BTreeMap::new();
    while let Some(length) = take(8) {
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let name = take(number(length)).ok_or_else(|| short.clone())?;
        let name = std::str::from_utf8(name).map_err(|_| FederateError::Broken("a name in it is no text"))?;
        let count = number(take(8).ok_or_else(|| short.clone())?);
        let values = take(count.saturating_mul(4)).ok_or_else(|| short.clone())?;
        let values = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        vectors.insert(name.to_owned(), values);
    }
    if rest.is_empty() { Ok(vectors) } else { Err(short) }
}
