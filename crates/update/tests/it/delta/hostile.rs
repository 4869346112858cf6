//! Deltas that are broken, or lie.

use std::io::{Cursor, Read, Seek, SeekFrom, Write};

use tierline_update::delta::{self, Delta, DeltaError, HEADER_BYTES, Header, Options};

use super::models::{Weights, drawn, model};
use super::{applied, made};

/// Pairs that lead to every coding.
fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rng = fastrand::Rng::with_seed(7);
    let values = drawn(&mut rng, 1_200);
    let weights = |values: &[f32], name: &str| model(&[Weights::f32(name, &[30, 40], values)], "x");
    let near: Vec<f32> = values.iter().map(|x| x * 1.01).collect();
    let some: Vec<f32> = values.iter().map(|x| if rng.u8(..50) == 0 { x + 0.1 } else { *x }).collect();
    let bits: Vec<f32> = values.iter().map(|x| f32::from_bits(x.to_bits() ^ 0x0f0f_0f0f)).collect();
    let noise: Vec<u8> = (0..4_000).map(|_| rng.u8(..)).collect();
    let moved = [&noise[1_000..], &noise[..1_000]].concat();
    vec![
        (weights(&values, "a"), weights(&near, "a")),
        (weights(&values, "a"), weights(&some, "another name that is longer than the old one")),
        (weights(&values, "a"), weights(&bits, "a")),
        (noise.clone(), moved),
        (Vec::new(), noise),
        (Vec::new(), b"text that repeats, text that repeats, text that repeats".to_vec()),
    ]
}

#[test]
fn every_truncation_is_refused() {
    for (old, new) in pairs() {
        let (file, ..) = made(&old, &new, &Options::default());
        for length in (0..file.len()).step_by(1 + file.len() / 400) {
            let error = applied(&old, &file[..length]).unwrap_err();
            let expected = matches!(error, DeltaError::Truncated | DeltaError::NotADelta);
            assert!(expected && error.is_verification(), "{length} of {}: {error}", file.len());
        }
        let longer = [&file[..], b"!"].concat();
        assert!(matches!(applied(&old, &longer), Err(DeltaError::Corrupt(_))));
    }
}

#[test]
fn a_damaged_delta_is_refused_or_gives_the_same() {
    let mut rng = fastrand::Rng::with_seed(8);
    for (old, new) in pairs() {
        let (file, ..) = made(&old, &new, &Options::default());
        for _ in 0..4_000 {
            let mut bytes = file.clone();
            for _ in 0..rng.usize(1..4) {
                let reach = if rng.bool() { bytes.len().min(120) } else { bytes.len() };
                // The table stands at the end.
                let at =
                    if rng.bool() { bytes.len() - 1 - rng.usize(..bytes.len().min(40)) } else { rng.usize(..reach) };
                match rng.u8(..3) {
                    0 => bytes[at] ^= 1 << rng.u8(..8),
                    1 => bytes[at] = rng.u8(..),
                    _ => bytes[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap(),
                }
            }
            match applied(&old, &bytes) {
                Ok(result) => assert!(result == new, "what passes is right"),
                Err(error) => assert!(error.is_verification(), "{error}"),
            }
        }
    }
}

/// Counts what is written.
#[derive(Default)]
struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn another_base_is_refused_before_anything_is_written() {
    for (old, new) in pairs() {
        let (file, report, _) = made(&old, &new, &Options::default());
        let mut out = Counting::default();
        let mut longer = old.clone();
        longer.push(0);
        let error = delta::apply(&mut Cursor::new(&longer), &mut Cursor::new(&file), &mut out).unwrap_err();
        assert!(matches!(error, DeltaError::BaseLength { .. }), "{error}");
        longer.pop();
        if let Some(byte) = longer.first_mut() {
            *byte ^= 1;
            let error = delta::apply(&mut Cursor::new(&longer), &mut Cursor::new(&file), &mut out).unwrap_err();
            let DeltaError::Base { expected, found } = error else { panic!("{error}") };
            assert!(expected == report.header.base && found != expected);
        }
        assert_eq!(out.0, 0);
    }
}

#[test]
fn a_wrong_result_is_found_out() {
    let (old, new) = pairs().swap_remove(0);
    let (mut file, ..) = made(&old, &new, &Options::default());
    // Digest of the result, in the header.
    file[60] ^= 1;
    assert!(matches!(applied(&old, &file), Err(DeltaError::Result { .. })));
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let (old, new) = pairs().swap_remove(0);
    let (file, report, _) = made(&old, &new, &Options::default());
    let open = |place: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[place..place + bytes.len()].copy_from_slice(bytes);
        applied(&old, &file).unwrap_err()
    };
    assert!(matches!(open(0, b"PK"), DeltaError::NotADelta));
    assert!(matches!(open(8, &[2, 0]), DeltaError::Version(2)));
    assert!(matches!(open(10, &[2, 0]), DeltaError::Corrupt(_)));
    // Base, result, start of the table, its length, its length without zstd.
    for (place, width) in [(12, 8), (20, 8), (92, 8), (100, 4), (104, 4)] {
        for byte in [0, 0xff] {
            let error = open(place, &vec![byte; width]);
            assert!(error.is_verification(), "{place}: {error}");
        }
    }
    assert!(matches!(open(104, &[0xff; 4]), DeltaError::TooLarge { .. }));
    // What room the result takes is known from the first bytes alone.
    let header = Header::read(&mut &file[..HEADER_BYTES as usize]).unwrap();
    assert_eq!((header.result_bytes, &header), (new.len() as u64, &report.header));
}

