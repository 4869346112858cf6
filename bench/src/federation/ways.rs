//! What the benchmark of bytes compares: ways for updates and models to
//! travel, by how much clients do in a round.

pub const CLIENTS: usize = 100;

/// What clients do in a round, and how its bytes may travel.
pub struct Work {
    pub heading: &'static str,
    pub per_round: usize,
    pub rounds: usize,
    pub epochs: usize,
    pub seeds: &'static [u64],
    /// So many of the first ways are dense FedAvg, and the best of them is what
    /// all are compared with.
    pub dense: usize,
    pub ways: &'static [Way],
}

/// A way for updates and models to travel.
pub struct Way {
    pub name: &'static str,
    /// Of the first round.
    pub rate: f64,
    /// Lines of `[federation.cloud]`.
    pub cloud: &'static str,
}

const fn way(name: &'static str, cloud: &'static str) -> Way {
    Way { name, rate: RATES[0], cloud }
}

/// Of clients' SGD: dense FedAvg tries both, the others have the first.
pub const RATES: [f64; 2] = [0.2, 0.4];

const DENSE: Way = way("dense", "");
const DENSE_FASTER: Way = Way { name: "dense, rate 0.4", rate: RATES[1], cloud: "" };

/// What is compared. All ways of one work have the same rounds.
pub const WORKS: &[Work] = &[
    Work {
        heading: "ten clients in each of 100 rounds, one epoch",
        per_round: 10,
        rounds: 100,
        epochs: 1,
        seeds: &[1],
        // At the same rate: what is lost is the codec's doing.
        dense: 1,
        ways: &[
            DENSE,
            DENSE_FASTER,
            way("fp16, zstd", "up = [\"fp16\", \"zstd\"]"),
            way("int8, zstd", "up = [\"int8\", \"zstd\"]"),
            way("int4, zstd", "up = [\"int4\", \"zstd\"]"),
            way("QSGD, 4 bits, zstd, no memory", "up = [\"qsgd:4\", \"zstd\"]\nmemory = { kind = \"none\" }"),
            way("QSGD, 2 bits, zstd, no memory", "up = [\"qsgd:2\", \"zstd\"]\nmemory = { kind = \"none\" }"),
            way("sign", "up = [\"sign\"]"),
            way("random mask 5%, int8", "up = [\"random:0.05\", \"int8\"]"),
            way("PowerSGD rank 4, int8", "up = [\"powersgd:4\", \"int8\"]"),
            way("top-k 1%, int8", "up = [\"topk:0.01\", \"int8\"]"),
            way("top-k 1%, int8, EF21", "up = [\"topk:0.01\", \"int8\"]\nmemory = { kind = \"ef21\" }"),
            way(
                "top-k 1%, int8, DGC (momentum 0.5, warm-up of 10 rounds)",
                "up = [\"topk:0.01\", \"int8\"]\nmemory = { kind = \"dgc\", momentum = 0.5, warmup = 10 }",
            ),
            way("dense, DiLoCo (1, 0.5)", "strategy = { kind = \"diloco\", rate = 1.0, momentum = 0.5 }"),
            way(
                "PowerSGD rank 4, int8; down: top-k 2%, int4",
                "up = [\"powersgd:4\", \"int8\"]\ndown = [\"topk:0.02\", \"int4\"]",
            ),
        ],
    },
    Work {
        heading: "all clients in each of 60 rounds, one epoch",
        per_round: CLIENTS,
        rounds: 60,
        epochs: 1,
        seeds: &[1],
        dense: 2,
        ways: &[
            DENSE,
            DENSE_FASTER,
            way("dense, DiLoCo (1, 0.9)", "strategy = { kind = \"diloco\", rate = 1.0, momentum = 0.9 }"),
            way(
                "top-k 0.4%, sign, DiLoCo (1, 0.9)",
                "up = [\"topk:0.004\", \"sign\"]\nstrategy = { kind = \"diloco\", rate = 1.0, momentum = 0.9 }",
            ),
            way(
                "top-k 0.3%, sign, DiLoCo (2, 0.8)",
                "up = [\"topk:0.003\", \"sign\"]\nstrategy = { kind = \"diloco\", rate = 2.0, momentum = 0.8 }",
            ),
            way(
                "PowerSGD rank 1, int4, DiLoCo (1, 0.7)",
                "up = [\"powersgd:1\", \"int4\"]\nstrategy = { kind = \"diloco\", rate = 1.0, momentum = 0.7 }",
            ),
            way(
                "PowerSGD rank 1, int4; down: PowerSGD rank 4, int8",
                "up = [\"powersgd:1\", \"int4\"]\ndown = [\"powersgd:4\", \"int8\"]",
            ),
        ],
    },
];
