//! Vectors as bytes: what updates and models are on the wire and on disks.
//!
//! A version, a number of channels, and for each its name's length, name,
//! bytes' length and bytes, which a pipeline of `tierline_codec::update` wrote.
//! Start at [`encode`] and [`decode`].

use std::collections::BTreeMap;

use tierline_codec::CodecError;
use tierline_codec::update::{self, Pipeline};

use crate::{Channel, FederateError, Layout, Vectors};

/// The first byte; others are refused.
const VERSION: u8 = 1;

/// The first byte of an update that holds running statistics as they are.
/// Under the other one older nodes send how they changed.
const MEASURED: u8 = 2;

/// Writes vectors, channel by channel.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(channels: usize) -> Self {
        Self(vec![VERSION, channels as u8])
    }

    /// Of an update.
    pub(crate) fn of_update(vectors: &Vectors) -> Self {
        Self(vec![if holds_statistics(vectors) { MEASURED } else { VERSION }, vectors.len() as u8])
    }

    /// Appends what `write` makes of a channel.
    pub(crate) fn put(
        &mut self,
        channel: Channel,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
    ) -> Result<(), FederateError> {
        let mut bytes = Vec::new();
        write(&mut bytes)?;
        self.put_bytes(channel, &bytes);
        Ok(())
    }

    pub(crate) fn put_bytes(&mut self, channel: Channel, bytes: &[u8]) {
        let name = channel.name().as_bytes();
        self.0.push(name.len() as u8);
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Bytes of an update that no stages exceed, for each number and besides: an
/// index of its own and two wide numbers.
const NUMBER_BYTES_MAX: u64 = 16;
const FRAME_BYTES_MAX: u64 = 64 << 10;

/// The longest that an update of a model can be.
#[must_use]
pub fn longest(layout: &Layout) -> u64 {
    let of = |channel| layout.len(channel) as u64;
    let numbers: u64 = Channel::ALL.into_iter().map(of).sum();
    let parts: usize = Channel::ALL.into_iter().map(|channel| layout.parts(channel).len()).sum();
    numbers * NUMBER_BYTES_MAX + (1 + parts as u64) * FRAME_BYTES_MAX
}

/// Vectors as they are, each number with all its bits.
///
/// # Errors
/// When a number isn't finite.
pub fn encode(vectors: &Vectors, layout: &Layout) -> Result<Vec<u8>, FederateError> {
    let mut frame = Writer::new(vectors.len());
    for (&channel, vector) in vectors {
        let shapes = layout.shapes(channel);
        frame.put(channel, |out| Pipeline::default().encode(vector, &shapes, 0, out))?;
    }
    Ok(frame.finish())
}

/// The model that bytes hold, cut as `layout` says.
///
/// # Errors
/// When the bytes are broken or of another model. What is allocated follows
/// from the layout, whatever the bytes say.
pub fn decode(bytes: &[u8], layout: &Layout) -> Result<Vectors, FederateError> {
    match decoded(bytes, layout)? {
        (VERSION, model) => Ok(model),
        _ => Err(FederateError::Broken(OTHER)),
    }
}

/// The update that bytes hold, cut as `layout` says.
///
/// # Errors
/// As [`decode`], and when an older node has sent it that doesn't say what it
/// measured.
pub fn decode_update(bytes: &[u8], layout: &Layout) -> Result<Vectors, FederateError> {
    let (version, update) = decoded(bytes, layout)?;
    if version == VERSION && holds_statistics(&update) {
        return Err(FederateError::Broken(
            "it says how running statistics changed, not what they are; update its node",
        ));
    }
    Ok(update)
}

/// Whether an update of these channels that begins so says what was measured.
#[must_use]
pub fn is_current(first: Option<u8>, layout: &Layout, channels: &[Channel]) -> bool {
    let measured = channels.contains(&Channel::Statistics) && layout.len(Channel::Statistics) > 0;
    first == Some(if measured { MEASURED } else { VERSION })
}

fn holds_statistics(vectors: &Vectors) -> bool {
    vectors.get(&Channel::Statistics).is_some_and(|vector| !vector.is_empty())
}

/// Of a version that is read nowhere.
const OTHER: &str = "it is of another version; update this node";

fn decoded(bytes: &[u8], layout: &Layout) -> Result<(u8, Vectors), FederateError> {
    let mut rest = bytes;
    let mut take = |count: u64| -> Result<&[u8], FederateError> {
        let head = usize::try_from(count).ok().and_then(|count| rest.split_at_checked(count));
        let (head, tail) = head.ok_or(FederateError::Broken("it ends too early"))?;
        rest = tail;
        Ok(head)
    };
    let version = take(1)?[0];
    if ![VERSION, MEASURED].contains(&version) {
        return Err(FederateError::Broken(OTHER));
    }
    let count = take(1)?[0];
    let mut vectors = Vectors::new();
    for _ in 0..count {
        let length = take(1)?[0];
        let name = std::str::from_utf8(take(length.into())?).unwrap_or_default();
        let channel = Channel::by_name(name).ok_or(FederateError::Broken("it holds an unknown channel"))?;
        let length = u64::from_le_bytes(take(8)?.try_into().unwrap_or_default());
        let vector = update::decode(take(length)?, &layout.shapes(channel))?;
        if vectors.insert(channel, vector).is_some() {
            return Err(FederateError::Broken("it holds a channel twice"));
        }
    }
    if rest.is_empty() { Ok((version, vectors)) } else { Err(FederateError::Broken("bytes follow its end")) }
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
        return Err(FederateError::Broken(OTHER));
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
