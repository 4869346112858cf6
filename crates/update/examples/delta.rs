//! Makes a delta of two files, applies it, and says what it costs.
//!
//! `cargo run --release -p tierline-update --example delta -- OLD NEW [int8|int4]`

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Cursor};
use std::time::Instant;

use tierline_update::delta::{self, Lossy, Options};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [old, new, rest @ ..] = &words[..] else { return Err("which files? OLD NEW".into()) };
    let lossy = match rest {
        [] => None,
        [word] if word == "int8" => Some(Lossy::Int8),
        [word] if word == "int4" => Some(Lossy::Int4),
        _ => return Err("with loss is `int8` or `int4`".into()),
    };
    let (mut old, mut new) = (File::open(old)?, File::open(new)?);
    let mut file = Cursor::new(Vec::new());
    let begun = Instant::now();
    let options = Options { lossy, ..Options::default() };
    let report = delta::make(&mut old, &mut new, &options, &mut file, &mut std::io::sink())?;
    let made = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    delta::apply(&mut old, &mut file, &mut BufWriter::new(tempfile()?))?;
    let applied = begun.elapsed().as_secs_f64();
    let (bytes, whole) = (report.header.delta_bytes(), report.header.result_bytes as f64);
    println!("{bytes} bytes, {:.3} times smaller", whole / bytes as f64);
    println!("made at {:.0} MB/s, applied at {:.0} MB/s", whole / 1e6 / made, whole / 1e6 / applied);
    println!("same {}, text {}, {:?}", report.same_bytes, report.text_bytes, report.deviation);
    report.codings.iter().for_each(|coded| println!("{coded:?}"));
    Ok(())
}

/// A file that is gone with the process.
fn tempfile() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("delta-{}", std::process::id()));
    let file = File::create(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