#[test]
fn a_table_that_unpacks_to_more_than_it_says_is_refused() {
    let (old, new) = pairs().swap_remove(0);
    let (file, report, _) = made(&old, &new, &Options::default());
    let table = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    let start = u64::from_le_bytes(file[92..100].try_into().unwrap()) as usize;
    let mut bomb = file[..start].to_vec();
    bomb[100..104].copy_from_slice(&(table.len() as u32).to_le_bytes());
    bomb.extend_from_slice(&table);
    for length in [64u32 << 20, 8 << 20, 100] {
        bomb[104..108].copy_from_slice(&length.to_le_bytes());
        let error = Delta::open(Cursor::new(&bomb)).map(|_| ()).unwrap_err();
        assert!(error.is_verification(), "{error}");
    }
    drop((old, report));
}

/// A disk that is full, or a file that can't be read any more.
struct Failing(Cursor<Vec<u8>>, u64);

impl Read for Failing {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        if self.0.position() >= self.1 {
            return Err(std::io::ErrorKind::Other.into());
        }
        self.0.read(bytes)
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.position() + bytes.len() as u64 > self.1 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_the_system_refuses_is_told_apart() {
    let (old, new) = pairs().swap_remove(0);
    let (file, ..) = made(&old, &new, &Options::default());
    for room in [0, 100, new.len() as u64 - 1] {
        let mut out = Failing(Cursor::default(), room);
        let error = delta::apply(&mut Cursor::new(&old), &mut Cursor::new(&file), &mut out).unwrap_err();
        assert!(matches!(error, DeltaError::Write { .. }) && !error.is_verification(), "{error}");
        let mut out = Failing(Cursor::default(), room.min(120));
        let made = delta::make(
            &mut Cursor::new(&old),
            &mut Cursor::new(&new),
            &Options::default(),
            &mut out,
            &mut std::io::sink(),
        );
        assert!(matches!(made, Err(DeltaError::Write { .. })));
    }
    let mut gone = Failing(Cursor::new(old), 10);
    let error = delta::apply(&mut gone, &mut Cursor::new(&file), &mut std::io::sink()).unwrap_err();
    assert!(matches!(error, DeltaError::Read { what: "the base", .. }), "{error}");
}
