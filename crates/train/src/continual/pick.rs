//! Which examples of a stream are kept: pure functions of classes, features and
//! a seed.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::data::seed_of;

/// Keeps draws for the memory apart from others.
const DRAW: u64 = 0x6d65_6d6f;

/// An example that is kept, or that just came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) class: u32,
    /// Its place among those kept before, followed by the new.
    pub(super) at: usize,
}

/// How many examples came so far, of each class.
pub(super) type Came = BTreeMap<u32, u64>;

/// Where one of `came` examples goes among `held`, of which there may be `most`:
/// behind them, over one of them, or nowhere (Vitter's algorithm R, 1985).
fn place(held: usize, most: usize, came: u64, words: [u64; 2]) -> Option<usize> {
    if held < most {
        return Some(held);
    }
    let mut rng = Rng::with_seed(seed_of(&[DRAW, words[0], words[1], came]));
    usize::try_from(rng.u64(0..came.max(1))).ok().filter(|&at| at < most)
}

/// Lets go of some, each with the same probability.
fn shrunk<T>(kept: &mut Vec<T>, most: usize, words: [u64; 2]) {
    if kept.len() > most {
        Rng::with_seed(seed_of(&[DRAW, words[0], words[1], most as u64])).shuffle(kept);
        kept.truncate(most);
    }
}

/// Each of all that came with the same probability.
pub(super) fn reservoir(kept: &mut Vec<Slot>, new: &[Slot], came: &mut Came, most: usize, seed: u64) {
    let before: u64 = came.values().sum();
    shrunk(kept, most, [seed, before]);
    for (&slot, came_so_far) in new.iter().zip(before + 1..) {
        *came.entry(slot.class).or_insert(0) += 1;
        match place(kept.len(), most, came_so_far, [seed, 0]) {
            Some(at) if at < kept.len() => kept[at] = slot,
            Some(_) => kept.push(slot),
            None => {}
        }
    }
}

/// At most as many of each class, each of its examples with the same
/// probability.
pub(super) fn balanced(kept: &mut Vec<Slot>, new: &[Slot], came: &mut Came, of_one: usize, seed: u64) {
    let mut classes: BTreeMap<u32, Vec<Slot>> = BTreeMap::new();
    kept.drain(..).for_each(|slot| classes.entry(slot.class).or_default().push(slot));
    for (class, own) in &mut classes {
        let words = [seed, u64::from(*class) << 32 ^ came.get(class).copied().unwrap_or(0)];
        shrunk(own, of_one, words);
    }
    for &slot in new {
        let (own, came) = (classes.entry(slot.class).or_default(), came.entry(slot.class).or_insert(0));
        *came += 1;
        match place(own.len(), of_one, *came, [seed, 1 + u64::from(slot.class)]) {
            Some(at) if at < own.len() => own[at] = slot,
            Some(_) => own.push(slot),
            None => {}
        }
    }
    kept.extend(classes.into_values().flatten());
}

/// GDumb's sampler: of a class that has fewer than its part, an example is kept
/// as it comes; where there is no room, one of the largest class goes.
pub(super) fn greedy(kept: &mut Vec<Slot>, new: &[Slot], came: &mut Came, [all, of_one]: [usize; 2], seed: u64) {
    let mut classes: BTreeMap<u32, Vec<Slot>> = BTreeMap::new();
    kept.drain(..).for_each(|slot| classes.entry(slot.class).or_default().push(slot));
    let mut held: usize = classes.values().map(Vec::len).sum();
    let mut rng = Rng::with_seed(seed_of(&[DRAW, seed, came.values().sum()]));
    for &slot in new {
        *came.entry(slot.class).or_insert(0) += 1;
        let part = of_one.min(all / came.len());
        let own = classes.entry(slot.class).or_default();
        if own.len() >= part {
            continue;
        }
        own.push(slot);
        held += 1;
        if held > all {
            // The first of the largest: equals go by their number.
            let largest = classes.iter_mut().rev().max_by_key(|(_, own)| own.len());
            if let Some((_, own)) = largest {
                own.swap_remove(rng.usize(0..own.len()));
                held -= 1;
            }
        }
    }
    kept.extend(classes.into_values().flatten());
}

/// Of each class, those whose mean comes nearest to the class's, the nearest
/// first. `features` are of all that were kept, then of the new, `width` each.
/// Those kept stand for all that came of their class.
pub(super) fn herded(kept: &mut Vec<Slot>, new: &[Slot], came: &mut Came, of_one: usize, features: (&[f32], usize)) {
    let (features, width) = features;
    let held = kept.len();
    let mut classes: BTreeMap<u32, Vec<Slot>> = BTreeMap::new();
    kept.drain(..).chain(new.iter().copied()).for_each(|slot| classes.entry(slot.class).or_default().push(slot));
    for (class, own) in classes {
        let old = own.iter().filter(|slot| slot.at < held).count();
        if old == own.len() {
            // Nothing new: they are in order already.
            kept.extend(own.into_iter().take(of_one));
            continue;
        }
        let each = came.get(&class).copied().unwrap_or(0) as f64 / old.max(1) as f64;
        let rows: Vec<(&[f32], f64)> = own
            .iter()
            .map(|slot| {
                let weight = if slot.at < held { each } else { 1.0 };
                (&features[slot.at * width..(slot.at + 1) * width], weight)
            })
            .collect();
        kept.extend(herding(&rows, of_one).into_iter().map(|at| own[at]));
    }
    new.iter().for_each(|slot| *came.entry(slot.class).or_insert(0) += 1);
}

