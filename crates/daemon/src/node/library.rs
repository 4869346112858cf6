//! What this node keeps, and what it lets go: artefacts stay for as long as a
//! name or a job needs them.
//!
//! What loses its name goes at once ([`Node::let_go`]). What nothing ever named
//! (a crash came between, a fetch was broken off) goes when it has been left
//! alone for a while ([`Node::sweep`]). Requests under way hold their program
//! in memory and need no file.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure};
use tierline_store::State;

use super::Node;
use super::catalogue::Entry;
use super::federation;
use crate::documents;
use crate::models::Manifest;

/// How often what nobody needs is looked for.
const LOOK: Duration = Duration::from_secs(600);

/// An artefact that nothing names is let alone for so long: whoever stored it
/// may be about to name it.
const NAMELESS_MAX: Duration = Duration::from_secs(15 * 60);

/// A transfer that was broken off may go on for so long.
const UNFINISHED_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Bytes of broken-off transfers in all; the oldest go first.
const UNFINISHED_BYTES_MAX: u64 = 32 << 30;

impl Manifest {
    /// The artefacts that it names.
    fn artefacts(&self) -> impl Iterator<Item = Digest> + '_ {
        std::iter::once(&self.digest).chain(self.sample.values()).filter_map(|digest| digest.parse().ok())
    }
}

impl Node {
    /// Keeps room on the disk and takes away what nobody needs, until the node ends.
    pub async fn keep_house(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.sweep(NAMELESS_MAX).await;
        }
    }

    /// Before anything is fetched or stored: what an earlier start left half
    /// done and nothing names.
    pub async fn clear_up(&self) {
        self.artefacts.clear_staged().await;
        self.sweep(Duration::ZERO).await;
    }

    /// Every artefact that a name or a job needs.
    ///
    /// # Errors
    /// When the state, or a manifest that is here, can't be read: then nobody
    /// knows, and nothing may go.
    async fn needed(&self) -> Result<HashSet<Digest>, Failure> {
        let named = self.state.with(State::named).await?;
        let mut needed = named.of_jobs;
        needed.extend(named.manifests.iter().chain(&named.jobs));
        let (mut models, mut known) = (HashSet::new(), HashSet::new());
        for entry in self.catalogue.list() {
            known.insert(entry.manifest_digest);
            needed.insert(entry.manifest_digest);
            needed.extend(entry.manifest.artefacts());
            models.insert(entry.model);
        }
        for digest in named.manifests {
            if !known.insert(digest) {
                continue;
            }
            // One that isn't in the catalogue is damaged or not here; its digest is all there is to go by.
            let Ok(json) = self.artefacts.get(digest).await else { continue };
            match documents::read::<Manifest>(&json) {
                Ok(manifest) => {
                    needed.extend(manifest.artefacts());
                    models.extend(manifest.digest.parse::<Digest>().ok());
                }
                Err(failure) if failure.code() == Code::Corrupt => {}
                Err(failure) => return Err(failure),
            }
        }
        for job in named.jobs {
            // A job that was heard of and not fetched yet needs nothing yet.
            if self.artefact_length(job).await?.is_some() {
                needed.extend(federation::named_by(&self.artefacts.get(job).await?)?);
            }
        }
        needed.extend(named.profiles.iter().filter(|(model, _)| models.contains(model)).map(|(_, profile)| *profile));
        Ok(needed)
    }

    /// Removes what an entry that lost its name leaves behind, but for what
    /// another name or a job needs. Trouble is told of and tried again later.
    pub(super) async fn let_go(self: &Arc<Self>, entry: &Entry) {
        let gone = async {
            let mut candidates = vec![entry.manifest_digest, entry.model];
            candidates.extend(entry.manifest.artefacts());
            if self.catalogue.by_model(entry.model).is_none() {
                let model = entry.model;
                let forget = move |state: &State| {
                    let profile = state.profile(model)?;
                    state.remove_profile(model)?;
                    Ok(profile)
                };
                candidates.extend(self.state.with(forget).await?);
            }
            self.remove_unneeded(candidates).await
        };
        if let Err(failure) = gone.await {
            let text = format!("what {} left behind can't be removed yet: {failure}", entry.manifest.name);
            self.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
        }
    }

    /// Removes those artefacts that nothing needs.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn remove_unneeded(&self, candidates: Vec<Digest>) -> Result<(), Failure> {
        if candidates.is_empty() {
            return Ok(());
        }
        let needed = self.needed().await?;
        for digest in candidates.into_iter().filter(|digest| !needed.contains(digest)) {
            self.artefacts.remove(digest).await?;
        }
        Ok(())
    }

    /// Removes what nothing names: artefacts that nobody has touched for a
    /// while, and transfers that nobody has gone on with for so long.
    async fn sweep(&self, unfinished_for: Duration) {
        // A disk that has none is told of by whoever needs it.
        let _ = self.state.with(|state| Ok(state.keep_reserve())).await;
        let found = self.artefacts.list().await;
        let needed = match self.needed().await {
            Ok(needed) => needed,
            Err(failure) => {
                tracing::warn!(%failure, "nobody knows what may go, so all of it stays");
                return;
            }
        };
        let nameless = found.whole.iter().filter(|kept| kept.age >= NAMELESS_MAX && !needed.contains(&kept.digest));
        let mut bytes = 0u64;
        for kept in nameless {
            match self.artefacts.remove(kept.digest).await {
                Ok(()) => bytes += kept.bytes,
                Err(failure) => tracing::warn!(%failure, "an artefact that nobody needs stays"),
            }
        }
        let mut unfinished = found.partial;
        unfinished.sort_by_key(|kept| kept.age);
        let mut room = UNFINISHED_BYTES_MAX;
        for kept in unfinished {
            let wanted = needed.contains(&kept.digest) && kept.age < UNFINISHED_MAX && kept.bytes <= room;
            if wanted {
                room = room.saturating_sub(kept.bytes);
            } else if kept.age >= unfinished_for {
                self.artefacts.discard(kept.digest);
                bytes += kept.bytes;
            }
        }
        if bytes > 0 {
            let text = format!("removed {} that nothing needs", crate::words::bytes(bytes));
            self.events.record("model", text, &serde_json::json!({ "bytes": bytes }));
        }
    }
}
