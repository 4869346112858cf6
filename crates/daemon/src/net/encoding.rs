//! Bodies that travel smaller than they are: content encodings of HTTP, and
//! those of gRPC's messages.
//!
//! What comes is unpacked within limits: so many bytes in all, so many times
//! its own size, and no more than its request may hold. Start at [`unpack`].

use std::io::{self, Read, Write};

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use flate2::{Compression, Decompress, FlushDecompress, Status};
use tierline_proto::v1::{Code, Failure};

use crate::device::budget::Held;

/// How a body may be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// RFC 1950: deflate in zlib's format.
    Deflate,
}

/// All of them, as headers tell of them.
pub const TAKEN: HeaderValue = HeaderValue::from_static("gzip, deflate, zstd");

/// A body up to this size may be as much smaller on its way as it likes.
const FREE_BYTES: u64 = 16 << 20;

/// One beyond it is at most so many times as large as what of it was read:
/// tensors come nowhere near.
const RATIO_MAX: u64 = 512;

/// What is unpacked at once.
const STEP_BYTES: usize = 64 << 10;

/// Memory that the sender of a zstd frame may ask for, as RFC 8878 recommends:
/// 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// Answers below this size aren't worth packing.
const PACKED_BYTES_MIN: usize = 1 << 10;

impl Encoding {
    const ALL: [Self; 3] = [Self::Zstd, Self::Gzip, Self::Deflate];

    /// Its name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// The encoding of a name; none for plain bodies.
    ///
    /// # Errors
    /// With the name, where it isn't taken.
    pub fn named(name: &str) -> Result<Option<Self>, String> {
        let name = name.trim();
        if name.is_empty() || name.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        let short = if name.eq_ignore_ascii_case("x-gzip") { "gzip" } else { name };
        let found = Self::ALL.into_iter().find(|encoding| short.eq_ignore_ascii_case(encoding.word()));
        found.map(Some).ok_or_else(|| name.chars().take(32).collect())
    }

    /// What a caller likes best of what it takes, and is given here.
    #[must_use]
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        let said = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let mut best: Option<(u32, Self)> = None;
        for one in said.flat_map(|text| text.split(',')) {
            let (name, weight) = one.split_once(';').unwrap_or((one, ""));
            let weight = weight.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.trim().parse::<f64>().ok());
            // In thousandths, as they are written.
            let weight = (weight.unwrap_or(0.0).clamp(0.0, 1.0) * 1_000.0) as u32;
            let encoding = if name.trim() == "*" { Ok(Some(Self::Gzip)) } else { Self::named(name) };
            let Ok(Some(encoding)) = encoding else { continue };
            let rank = |e: Self| Self::ALL.iter().rev().position(|of| *of == e);
            if weight > 0 && best.is_none_or(|(w, e)| (weight, rank(encoding)) > (w, rank(e))) {
                best = Some((weight, encoding));
            }
        }
        best.map(|(_, encoding)| encoding)
    }
}

/// A body as it was before it was packed: at most `bytes_max` bytes, which
/// `held` takes as they come.
///
/// # Errors
/// When it is damaged, or too large, or there is no room for it.
pub fn unpack(encoding: Encoding, packed: &[u8], bytes_max: u64, held: &Held) -> Result<Bytes, Failure> {
    let mut out = Unpacked { bytes: Vec::new(), bytes_max, packed: packed.len(), held };
    match encoding {
        Encoding::Gzip => out.read(encoding, &mut flate2::bufread::MultiGzDecoder::new(packed))?,
        Encoding::Deflate => out.read(encoding, &mut Zlib::new(packed))?,
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(packed).map_err(|e| broken(encoding, &e))?;
            decoder.window_log_max(WINDOW_LOG_MAX).map_err(|e| broken(encoding, &e))?;
            out.read(encoding, &mut decoder)?;
        }
    }
    Ok(out.bytes.into())
}

fn broken(encoding: Encoding, error: &io::Error) -> Failure {
    tracing::debug!(%error, "a body that is no {}", encoding.word());
    Failure::new(Code::InvalidInput, format!("the body is no {}, or not all of it", encoding.word()))
}

