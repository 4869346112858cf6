//! Partitions share every example out once, and skew what they say they do.

use proptest::prelude::*;
use tierline_graph::{Elements, Tensor};
use tierline_train::data::{Dataset, Partition, Targets, partition};

use crate::samples::counting;

/// `n` examples of `count` classes in turn, of users of three examples each.
fn dataset(n: usize, count: usize) -> Dataset {
    let classes = (0..n).map(|i| (i % count) as u32).collect();
    let features = Tensor::new([n, 2], Elements::F32((0..2 * n).map(|i| (i % 6) as f32).collect())).unwrap();
    let users: Vec<String> = (0..n).map(|i| format!("user {}", i / 3)).collect();
    let targets = Targets::Classes { classes, count, names: Vec::new() };
    Dataset::new("turns", features, targets).unwrap().with_groups(&users).unwrap()
}

/// How many classes a client sees, on average.
fn classes_per_client(dataset: &Dataset, shares: &[Vec<usize>]) -> f64 {
    let classes = dataset.classes().unwrap();
    let of_client = |share: &Vec<usize>| {
        share.iter().map(|&example| classes[example]).collect::<std::collections::BTreeSet<_>>().len()
    };
    shares.iter().map(of_client).sum::<usize>() as f64 / shares.len() as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_partition_is_one(
        n in 1usize..300, count in 1usize..12, clients in 1usize..20, seed: u64, kind in 0usize..6, alpha in 1e-4f64..1e3,
    ) {
        let kind = match kind {
            0 => Partition::Iid,
            1 => Partition::Dirichlet { alpha },
            2 => Partition::Dirichlet { alpha: 1e-12 },
            3 => Partition::Shards { per_client: 2 },
            4 => Partition::Groups,
            _ => Partition::Feature { feature: 1 },
        };
        let dataset = dataset(n, count);
        match partition(&dataset, &kind, clients, seed) {
            Ok(shares) => {
                prop_assert_eq!(shares.len(), clients);
                prop_assert!(shares.iter().all(|share| !share.is_empty() && share.is_sorted()));
                let mut all = shares.concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
                prop_assert_eq!(partition(&dataset, &kind, clients, seed).unwrap(), shares);
            }
            // Only when there is too little to go round.
            Err(error) => {
                let units = match kind {
                    Partition::Groups => n.div_ceil(3),
                    Partition::Feature { .. } => n.min(3),
                    Partition::Shards { per_client } => n / per_client,
                    _ => n,
                };
                prop_assert!(units < clients, "{}", error);
            }
        }
    }
}

#[test]
fn a_smaller_alpha_leaves_fewer_classes() {
    let dataset = dataset(5_000, 10);
    let seen = |alpha| {
        let shares = partition(&dataset, &Partition::Dirichlet { alpha }, 20, 1).unwrap();
        assert!(shares.iter().all(|share| share.len() == 250));
        // Classes that hold a tenth of a client's examples or more.
        let classes = dataset.classes().unwrap();
        let large =
            |share: &Vec<usize>| (0..10).filter(|c| share.iter().filter(|&&e| classes[e] == *c).count() >= 15).count();
        shares.iter().map(large).sum::<usize>() as f64 / 20.0
    };
    let (skewed, mild, even) = (seen(0.1), seen(1.0), seen(1_000.0));
    assert!(skewed < 5.0 && skewed < mild && mild < even && even > 9.0, "{skewed} {mild} {even}");
}

#[test]
fn two_shards_hold_few_classes() {
    let dataset = dataset(1_000, 10);
    let shares = partition(&dataset, &Partition::Shards { per_client: 2 }, 10, 4).unwrap();
    assert!(shares.iter().all(|share| share.len() == 100));
    // Twenty shards of ten classes of a hundred: each shard has one class.
    assert!(classes_per_client(&dataset, &shares) <= 2.0);
    let even = partition(&dataset, &Partition::Iid, 10, 4).unwrap();
    assert!(classes_per_client(&dataset, &even) > 9.0);
}

#[test]
fn users_and_values_stay_whole() {
    let dataset = dataset(90, 5);
    let (groups, _) = dataset.groups().unwrap();
    let shares = partition(&dataset, &Partition::Groups, 7, 2).unwrap();
    let owner = |example: usize| shares.iter().position(|share| share.contains(&example)).unwrap();
    (0..90).for_each(|e| (0..90).filter(|&o| groups[o] == groups[e]).for_each(|o| assert_eq!(owner(o), owner(e))));
    let by_value = partition(&dataset, &Partition::Feature { feature: 0 }, 3, 2).unwrap();
    let values = dataset.feature(0).unwrap();
    assert!(by_value.iter().all(|share| share.iter().all(|&e| values[e] == values[share[0]])));
}

#[test]
fn partitions_that_cannot_be_are_refused() {
    let few = dataset(9, 3);
    let values = Targets::Values(Tensor::new([4], Elements::F32(vec![0.0; 4])).unwrap());
    let numbers = Dataset::new("numbers", counting(&[4, 2]), values).unwrap();
    let said =
        |dataset: &Dataset, kind: Partition, clients| partition(dataset, &kind, clients, 0).unwrap_err().to_string();
    for (said, expected) in [
        (said(&few, Partition::Iid, 0), "option `clients`"),
        (said(&few, Partition::Iid, 10), "9 examples cannot be shared out to 10 clients"),
        (said(&few, Partition::Groups, 4), "3 groups cannot be shared out to 4 clients"),
        (said(&few, Partition::Shards { per_client: 5 }, 2), "option `per_client`"),
        (said(&few, Partition::Shards { per_client: usize::MAX }, 2), "option `per_client`"),
        (said(&few, Partition::Dirichlet { alpha: 0.0 }, 2), "option `alpha`"),
        (said(&few, Partition::Feature { feature: 2 }, 2), "no feature `2`; there are: 0 to 1"),
        (said(&numbers, Partition::Dirichlet { alpha: 1.0 }, 2), "a Dirichlet partition needs classes"),
        (said(&numbers, Partition::Groups, 2), "no column `group`"),
    ] {
        assert!(said.contains(expected), "`{said}` lacks `{expected}`");
    }
    let read: Partition = serde_json::from_str(r#"{"kind": "dirichlet", "alpha": 0.5}"#).unwrap();
    assert_eq!(read, Partition::Dirichlet { alpha: 0.5 });
}
