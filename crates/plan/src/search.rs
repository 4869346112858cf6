//! Every placement of a chain of segments, quickly: what [`crate::evaluate`]
//! defines, with prefix sums, and codecs that another beats in every respect
//! left out beforehand.
//!
//! Start at [`Prepared::search`].

use crate::evaluate::{Path, Route};
use crate::request::{CodecOption, Crossing, LinkCondition, Objective, PlanRequest};

/// Ways to encode one place kept per hop at most. Only frontiers of more than
/// four tensors have more; then plans carry a gap.
const COMBINATIONS_MAX: usize = 256;

/// A choice of codec for every tensor at one place, on one hop.
#[derive(Debug, Clone, PartialEq)]
struct Combination {
    encode_ns: f64,
    decode_ns: f64,
    bytes: u64,
    loss: f64,
    options: Vec<usize>,
}

/// A request's numbers, ready to be summed.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    n: usize,
    /// Per tier: compute time of the segments before each, weighed by reach.
    compute: Vec<Vec<f64>>,
    /// Per tier: segments before each that can't run.
    missing: Vec<Vec<u32>>,
    memory: Vec<u64>,
    reach: Vec<f64>,
    /// First place that may be sent above the private tier.
    private_until: usize,
    /// Per boundary of the line and last for the direct link, per place.
    combinations: Vec<Vec<Vec<Combination>>>,
    /// Where combinations were left out: hop, place, and one that none can beat.
    dreams: Vec<(usize, usize, Combination)>,
}

/// What the best codecs make of one placement.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    latency_ns: f64,
    joules: f64,
    money: f64,
    bottleneck_ns: f64,
}

/// A placement found, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub value: f64,
    pub bounds: Vec<usize>,
    pub codecs: Vec<Vec<usize>>,
    pub route: Route,
}

/// The best placements.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    pub best: Option<Found>,
    /// The best with other boundaries or another route.
    pub second: Option<Found>,
    /// The best that a limit refuses; infinite value when none was possible.
    pub refused: Option<Found>,
}

impl Findings {
    fn admit(&mut self, found: Found) {
        if self.best.as_ref().is_none_or(|b| found.value < b.value) {
            self.second = self.best.replace(found);
        } else if self.second.as_ref().is_none_or(|s| found.value < s.value) {
            self.second = Some(found);
        }
    }

    fn refuse(&mut self, found: Found) {
        if self.refused.as_ref().is_none_or(|r| found.value < r.value) {
            self.refused = Some(found);
        }
    }

    /// The better of two routes' findings; on a tie, of the first.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        [other.best, other.second].into_iter().flatten().for_each(|found| self.admit(found));
        other.refused.into_iter().for_each(|found| self.refuse(found));
        self
    }
}

/// One hop under one link: what each kept combination costs.
struct Hop<'a> {
    /// Per place.
    places: Vec<Vec<(&'a Combination, Sums)>>,
    /// Per place: the least that any of them adds to the objective.
    least: Vec<f64>,
    up: bool,
}

impl Prepared {
    /// Bytes that it takes in memory, about.
    pub(crate) fn byte_len(&self) -> usize {
        let combination = |c: &Combination| size_of::<Combination>() + size_of_val(c.options.as_slice());
        let combinations: usize = self.combinations.iter().flatten().flatten().map(combination).sum();
        let places: usize = self.combinations.iter().map(|hop| hop.len() * size_of::<Vec<Combination>>()).sum();
        let tiers = self.compute.len() * (size_of::<f64>() + size_of::<u32>());
        let sums = (self.n + 1) * (tiers + size_of::<u64>() + size_of::<f64>());
        combinations + places + sums + self.dreams.iter().map(|(_, _, c)| combination(c)).sum::<usize>()
    }

