//! A data set shared out to clients, for federated experiments.
//!
//! Every example goes to exactly one client. Start at [`partition`].

use super::dataset::Dataset;
use super::error::DataError;
use super::random::{generator, log_gamma_draw};

/// How examples are shared out.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Partition {
    /// At random, in equal numbers.
    Iid,
    /// Equal numbers, but each client with its own mix of classes, drawn from
    /// Dirichlet(`alpha` times the share of each class): the smaller alpha,
    /// the fewer classes a client sees (Hsu, Qi and Brown, "Measuring the
    /// effects of non-identical data distribution", 2019).
    Dirichlet {
        /// Above 0; 100 is nearly iid, 0.1 nearly one class each.
        alpha: f64,
    },
    /// Sorted by class, cut into equal shards, of which each client gets some
    /// (McMahan et al., "Communication-efficient learning of deep networks
    /// from decentralized data", 2017).
    Shards {
        /// Shards of a client.
        per_client: usize,
    },
    /// Each group (user, device) whole to one client, the largest first to
    /// whoever has least.
    Groups,
    /// As groups, of the examples that have one value of a feature.
    Feature {
        /// Place in the flattened example.
        feature: usize,
    },
}

impl std::str::FromStr for Partition {
    type Err = DataError;

    /// Reads `iid`, `dirichlet:ALPHA`, `shards:N`, `groups` or `feature:N`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let wrong = || {
            let reason = format!("`{text}`; say iid, dirichlet:ALPHA, shards:N, groups or feature:N");
            DataError::Option { option: "partition", reason }
        };
        let (kind, number) = text.split_once(':').unwrap_or((text, ""));
        let whole = || number.parse().map_err(|_| wrong());
        match (kind, number.is_empty()) {
            ("iid", true) => Ok(Self::Iid),
            ("groups", true) => Ok(Self::Groups),
            ("dirichlet", false) => Ok(Self::Dirichlet { alpha: number.parse().map_err(|_| wrong())? }),
            ("shards", false) => Ok(Self::Shards { per_client: whole()? }),
            ("feature", false) => Ok(Self::Feature { feature: whole()? }),
            _ => Err(wrong()),
        }
    }
}

/// The examples of each client, in increasing order.
///
/// # Errors
/// When a client would get nothing, an option makes no sense, or the data set
/// lacks the classes or groups that the partition goes by.
pub fn partition(
    dataset: &Dataset,
    partition: &Partition,
    clients: usize,
    seed: u64,
) -> Result<Vec<Vec<usize>>, DataError> {
    let examples = dataset.len();
    enough(clients, examples, "examples")?;
    let classes = |what| {
        let name = dataset.name().to_owned();
        dataset.classes().ok_or(DataError::NoClasses { name, what })
    };
    let mut rng = generator(&[seed]);
    let mut shares = match partition {
        Partition::Iid => {
            let mut order: Vec<usize> = (0..examples).collect();
            rng.shuffle(&mut order);
            (0..clients).map(|client| order[cut(examples, clients, client)].to_vec()).collect()
        }
        Partition::Dirichlet { alpha } => {
            if !(*alpha > 0.0 && alpha.is_finite()) {
                let reason = format!("{alpha}; give a finite number above 0");
                return Err(DataError::Option { option: "alpha", reason });
            }
            dirichlet(&classes("a Dirichlet partition")?, *alpha, clients, &mut rng)
        }
        Partition::Shards { per_client } => {
            let shards = clients.saturating_mul(*per_client);
            if *per_client == 0 || shards > examples {
                let reason =
                    format!("{per_client} shards for {clients} clients, of {examples} examples; give 1 or more");
                return Err(DataError::Option { option: "per_client", reason });
            }
            let classes = classes("a partition into shards")?;
            let mut order: Vec<usize> = (0..examples).collect();
            order.sort_by_key(|&example| classes[example]);
            let mut dealt: Vec<usize> = (0..shards).collect();
            rng.shuffle(&mut dealt);
            let shard = |&shard: &usize| order[cut(examples, shards, shard)].to_vec();
            dealt.chunks(*per_client).map(|shards| shards.iter().flat_map(shard).collect()).collect()
        }
        Partition::Groups => {
            let (groups, _) = dataset.groups().ok_or_else(|| DataError::Missing {
                path: dataset.name().into(),
                what: "column",
                name: "group".to_owned(),
                available: "none; state `group` where the data set is read".to_owned(),
            })?;
            whole_groups(groups, clients, &mut rng)?
        }
        Partition::Feature { feature } => {
            let values = dataset.feature(*feature)?;
            let mut distinct = values.clone();
            distinct.sort_by(f64::total_cmp);
            distinct.dedup();
            let group = |value: &f64| distinct.partition_point(|v| v < value);
            whole_groups(values.iter().map(group).collect(), clients, &mut rng)?
        }
    };
    shares.iter_mut().for_each(|share: &mut Vec<usize>| share.sort_unstable());
    Ok(shares)
}

