//! From a base and a delta, the result.

use std::io::{Read, Seek, SeekFrom, Write};

use super::coding::{self, Coding, patch};
use super::error::DeltaError;
use super::header::{Digest, HEADER_BYTES, Header};
use super::table::{Part, Run, Sizes, Source, Table, Text};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 << 10;

/// A delta whose header and table are sound: what is left to find wrong is in
/// the coded bytes, and shows in the result's digest.
#[derive(Debug)]
pub struct Delta<D> {
    header: Header,
    table: Table,
    file: D,
}

impl<D: Read + Seek> Delta<D> {
    /// Reads and checks header and table; takes some MB at most, whatever the
    /// file says.
    ///
    /// # Errors
    /// When they are broken, exceed a limit, or the file has another length.
    pub fn open(mut file: D) -> Result<Self, DeltaError> {
        let length = file.seek(SeekFrom::End(0)).map_err(read("the delta"))?;
        file.seek(SeekFrom::Start(0)).map_err(read("the delta"))?;
        let header = Header::read(&mut file)?;
        if header.delta_bytes() > length {
            return Err(DeltaError::Truncated);
        }
        if header.delta_bytes() < length {
            return Err(DeltaError::Corrupt("bytes follow where it should end"));
        }
        let payload = header.table_start.checked_sub(HEADER_BYTES);
        let payload = payload.ok_or(DeltaError::Corrupt("its table of parts lies within its header"))?;
        let mut packed = Vec::new();
        file.seek(SeekFrom::Start(header.table_start)).map_err(read("the delta"))?;
        if u64::from(header.table_packed_bytes) > super::table::TABLE_BYTES_MAX {
            let declared = header.table_packed_bytes.into();
            let what = "bytes of the table of parts";
            return Err(DeltaError::TooLarge { what, declared, max: super::table::TABLE_BYTES_MAX });
        }
        fill(&mut file, &mut packed, header.table_packed_bytes.into(), "the delta")?;
        let sizes = Sizes { base: header.base_bytes, result: header.result_bytes, payload };
        let table = Table::read(&packed, header.table_bytes, sizes)?;
        Ok(Self { header, table, file })
    }

    /// What it says of base and result.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes the result to `out`, once the base was found to be the one that
    /// the delta was made from.
    ///
    /// Besides the table it takes some MB of memory, whatever the size of the
    /// files.
    ///
    /// # Errors
    /// When the base is another file, the delta corrupt, or the system refuses.
    /// Unless nothing was written yet, what stands in `out` must be discarded.
    pub fn apply(&mut self, base: &mut (impl Read + Seek), out: &mut impl Write) -> Result<(), DeltaError> {
        let (found, length) = digest(base, "the base")?;
        if length != self.header.base_bytes {
            return Err(DeltaError::BaseLength { expected: self.header.base_bytes, found: length });
        }
        if found != self.header.base {
            return Err(DeltaError::Base { expected: self.header.base, found });
        }
        let text = self.text(base)?;
        let mut writer = Emit { text: &text, hash: blake3::Hasher::new(), out, buffer: vec![0; COPY_BYTES] };
        self.file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(read("the delta"))?;
        let (mut payload, mut old) = (Vec::new(), Vec::new());
        for part in &self.table.parts {
            payload.clear();
            fill(&mut self.file, &mut payload, part.payload_bytes, "the delta")?;
            gather(&part.runs, base, &mut old)?;
            let new = decode(part, &old, &payload, base)?;
            writer.runs(&part.runs, &new, base)?;
        }
        let found = Digest(*writer.hash.finalize().as_bytes());
        if found != self.header.result {
            return Err(DeltaError::Result { expected: self.header.result, found });
        }
        writer.out.flush().map_err(write)
    }

    /// The text, which stands behind the parts' payloads.
    fn text(&mut self, base: &mut (impl Read + Seek)) -> Result<Vec<u8>, DeltaError> {
        let Text { length, payload_bytes, dictionary } = &self.table.text;
        if *length == 0 {
            return Ok(Vec::new());
        }
        let start = self.header.table_start - payload_bytes;
        self.file.seek(SeekFrom::Start(start)).map_err(read("the delta"))?;
        let (mut payload, mut prefix) = (Vec::new(), Vec::new());
        fill(&mut self.file, &mut payload, *payload_bytes, "the delta")?;
        for (start, length) in dictionary {
            base.seek(SeekFrom::Start(*start)).map_err(read("the base"))?;
            fill(base, &mut prefix, *length, "the base")?;
        }
        patch::decode(&prefix, &payload, *length as usize)
    }
}

