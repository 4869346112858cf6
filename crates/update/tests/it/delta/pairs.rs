//! Any two files.

use proptest::prelude::*;

use super::models::{Weights, drawn, model};
use super::through;

#[test]
fn files_that_are_no_models() {
    let mut rng = fastrand::Rng::with_seed(5);
    let noise: Vec<u8> = (0..300_000).map(|_| rng.u8(..)).collect();
    let text = "every work and no play ".repeat(9_000).into_bytes();
    let moved = [&noise[100_000..], &b"something new"[..], &noise[..100_000]].concat();
    let floats: Vec<u8> = drawn(&mut rng, 70_000).iter().flat_map(|x| x.to_le_bytes()).collect();
    let near: Vec<u8> = floats
        .chunks_exact(4)
        .flat_map(|x| (f32::from_le_bytes([x[0], x[1], x[2], x[3]]) * 1.001).to_le_bytes())
        .collect();
    for (old, new, most) in [
        (&b""[..], &b""[..], 130),
        (b"", b"new", 140),
        (b"old", b"", 130),
        (b"", &noise, noise.len() + 140),
        (&noise, &noise, 130),
        (&noise, &moved, 300),
        (&noise, &noise[1..], 300),
        (&text, &text[..text.len() / 2], 140),
        (b"", &text, 300),
        (&floats, &near, floats.len() * 6 / 10),
    ] {
        let (bytes, _) = through(old, new);
        assert!(bytes <= most, "{} to {}: {bytes} of {most}", old.len(), new.len());
    }
}

#[test]
fn files_that_are_longer_than_what_is_read_at_once() {
    let mut rng = fastrand::Rng::with_seed(6);
    let mut old = vec![0u8; 9 << 20];
    old.iter_mut().step_by(3).for_each(|byte| *byte = rng.u8(..));
    let mut new = old.clone();
    new.truncate((8 << 20) + 12_345);
    new[5 << 20..(5 << 20) + 1_000].fill(7);
    let (bytes, _) = through(&old, &new);
    assert!(bytes < 3_000, "{bytes}");
    new.extend_from_slice(&old);
    through(&old, &new);
    through(&new, &old);

    let values = drawn(&mut rng, 1_300_000);
    let nudged: Vec<f32> = values.iter().map(|x| x * (0.999 + 0.002 * rng.f32())).collect();
    let file = |values: &[f32]| {
        let (first, second) = values.split_at(300_001);
        model(&[Weights::f32("a", &[300_001], first), Weights::f32("b", &[999_999], second)], "x")
    };
    let (bytes, _) = through(&file(&values), &file(&nudged));
    assert!(bytes < 1_300_000 * 4 * 6 / 10, "{bytes}");
    // Only the middle of a tensor.
    let mut middle = values.clone();
    middle[600_000..600_100].copy_from_slice(&nudged[600_000..600_100]);
    let (bytes, _) = through(&file(&values), &file(&middle));
    assert!(bytes < 700, "{bytes}");
}

/// What becomes of a file between two versions.
#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
    Flip(usize),
    Move(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = 0..usize::MAX;
    prop_oneof![
        (place.clone(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (place.clone(), 0usize..5_000).prop_map(|(at, count)| Edit::Remove(at, count)),
        (place.clone(), 0usize..5_000).prop_map(|(at, count)| Edit::Repeat(at, count)),
        place.clone().prop_map(Edit::Flip),
        place.prop_map(Edit::Move),
    ]
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let at = |place: &usize| place % (bytes.len() + 1);
        match edit {
            Edit::Insert(place, more) => {
                let at = at(place);
                bytes.splice(at..at, more.iter().copied());
            }
            Edit::Remove(place, count) => {
                let at = at(place);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Edit::Repeat(place, count) => {
                let at = at(place);
                bytes.extend_from_within(at..(at + count).min(bytes.len()));
            }
            Edit::Flip(place) if !bytes.is_empty() => {
                let at = place % bytes.len();
                bytes[at] ^= 0x55;
            }
            Edit::Flip(_) => {}
            Edit::Move(place) => {
                let at = at(place);
                bytes.rotate_left(at);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_two_files(old in prop::collection::vec(any::<u8>(), 0..2_000), new in prop::collection::vec(any::<u8>(), 0..2_000)) {
        through(&old, &new);
    }

    #[test]
    fn any_edits_of_a_file(seed: u64, length in 0usize..40_000, edits in prop::collection::vec(edit(), 0..6)) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let old: Vec<u8> = (0..length).map(|_| rng.u8(..) & 0x3f).collect();
        through(&old, &edited(old.clone(), &edits));
    }

    #[test]
    fn any_edits_of_a_model(seed: u64, edits in prop::collection::vec(edit(), 0..4)) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let weights: Vec<_> = (0..rng.usize(1..6))
            .map(|at| {
                let dims = [rng.u64(1..20), rng.u64(1..40)];
                Weights::f32(&format!("w{at}"), &dims, &drawn(&mut rng, (dims[0] * dims[1]) as usize))
            })
            .collect();
        let old = model(&weights, "a model");
        through(&old, &edited(old.clone(), &edits));
        let mut other = weights.clone();
        rng.shuffle(&mut other);
        other.truncate(rng.usize(..=other.len()));
        let new = model(&other, "another model");
        through(&old, &new);
        through(&new, &old);
        through(&new, &edited(old.clone(), &edits));
    }
}