    /// `request` has been checked.
    pub(crate) fn new(request: &PlanRequest) -> Self {
        let (n, tiers) = (request.segments(), request.tiers.len());
        let reach: Vec<f64> = (0..=n).map(|segment| request.reach(segment)).collect();
        let compute = |k: usize| {
            let mut sums = vec![0.0; n + 1];
            for segment in 0..n {
                let heads = request.exits.iter().filter(|e| e.segment == segment).map(|e| e.head_ns[k] as f64);
                let own = request.tiers[k].segment_ns[segment].unwrap_or(0) as f64;
                sums[segment + 1] = sums[segment] + (own + heads.sum::<f64>()) * reach[segment];
            }
            sums
        };
        let missing = |k: usize| {
            let mut sums = vec![0; n + 1];
            for segment in 0..n {
                sums[segment + 1] = sums[segment] + u32::from(request.tiers[k].segment_ns[segment].is_none());
            }
            sums
        };
        let mut memory = vec![0u64; n + 1];
        for segment in 0..n {
            memory[segment + 1] = memory[segment].saturating_add(request.segment_memory[segment]);
        }
        let hops = (1..tiers).map(|k| (k - 1, k)).chain([(0, tiers - 1)]);
        let mut dreams = Vec::new();
        let mut tables = Vec::new();
        for (hop, (from, to)) in hops.enumerate() {
            let mut table = Vec::with_capacity(n);
            for (place, crossings) in request.crossings.iter().enumerate() {
                let (all, dream) = combinations(crossings, from, to);
                dreams.extend(dream.map(|dream| (hop, place, dream)));
                table.push(all);
            }
            tables.push(table);
        }
        Self {
            n,
            compute: (0..tiers).map(compute).collect(),
            missing: (0..tiers).map(missing).collect(),
            memory,
            reach,
            private_until: request.private_until().0,
            combinations: tables,
            dreams,
        }
    }

    /// The same with codecs that no real ones can beat, where some were left
    /// out: what it finds is a lower bound.
    pub(crate) fn relaxed(&self) -> Option<Self> {
        let mut relaxed = self.clone();
        for (hop, place, dream) in &self.dreams {
            relaxed.combinations[*hop][*place] = vec![dream.clone()];
        }
        (!self.dreams.is_empty()).then_some(relaxed)
    }

    /// Every placement on `route`: the best two, and the best that a limit refuses.
    pub(crate) fn search(
        &self,
        request: &PlanRequest,
        route: Route,
        line: &[LinkCondition],
        direct: Option<&LinkCondition>,
    ) -> Findings {
        let path = request.path(route, line, direct);
        let everywhere: Vec<usize> = (0..self.n).collect();
        let hops = self.hops(request, &path, route, &everywhere);
        let mut findings = Findings::default();
        for_each_placement(path.tiers.len(), self.n, |bounds| {
            self.try_one(request, &path, &hops, route, bounds, &mut findings)
        });
        findings
    }

    /// One placement with its best codecs.
    pub(crate) fn one(
        &self,
        request: &PlanRequest,
        route: Route,
        bounds: &[usize],
        line: &[LinkCondition],
        direct: Option<&LinkCondition>,
    ) -> Findings {
        let path = request.path(route, line, direct);
        let places: Vec<usize> = bounds.iter().copied().filter(|b| *b < self.n).collect();
        let hops = self.hops(request, &path, route, &places);
        let mut findings = Findings::default();
        self.try_one(request, &path, &hops, route, &bounds[..path.tiers.len() - 1], &mut findings);
        findings
    }

