//! Nodes beside a newer version, and beside somebody who means harm: a child,
//! an edge and a parent that say anything that the protocol's messages can
//! hold, from a seed. The node lives, its memory stays small, and the next good
//! request is answered.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    Catalogue, ChildMessage, Code, Empty, Envelope, Failure, Goodbye, Heartbeat, HeartbeatAck, JobAssignment,
    JobStatus, LinkEstimate, LoadReport, ModelEntry, ModelOffer, NodeInfo, Offers, ParentMessage, ReverseReply,
    ReverseRequest, Revocations, Revoked, RunChunk, ServiceEntry, Subtree, TaskFailure, UpstreamPath, UpstreamTier,
    WarmHint, WarmHints, WorkOrder, child_message, job_status, parent_message, reverse_reply, reverse_request,
    run_chunk,
};
use tierline_proto::{Digest, envelope};

use crate::federation::Federation;
use crate::ghost::Ghost;
use crate::harness::{Model, Node, Site, same_outputs, until, until_planned};
use crate::middle::{Middle, SESSION, Way};

/// Memory of a node that serves the small model, at most.
const RSS_MAX: u64 = 600 << 20;

/// What a child says, opened.
fn child_said(message: &Bytes) -> Option<child_message::Body> {
    let body = ChildMessage::decode(message.clone()).ok()?.body?;
    match envelope::of_child(body.clone()) {
        Some(envelope) => envelope::to_parent(envelope, false)?.body,
        None => Some(body),
    }
}

/// What a parent says, opened.
fn parent_said(message: &Bytes) -> Option<parent_message::Body> {
    let body = ParentMessage::decode(message.clone()).ok()?.body?;
    match envelope::of_parent(body.clone()) {
        Some(envelope) => envelope::to_child(envelope, false)?.body,
        None => Some(body),
    }
}

/// As a parent says it, in an envelope if it belongs into one.
fn enveloped_parent(body: parent_message::Body) -> ParentMessage {
    let envelope = envelope::of_parent(body.clone()).map(parent_message::Body::Envelope);
    ParentMessage { body: Some(envelope.unwrap_or(body)) }
}

/// As a newer parent says it: with more in it, inside its envelope too.
fn of_newer(body: parent_message::Body) -> Bytes {
    let mut message = enveloped_parent(body);
    if let Some(parent_message::Body::Envelope(envelope)) = &mut message.body {
        envelope.payload = [&envelope.payload[..], &UNKNOWN].concat().into();
    }
    grown(&message.encode_to_vec()).into()
}

/// A field, and a kind of message, that this version doesn't know.
const UNKNOWN: [u8; 6] = [0xfa, 0x3f, 0x03, b'n', b'e', b'w'];

