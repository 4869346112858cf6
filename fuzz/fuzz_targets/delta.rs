//! A delta from a stranger, and a base that fits or doesn't: an error, or a
//! result with the digest and length that the delta states. The first byte says
//! where the base ends; header and table are mended so that more of them is
//! reached.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use tierline_update::delta::{self, Delta, HEADER_BYTES, Header, Options};

/// Bytes of a result that are let through: copies of the base cost nothing in
/// the delta, and callers know the length before.
const RESULT_BYTES_MAX: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((&share, rest)) = input.split_first() else { return };
    let (base, file) = rest.split_at(rest.len() * usize::from(share) / 255);
    let mut file = file.to_vec();
    // The base's digest and length are right, whatever they say.
    if file.len() as u64 >= HEADER_BYTES {
        file[12..20].copy_from_slice(&(base.len() as u64).to_le_bytes());
        file[28..60].copy_from_slice(blake3(base).as_slice());
    }
    if let Ok(header) = Header::read(&mut &file[..]) {
        file.truncate(usize::try_from(header.delta_bytes()).unwrap_or(usize::MAX));
    }
    if let Ok(mut delta) = Delta::open(Cursor::new(&file))
        && delta.header().result_bytes <= RESULT_BYTES_MAX
    {
        let mut out = Vec::new();
        let applied = delta.apply(&mut Cursor::new(base), &mut out);
        assert!(out.len() as u64 <= delta.header().result_bytes);
        if applied.is_ok() {
            assert_eq!(out.len() as u64, delta.header().result_bytes);
            assert_eq!(blake3(&out), delta.header().result.0);
        }
    }
    // And of any two files there is one.
    let mut made = Cursor::new(Vec::new());
    let options = Options { level: 1, ..Options::default() };
    delta::make(&mut Cursor::new(base), &mut Cursor::new(&file), &options, &mut made, &mut std::io::sink())
        .expect("memory doesn't fail");
    let mut out = Vec::new();
    delta::apply(&mut Cursor::new(base), &mut made, &mut out).expect("what was made applies");
    assert_eq!(out, file);
});

/// The digest of some bytes, from the header that making one writes.
fn blake3(bytes: &[u8]) -> [u8; 32] {
    let mut made = Cursor::new(Vec::new());
    let options = Options { level: 1, ..Options::default() };
    let report =
        delta::make(&mut Cursor::new(bytes), &mut Cursor::new(bytes), &options, &mut made, &mut std::io::sink());
    report.expect("memory doesn't fail").header.result.0
}
