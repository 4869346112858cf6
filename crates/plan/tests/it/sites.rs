//! SITE.toml: the example works, mistakes are named.

use std::collections::BTreeMap;

use tierline_graph::profile::{CodecProfile, CutProfile, ModelProfile, SegmentProfile, TensorProfile};
use tierline_plan::site::{Role, Source};
use tierline_plan::{Objective, PlanError, Site, plan_with_direct};

fn example() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/sites/three-tiers.toml");
    std::fs::read_to_string(path).unwrap()
}

fn profile(ms: f64) -> ModelProfile {
    let cut = |name: &str, bytes: u64| CutProfile {
        tensors: vec![TensorProfile {
            name: name.into(),
            bytes,
            codecs: vec![
                CodecProfile { codec: "raw".into(), bytes, encode_ns: 0, decode_ns: 0, loss: 0.0 },
                CodecProfile {
                    codec: "int8".into(),
                    bytes: bytes / 4,
                    encode_ns: (ms * 1e5) as u64,
                    decode_ns: (ms * 5e4) as u64,
                    loss: 1e-3,
                },
            ],
        }],
    };
    let segment =
        SegmentProfile { time_ns: Some((ms * 1e6) as u64), refused: None, memory_bytes: 20_000_000, macs: None };
    ModelProfile {
        model: "b3".into(),
        input_shapes: BTreeMap::new(),
        cuts: vec![cut("a", 200_000), cut("b", 40_000)],
        segments: vec![segment; 3],
        whole_ns: (ms * 3e6) as u64,
        spread: 0.01,
        load_ns: 1,
        output_bytes: 4_000,
        output: Default::default(),
        input: cut("image", 600_000),
        head_ns: Vec::new(),
    }
}

#[test]
fn the_example_makes_a_plan() {
    let site = Site::parse(&example()).unwrap();
    assert_eq!(site.names(), ["camera", "gateway", "server"]);
    assert_eq!(site.tiers.iter().map(|t| t.role).collect::<Vec<_>>(), [Role::End, Role::Edge, Role::Cloud]);
    assert_eq!(site.source("camera"), Ok(Source { profile: "../../try/gateway.toml", factor: 6.0 }));
    assert_eq!(site.source("server"), Ok(Source { profile: "../../try/gateway.toml", factor: 0.25 }));
    let [up, next] = site.conditions()[..] else { panic!("two links") };
    assert_eq!((up.up_bytes_per_s, up.down_bytes_per_s, up.rtt_ns), (2.5e6, 6.25e6, 3_000_000));
    assert_eq!((next.up_bytes_per_s, next.down_bytes_per_s), (5e6, 5e6));
    let (camera, gateway, server) = (profile(60.0), profile(10.0), profile(1.0));
    let request = site.request(&[&camera, &gateway, &server]).unwrap();
    assert_eq!(request.objective, Objective::Latency);
    assert_eq!(request.tiers[0].memory_max, 512_000_000);
    assert_eq!(request.tiers[2].price_per_hour, 0.00012 * 3_600.0);
    assert_eq!((request.private_tier, request.limits.private_segments), (1, 1));
    assert_eq!(request.limits.deadline_ns, Some(400_000_000));
    assert_eq!(request.direct_price.price_per_gb, 2.5);
    assert!((request.link_prices[0].joules_per_byte - 0.8e-6).abs() < 1e-12);
    // Codec times are those of the tier that codes.
    let int8 = &request.crossings[1][0].options[1];
    assert_eq!((int8.encode_ns[0], int8.decode_ns[2]), (6_000_000, 50_000));
    let plan = plan_with_direct(&request, &site.conditions(), site.direct().as_ref()).unwrap();
    assert!(plan.bounds[1] >= 1, "the first segment stays in the building: {:?}", plan.bounds);
    let short = ModelProfile { segments: vec![], ..profile(1.0) };
    assert!(matches!(site.request(&[&camera, &gateway, &short]), Err(PlanError::Mismatch { .. })));
    let other = ModelProfile { model: "b4".into(), ..profile(1.0) };
    assert!(matches!(site.request(&[&camera, &other, &server]), Err(PlanError::Model { .. })));
}

#[test]
fn objectives_in_every_form() {
    let with =
        |objective: &str| Site::parse(&example().replace("objective = \"latency\"", objective)).map(|s| s.objective);
    assert_eq!(with("objective = \"energy\""), Ok(Objective::Energy));
    assert_eq!(with(""), Ok(Objective::Latency));
    let mixed = Objective::Weighted { latency: 1.0, energy: 0.5, money: 0.0 };
    assert_eq!(with("objective = \"1,0.5,0\""), Ok(mixed));
    assert_eq!(with("objective = { latency = 1, energy = 0.5 }"), Ok(mixed));
}

#[test]
fn mistakes_are_named() {
    let swaps = [
        ("memory_mb = 512", "memory_mib = 512"),
        ("private_segments = 1", "private_segmnets = 1"),
        ("[limits]", "[limit]"),
        ("name = \"shop floor\"", "xyzzy = 1"),
        ("objective = \"latency\"", "objective = \"speed\""),
        ("objective = \"latency\"", "objective = { latency = 1, enregy = 2 }"),
        ("objective = \"latency\"", "objective = { latency = 0 }"),
        ("role = \"edge\"", "role = \"fog\""),
        ("role = \"cloud\"", "role = \"end\""),
        ("name = \"gateway\"", "name = \"camera\""),
        ("scale_of = \"gateway\"", "scale_of = \"gatway\""),
        ("scale_of = \"gateway\"", "scale_of = \"camera\""),
        ("factor = 6.0", ""),
        ("factor = 6.0", "factor = 0.0"),
        ("factor = 6.0", "factor = 6.0\nprofile = \"x.toml\""),
        ("watts = 4.0", "watts = -4.0"),
        ("watts = 4.0", "watts = \"four\""),
        ("up_mbit = 20", "up_mbit = 0"),
        ("up_mbit = 20", "up_mbit = nan"),
        ("up_mbit = 20", ""),
        ("rtt_ms = 25", "rtt_ms = -1"),
        ("from = \"gateway\"", "from = \"gate\""),
        ("from = \"gateway\"", "from = \"server\""),
        ("from = \"gateway\"", "from = \"camera\""),
        ("from = \"camera\"\nto = \"gateway\"\nup_mbit = 20", "from = \"gateway\"\nto = \"server\"\nup_mbit = 20"),
        ("private_tier = \"gateway\"", "private_tier = \"gatewya\""),
        ("deadline_ms = 400", "deadline_ms = 0"),
        ("max_loss = 0.002", "max_loss = -1.0"),
        ("[limits]", "[limits"),
    ];
    let mut text = Vec::new();
    for (from, to) in swaps {
        assert!(example().contains(from), "{from}");
        let error = Site::parse(&example().replacen(from, to, 1)).unwrap_err();
        text.push(format!("{}: {error}", to.replace('\n', "; ")));
    }
    text.push(format!("(empty): {}", Site::parse("").unwrap_err()));
    insta::assert_snapshot!(text.join("\n"));
}