fn rss(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn infer(node: &Node, model: &Model, placement: &str) -> Value {
    let args = ["infer", "--model", "digits", "--input", &model.input, "--placement", placement, "--json"];
    until("an answer", || {
        let ran = node.ask(&args);
        (ran.code == 0).then(|| ran.json())
    })
}

/// A message of one field that holds a message, with more fields in both.
fn grown(message: &[u8]) -> Vec<u8> {
    let mut rest = message;
    let Ok(key) = prost::encoding::decode_varint(&mut rest) else { return message.to_vec() };
    let Ok(length) = prost::encoding::decode_varint(&mut rest) else { return message.to_vec() };
    if key & 7 != 2 || length != rest.len() as u64 {
        return [message, &UNKNOWN].concat();
    }
    let mut out = Vec::new();
    prost::encoding::encode_varint(key, &mut out);
    prost::encoding::encode_varint(length + UNKNOWN.len() as u64, &mut out);
    [&out, rest, &UNKNOWN, &UNKNOWN].concat()
}

/// A document with more to say.
fn fuller(json: &[u8], schema: u64) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(json).unwrap();
    value["schema"] = schema.into();
    value["mood"] = serde_json::json!({ "good": true });
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn a_node_takes_part_in_a_site_whose_cloud_has_more_to_say() {
    let site = Site::new();
    let model = site.add_model();
    let ran = site.cloud.ask(&["model", "add", model.file.to_str().unwrap(), "--name", "later"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let data = site.join("end", "end-1", &site.cloud.url);
    // What the middle says instead of the parent's documents, by digest.
    let said: Arc<Mutex<Vec<(Bytes, Bytes)>>> = Arc::default();
    let heard: Arc<Mutex<Vec<JobStatus>>> = Arc::default();
    let (replaced, unable) = (Arc::clone(&said), Arc::clone(&heard));
    let rule = move |way: Way, path: &str, message: Bytes| {
        if way == Way::Up {
            if path == SESSION
                && let Some(child_message::Body::Status(status)) = child_said(&message)
            {
                unable.lock().unwrap().push(status);
            }
            return vec![message];
        }
        if path != SESSION {
            return vec![grown(&message).into()];
        }
        let Some(mut parsed) = parent_said(&message) else { return vec![message] };
        let other = |digest: &Bytes| {
            let list = replaced.lock().unwrap();
            list.iter().find(|(old, _)| old == digest).map_or_else(|| digest.clone(), |(_, new)| new.clone())
        };
        match &mut parsed {
            parent_message::Body::Catalogue(catalogue) => {
                catalogue.models.iter_mut().for_each(|entry| entry.manifest = other(&entry.manifest));
            }
            parent_message::Body::Path(path) => {
                let offers = path.tiers.iter_mut().flat_map(|tier| &mut tier.models);
                offers.for_each(|offer| offer.profile = other(&offer.profile));
            }
            _ => {}
        }
        // A kind of message, and a kind of work, of which nobody here has heard.
        let strange =
            JobAssignment { job: Bytes::from_static(&[7; 32]), want: None, node: String::new(), classes: None };
        let strange = parent_message::Body::Assignment(strange);
        // A duty of which nobody here has heard, either.
        let other = Envelope { duty: "tides".to_owned(), payload: Bytes::from_static(&UNKNOWN) };
        let other = ParentMessage { body: Some(parent_message::Body::Envelope(other)) };
        vec![Bytes::from_static(&UNKNOWN), of_newer(parsed), of_newer(strange), other.encode_to_vec().into()]
    };
    let middle = Middle::between(&site.cloud, &site.cloud.url, &data, Box::new(rule));
    // Documents that this version understands though they say more, and one
    // that says it can't be.
    until("the cloud has measured both", || {
        let models = site.cloud.ask(&["model", "ls", "--json"]).json();
        models["models"].as_array()?.iter().all(|model| model["profiled"] == true).then_some(())
    });
    for (name, schema) in [("digits", 1), ("later", 99)] {
        let shown = site.cloud.ask(&["model", "show", name, "--json"]).json();
        assert_eq!(shown["name"], name, "{shown}");
        let old = document(&site, |value| value["name"] == name);
        let new = middle.offer(fuller(&middle.artefact(old), schema));
        said.lock().unwrap().push((old.to_bytes(), new.to_bytes()));
    }
    let profile = document(&site, |value| value["segments"].is_array());
    let new = middle.offer(fuller(&middle.artefact(profile), 1));
    said.lock().unwrap().push((profile.to_bytes(), new.to_bytes()));

    let end = Node::start(&data, &["--parent", &middle.url]);
    until_planned(&end);
    same_outputs(&infer(&end, &model, "here"), &infer(&end, &model, "cloud"));
    until("it says what it doesn't know", || {
        let heard = heard.lock().unwrap();
        let unable = heard.iter().find_map(|status| match &status.status {
            Some(job_status::Status::Unable(failure)) => Some(failure.to_string()),
            _ => None,
        })?;
        unable.contains("not known here").then_some(())
    });
    let log = end.log();
    assert!(log.contains("model later could not be taken over"), "{log}");
    assert!(log.contains("has schema 99, this version knows 1; update this node"), "{log}");
    let known = end.ask(&["model", "ls", "--json"]).json();
    assert_eq!(known["models"].as_array().unwrap().len(), 1, "{known}");
}

/// The digest of an artefact of the cloud's that is a document of this kind.
fn document(site: &Site, is: impl Fn(&Value) -> bool) -> Digest {
    let mut folders = vec![site.cloud.data.join("artefacts/whole")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            if serde_json::from_slice(&bytes).is_ok_and(|value| is(&value)) {
                return Digest(*blake3::hash(&bytes).as_bytes());
            }
        }
    }
    panic!("there is no such document")
}

#[test]
fn absurd_links_and_profiles_of_a_parent_leave_an_end_at_work() {
    let site = Site::new();
    let model = site.add_model();
    let data = site.join("end", "end-1", &site.cloud.url);
    until("the cloud has measured it", || {
        let models = site.cloud.ask(&["model", "ls", "--json"]).json();
        (models["models"][0]["profiled"] == true).then_some(())
    });
    let turn = Arc::new(Mutex::new(0usize));
    let (rates, absurd) = ([5e-324, f64::INFINITY, f64::NAN, -1.0, 1e300], Arc::new(Mutex::new(Bytes::new())));
    let (turns, profile) = (Arc::clone(&turn), Arc::clone(&absurd));
    let rule = move |way: Way, path: &str, message: Bytes| {
        if way == Way::Up || path != SESSION {
            return vec![message];
        }
        let Some(parent_message::Body::Path(path)) = parent_said(&message) else { return vec![message] };
        let mut out = vec![message];
        let mut turn = turns.lock().unwrap();
        for rate in rates {
            *turn += 1;
            let mut path = path.clone();
            let link = LinkEstimate { up_bytes_per_s: rate, down_bytes_per_s: rate, ..LinkEstimate::default() };
            let mut above = path.tiers[0].clone();
            path.tiers[0].link_above = Some(link);
            above.node_id = "0123456789abcdef0123456789abcdef".to_owned();
            "above".clone_into(&mut above.node_name);
            above.load = Some(LoadReport { wait_ns: u64::MAX, utilisation: f64::NAN, ..LoadReport::default() });
            if rate == 5e-324 {
                above.load = None;
                above.models.iter_mut().for_each(|offer| offer.profile = profile.lock().unwrap().clone());
            }
            path.tiers.push(above);
            out.push(ParentMessage { body: Some(parent_message::Body::Path(path)) }.encode_to_vec().into());
        }
        out
    };
    let middle = Middle::between(&site.cloud, &site.cloud.url, &data, Box::new(rule));
    let mut value: Value =
        serde_json::from_slice(&middle.artefact(document(&site, |value| value["segments"].is_array()))).unwrap();
    value["segments"].as_array_mut().unwrap().iter_mut().for_each(|segment| {
        segment["time_ns"] = u64::MAX.into();
        segment["memory_bytes"] = u64::MAX.into();
    });
    *absurd.lock().unwrap() = middle.offer(serde_json::to_vec(&value).unwrap()).to_bytes();
    let mut end = Node::start(&data, &["--parent", &middle.url]);
    // Again at every connection.
    for _ in 0..2 {
        until("it was told", || (*turn.lock().unwrap() >= rates.len()).then_some(()));
        let log = until("it says so", || Some(end.log()).filter(|log| log.contains("said something that can't be")));
        assert!(!log.contains("panicked"), "{log}");
        same_outputs(&infer(&end, &model, "here"), &infer(&end, &model, "cloud"));
        until("plans go on", || (end.ask(&["plan", "digits"]).code == 0).then_some(()));
        *turn.lock().unwrap() = 0;
        end.restart();
    }
}

#[test]
fn a_parent_neither_ends_a_node_nor_fills_it() {
    let site = Site::new();
    let model = site.add_model();
    let data = site.join("end", "end-1", &site.cloud.url);
    let (floods, refused): (Arc<Mutex<u64>>, Arc<Mutex<bool>>) = Default::default();
    let (left, heard) = (Arc::clone(&floods), Arc::clone(&refused));
    let rule = move |way: Way, path: &str, message: Bytes| {
        if path != SESSION {
            return vec![message];
        }
        if way == Way::Up {
            if let Some(child_message::Body::Reply(ReverseReply { body: Some(body), .. })) = child_said(&message) {
                let forbidden = |failure: &Failure| failure.code() == Code::Forbidden;
                *heard.lock().unwrap() |= matches!(&body, reverse_reply::Body::Failure(f) if forbidden(f));
            }
            return vec![message];
        }
        let mut left = left.lock().unwrap();
        if *left == 0 {
            return vec![message];
        }
        *left -= 1;
        let of = |body| Bytes::from(enveloped_parent(body).encode_to_vec());
        let drain = tierline_proto::v1::DrainRequest { grace_ms: 0, reason: String::new() };
        let drain = ReverseRequest { call: 1, timeout_ms: 0, body: Some(reverse_request::Body::Drain(drain)) };
        let mut out = vec![message, of(parent_message::Body::Request(drain))];
        // About 100 KB each: jobs and models of which nobody has heard.
        let digest = |n: u64| Bytes::from(blake3::hash(&n.to_le_bytes()).as_bytes().to_vec());
        let url = format!("https://127.0.0.1:1/{}", "x".repeat(200));
        let neighbour = tierline_proto::v1::Neighbour { name: "edge-1".to_owned(), url };
        for n in 0..400 {
            let job = digest(*left * 1_000 + n);
            let order = WorkOrder { task: 1, neighbours: vec![neighbour.clone(); 400], ..WorkOrder::default() };
            let assignment = JobAssignment { job, want: Some(Want::Work(order)), ..JobAssignment::default() };
            out.push(of(parent_message::Body::Assignment(assignment)));
        }
        for n in 0..100 {
            let entry = |i: u64| ModelEntry {
                name: format!("model-{i}"),
                manifest: digest(n * 1_000 + i),
                model: digest(i),
                bytes: 1,
                version: i % 3,
            };
            let models = (0..1_000).map(entry).collect();
            let versions = (0..500).map(entry).collect();
            let catalogue = Catalogue { sequence: n, models, versions, full: true, ..Catalogue::default() };
            out.push(of(parent_message::Body::Catalogue(catalogue)));
        }
        out
    };
    let middle = Middle::between(&site.cloud, &site.cloud.url, &data, Box::new(rule));
    let mut end = Node::start(&data, &["--parent", &middle.url]);
    until_planned(&end);
    let before = rss(&end);
    *floods.lock().unwrap() = 5;
    until("all of it was said", || (*floods.lock().unwrap() == 0 && *refused.lock().unwrap()).then_some(()));
    same_outputs(&infer(&end, &model, "here"), &infer(&end, &model, "cloud"));
    let grown = rss(&end).saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes");
    end.restart();
    same_outputs(&infer(&end, &model, "here"), &infer(&end, &model, "cloud"));
}

#[test]
fn what_a_child_tells_of_others_stays_within_bounds() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 1 }\n");
    let edge = federation.site.edge("edge");
    let below = Ghost::below(&federation, "edge", "below", &edge.url);
    let rogue = Ghost::named(&federation, "edge", "rogue");
    // Reports near the limit of a message, one after the other.
    let offer = ModelOffer { model: Bytes::from(vec![7; 32]), ..ModelOffer::default() };
    let nodes = |from: u32, offers: usize| {
        let node = |i: u32| NodeInfo {
            node_id: format!("{i:032x}"),
            node_name: format!("end-{i}"),
            role: tierline_proto::Role::End.into(),
            state: "connected".to_owned(),
            models: vec![offer.clone(); offers],
            ..NodeInfo::default()
        };
        (from..from + 1_400).map(node).collect::<Vec<_>>()
    };
    for i in 0..8 {
        let subtree = Subtree { nodes: nodes(i * 1_400, 30), more: i < 7, ..Subtree::default() };
        assert!((1 << 20..2 << 20).contains(&subtree.encoded_len()));
        below.say(child_message::Body::Subtree(subtree));
    }
    // Names of a megabyte, each another one.
    let job = Bytes::from_static(&[7; 32]);
    let before = rss(&federation.site.cloud);
    for i in 0..100 {
        rogue.reported(&job, &format!("{i}{}", "x".repeat(1 << 20)), job_status::Status::Examples(1));
    }
    until("the cloud has heard them", || {
        federation
            .site
            .cloud
            .log()
            .contains("rogue said something that can't be, and it is passed by (64 so far)")
            .then_some(())
    });
    let grown = rss(&federation.site.cloud).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes of names are kept");
    // The edge lists what it can, counts the rest, and is still there.
    let listed = until("the edge lists them", || {
        let listed = edge.ask(&["nodes", "--json"]).json();
        (listed["nodes"].as_array()?.len() > 4_000).then_some(listed)
    });
    assert_eq!(listed["nodes"].as_array().unwrap().len(), 2 + 4_096, "itself, its child, and those below");
    assert_eq!(listed["left_out"], 8 * 1_400 - 4_096);
    assert!(!edge.log().contains("lost cloud"), "{}", edge.log());
    let of_cloud = federation.site.cloud.ask(&["nodes", "--json"]).json();
    let mut names: Vec<&str> =
        of_cloud["nodes"].as_array().unwrap().iter().filter_map(|n| n["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["below", "cloud", "edge", "rogue"], "the cloud lists whom it has let in");
}

/// Anything that a message can hold.
struct Anything {
    rng: fastrand::Rng,
    /// What is really there, so that some of it means something.
    digests: Vec<Bytes>,
}

impl Anything {
    fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), digests: vec![Bytes::from_static(&[7; 32])] }
    }

    fn number(&mut self) -> f64 {
        let odd = [0.0, -0.0, 5e-324, -1.0, 1.0, 1e6, 1e300, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        odd[self.rng.usize(..odd.len())]
    }

    fn count(&mut self) -> u64 {
        [0, 1, 2, 1_000, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 1, u64::MAX][self.rng.usize(..8)]
    }

    fn bytes(&mut self) -> Bytes {
        match self.rng.u8(..6) {
            0 => Bytes::new(),
            1 => Bytes::from(vec![1; self.rng.usize(..200)]),
            2 => Bytes::from((0..32).map(|_| self.rng.u8(..)).collect::<Vec<u8>>()),
            _ => self.digests[self.rng.usize(..self.digests.len())].clone(),
        }
    }

    fn text(&mut self) -> String {
        match self.rng.u8(..8) {
            0 => String::new(),
            1 => "\u{1b}[2J\u{9b}31m\u{202e}".to_owned(),
            2 => "x".repeat(self.rng.usize(..100_000)),
            3 => "../../etc/passwd\0".to_owned(),
            4 => "0123456789abcdef0123456789abcdef".to_owned(),
            5 => format!("{:032x}", self.rng.u128(..)),
            6 => "end-1".to_owned(),
            _ => format!("end-{}", self.rng.u16(..)),
        }
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let long = self.rng.u8(..30) == 0;
        let count = if long { self.rng.usize(..2_000) } else { self.rng.usize(..6) };
        (0..count).map(|_| one(self)).collect()
    }

    fn maybe<T>(&mut self, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.rng.u8(..4) == 0 { None } else { Some(one(self)) }
    }

    fn link(&mut self) -> LinkEstimate {
        LinkEstimate {
            up_bytes_per_s: self.number(),
            down_bytes_per_s: self.number(),
            rtt_ns: self.count(),
            confidence: self.number(),
            age_ms: self.count(),
        }
    }

    fn load(&mut self) -> LoadReport {
        LoadReport {
            queued: self.count() as u32,
            running: self.count() as u32,
            utilisation: self.number(),
            wait_ns: self.count(),
            memory_free_bytes: self.count(),
            memory_max_bytes: self.count(),
        }
    }

    fn offer(&mut self) -> ModelOffer {
        ModelOffer { model: self.bytes(), profile: self.bytes(), state: self.count() as i32 }
    }

    /// None that the node would obey: to be sent away is a parent's right.
    fn failure(&mut self) -> Failure {
        let code = [0, Code::Internal as i32, Code::Overloaded as i32, 99, i32::MAX, -1][self.rng.usize(..6)];
        Failure { code, message: self.text(), help: self.text(), node: self.text() }
    }

    fn node(&mut self) -> NodeInfo {
        NodeInfo {
            node_id: self.text(),
            node_name: self.text(),
            role: self.count() as i32,
            parent_id: self.text(),
            state: self.text(),
            last_seen_ms: self.count(),
            link: self.maybe(Self::link),
            load: self.maybe(Self::load),
            models: self.list(Self::offer),
            version: self.text(),
            model_count: self.count() as u32,
            parent_name: self.text(),
            catalogue: self.count(),
        }
    }

    fn status(&mut self) -> JobStatus {
        use job_status::Status;
        let status = match self.rng.u8(..6) {
            0 => None,
            1 => Some(Status::Preparing(Empty {})),
            2 => Some(Status::Examples(self.count())),
            3 => Some(Status::Unable(self.failure())),
            4 => Some(Status::Away(Empty {})),
            _ => {
                let (task, reason, examples) = (self.count(), self.maybe(Self::failure), self.count());
                Some(Status::Failed(TaskFailure { task, reason, examples }))
            }
        };
        let classes = vec![self.text(), self.text()];
        JobStatus { job: self.bytes(), status, node: self.text(), holds: self.count(), url: self.text(), classes }
    }

    fn child(&mut self) -> ChildMessage {
        use child_message::Body;
        let body = match self.rng.u8(..9) {
            0 => None,
            1 => {
                let (session, sequence, sent_ns) = (self.count(), self.count(), self.count());
                Some(Body::Heartbeat(Heartbeat { session, sequence, sent_ns, link: self.maybe(Self::link) }))
            }
            2 => Some(Body::Load(self.load())),
            3 => Some(Body::Offers(Offers {
                sequence: self.count(),
                models: self.list(Self::offer),
                catalogue: self.count(),
            })),
            4 => {
                let (nodes, left_out) = (self.list(Self::node), self.count());
                Some(Body::Subtree(Subtree { nodes, more: self.rng.bool(), news: self.rng.bool(), left_out }))
            }
            5 => {
                let hint = |any: &mut Self| WarmHint {
                    model: any.bytes(),
                    from_cut: any.maybe(|any| any.count() as u32),
                    to_cut: any.maybe(|any| any.count() as u32),
                    tiers_above: any.count() as u32,
                };
                Some(Body::Hints(WarmHints { hints: self.list(hint) }))
            }
            6 => Some(Body::Status(self.status())),
            7 => {
                let data = Some(reverse_reply::Body::Data(Bytes::from(vec![0; self.rng.usize(..1_500_000)])));
                Some(Body::Reply(ReverseReply { call: self.count(), body: data }))
            }
            _ => Some(Body::Goodbye(Goodbye { reason: self.maybe(Self::failure), return_after_ms: 0 })),
        };
        // What isn't about the lease, in an envelope half of the time.
        let envelope = body.clone().filter(|_| self.rng.bool()).and_then(envelope::of_child);
        ChildMessage { body: envelope.map(|envelope| Body::Envelope(self.crumpled(envelope))).or(body) }
    }

    /// An envelope as it was, of another duty, or with a payload that is none.
    fn crumpled(&mut self, envelope: Envelope) -> Envelope {
        match self.rng.u8(..4) {
            0 => Envelope { duty: self.text(), ..envelope },
            1 => {
                let duties = [envelope::SITE, envelope::CATALOGUE, envelope::PLANNING, envelope::FEDERATION];
                Envelope { duty: duties[self.rng.usize(..duties.len())].to_owned(), ..envelope }
            }
            2 => Envelope { payload: self.broken(&envelope.payload), ..envelope },
            _ => envelope,
        }
    }

    fn tier(&mut self) -> UpstreamTier {
        UpstreamTier {
            node_id: self.text(),
            node_name: self.text(),
            role: self.count() as i32,
            models: self.list(Self::offer),
            link_above: self.maybe(Self::link),
            load: self.maybe(Self::load),
            reachable: self.rng.bool(),
        }
    }

    fn parent(&mut self) -> ParentMessage {
        use parent_message::Body;
        let body = match self.rng.u8(..8) {
            0 => None,
            1 => {
                let (sequence, sent_ns, held_ns) = (self.count(), self.count(), self.count());
                let (lease_ms, heartbeat_ms, copied) = (self.count() as u32, self.count() as u32, self.rng.bool());
                Some(Body::Ack(HeartbeatAck { sequence, sent_ns, lease_ms, held_ns, copied, heartbeat_ms }))
            }
            2 => {
                let entry = |any: &mut Self| ModelEntry {
                    name: any.text(),
                    manifest: any.bytes(),
                    model: any.bytes(),
                    bytes: any.count(),
                    version: any.count(),
                };
                let service = |any: &mut Self| ServiceEntry { name: any.text(), document: any.bytes() };
                let (models, removed, services) = (self.list(entry), self.list(Self::text), self.list(service));
                let (sequence, full, versions) = (self.count(), self.rng.bool(), self.list(entry));
                Some(Body::Catalogue(Catalogue {
                    sequence,
                    full,
                    models,
                    removed,
                    services,
                    versions,
                    aliases: Vec::new(),
                    deltas: Vec::new(),
                }))
            }
            3 | 4 => Some(Body::Path(UpstreamPath { sequence: self.count(), tiers: self.list(Self::tier) })),
            5 => {
                // Whom it shuts out, a parent may say; not those of this test.
                let revoked = |any: &mut Self| Revoked {
                    serial: any.bytes(),
                    node_id: format!("{:032x}", any.rng.u128(..)),
                    since_s: any.count(),
                };
                Some(Body::Revocations(Revocations { sequence: self.rng.u64(..9), revoked: self.list(revoked) }))
            }
            6 => {
                let body = self.maybe(|any| match any.rng.bool() {
                    true => reverse_request::Body::Status(Empty {}),
                    false => reverse_request::Body::Fetch(tierline_proto::v1::FetchRequest {
                        digest: any.bytes(),
                        offset: any.count(),
                        length: any.count(),
                    }),
                });
                Some(Body::Request(ReverseRequest { call: self.count(), timeout_ms: 0, body }))
            }
            _ => {
                let want = match self.rng.u8(..5) {
                    0 => None,
                    1 => Some(Want::Wait(Empty {})),
                    2 => Some(Want::Join(Empty {})),
                    3 => Some(Want::Over(Empty {})),
                    _ => Some(Want::Work(WorkOrder {
                        task: self.count(),
                        round: self.count(),
                        version: self.count(),
                        model: self.bytes(),
                        evaluate: self.rng.bool(),
                        differences: self.list(Self::bytes),
                        neighbours: Vec::new(),
                    })),
                };
                let classes = Some(tierline_proto::v1::ClassNames { names: vec![self.text(), self.text()] });
                Some(Body::Assignment(JobAssignment { job: self.bytes(), want, node: self.text(), classes }))
            }
        };
        let envelope = body.clone().filter(|_| self.rng.bool()).and_then(envelope::of_parent);
        ParentMessage { body: envelope.map(|envelope| Body::Envelope(self.crumpled(envelope))).or(body) }
    }

    /// A message with bytes that were not in it.
    fn broken(&mut self, message: &Bytes) -> Bytes {
        let mut bytes = message.to_vec();
        for _ in 0..self.rng.usize(1..4) {
            match self.rng.u8(..3) {
                0 if !bytes.is_empty() => {
                    let at = self.rng.usize(..bytes.len().min(200));
                    bytes[at] = self.rng.u8(..);
                }
                1 if !bytes.is_empty() => bytes.truncate(self.rng.usize(..bytes.len())),
                _ => bytes.insert(self.rng.usize(..=bytes.len().min(200)), self.rng.u8(..)),
            }
        }
        bytes.into()
    }
}