fn enough(clients: usize, available: usize, unit: &'static str) -> Result<(), DataError> {
    if clients == 0 {
        return Err(DataError::Option { option: "clients", reason: "0; there is at least one".to_owned() });
    }
    if clients > available {
        return Err(DataError::Clients { clients, available, unit });
    }
    Ok(())
}

/// The part `index` of `length` cut into `parts` of equal length, but for one.
fn cut(length: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    // In u128: lengths times parts may exceed 64 bits.
    let at = |i: usize| (length as u128 * i as u128 / parts as u128) as usize;
    at(index)..at(index + 1)
}

fn dirichlet(classes: &[usize], alpha: f64, clients: usize, rng: &mut fastrand::Rng) -> Vec<Vec<usize>> {
    let count = classes.iter().max().map_or(0, |&class| class + 1);
    let mut left: Vec<Vec<usize>> = vec![Vec::new(); count];
    classes.iter().enumerate().for_each(|(example, &class)| left[class].push(example));
    let prior: Vec<f64> = left.iter().map(|l| l.len() as f64 / classes.len() as f64).collect();
    left.iter_mut().for_each(|l| rng.shuffle(l));
    let mixes: Vec<Vec<f64>> = (0..clients).map(|_| mix(&prior, alpha, rng)).collect();
    let mut shares = vec![Vec::new(); clients];
    // One example each in turn: client after client, the last ones would get
    // what the others left, and not their own mix.
    for turn in 0..classes.len() {
        let client = turn % clients;
        // A class that has run out falls away, and the rest of the mix grows.
        let weights = |mix: &[f64]| -> Vec<f64> {
            mix.iter().zip(&left).map(|(weight, l)| if l.is_empty() { 0.0 } else { *weight }).collect()
        };
        let mut of_client = weights(&mixes[client]);
        if of_client.iter().sum::<f64>() <= 0.0 {
            of_client = left.iter().map(|l| l.len() as f64).collect();
        }
        let class = draw(&of_client, rng);
        shares[client].extend(left[class].pop());
    }
    shares
}

/// A draw from Dirichlet(`alpha * prior`), up to a factor; the largest is 1.
fn mix(prior: &[f64], alpha: f64, rng: &mut fastrand::Rng) -> Vec<f64> {
    let logs: Vec<f64> = prior
        .iter()
        .map(|share| if *share > 0.0 { log_gamma_draw(rng, alpha * share) } else { f64::NEG_INFINITY })
        .collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logs.into_iter().map(|log| (log - largest).exp()).collect()
}

/// An index, with the odds of its weight; one that is above 0.
fn draw(weights: &[f64], rng: &mut fastrand::Rng) -> usize {
    let mut at = rng.f64() * weights.iter().sum::<f64>();
    let mut last = 0;
    for (index, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = index;
        if at < weight {
            break;
        }
        at -= weight;
    }
    last
}

fn whole_groups(of_each: Vec<usize>, clients: usize, rng: &mut fastrand::Rng) -> Result<Vec<Vec<usize>>, DataError> {
    let count = of_each.iter().max().map_or(0, |&group| group + 1);
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); count];
    of_each.into_iter().enumerate().for_each(|(example, group)| groups[group].push(example));
    // A part of a data set may have none of a group.
    groups.retain(|group| !group.is_empty());
    enough(clients, groups.len(), "groups")?;
    rng.shuffle(&mut groups);
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let mut shares = vec![Vec::new(); clients];
    for group in groups {
        let least = (0..clients).min_by_key(|&client| shares[client].len()).unwrap_or(0);
        shares[least].extend(group);
    }
    Ok(shares)
}
