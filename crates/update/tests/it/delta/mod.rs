//! Deltas: what is made of a pair of files gives the second one back, and
//! whatever else comes is an error.

mod hostile;
mod models;
mod pairs;

use std::io::Cursor;

use tierline_update::delta::{self, DeltaError, Header, Options, Report};

/// The delta, and what making it says.
pub fn made(old: &[u8], new: &[u8], options: &Options) -> (Vec<u8>, Report, Vec<u8>) {
    let (mut file, mut result) = (Cursor::new(Vec::new()), Vec::new());
    let report = delta::make(&mut Cursor::new(old), &mut Cursor::new(new), options, &mut file, &mut result).unwrap();
    let file = file.into_inner();
    assert_eq!(file.len() as u64, report.header.delta_bytes());
    assert_eq!(Header::read(&mut &file[..]).unwrap(), report.header);
    (file, report, result)
}

pub fn applied(old: &[u8], delta: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let mut out = Vec::new();
    delta::apply(&mut Cursor::new(old), &mut Cursor::new(delta), &mut out).map(|_| out)
}

/// Makes and applies; bytes of the delta, and what making it says.
#[track_caller]
pub fn through(old: &[u8], new: &[u8]) -> (usize, Report) {
    let (file, report, result) = made(old, new, &Options { level: 3, ..Options::default() });
    assert!(result == new, "what making gives is the new file");
    assert!(applied(old, &file).unwrap() == new, "so is what applying gives");
    assert!(!report.header.lossy && report.deviation.is_none());
    (file.len(), report)
}