    /// The best of some placements on the line, and its value.
    pub(crate) fn choose(
        &self,
        request: &PlanRequest,
        placements: &[Vec<usize>],
        line: &[LinkCondition],
    ) -> Option<(usize, f64)> {
        let path = request.path(Route::Line, line, None);
        let mut places: Vec<usize> = placements.iter().flatten().copied().filter(|b| *b < self.n).collect();
        places.sort_unstable();
        places.dedup();
        let hops = self.hops(request, &path, Route::Line, &places);
        let value = |(i, bounds): (usize, &Vec<usize>)| {
            let mut findings = Findings::default();
            self.try_one(request, &path, &hops, Route::Line, bounds, &mut findings);
            Some((i, findings.best?.value))
        };
        placements.iter().enumerate().filter_map(value).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What each hop costs at `places`.
    fn hops(&self, request: &PlanRequest, path: &Path, route: Route, places: &[usize]) -> Vec<Hop<'_>> {
        let tables = match route {
            Route::Line => &self.combinations[..path.links.len()],
            Route::Direct => &self.combinations[self.combinations.len() - 1..],
        };
        tables
            .iter()
            .enumerate()
            .map(|(h, table)| {
                let Some(link) = path.links[h] else {
                    return Hop { places: Vec::new(), least: Vec::new(), up: false };
                };
                let (from, to) = (&request.tiers[path.tiers[h]], &request.tiers[path.tiers[h + 1]]);
                let price = path.prices[h];
                let cost = |combination: &Combination, place: usize| {
                    let share = self.reach[place];
                    let (encode, decode) = (combination.encode_ns * share, combination.decode_ns * share);
                    let (up, down) =
                        (link.up_ns(combination.bytes) * share, link.down_ns(request.output_bytes) * share);
                    let moved = (combination.bytes + request.output_bytes) as f64 * share;
                    Sums {
                        latency_ns: encode + decode + up + down + link.rtt_ns as f64 * share,
                        joules: (encode * from.watts + decode * to.watts) / 1e9 + moved * price.joules_per_byte,
                        money: (encode * from.price_per_hour + decode * to.price_per_hour) / 3.6e12
                            + moved / 1e9 * price.price_per_gb,
                        bottleneck_ns: up.max(down),
                    }
                };
                let mut out: Vec<Vec<(&Combination, Sums)>> = vec![Vec::new(); self.n];
                let mut least = vec![0.0; self.n];
                for &place in places {
                    let all = table[place].iter().map(|c| (c, cost(c, place))).collect();
                    out[place] = undominated(request, all);
                    let values = out[place].iter().map(|(_, sums)| sums.value(request.objective));
                    least[place] = values.fold(f64::INFINITY, f64::min);
                }
                Hop { places: out, least, up: true }
            })
            .collect()
    }

