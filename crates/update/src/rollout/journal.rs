//! A journal in a file: one record a line, each behind a checksum, so that a
//! line that was half written is known for one.
//!
//! Bytes in, bytes out; appending, and syncing behind it, is for the shell.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RolloutError;
use super::words::plain;

/// Bytes of one record: a snapshot of the most devices there may be.
pub const LINE_BYTES_MAX: usize = 256 << 20;

/// A record as a line.
///
/// # Errors
/// [`RolloutError::Journal`] for what JSON can't say.
pub fn encode<R: Serialize>(record: &R) -> Result<Vec<u8>, RolloutError> {
    let json = serde_json::to_string(record).map_err(|error| RolloutError::Journal(error.to_string()))?;
    Ok(format!("{:08x} {json}\n", crc32(json.as_bytes())).into_bytes())
}

/// The records of a journal, and how many of its bytes they are. What is behind
/// those, an end that was half written, is to be cut off before the next record
/// is appended.
///
/// # Errors
/// [`RolloutError::Journal`] where whole records lie behind a broken one: that
/// is no write that was cut short but damage.
pub fn decode<R: DeserializeOwned>(bytes: &[u8]) -> Result<(Vec<R>, usize), RolloutError> {
    let mut records = Vec::new();
    let mut end = 0;
    let mut broken = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match (read(line), broken) {
            (Some(record), None) => {
                records.push(record);
                end += line.len();
            }
            (Some(_), Some(at)) => {
                let reason = format!("it is damaged at byte {at}, with whole records behind");
                return Err(RolloutError::Journal(reason));
            }
            (None, None) if whole(line) => {
                let text = plain(&String::from_utf8_lossy(&line[..line.len().min(80)]));
                return Err(RolloutError::Journal(format!("a record is of no kind that is known: {text}")));
            }
            (None, _) => broken = broken.or(Some(end)),
        }
    }
    Ok((records, end))
}

fn read<R: DeserializeOwned>(line: &[u8]) -> Option<R> {
    whole(line).then(|| serde_json::from_slice(&line[9..line.len() - 1]).ok()).flatten()
}

/// Whether a line is as it was written.
fn whole(line: &[u8]) -> bool {
    let Some(body) = line.strip_suffix(b"\n") else { return false };
    let Some((sum, json)) = body.split_at_checked(9) else { return false };
    json.len() <= LINE_BYTES_MAX && sum == format!("{:08x} ", crc32(json)).as_bytes()
}

/// CRC-32 (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| (crc >> 8) ^ CRC[usize::from(crc as u8 ^ byte)])
}

/// What each byte does to it.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn an_end_that_was_half_written_is_left_out_wherever_it_was_cut() {
        let records = ["one".to_owned(), "two\n".to_owned(), String::new()];
        let lines: Vec<Vec<u8>> = records.iter().map(|record| encode(record).unwrap()).collect();
        let whole: Vec<u8> = lines.concat();
        let mut ends = vec![0];
        lines.iter().for_each(|line| ends.push(ends[ends.len() - 1] + line.len()));
        for cut in 0..=whole.len() {
            let (read, end) = decode::<String>(&whole[..cut]).unwrap();
            let count = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!((read.as_slice(), end), (&records[..count], ends[count]), "cut at {cut}");
            // Sectors that were never written hold zeros, or what was there.
            for rest in [vec![0; whole.len() - cut], vec![b'x'; whole.len() - cut]] {
                let torn = [&whole[..cut], &rest].concat();
                let (read, end) = decode::<String>(&torn).unwrap();
                assert_eq!((read.as_slice(), end), (&records[..count], ends[count]), "torn at {cut}");
            }
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            if let Ok((read, end)) = decode::<String>(&flipped) {
                assert!(end <= at && read == records[..read.len()], "bit at {at}");
            }
        }
    }
}
