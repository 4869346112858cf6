//! Every limit of the wire, by name, with its reason. Both sides check: the
//! sender so that the error names its cause, the receiver before it
//! allocates.

/// Payload of one chunk as we send it: small enough that a heartbeat waits
/// under 25 ms behind it on 100 Mbit/s, large enough to keep overhead low.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Largest chunk payload accepted.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Largest gRPC message accepted or sent, on every service: one chunk and
/// the fields around it, or a header at its own limits.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Encoded bytes of all tensors of one request or reply.
pub const RUN_BYTES_MAX: u64 = 512 << 20;

/// Tensors of one frame (a request's or a reply's).
pub const TENSORS_MAX: usize = 256;

/// Length of a tensor's name, bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 512;

/// Length of a node's name, bytes: a DNS label, because certificates carry it.
pub const NODE_NAME_BYTES_MAX: usize = 63;

/// Length of a model's name, bytes of UTF-8: a catalogue of them is one message.
pub const MODEL_NAME_BYTES_MAX: usize = 128;

/// Length of an alias of a model's versions, bytes.
pub const ALIAS_BYTES_MAX: usize = 32;

/// Versions of models that are in use beside those which plain names mean: a
/// catalogue of [`MODELS_MAX`] with them is one message.
pub const VERSIONS_IN_USE_MAX: usize = 2_048;

/// Deltas between models in use.
pub const DELTAS_MAX: usize = 1_024;

/// Aliases of versions of all models.
pub const ALIASES_MAX: usize = 4_096;

/// Versions of one model that are kept, in use or not.
pub const VERSIONS_MAX: usize = 1_000;

/// What nodes shall run, in one message; more come in further ones.
pub const ROLLOUT_WANTS_MAX: usize = 256;

/// How nodes run models, in one message; more come in further ones.
pub const ROLLOUT_REPORTS_MAX: usize = 64;

/// Models that are rolled out at once.
pub const ROLLOUTS_MAX: usize = 256;

/// What a node shall run, or how it does, bytes of JSON.
pub const ROLLOUT_BYTES_MAX: usize = 24 << 10;

/// What is said of a version of a model (its card), bytes of JSON.
pub const CARD_BYTES_MAX: usize = 64 << 10;

/// Length of an address (`https://host:port`), bytes.
pub const URL_BYTES_MAX: usize = 300;

/// Length of a word that both sides know (a node's state, a feature, a program's version), bytes.
pub const WORD_BYTES_MAX: usize = 64;

/// Length of a codec's name, bytes.
pub const CODEC_NAME_BYTES_MAX: usize = 32;

/// Early exits of a model.
pub const EXITS_MAX: usize = 16;

/// Boundaries in a route: one fewer than the tiers of the longest path.
pub const BOUNDARIES_MAX: usize = 8;

/// Relays a request may pass before it is taken for a loop.
pub const HOPS_MAX: u32 = 8;

/// Stage timings in a reply: the tiers of the longest path, twice (planned
/// and recovered).
pub const STAGES_MAX: usize = 2 * (BOUNDARIES_MAX + 1);

/// Length of a message for people inside a failure, bytes.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// Longest deadline a request may carry.
pub const DEADLINE_MS_MAX: u64 = 10 * 60 * 1_000;

/// A second copy of a request that wants one goes after the time within which
/// this share of recent answers came, unless it says otherwise.
pub const HEDGE_DEFAULT: f64 = 0.95;

/// Runs in flight on one connection; HTTP/2 would allow more, memory not.
pub const RUNS_PER_CONNECTION_MAX: u32 = 64;

/// Names in a catalogue, and models in an offer.
pub const MODELS_MAX: usize = 4_096;

/// Services in a catalogue: names made of several models.
pub const SERVICES_MAX: usize = 512;

/// Tiers in the path that a parent tells of: those of the longest route.
pub const PATH_TIERS_MAX: usize = BOUNDARIES_MAX;

/// Sessions that one message asks to be loaded.
pub const HINTS_MAX: usize = 16;

/// Entries of a revocation list carried in one message.
pub const REVOCATIONS_MAX: usize = 16_384;

/// Nodes that were given another name and haven't renewed their certificates
/// yet; more would crowd a session's first messages.
pub const RENAMES_MAX: usize = 256;

/// Applications of a site that have an identity.
pub const APPLICATIONS_MAX: usize = 1_024;

/// The list of them, encoded: it stands among a session's first messages, on
/// the thinnest link.
pub const APPLICATIONS_BYTES_MAX: usize = 256 << 10;

/// Tokens of one application: the one in use, and those that are on their way
/// in or out.
pub const APPLICATION_TOKENS_MAX: usize = 4;

/// Names, or patterns of them, of models that one application may use.
pub const APPLICATION_MODELS_MAX: usize = 32;

/// Requests per second that an application may be given, and as many at once.
pub const RATE_PER_S_MAX: f64 = 1e6;

/// Children of one node: beyond them their heartbeats would be more than
/// seconds apart, and joining again behind a fault would take minutes.
pub const CHILDREN_MAX: usize = 16_384;

/// Nodes below one child that its parent lists; the rest is counted.
pub const SUBTREE_NODES_MAX: usize = 4_096;

/// Nodes in one part of a report of them: about 100 KiB, so that a heartbeat doesn't wait long behind it.
pub const SUBTREE_PART_MAX: usize = 512;

/// Nodes below all children of one node that it lists; the rest is counted.
pub const NODES_BELOW_MAX: usize = 65_536;

/// Bytes a child sends back in one reverse reply.
pub const REVERSE_BYTES_MAX: usize = 1 << 20;

/// One artefact (a model with its external data).
pub const ARTEFACT_BYTES_MAX: u64 = 16 << 30;

/// One update of a federation, as it travels.
pub const UPDATE_BYTES_MAX: u64 = 4 << 30;

/// One manifest or profile of a model, or manifest of a job: JSON that is read whole into memory.
pub const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// Models of one job; together as long as an artefact at most.
pub const JOB_MODELS_MAX: usize = 64;

/// Files of one added model: the model and its external data.
pub const MODEL_FILES_MAX: usize = 1_024;

/// Padding of one bandwidth probe, each way.
pub const PROBE_BYTES_MAX: u64 = 4 << 20;

/// Length of a join token, bytes.
pub const TOKEN_BYTES_MAX: usize = 1_024;

/// Length of a certificate signing request, bytes.
pub const CSR_BYTES_MAX: usize = 16 << 10;

/// Certificates of a chain, the leaf and those that signed it.
pub const CHAIN_MAX: usize = 4;

/// Length of one certificate or signature, bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 10;

/// Edges that an edge exchanges models with, of those below the same node: they
/// are named in one message.
pub const NEIGHBOURS_MAX: usize = 1_024;

/// Differences that lead to the model of a task.
pub const LEADING_MAX: usize = 64;

/// HTTP/2 window of a stream. Larger windows raise throughput on long fat
/// links and make small calls wait behind large ones on thin links.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// HTTP/2 window of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