/// A rule that says anything beside what is said one way on sessions, and
/// breaks what stands before tensors, from a seed.
fn chaos(seed: u64, from: Way, told: Arc<Mutex<u64>>) -> Box<crate::middle::Rule> {
    let any = Mutex::new(Anything::new(seed));
    Box::new(move |way, path, message| {
        if way != from {
            return vec![message];
        }
        let mut any = any.lock().unwrap();
        if path == SESSION {
            *told.lock().unwrap() += 1;
            let mut out = vec![message];
            // In one heartbeat's time.
            for _ in 0..20 {
                let more = match from {
                    Way::Up => any.child().encode_to_vec(),
                    Way::Down => any.parent().encode_to_vec(),
                };
                if more.len() < 2 << 20 {
                    out.push(more.into());
                }
            }
            return out;
        }
        let head = path.ends_with("Infer/Run") && {
            let body = RunChunk::decode(message.clone()).ok().and_then(|chunk| chunk.body);
            matches!(body, Some(run_chunk::Body::Header(_) | run_chunk::Body::Reply(_)))
        };
        if head { vec![any.broken(&message)] } else { vec![message] }
    })
}

/// A node at whose side somebody says anything, and one that is to live.
#[track_caller]
fn lives(role: &str, from: Way, seed: u64) {
    let site = Site::new();
    let model = site.add_model();
    let data = site.join(role, "end-1", &site.cloud.url);
    let told = Arc::default();
    let middle = Middle::between(&site.cloud, &site.cloud.url, &data, chaos(seed, from, Arc::clone(&told)));
    middle.change(false);
    let listen: &[&str] = if role == "edge" { &["--listen", "127.0.0.1:0"] } else { &[] };
    let mut node = Node::start(&data, &[&["--parent", &middle.url], listen].concat());
    until_planned(&node);
    middle.change(true);
    for _ in 0..6 {
        let before = *told.lock().unwrap();
        // Its requests go through the same hands: answered or refused.
        for placement in ["cloud", "plan"] {
            let ran = node.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", placement]);
            assert!(ran.code != -1, "{ran:?}");
        }
        until("more was said", || (*told.lock().unwrap() > before + 2).then_some(()));
    }
    let (target, name) = if from == Way::Up { (&site.cloud, "the cloud") } else { (&node, "the node") };
    let used = rss(target);
    assert!(used < RSS_MAX, "{name} uses {used} bytes");
    let listed = site.cloud.ask(&["nodes"]);
    assert!(listed.code == 0 && !listed.stdout.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{listed:?}");
    // Good again: a new session makes good what was said.
    middle.change(false);
    node.restart();
    until_planned(&node);
    same_outputs(&infer(&node, &model, "here"), &infer(&node, &model, "cloud"));
    for process in [&site.cloud, &node] {
        let log = process.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_cloud_lives_beside_a_child_that_says_anything() {
    lives("end", Way::Up, 1);
}

#[test]
fn a_cloud_lives_beside_an_edge_that_says_anything() {
    lives("edge", Way::Up, 2);
}

#[test]
fn a_node_lives_below_a_parent_that_says_anything() {
    lives("end", Way::Down, 3);
}

#[test]
fn an_edge_lives_below_a_parent_that_says_anything() {
    lives("edge", Way::Down, 4);
}