    /// Tries all codecs of one placement. `bounds` has one entry per hop.
    fn try_one(
        &self,
        request: &PlanRequest,
        path: &Path,
        hops: &[Hop],
        route: Route,
        bounds: &[usize],
        findings: &mut Findings,
    ) {
        let n = self.n;
        // Compute of every stage, and how many links are crossed.
        let mut sums = Sums::default();
        let mut busy = [0.0f64; TIERS_MAX];
        let (mut first, mut crossed) = (0, 0);
        let (mut possible, mut within) = (true, true);
        for (hop, &k) in path.tiers.iter().enumerate() {
            let last = bounds.get(hop).copied().unwrap_or(n);
            let tier = &request.tiers[k];
            busy[hop] = self.compute[k][last] - self.compute[k][first];
            possible &= self.missing[k][last] == self.missing[k][first];
            within &= tier.memory_max == 0 || self.memory[last] - self.memory[first] <= tier.memory_max;
            sums.latency_ns += busy[hop] + if last > first { tier.wait_ns as f64 * self.reach[first] } else { 0.0 };
            sums.joules += busy[hop] / 1e9 * tier.watts;
            sums.money += busy[hop] / 3.6e12 * tier.price_per_hour;
            first = last;
            if last == n {
                break;
            }
            possible &= hops[hop].up;
            crossed += 1;
        }
        let seen_by = path.tiers.iter().rev().skip(1).position(|k| *k <= request.private_tier);
        if let Some(from_top) = seen_by.filter(|_| path.tiers[path.tiers.len() - 1] > request.private_tier) {
            within &= bounds[bounds.len() - 1 - from_top] >= self.private_until;
        }
        let found = |value: f64, codecs: Vec<Vec<usize>>| {
            let mut full = vec![bounds.last().copied().unwrap_or(n); request.tiers.len() - 1];
            full[..bounds.len()].copy_from_slice(bounds);
            Found { value, bounds: full, codecs, route }
        };
        if !possible {
            return findings.refuse(found(f64::INFINITY, vec![vec![0; TENSORS_MAX]; crossed]));
        }
        // What can't be the second best needs no look at its codecs.
        if request.objective != Objective::Throughput
            && let Some(second) = &findings.second
        {
            let links: f64 = (0..crossed).map(|h| hops[h].least[bounds[h]]).sum();
            if sums.value(request.objective) + links >= second.value {
                return;
            }
        }
        // An odometer over the combinations of all hops.
        let mut wheel = [0usize; TIERS_MAX];
        let (mut best, mut free) = (None::<(f64, [usize; TIERS_MAX])>, (f64::INFINITY, [0usize; TIERS_MAX]));
        loop {
            let mut total = sums;
            let (mut loss, mut at_place, mut place) = (0.0, 0.0f64, usize::MAX);
            let mut decode = 0.0;
            for hop in 0..crossed {
                let (combination, cost) = &hops[hop].places[bounds[hop]][wheel[hop]];
                let share = self.reach[bounds[hop]];
                total.latency_ns += cost.latency_ns;
                total.joules += cost.joules;
                total.money += cost.money;
                let stage = busy[hop] + decode + combination.encode_ns * share;
                total.bottleneck_ns = total.bottleneck_ns.max(cost.bottleneck_ns).max(stage);
                decode = combination.decode_ns * share;
                if bounds[hop] != place {
                    loss += at_place;
                    (place, at_place) = (bounds[hop], 0.0);
                }
                at_place = at_place.max(combination.loss);
            }
            total.bottleneck_ns = total.bottleneck_ns.max(busy[crossed] + decode);
            let value = total.value(request.objective);
            let lossy = loss + at_place > request.limits.max_loss;
            let late = request.limits.deadline_ns.is_some_and(|d| total.latency_ns > d as f64);
            if value < free.0 {
                free = (value, wheel);
            }
            if within && !lossy && !late && best.is_none_or(|(least, _)| value < least) {
                best = Some((value, wheel));
            }
            let Some(turn) = (0..crossed).rfind(|h| wheel[*h] + 1 < hops[*h].places[bounds[*h]].len()) else { break };
            wheel[turn] += 1;
            wheel[turn + 1..crossed].fill(0);
        }
        let codecs = |wheel: [usize; TIERS_MAX]| {
            let options = |h: usize| hops[h].places[bounds[h]][wheel[h]].0.options.clone();
            (0..crossed).map(options).collect::<Vec<_>>()
        };
        // Only what is better than what is known is worth building.
        if best.is_none_or(|(least, _)| free.0 < least) && findings.refused.as_ref().is_none_or(|r| free.0 < r.value) {
            findings.refuse(found(free.0, codecs(free.1)));
        }
        if let Some((value, wheel)) = best
            && findings.second.as_ref().is_none_or(|s| value < s.value)
        {
            findings.admit(found(value, codecs(wheel)));
        }
    }
}

/// Tiers of a request at most.
pub(crate) const TIERS_MAX: usize = 8;

/// Tensors of one frontier at most.
pub(crate) const TENSORS_MAX: usize = 64;

impl Sums {
    fn value(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Latency => self.latency_ns / 1e9,
            Objective::Energy => self.joules,
            Objective::Money => self.money,
            Objective::Throughput => self.bottleneck_ns / 1e9,
            Objective::Weighted { latency, energy, money } => {
                latency * self.latency_ns / 1e9 + energy * self.joules + money * self.money
            }
        }
    }
}

/// Leaves out what another combination beats in value, in loss and, with a
/// deadline, in time. Throughput depends on stages too, so all stay.
fn undominated<'a>(request: &PlanRequest, all: Vec<(&'a Combination, Sums)>) -> Vec<(&'a Combination, Sums)> {
    if request.objective == Objective::Throughput {
        return all;
    }
    let deadline = request.limits.deadline_ns.is_some();
    let key =
        |(c, s): &(&Combination, Sums)| [s.value(request.objective), c.loss, if deadline { s.latency_ns } else { 0.0 }];
    thin(all, key)
}

