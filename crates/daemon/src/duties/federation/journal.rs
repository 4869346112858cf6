//! Journals of a job's machines, on this node's disk.

use tierline_node::federation::{MemberRecord, Record};
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure};
use tierline_store::State;
use tierline_store::jobs::Side;

use crate::documents::{self, Document};
use crate::duties::federation::Jobs;

/// What a machine keeps.
pub(super) trait Journalled: Document {
    /// Which machine.
    const SIDE: Side;

    /// Whether the journal needs nothing of what lies before this record.
    fn replaces_earlier(&self) -> bool;
}

impl Document for Record {
    const WHAT: &'static str = "a record";
}

impl Document for MemberRecord {
    const WHAT: &'static str = "a record";
}

impl Journalled for Record {
    const SIDE: Side = Side::Coordinator;

    fn replaces_earlier(&self) -> bool {
        self.replaces_earlier()
    }
}

impl Journalled for MemberRecord {
    const SIDE: Side = Side::Participant;

    fn replaces_earlier(&self) -> bool {
        self.replaces_earlier()
    }
}

/// Writes records through to the disk, all or none.
///
/// # Errors
/// Those of the store.
pub(super) async fn write<R: Journalled>(jobs: &Jobs, job: Digest, records: &[R]) -> Result<(), Failure> {
    if records.is_empty() {
        return Ok(());
    }
    let last = records.iter().rposition(R::replaces_earlier);
    let needed = &records[last.unwrap_or(0)..];
    let lines: Vec<String> = needed.iter().map(documents::write).collect::<Result<_, _>>()?;
    let keep = move |state: &State| match last {
        Some(_) => state.replace_journal(job, R::SIDE, &lines),
        None => state.journal(job, R::SIDE, &lines),
    };
    jobs.cx.state.with(keep).await
}

/// What was written, in order.
///
/// # Errors
/// [`Code::Corrupt`] for a record that can't be read: going on without it
/// could count an update twice.
pub(super) async fn read<R: Journalled>(jobs: &Jobs, job: Digest) -> Result<Vec<R>, Failure> {
    let lines = jobs.cx.state.with(move |state| state.journal_of(job, R::SIDE)).await?;
    let parse = |(at, line): (usize, &String)| {
        documents::read(line.as_bytes()).map_err(|e| {
            let how = if e.code() == Code::Corrupt { "is damaged" } else { "is a newer version's" };
            let text = format!("the job's journal {how}: record {} of {}: {e}", at + 1, lines.len());
            Failure::new(e.code(), text).with_help("the job can't go on on this node; give it again")
        })
    };
    lines.iter().enumerate().map(parse).collect()
}

/// Removes the journal of a job that is over.
///
/// # Errors
/// Those of the store.
pub(super) async fn forget<R: Journalled>(jobs: &Jobs, job: Digest) -> Result<(), Failure> {
    jobs.cx.state.with(move |state| state.replace_journal(job, R::SIDE, &[])).await
}
