//! The end of a job for an end with a model of its own that was away when
//! others evaluated theirs: it makes its own of the last model that it got.

use std::sync::{Arc, Mutex, PoisonError};

use tierline_engine::Stop;
use tierline_federate::wire;
use tierline_proto::Digest;
use tierline_proto::v1::Failure;

use super::start;
use super::workspace::Workspace;
use crate::duties::federation::Jobs;
use crate::duties::federation::messages::internal;
use crate::duties::federation::{Folder, JobManifest};

/// Whether an end has no model of its own yet though it should.
pub(super) fn lacks_own(manifest: &JobManifest, folder: &Folder) -> bool {
    manifest.federation().own_models() && !folder.has_result()
}

/// Makes it.
pub(super) async fn conclude(
    jobs: &Arc<Jobs>,
    id: Digest,
    manifest: &JobManifest,
    folder: &Folder,
    workspace: &Mutex<Option<Workspace>>,
) -> Result<(), Failure> {
    if workspace.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
        let (made, _) = super::open(jobs, manifest, false).await?;
        *workspace.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
    }
    if let (Some(names), Some(workspace)) =
        (folder.load_classes()?, workspace.lock().unwrap_or_else(PoisonError::into_inner).as_mut())
    {
        workspace.name_classes(&names)?;
    }
    let held = match start::newest(jobs, id).await? {
        (_, Some(artefact)) => Some(jobs.artefacts.get(artefact).await?),
        (_, None) => None,
    };
    tokio::task::block_in_place(|| {
        let mut workspace = workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = workspace.as_mut().ok_or_else(|| internal("the job isn't prepared"))?;
        let model = match held {
            Some(held) => wire::decode(&held, &workspace.layout).map_err(internal)?,
            None => workspace.initial.clone(),
        };
        let round = manifest.federation().rounds_of_ends();
        workspace.conclude(jobs, folder, round, &model, &Stop::never()).map(drop)
    })
}
