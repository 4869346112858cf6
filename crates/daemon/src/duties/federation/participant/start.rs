//! Where a member's tasks begin: the model that it is told of, fetched whole
//! or followed from the one that it holds.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tierline_federate::{down, wire};
use tierline_proto::Digest;
use tierline_proto::v1::Failure;
use tierline_store::jobs::Side;

use super::workspace::Workspace;
use crate::duties::federation::Jobs;
use crate::duties::federation::messages::{Start, internal};

/// The newest of a parent's models that are here, and its artefact: none for
/// the first one, which every member has.
pub(super) async fn newest(jobs: &Jobs, id: Digest) -> Result<(u64, Option<Digest>), Failure> {
    for (version, artefact) in
        jobs.cx.state.with(move |state| state.versions(id, Side::Participant)).await?.into_iter().rev()
    {
        if jobs.artefacts.length(artefact).await?.is_some() {
            return Ok((version, Some(artefact)));
        }
    }
    Ok((0, None))
}

/// Makes sure that a task's model is here.
pub(super) async fn fetch(
    jobs: &Arc<Jobs>,
    id: Digest,
    version: u64,
    start: &Start,
    workspace: &Mutex<Option<Workspace>>,
) -> Result<(), Failure> {
    let Some(model) = start.model else { return Ok(()) };
    let held = newest(jobs, id).await?;
    jobs.cx.state.with(move |state| state.set_version(id, Side::Participant, version, model)).await?;
    if jobs.artefacts.length(model).await?.is_some() {
        return Ok(());
    }
    let behind = version.checked_sub(held.0).and_then(|behind| usize::try_from(behind).ok());
    let differences = behind.and_then(|behind| start.differences.len().checked_sub(behind));
    if let Some(skipped) = differences {
        let followed = follow(jobs, id, version, &start.differences[skipped..], held.1, workspace).await;
        jobs.drop_models(id, Side::ParticipantDifferences, &[]).await?;
        // Another parent numbers its models in its own way: what is held is
        // then not what the differences are taken from, and the whole is there.
        if let Ok(bytes) = followed
            && blake3::hash(&bytes).as_bytes() == &model.0
        {
            jobs.artefacts.put(bytes).await?;
            return Ok(());
        }
    }
    jobs.artefacts.ensure(model).await
}

/// The model that differences lead to, as it would have come whole.
async fn follow(
    jobs: &Arc<Jobs>,
    id: Digest,
    version: u64,
    differences: &[Digest],
    held: Option<Digest>,
    workspace: &Mutex<Option<Workspace>>,
) -> Result<Bytes, Failure> {
    let held = match held {
        Some(held) => Some(jobs.artefacts.get(held).await?),
        None => None,
    };
    let mut fetched = Vec::new();
    for (behind, &difference) in (0..differences.len() as u64).rev().zip(differences) {
        let number = version - behind;
        jobs.cx
            .state
            .with(move |state| state.set_version(id, Side::ParticipantDifferences, number, difference))
            .await?;
        jobs.artefacts.ensure(difference).await?;
        fetched.push(jobs.artefacts.get(difference).await?);
    }
    tokio::task::block_in_place(|| {
        let workspace = workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = workspace.as_ref().ok_or_else(|| internal("the job isn't prepared"))?;
        let first = match held {
            Some(held) => wire::decode(&held, &workspace.layout).map_err(internal)?,
            None => workspace.initial.clone(),
        };
        let followed = fetched.iter().try_fold(first, |held, bytes| down::follow(bytes, &workspace.layout, &held));
        let bytes = wire::encode(&followed.map_err(internal)?, &workspace.layout).map_err(internal)?;
        Ok(Bytes::from(bytes))
    })
}
