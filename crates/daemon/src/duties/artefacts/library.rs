//! What this node keeps, and what it lets go: artefacts stay for as long as a
//! duty needs them.
//!
//! What loses its name goes at once ([`Artefacts::remove_unneeded`]). What
//! nothing ever named (a crash came between, a fetch was broken off) goes when
//! it has been left alone for a while ([`Artefacts::sweep`]). Requests under way hold their program
//! in memory and need no file.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tierline_proto::Digest;
use tierline_proto::v1::Failure;
use tierline_store::State;

use super::Artefacts;

/// How often what nobody needs is looked for.
const LOOK: Duration = Duration::from_secs(600);

/// An artefact that nothing names is let alone for so long: whoever stored it
/// may be about to name it.
const NAMELESS_MAX: Duration = Duration::from_secs(15 * 60);

/// A transfer that was broken off may go on for so long.
const UNFINISHED_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Bytes of broken-off transfers in all; the oldest go first.
const UNFINISHED_BYTES_MAX: u64 = 32 << 30;

impl Artefacts {
    /// Keeps room on the disk and takes away what nobody needs, until the node ends.
    pub(super) async fn keep_house(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.sweep(NAMELESS_MAX).await;
        }
    }

    /// Before anything is fetched or stored: what an earlier start left half
    /// done and nothing names.
    pub async fn clear_up(&self) {
        self.clear_staged().await;
        self.sweep(Duration::ZERO).await;
    }

    /// Every artefact that a duty needs.
    ///
    /// # Errors
    /// When one can't say: then nobody knows, and nothing may go.
    async fn needed(&self) -> Result<HashSet<Digest>, Failure> {
        let mut needed = HashSet::new();
        for duty in self.cx.duties.all() {
            duty.needs(&mut needed).await?;
        }
        Ok(needed)
    }

    /// Removes those artefacts that nothing needs.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove_unneeded(&self, candidates: Vec<Digest>) -> Result<(), Failure> {
        if candidates.is_empty() {
            return Ok(());
        }
        let needed = self.needed().await?;
        for digest in candidates.into_iter().filter(|digest| !needed.contains(digest)) {
            self.remove(digest).await?;
        }
        Ok(())
    }

    /// Removes what nothing names: artefacts that nobody has touched for a
    /// while, and transfers that nobody has gone on with for so long.
    async fn sweep(&self, unfinished_for: Duration) {
        // A disk that has none is told of by whoever needs it.
        let hold = |state: &State| {
            state.keep_reserve();
            Ok(())
        };
        let _ = self.cx.state.with(hold).await;
        let found = self.list().await;
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
            match self.remove(kept.digest).await {
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
                self.discard(kept.digest);
                bytes += kept.bytes;
            }
        }
        if bytes > 0 {
            let text = format!("removed {} that nothing needs", crate::words::bytes(bytes));
            self.cx.events.record("model", text, &serde_json::json!({ "bytes": bytes }));
        }
    }
}
