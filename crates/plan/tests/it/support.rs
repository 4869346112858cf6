//! Requests for tests.

use tierline_plan::random::SplitMix;
use tierline_plan::request::{CodecOption, Crossing, Exit, LinkPrice, Tier};
use tierline_plan::{Limits, LinkCondition, Objective, PlanRequest};

/// What a random request has beyond times and sizes.
#[derive(Debug, Clone, Copy)]
pub struct Has {
    pub missing: bool,
    pub memory: bool,
    pub privacy: bool,
    pub exits: bool,
    pub deadline: bool,
    pub loss: bool,
}

/// A request with everything that a site can ask for, small enough to try
/// every placement with every codec.
pub fn request(seed: u64, tiers: usize, segments: usize, objective: Objective, has: Has) -> PlanRequest {
    let mut r = SplitMix(seed);
    let tier = |k: usize, r: &mut SplitMix| Tier {
        name: format!("tier{k}"),
        segment_ns: (0..segments)
            .map(|_| (!(has.missing && r.chance(0.1))).then(|| r.below(40_000_000) >> k))
            .collect(),
        memory_max: if has.memory && r.chance(0.6) { 1 + r.below(segments as u64 * 60) } else { 0 },
        wait_ns: r.below(5_000_000),
        watts: r.unit() * 10.0,
        price_per_hour: r.unit() * 3_600.0,
    };
    let tiers_list: Vec<Tier> = (0..tiers).map(|k| tier(k, &mut r)).collect();
    let option = |codec: usize, bytes: u64, r: &mut SplitMix| CodecOption {
        codec: ["raw", "fp16", "int8"][codec].into(),
        bytes: bytes >> codec,
        encode_ns: (0..tiers).map(|_| r.below(3_000_000) * codec as u64).collect(),
        decode_ns: (0..tiers).map(|_| r.below(3_000_000) * codec as u64).collect(),
        loss: [0.0, 1e-4, 1e-3][codec] * (1.0 + r.unit()),
    };
    let mut crossings = Vec::new();
    for place in 0..segments {
        let tensors = 1 + r.below(2);
        crossings.push(
            (0..tensors)
                .map(|t| {
                    let (bytes, codecs) = (1 + r.below(400_000), 1 + r.below(3) as usize);
                    Crossing {
                        tensor: format!("t{place}_{t}"),
                        options: (0..codecs).map(|c| option(c, bytes, &mut r)).collect(),
                    }
                })
                .collect(),
        );
    }
    let price = |r: &mut SplitMix| LinkPrice { joules_per_byte: r.unit() * 1e-6, price_per_gb: r.unit() * 1e3 };
    let link_prices = (1..tiers).map(|_| price(&mut r)).collect();
    let direct_price = price(&mut r);
    let exits: Vec<Exit> = (0..segments)
        .filter(|_| has.exits && r.chance(0.3))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|segment| Exit {
            number: segment + 1,
            segment,
            go_on: r.unit(),
            head_ns: (0..tiers).map(|_| r.below(2_000_000)).collect(),
        })
        .collect();
    let private_tier = if has.privacy { r.below(tiers as u64) as usize } else { 0 };
    let limits = Limits {
        private_segments: if has.privacy && r.chance(0.5) { r.below(segments as u64 + 1) as usize } else { 0 },
        private_tensors: if has.privacy && r.chance(0.5) {
            vec![format!("t{}_0", r.below(segments as u64))]
        } else {
            Vec::new()
        },
        deadline_ns: has.deadline.then(|| 5_000_000 + r.below(200_000_000)),
        max_loss: if has.loss { r.unit() * 3e-3 } else { 1.0 },
    };
    PlanRequest {
        tiers: tiers_list,
        link_prices,
        direct_price,
        crossings,
        segment_memory: (0..segments).map(|_| r.below(100)).collect(),
        output_bytes: r.below(20_000),
        objective,
        limits,
        private_tier,
        exits,
    }
}

/// Links of 0.1 to 1,000 Mbit/s.
pub fn links(seed: u64, count: usize) -> Vec<LinkCondition> {
    let mut r = SplitMix(seed ^ 0x5EED);
    let mut speed = || 12_500.0 * 10f64.powf(r.unit() * 4.0);
    (0..count)
        .map(|k| LinkCondition {
            up_bytes_per_s: speed(),
            down_bytes_per_s: speed(),
            rtt_ns: 1_000_000 * (k as u64 + 1),
        })
        .collect()
}

/// A request whose numbers can be followed by hand: three tiers, each ten
/// times faster than the one below, tensors that halve.
pub fn by_hand() -> PlanRequest {
    let tier = |name: &str, ns: u64| Tier {
        name: name.into(),
        segment_ns: vec![Some(ns); 4],
        memory_max: 0,
        wait_ns: 0,
        watts: 2.0,
        price_per_hour: 1_800.0,
    };
    let crossing = |tensor: &str, bytes: u64| {
        let option = |codec: &str, bytes: u64, ns: u64, loss: f64| CodecOption {
            codec: codec.into(),
            bytes,
            encode_ns: vec![ns; 3],
            decode_ns: vec![ns; 3],
            loss,
        };
        vec![Crossing {
            tensor: tensor.into(),
            options: vec![option("raw", bytes, 0, 0.0), option("int8", bytes / 4, 1_000_000, 5e-4)],
        }]
    };
    PlanRequest {
        tiers: vec![tier("camera", 100_000_000), tier("gateway", 10_000_000), tier("server", 1_000_000)],
        link_prices: vec![LinkPrice { joules_per_byte: 1e-6, price_per_gb: 1.0 }; 2],
        direct_price: LinkPrice::default(),
        crossings: vec![
            crossing("image", 800_000),
            crossing("stem", 400_000),
            crossing("body", 200_000),
            crossing("neck", 100_000),
        ],
        segment_memory: vec![10; 4],
        output_bytes: 1_000,
        objective: Objective::Latency,
        limits: Limits::default(),
        private_tier: 0,
        exits: Vec::new(),
    }
}