/// Places of `count` rows, chosen one after the other so that their mean comes
/// nearest to the weighted mean of all; rows are scaled to length one first
/// (iCaRL: Rebuffi et al., 2017). Of equals the first.
fn herding(rows: &[(&[f32], f64)], count: usize) -> Vec<usize> {
    let width = rows.first().map_or(0, |(row, _)| row.len());
    let unit: Vec<Vec<f64>> = rows
        .iter()
        .map(|(row, _)| {
            let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            // What isn't finite, or has no direction, says nothing.
            let scale = if length > 0.0 && length.is_finite() { 1.0 / length } else { 0.0 };
            row.iter().map(|&x| if scale > 0.0 { scale * f64::from(x) } else { 0.0 }).collect()
        })
        .collect();
    let whole: f64 = rows.iter().map(|(_, weight)| weight).sum();
    let mut mean = vec![0f64; width];
    for (row, (_, weight)) in unit.iter().zip(rows) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += weight / whole.max(f64::MIN_POSITIVE) * x);
    }
    let mut sum = vec![0f64; width];
    let mut left: Vec<usize> = (0..rows.len()).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        let next = (chosen.len() + 1) as f64;
        let away = |at: usize| {
            let parts = mean.iter().zip(&sum).zip(&unit[at]);
            parts.map(|((m, s), x)| (m - (s + x) / next).powi(2)).sum::<f64>()
        };
        let nearest = left.iter().enumerate().map(|(i, &at)| (i, away(at))).min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((i, _)) = nearest else { break };
        let at = left.remove(i);
        sum.iter_mut().zip(&unit[at]).for_each(|(s, x)| *s += x);
        chosen.push(at);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(classes: &[u32], from: usize) -> Vec<Slot> {
        classes.iter().zip(from..).map(|(&class, at)| Slot { class, at }).collect()
    }

    #[test]
    fn a_reservoir_keeps_each_with_the_same_probability() {
        let new = slots(&[0; 40], 0);
        let mut times = [0u32; 40];
        for seed in 0..4_000 {
            let (mut kept, mut came) = (Vec::new(), Came::new());
            // In two parts, as tasks come.
            reservoir(&mut kept, &new[..25], &mut came, 10, seed);
            reservoir(&mut kept, &new[25..], &mut came, 10, seed);
            assert_eq!((kept.len(), came[&0]), (10, 40));
            kept.iter().for_each(|slot| times[slot.at] += 1);
        }
        // A thousand each, and five standard deviations.
        assert!(times.iter().all(|&n| n.abs_diff(1_000) < 140), "{times:?}");
    }

    #[test]
    fn classes_share_the_room() {
        let (mut kept, mut came) = (Vec::new(), Came::new());
        balanced(&mut kept, &slots(&[0; 30], 0), &mut came, 10, 1);
        balanced(&mut kept, &slots(&[&[1; 30][..], &[2; 2]].concat(), 100), &mut came, 5, 1);
        let count = |class| kept.iter().filter(|slot| slot.class == class).count();
        assert_eq!([count(0), count(1), count(2)], [5, 5, 2]);
    }

    #[test]
    fn greedy_keeps_classes_even() {
        let (mut kept, mut came) = (Vec::new(), Came::new());
        greedy(&mut kept, &slots(&[0; 30], 0), &mut came, [12, usize::MAX], 1);
        assert_eq!(kept.len(), 12);
        greedy(&mut kept, &slots(&[1; 30], 100), &mut came, [12, usize::MAX], 1);
        greedy(&mut kept, &slots(&[2; 30], 200), &mut came, [12, usize::MAX], 1);
        let count = |class| kept.iter().filter(|slot| slot.class == class).count();
        assert_eq!([count(0), count(1), count(2)], [4, 4, 4]);
    }

    #[test]
    fn herding_follows_the_mean() {
        // Unit vectors at 0, 90, 40 and 50 degrees: their mean lies at 45.
        let rows: Vec<Vec<f32>> = [0f32, 90.0, 40.0, 50.0]
            .iter()
            .map(|degrees| {
                let (sin, cos) = degrees.to_radians().sin_cos();
                vec![2.0 * cos, 2.0 * sin]
            })
            .collect();
        let rows: Vec<(&[f32], f64)> = rows.iter().map(|row| (&row[..], 1.0)).collect();
        let chosen = herding(&rows, 2);
        assert!(chosen == [2, 3] || chosen == [3, 2], "{chosen:?}");
        assert_eq!(herding(&rows, 9).len(), 4);
        assert_eq!(herding(&rows, 0), [0usize; 0]);
        assert_eq!(herding(&[], 3), [0usize; 0]);
        // Nothing has a direction: the first come first.
        let still: Vec<(&[f32], f64)> = vec![(&[0.0], 1.0), (&[f32::NAN], 1.0)];
        assert_eq!(herding(&still, 2), [0, 1]);
    }

    #[test]
    fn a_herd_goes_on_from_what_it_has() {
        let (mut kept, mut came) = (Vec::new(), Came::new());
        let features = [1.0, 0.0, 0.9, 0.1, 0.8, 0.2];
        herded(&mut kept, &slots(&[7; 3], 0), &mut came, 2, (&features, 2));
        assert_eq!((kept.len(), came[&7]), (2, 3));
        // Another class: the first two stay as they are, or the first of them.
        let before: Vec<Slot> = kept.iter().zip(0..).map(|(slot, at)| Slot { at, ..*slot }).collect();
        let mut kept = before.clone();
        let features = [1.0, 0.0, 0.9, 0.1, 0.0, 1.0];
        herded(&mut kept, &slots(&[8], 2), &mut came, 1, (&features, 2));
        assert_eq!(kept, [before[0], Slot { class: 8, at: 2 }]);
    }
}