/// Writes to `out` what `delta` makes of `base`; see [`Delta::apply`].
///
/// # Errors
/// As there, and as at [`Delta::open`].
pub fn apply(
    base: &mut (impl Read + Seek),
    delta: &mut (impl Read + Seek),
    out: &mut impl Write,
) -> Result<Header, DeltaError> {
    let mut delta = Delta::open(delta)?;
    delta.apply(base, out)?;
    Ok(delta.header)
}

fn decode(part: &Part, old: &[u8], payload: &[u8], base: &mut (impl Read + Seek)) -> Result<Vec<u8>, DeltaError> {
    if part.coding != Coding::Patch {
        return coding::decode(part.coding, part.element, old, payload);
    }
    let mut prefix = Vec::new();
    base.seek(SeekFrom::Start(part.prefix.0)).map_err(read("the base"))?;
    fill(base, &mut prefix, part.prefix.1, "the base")?;
    patch::decode(&prefix, payload, old.len())
}

/// The base's bytes beside those that changed, zeros beside fresh ones.
pub(super) fn gather(runs: &[Run], base: &mut (impl Read + Seek), old: &mut Vec<u8>) -> Result<(), DeltaError> {
    old.clear();
    for run in runs {
        match run.source {
            Source::Changed(start) => {
                base.seek(SeekFrom::Start(start)).map_err(read("the base"))?;
                fill(base, old, run.length, "the base")?;
            }
            Source::Fresh => old.resize(old.len() + run.length as usize, 0),
            Source::Same(_) | Source::Text => {}
        }
    }
    Ok(())
}

/// Writes runs and computes their digest.
pub(super) struct Emit<'a, W> {
    pub text: &'a [u8],
    pub hash: blake3::Hasher,
    pub out: W,
    pub buffer: Vec<u8>,
}

impl<W: Write> Emit<'_, W> {
    /// Runs whose changed bytes are `new`.
    pub fn runs(&mut self, runs: &[Run], mut new: &[u8], base: &mut (impl Read + Seek)) -> Result<(), DeltaError> {
        for run in runs {
            match run.source {
                Source::Same(start) => self.copy(base, start, run.length)?,
                Source::Changed(_) | Source::Fresh => {
                    let (bytes, rest) = new.split_at(run.length as usize);
                    self.put(bytes)?;
                    new = rest;
                }
                Source::Text => {
                    let (bytes, rest) = self.text.split_at(run.length as usize);
                    self.text = rest;
                    self.put(bytes)?;
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, base: &mut (impl Read + Seek), start: u64, length: u64) -> Result<(), DeltaError> {
        base.seek(SeekFrom::Start(start)).map_err(read("the base"))?;
        let mut left = length;
        while left > 0 {
            let count = left.min(self.buffer.len() as u64) as usize;
            base.read_exact(&mut self.buffer[..count]).map_err(read("the base"))?;
            self.hash.update(&self.buffer[..count]);
            self.out.write_all(&self.buffer[..count]).map_err(write)?;
            left -= count as u64;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(write)
    }
}

/// A file's digest and length.
///
/// # Errors
/// Those of reading.
pub fn digest(file: &mut (impl Read + Seek), what: &'static str) -> Result<(Digest, u64), DeltaError> {
    file.seek(SeekFrom::Start(0)).map_err(read(what))?;
    let (mut hash, mut buffer, mut length) = (blake3::Hasher::new(), vec![0; COPY_BYTES], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Digest(*hash.finalize().as_bytes()), length)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(DeltaError::Read { what, source }),
        }
    }
}

/// Appends the next `count` bytes.
pub(super) fn fill(
    file: &mut impl Read,
    bytes: &mut Vec<u8>,
    count: u64,
    what: &'static str,
) -> Result<(), DeltaError> {
    let read = file.take(count).read_to_end(bytes).map_err(|source| DeltaError::Read { what, source })?;
    if read as u64 == count { Ok(()) } else { Err(DeltaError::Changed(what)) }
}

pub(super) fn read(what: &'static str) -> impl Fn(std::io::Error) -> DeltaError {
    move |source| DeltaError::Read { what, source }
}

fn write(source: std::io::Error) -> DeltaError {
    DeltaError::Write { what: "the result", source }
}