/// Keeps of equals the first, and drops what another is at least as good as
/// in all of `key`.
fn thin<T: Clone, const N: usize>(all: Vec<T>, key: impl Fn(&T) -> [f64; N]) -> Vec<T> {
    let keys: Vec<[f64; N]> = all.iter().map(key).collect();
    let beaten = |i: usize| {
        (0..keys.len()).any(|j| j != i && (0..N).all(|d| keys[j][d] <= keys[i][d]) && (j < i || keys[j] != keys[i]))
    };
    (0..all.len()).filter(|i| !beaten(*i)).map(|i| all[i].clone()).collect()
}

/// Ways to encode what crosses at one place from tier `from` to tier `to`. When
/// some had to be left out also one that none can beat, and that may not exist.
fn combinations(crossings: &[Crossing], from: usize, to: usize) -> (Vec<Combination>, Option<Combination>) {
    let mut thinned = false;
    let nothing = Combination { encode_ns: 0.0, decode_ns: 0.0, bytes: 0, loss: 0.0, options: Vec::new() };
    let mut all = vec![nothing];
    for crossing in crossings {
        let with = |sum: &Combination, (i, option): (usize, &CodecOption)| {
            let mut options = sum.options.clone();
            options.push(i);
            Combination {
                encode_ns: sum.encode_ns + option.encode_ns[from] as f64,
                decode_ns: sum.decode_ns + option.decode_ns[to] as f64,
                bytes: sum.bytes + option.bytes,
                loss: sum.loss + option.loss,
                options,
            }
        };
        all = all.iter().flat_map(|sum| crossing.options.iter().enumerate().map(move |o| with(sum, o))).collect();
        all = thin(all, |c| [c.encode_ns, c.decode_ns, c.bytes as f64, c.loss]);
        thinned |= all.len() > COMBINATIONS_MAX;
        shorten(&mut all);
    }
    let dream = thinned.then(|| Combination {
        encode_ns: crossings.iter().map(|c| least_of(c, |o| o.encode_ns[from] as f64)).sum(),
        decode_ns: crossings.iter().map(|c| least_of(c, |o| o.decode_ns[to] as f64)).sum(),
        bytes: crossings.iter().map(|c| c.options.iter().map(|o| o.bytes).min().unwrap_or(0)).sum(),
        loss: crossings.iter().map(|c| least_of(c, |o| o.loss)).sum(),
        options: vec![0; crossings.len()],
    });
    (all, dream)
}

fn least_of(crossing: &Crossing, of: impl Fn(&CodecOption) -> f64) -> f64 {
    crossing.options.iter().map(of).fold(f64::INFINITY, f64::min)
}

/// Keeps those with the least bytes, and the best in every other respect.
fn shorten(all: &mut Vec<Combination>) {
    if all.len() <= COMBINATIONS_MAX {
        return;
    }
    all.sort_by_key(|c| c.bytes);
    let respects: [fn(&Combination) -> f64; 3] = [|c| c.loss, |c| c.encode_ns, |c| c.decode_ns];
    let best = respects.map(|of| all.iter().min_by(|a, b| of(a).total_cmp(&of(b))).cloned());
    all.truncate(COMBINATIONS_MAX - best.len());
    for combination in best.into_iter().flatten() {
        if !all.contains(&combination) {
            all.push(combination);
        }
    }
}

/// Calls `f` with every non-decreasing choice of boundaries, from all on the
/// lowest tier to all on the highest, so that ties stay low.
pub(crate) fn for_each_placement(tiers: usize, segments: usize, mut f: impl FnMut(&[usize])) {
    let mut bounds = vec![segments; tiers - 1];
    loop {
        f(&bounds);
        let Some(first) = bounds.iter().position(|b| *b > 0) else { return };
        let next = bounds[first] - 1;
        bounds[..=first].fill(next);
    }
}