/// What came out so far.
struct Unpacked<'h> {
    bytes: Vec<u8>,
    bytes_max: u64,
    packed: usize,
    held: &'h Held,
}

/// What is read of a packed body.
trait Packed: Read {
    /// Bytes that weren't read yet.
    fn left(&self) -> usize;
}

impl Packed for flate2::bufread::MultiGzDecoder<&[u8]> {
    fn left(&self) -> usize {
        self.get_ref().len()
    }
}

impl Packed for zstd::Decoder<'_, &[u8]> {
    fn left(&self) -> usize {
        self.get_ref().len()
    }
}

impl Packed for Zlib<'_> {
    fn left(&self) -> usize {
        self.left.len()
    }
}

impl Unpacked<'_> {
    fn read(&mut self, encoding: Encoding, from: &mut impl Packed) -> Result<(), Failure> {
        loop {
            let at = self.bytes.len();
            if at == self.bytes.capacity() {
                // Counted before it is there.
                let more = at.clamp(STEP_BYTES, 16 << 20);
                self.held.take(more as u64)?;
                self.bytes.reserve_exact(more);
            }
            let step = (self.bytes.capacity() - at).min(STEP_BYTES);
            self.bytes.resize(at + step, 0);
            let read = from.read(&mut self.bytes[at..]);
            let read = read.map_err(|e| broken(encoding, &e))?;
            self.bytes.truncate(at + read);
            if read == 0 {
                let spare = self.bytes.capacity() - self.bytes.len();
                self.bytes.shrink_to_fit();
                self.held.give_back(spare as u64);
                return Ok(());
            }
            self.check(self.packed - from.left())?;
        }
    }

    fn check(&self, read: usize) -> Result<(), Failure> {
        let length = self.bytes.len() as u64;
        if length > self.bytes_max {
            let text = format!("a request has at most {} bytes, unpacked", self.bytes_max);
            return Err(Failure::new(Code::TooLarge, text));
        }
        if length > FREE_BYTES && length / RATIO_MAX > read as u64 {
            let text = format!("the body is more than {RATIO_MAX} times as large as it came");
            return Err(Failure::new(Code::TooLarge, text).with_help("send it plain"));
        }
        Ok(())
    }
}

/// Reads zlib's format; unlike the library's reader it tells an end from a
/// break.
struct Zlib<'p> {
    left: &'p [u8],
    decoder: Decompress,
    ended: bool,
}

impl<'p> Zlib<'p> {
    fn new(packed: &'p [u8]) -> Self {
        Self { left: packed, decoder: Decompress::new(true), ended: false }
    }
}

impl Read for Zlib<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let (read, written) = (self.decoder.total_in(), self.decoder.total_out());
            let status = self.decoder.decompress(self.left, out, FlushDecompress::None)?;
            let (read, written) = (self.decoder.total_in() - read, self.decoder.total_out() - written);
            self.left = &self.left[read as usize..];
            self.ended = status == Status::StreamEnd;
            if self.ended && !self.left.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes behind the end"));
            }
            if written > 0 {
                return Ok(written as usize);
            }
            if !self.ended && read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

