//! Files that operators give: on the disk as they come, so that their size is
//! no matter of memory; read once they are whole, one after the other.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use bytes::Bytes;
use tierline_proto::limits::ARTEFACT_BYTES_MAX;
use tierline_proto::v1::{Code, Failure};
use tierline_store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Streaming;

use super::Artefacts;
use crate::runtime::tasks::in_place;

/// Uploads at once: each takes room on the disk.
pub const UPLOADS_MAX: usize = 4;

/// An upload of which nothing comes for so long is given up.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The part of this machine's memory that a model may take while it is read.
const MODEL_SHARE: u64 = 2;

/// A file that came whole. It has no name on the disk, and goes with the value.
#[derive(Debug)]
pub struct Uploaded {
    file: File,
    length: u64,
}

impl Uploaded {
    /// Its bytes.
    ///
    /// # Errors
    /// [`Code::TooLarge`] for more than this machine has memory for; those of
    /// the file system.
    pub fn read(&mut self) -> Result<Bytes, Failure> {
        let memory = crate::machine::memory() / MODEL_SHARE;
        if self.length > memory {
            let text = format!("{} bytes of model; this node has memory for {memory}", self.length);
            return Err(Failure::new(Code::TooLarge, text));
        }
        let mut bytes = Vec::with_capacity(self.length as usize);
        self.rewound().read_to_end(&mut bytes).map_err(|e| unreadable(&e))?;
        Ok(bytes.into())
    }

    /// The file, from its beginning.
    pub fn rewound(&mut self) -> &File {
        // Seeking within a file doesn't fail.
        let _ = self.file.seek(SeekFrom::Start(0));
        &self.file
    }
}

fn unreadable(error: &std::io::Error) -> Failure {
    Failure::new(Code::Internal, format!("what was sent can't be read back: {error}"))
}

/// Files that came, and the place that they hold.
pub struct Uploads {
    /// In the order of their lengths.
    pub files: Vec<Uploaded>,
    _place: OwnedSemaphorePermit,
}

/// Takes in files of these lengths, one behind the other.
///
/// # Errors
/// [`Code::TooLarge`], [`Code::Overloaded`] and [`Code::StorageFull`] before
/// anything is taken; [`Code::Protocol`] when more or less comes,
/// [`Code::DeadlineExceeded`] when nothing comes any more.
pub async fn take<M>(
    artefacts: &Artefacts,
    stream: &mut Streaming<M>,
    lengths: &[u64],
    data_of: impl Fn(M) -> Option<Bytes>,
) -> Result<Uploads, Failure> {
    let total = lengths.iter().fold(0, |sum: u64, length| sum.saturating_add(*length));
    if total > ARTEFACT_BYTES_MAX {
        let text = format!("{total} bytes; at most {ARTEFACT_BYTES_MAX} are taken at once");
        return Err(Failure::new(Code::TooLarge, text));
    }
    let place = artefacts.place().map_err(|_| {
        Failure::new(Code::Overloaded, format!("{UPLOADS_MAX} uploads are under way")).with_help("try again later")
    })?;
    let store = artefacts.store();
    if in_place(|| store.room()) < total {
        return Err(StoreError::Full { folder: store.folder().to_owned() }.into());
    }
    let new = |&length: &u64| Ok(Uploaded { file: store.unnamed()?, length });
    let mut files = in_place(|| lengths.iter().map(new).collect::<Result<Vec<_>, StoreError>>())?;
    let mut left = files.iter_mut().map(|upload| (&upload.file, upload.length)).filter(|(_, length)| *length > 0);
    let mut current = left.next();
    let mut came = 0u64;
    loop {
        let message = tokio::time::timeout(IDLE_MAX, stream.message()).await;
        let message = message.map_err(|_| {
            let text = format!("nothing came for {} s, after {came} of {total} bytes", IDLE_MAX.as_secs());
            Failure::new(Code::DeadlineExceeded, text).with_help("send it again")
        })?;
        let Some(message) = message.map_err(|status| Failure::from_status(&status))? else { break };
        let Some(mut data) = data_of(message) else { continue };
        while !data.is_empty() {
            let Some((file, more)) = &mut current else {
                return Err(Failure::new(Code::Protocol, "more bytes came than the header declared"));
            };
            let part = data.split_to(data.len().min(usize::try_from(*more).unwrap_or(usize::MAX)));
            let mut file: &File = file;
            in_place(|| file.write_all(&part)).map_err(|e| Failure::from(store.refused(e)))?;
            (came, *more) = (came + part.len() as u64, *more - part.len() as u64);
            if *more == 0 {
                current = left.next();
            }
        }
    }
    if came != total {
        let text = format!("{came} of {total} bytes came");
        return Err(Failure::new(Code::Protocol, text).with_help("send it again"));
    }
    drop(left);
    Ok(Uploads { files, _place: place })
}

/// Places for uploads.
#[must_use]
pub fn places() -> std::sync::Arc<Semaphore> {
    std::sync::Arc::new(Semaphore::new(UPLOADS_MAX))
}
