//! Files cut short, and with bytes flipped, removed, repeated: whatever they
//! are, the answer is a data set or an error.
//! `fuzz/fuzz_targets/data.rs` goes further, with coverage.

use tierline_train::data::Dataset;

use crate::samples::samples;

/// Of each file.
const ROUNDS: usize = 1_000;

#[test]
fn every_truncation_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    for sample in samples(folder.path()) {
        for file in &sample.files {
            let whole = std::fs::read(file).unwrap();
            for length in (0..whole.len()).step_by(whole.len().div_ceil(300)) {
                std::fs::write(file, &whole[..length]).unwrap();
                let loaded = sample.source.load();
                // A picture may lose its end and a table its last rows unseen.
                let may_load = matches!(sample.name, "csv" | "folder");
                assert!(may_load || loaded.is_err(), "{} cut to {length} bytes", sample.name);
            }
            std::fs::write(file, &whole).unwrap();
        }
        sample.source.load().unwrap();
    }
}

#[test]
fn every_mutation_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut loaded, mut refused) = (0, 0);
    for sample in samples(folder.path()) {
        for file in &sample.files {
            let whole = std::fs::read(file).unwrap();
            for _ in 0..ROUNDS {
                let mut bytes = whole.clone();
                (0..rng.usize(1..4)).for_each(|_| mutate(&mut bytes, &mut rng));
                std::fs::write(file, &bytes).unwrap();
                match sample.source.load() {
                    Ok(dataset) => {
                        check(&dataset);
                        loaded += 1;
                    }
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        refused += 1;
                    }
                }
            }
            std::fs::write(file, &whole).unwrap();
        }
    }
    // Neither all harmless nor all ruined: the rounds went past the headers.
    assert!(loaded > 100 && refused > 1_000, "{loaded} loaded, {refused} refused");
}

/// What holds for a data set whatever its files were.
fn check(dataset: &Dataset) {
    assert!(!dataset.is_empty());
    let features = dataset.features(&[0, dataset.len() - 1]).unwrap();
    assert_eq!(&features.shape()[1..], dataset.example_shape());
    if let (Some(classes), Some(count)) = (dataset.classes(), dataset.class_count()) {
        assert_eq!(classes.len(), dataset.len());
        assert!(classes.iter().all(|class| *class < count));
    }
    assert!(dataset.range().iter().all(|end| end.is_finite()));
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    let Some(last) = bytes.len().checked_sub(1) else { return bytes.push(rng.u8(..)) };
    // Headers are short and matter most; some formats have them at the end.
    let at = match rng.u8(..4) {
        0 => rng.usize(..=last.min(48)),
        1 => last - rng.usize(..=last.min(200)),
        _ => rng.usize(..=last),
    };
    match rng.u8(..6) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff, b'9', b',', b'\n']).expect("not empty"),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, rng.u8(..)),
        4 => drop(bytes.remove(at)),
        _ => {
            let end = (at + rng.usize(1..16)).min(bytes.len());
            bytes.extend_from_within(at..end);
        }
    }
}