/// A body packed, where that makes it smaller.
#[must_use]
pub fn pack(encoding: Encoding, bytes: &[u8]) -> Option<Bytes> {
    if bytes.len() < PACKED_BYTES_MIN {
        return None;
    }
    let out = Vec::with_capacity(bytes.len() / 2);
    // Fast: who asks is on a network that is slower than this, not on a disk.
    let level = Compression::fast();
    let packed = match encoding {
        Encoding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, level);
            encoder.write_all(bytes).and_then(|()| encoder.finish())
        }
        Encoding::Deflate => {
            let mut encoder = flate2::write::ZlibEncoder::new(out, level);
            encoder.write_all(bytes).and_then(|()| encoder.finish())
        }
        Encoding::Zstd => zstd::stream::encode_all(bytes, 1),
    };
    packed.ok().filter(|packed| packed.len() < bytes.len()).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::budget::Budget;

    const MAX: u64 = 512 << 20;

    fn packed(encoding: Encoding, bytes: &[u8]) -> Bytes {
        pack(encoding, bytes).expect("it becomes smaller")
    }

    fn unpacked(encoding: Encoding, bytes: &[u8], max: u64) -> Result<Bytes, Code> {
        let budget = Budget::new(4 << 30);
        let held = budget.request("a");
        let out = unpack(encoding, bytes, max, &held).map_err(|f| f.code());
        if let Ok(out) = &out {
            assert_eq!(budget.state().0, out.len() as u64, "what is there is held");
        }
        out
    }

    #[test]
    fn what_is_packed_comes_back_and_what_is_broken_does_not() {
        let bytes: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for encoding in Encoding::ALL {
            let packed = packed(encoding, &bytes);
            assert_eq!(unpacked(encoding, &packed, MAX).as_deref(), Ok(&bytes[..]), "{encoding:?}");
            assert_eq!(unpacked(encoding, &packed, bytes.len() as u64 - 1), Err(Code::TooLarge), "{encoding:?}");
            for end in [0, 1, 9, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
                let broken = unpacked(encoding, &packed[..end], MAX);
                // Nothing at all is an empty body, packed or not.
                let is_nothing = end == 0 && broken.as_deref() == Ok(&[]);
                assert!(is_nothing || broken == Err(Code::InvalidInput), "{encoding:?} to {end}: {broken:?}");
            }
            let behind = [&packed[..], b"more"].concat();
            assert_eq!(unpacked(encoding, &behind, MAX), Err(Code::InvalidInput), "{encoding:?}");
            let mut flipped = packed.to_vec();
            flipped[packed.len() / 2] ^= 0x55;
            let other = unpacked(encoding, &flipped, MAX);
            // Not every format carries a checksum; length is looked at elsewhere.
            assert!(other.is_err() || encoding == Encoding::Zstd, "{encoding:?}");
        }
    }

    #[test]
    fn bombs_are_refused_before_they_take_memory() {
        let zeros = vec![0; 64 << 20];
        let best = Compression::best();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), best);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), best);
        gzip.write_all(&zeros).unwrap();
        zlib.write_all(&zeros).unwrap();
        let bombs = [zstd::stream::encode_all(&zeros[..], 1), gzip.finish(), zlib.finish()];
        for (encoding, bomb) in Encoding::ALL.into_iter().zip(bombs) {
            let refused = unpacked(encoding, &bomb.unwrap(), MAX).map(|b| b.len());
            assert_eq!(refused, Err(Code::TooLarge), "{encoding:?}");
            // What is small may be thin.
            let thin = packed(encoding, &zeros[..8 << 20]);
            assert_eq!(unpacked(encoding, &thin, MAX).map(|b| b.len()), Ok(8 << 20), "{encoding:?}");
            // No more than the request may hold.
            let budget = Budget::new(2 << 20);
            let refused = unpack(encoding, &thin, MAX, &budget.request("a"));
            assert_eq!(refused.unwrap_err().code(), Code::TooLarge);
            assert_eq!(budget.state().0, 0);
        }
    }

    #[test]
    fn what_a_caller_likes_best_is_given() {
        for (said, given) in [
            ("", None),
            ("identity", None),
            ("br", None),
            ("gzip", Some(Encoding::Gzip)),
            ("GZIP", Some(Encoding::Gzip)),
            ("deflate", Some(Encoding::Deflate)),
            ("gzip, deflate, br, zstd", Some(Encoding::Zstd)),
            ("gzip;q=0.5, deflate;q=0.9", Some(Encoding::Deflate)),
            ("gzip;q=0, *;q=0", None),
            ("*", Some(Encoding::Gzip)),
            ("gzip;q=x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, said.parse().unwrap());
            assert_eq!(Encoding::wanted(&headers), given, "{said}");
        }
        assert_eq!(Encoding::named("x-gzip"), Ok(Some(Encoding::Gzip)));
        assert_eq!(Encoding::named(" identity "), Ok(None));
        assert!(Encoding::named("gzip, gzip").is_err() && Encoding::named("br").is_err());
    }
}
