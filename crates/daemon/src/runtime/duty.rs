//! What a node does is its duties: one folder each below `duties`, and one line
//! in its registry.
//!
//! A duty states who may call it and what it keeps ([`Registration`]), and is
//! told what concerns it ([`Duty`]): parents and children that come and go,
//! what its like on other nodes say, the node's beginning and end.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tierline_identity::Peer;
use tierline_node::policy::Rule;
use tierline_proto::v1::{Envelope, Failure};
use tierline_proto::{Breach, Digest};
use tonic::service::RoutesBuilder;

use super::Context;
use crate::net::Uplink;
use crate::net::gate::Door;

/// One line of the registry.
pub struct Registration {
    /// Names the duty in envelopes, among the tables, and in logs.
    pub name: &'static str,
    /// Steps of its tables, in SQL; never edited, only added to.
    pub tables: &'static [&'static str],
    /// Its calls, and who may make them.
    pub rules: &'static [Rule],
    /// Makes it; nothing is read, and nobody heard, before [`Duty::open`].
    pub make: fn(&mut Assembly) -> Box<dyn Duty>,
}

/// A duty of a node. What it doesn't say, it doesn't do.
#[tonic::async_trait]
pub trait Duty: Send + Sync {
    /// Reads what was kept, before anybody is heard.
    ///
    /// # Errors
    /// When the node can't start without it.
    async fn open(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Takes up its work: connections are served from now on.
    ///
    /// # Errors
    /// When the node can't go on without it.
    async fn begin(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Answers calls at a door.
    fn serve(&self, door: Door, routes: &mut RoutesBuilder) {
        let _ = (door, routes);
    }

    /// Answers plain HTTP at the applications' address.
    fn http(&self) -> axum::Router {
        axum::Router::new()
    }

    /// Answers gRPC at the applications' address.
    fn grpc(&self, routes: &mut RoutesBuilder) {
        let _ = routes;
    }

    /// A parent's session opened.
    fn parent_up(&self, parent: &Arc<Uplink>) {
        let _ = parent;
    }

    /// A parent's session ended.
    fn parent_down(&self, parent: &Arc<Uplink>) {
        let _ = parent;
    }

    /// The estimate of a parent's link moved; `changed` when by more than noise.
    fn link_moved(&self, parent: &Arc<Uplink>, changed: bool) {
        let _ = (parent, changed);
    }

    /// The same duty of a parent says something.
    ///
    /// # Errors
    /// How it breaks the protocol; it is told of and passed by.
    async fn hear_parent(&self, parent: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        let _ = (parent, payload);
        Ok(())
    }

    /// What a child is told first, before anything else.
    fn greetings(&self) -> Vec<Envelope> {
        Vec::new()
    }

    /// A child's session opened.
    fn child_up(&self, child: &Peer) {
        let _ = child;
    }

    /// The lease of a child of this name ended.
    fn child_down(&self, child: &str) {
        let _ = child;
    }

    /// The same duty of a child says something.
    ///
    /// # Errors
    /// How it breaks the protocol; it is told of and passed by.
    fn hear_child(&self, child: &Peer, payload: Bytes) -> Result<(), Breach> {
        let _ = (child, payload);
        Ok(())
    }

    /// Adds the artefacts that must stay.
    ///
    /// # Errors
    /// When nobody knows: then nothing may go.
    async fn needs(&self, needed: &mut HashSet<Digest>) -> Result<(), Failure> {
        let _ = needed;
        Ok(())
    }

    /// Takes no new work from now on.
    fn drain(&self) {}

    /// Waits until what was taken on before is done.
    async fn drained(&self) {}

    /// Its numbers, in Prometheus' text format.
    fn numbers(&self, out: &mut String) {
        let _ = out;
    }
}

/// Every duty of a node, once they are made; clones share them.
#[derive(Clone, Default)]
pub struct Duties(Arc<OnceLock<Vec<Named>>>);

/// A duty, behind its name.
type Named = (&'static str, Box<dyn Duty>);

impl Duties {
    /// Makes the duties of a registry, in its order.
    pub fn make(&self, registry: &[Registration], assembly: &mut Assembly) {
        // Once for each node.
        let _ = self.0.set(registry.iter().map(|duty| (duty.name, (duty.make)(assembly))).collect());
    }

    /// All of them, in the registry's order.
    pub fn all(&self) -> impl Iterator<Item = &dyn Duty> {
        self.0.get().into_iter().flatten().map(|(_, duty)| duty.as_ref())
    }

    /// Tells each.
    pub fn each(&self, tell: impl FnMut(&dyn Duty)) {
        self.all().for_each(tell);
    }

    /// The duty of a name; none where this version doesn't have it.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&dyn Duty> {
        self.0.get()?.iter().find(|(known, _)| *known == name).map(|(_, duty)| duty.as_ref())
    }
}

/// What duties are made of: their context, and each other.
pub struct Assembly {
    /// What all of them get.
    pub cx: Context,
    parts: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl Assembly {
    /// Nothing is made yet.
    #[must_use]
    pub fn new(cx: Context) -> Self {
        Self { cx, parts: HashMap::new() }
    }

    /// Something that duties made later may ask for.
    pub fn add<T: Any + Send + Sync>(&mut self, part: Arc<T>) -> Arc<T> {
        self.parts.insert(TypeId::of::<T>(), Arc::clone(&part) as _);
        part
    }

    /// What was made before, if it was.
    #[must_use]
    pub fn find<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.parts.get(&TypeId::of::<T>())?).downcast().ok()
    }

    /// What was made before.
    ///
    /// # Panics
    /// When it stands behind in the registry: no node of that build starts.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Arc<T> {
        let name = std::any::type_name::<T>();
        self.find().unwrap_or_else(|| panic!("{name} must stand before the duty that asks for it"))
    }
}
