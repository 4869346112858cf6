//! Deltas between versions: which there are, and models that come by them.

use std::collections::HashSet;

use tierline_proto::Digest;
use tierline_proto::limits::DELTAS_MAX;
use tierline_proto::v1::Failure;
use tierline_store::State;
use tierline_store::models::DeltaRow;

use super::Catalogue;

/// A delta is kept that takes no more than this share of the model.
const DELTA_SPARES: (u64, u64) = (9, 10);

impl Catalogue {
    /// Deltas between models that are in use; others go.
    pub(super) async fn take_up_deltas(&self) -> Result<(), Failure> {
        let deltas = self.cx.state.with(State::deltas).await?;
        let registry = self.registry().await?;
        let mut models = HashSet::new();
        for row in &registry.rows {
            // One that can't be read is no reason to let go of anything.
            let Ok(entry) = self.version_entry(row).await else { return Ok(()) };
            models.insert(entry.model);
        }
        let (kept, gone): (Vec<_>, Vec<_>) =
            deltas.into_iter().partition(|row| models.contains(&row.base) && models.contains(&row.model));
        self.known.set_deltas(kept);
        for row in gone {
            self.cx.state.with(move |state| state.remove_delta(row)).await?;
            self.artefacts.remove_unneeded(vec![row.delta]).await?;
        }
        Ok(())
    }

    /// Makes what leads from one version's model to another's, for nodes that
    /// have the one: unless it is there, or spares nothing.
    ///
    /// # Errors
    /// When one isn't registered here, or the disk refuses.
    pub async fn make_delta(&self, name: &str, from: u64, to: u64) -> Result<(), Failure> {
        let base = self.version_entry(&self.registered(&format!("{name}@{from}")).await?).await?;
        let new = self.version_entry(&self.registered(&format!("{name}@{to}")).await?).await?;
        let known = self.known.deltas();
        if base.model == new.model
            || known.len() >= DELTAS_MAX
            || known.iter().any(|row| row.base == base.model && row.model == new.model)
        {
            return Ok(());
        }
        let (delta, bytes) = self.artefacts.make_delta(base.model, new.model).await?;
        if bytes * DELTA_SPARES.1 > new.manifest.bytes * DELTA_SPARES.0 {
            return self.artefacts.remove_unneeded(vec![delta]).await;
        }
        let row = DeltaRow { base: base.model, model: new.model, delta, bytes };
        let turn = self.artefacts.naming.lock().await;
        self.cx.state.with(move |state| state.keep_delta(row)).await?;
        self.take_up_deltas().await?;
        drop(turn);
        let (of, whole) = (format!("{name}@{to}"), new.manifest.bytes);
        let text = format!("{of} comes as a delta of {bytes} bytes to who has {name}@{from}, instead of {whole}");
        self.cx.events.record("model", text, &serde_json::json!({ "name": name, "bytes": bytes, "whole": whole }));
        self.tell_children();
        Ok(())
    }

    /// Has a model's bytes here: by a delta where one leads to it from a model
    /// that is here, and whole where that fails or there is none.
    ///
    /// # Errors
    /// When it can't be had either way.
    pub async fn ensure_model(&self, model: Digest) -> Result<(), Failure> {
        if self.artefacts.length(model).await?.is_some() {
            return Ok(());
        }
        for row in self.known.deltas().into_iter().filter(|row| row.model == model) {
            if self.artefacts.length(row.base).await?.is_none() {
                continue;
            }
            match self.artefacts.make_by_delta(row.base, model, row.delta).await {
                Ok(()) => {
                    let text = format!("{} came as a delta of {} bytes", model.short(), row.bytes);
                    self.cx.events.record("model", text, &serde_json::json!({ "bytes": row.bytes }));
                    if let Err(failure) = self.artefacts.remove_unneeded(vec![row.delta]).await {
                        tracing::debug!(%failure, "a delta that was used stays until the next sweep");
                    }
                    return Ok(());
                }
                Err(failure) => {
                    let text = format!("{} comes whole: its delta failed: {failure}", model.short());
                    self.cx.events.record("model", text, &serde_json::json!({ "bytes": row.bytes }));
                }
            }
        }
        self.artefacts.ensure(model).await
    }
}
