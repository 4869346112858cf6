//! A job's files on this node.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tierline_federate::{RoundScores, wire};
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure};
use tierline_store::disk::{self, Existing};

use crate::runtime::tasks::in_place;

/// What a member's next task begins with, where it isn't a model: an artefact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    /// Under which it is kept.
    pub(super) key: u64,
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

/// The folder of one job. Whoever waits for its disk keeps nobody else waiting.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

type Named = BTreeMap<String, Vec<f32>>;

fn is_there(path: &Path) -> bool {
    in_place(|| path.exists())
}

impl Folder {
    /// The folder of a job, made if it isn't there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(data: &Path, job: Digest) -> Result<Self, Failure> {
        let folder = Self::at(data, job);
        let make =
            || [folder.0.join("in"), folder.0.join("out")].iter().try_for_each(|f| disk::create_private_folder(f));
        in_place(make).map_err(|e| folder.failed(&e))?;
        Ok(folder)
    }

    /// The folder of a job, to look at what it may hold.
    pub(super) fn at(data: &Path, job: Digest) -> Self {
        Self(data.join("jobs").join(&job.to_string()[..16]))
    }

    /// Turns an error of this folder into one that says what to do.
    #[must_use]
    pub fn failed(&self, error: &std::io::Error) -> Failure {
        if disk::is_full(error) {
            let text = format!("no room in {}", self.0.display());
            return Failure::new(Code::StorageFull, text).with_help("make room; the job goes on by itself");
        }
        Failure::new(Code::Internal, format!("{}: {error}", self.0.display()))
    }

    /// Where updates from below are.
    pub(super) fn incoming_folder(&self) -> PathBuf {
        self.0.join("in")
    }

    /// An update that came from below: whoever sends other bytes for the same
    /// task doesn't touch it.
    #[must_use]
    pub fn incoming(&self, task: u64, digest: &[u8]) -> PathBuf {
        let head: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.incoming_folder().join(format!("{task}.{head}"))
    }

    /// The part of an update that has come.
    #[must_use]
    pub fn partial(&self, task: u64, digest: &[u8]) -> PathBuf {
        self.incoming(task, digest).with_added_extension("partial")
    }

    /// Removes updates, and parts of some, whose tasks aren't needed.
    pub(super) fn sweep(&self, is_needed: impl Fn(u64) -> bool) {
        in_place(|| {
            for entry in std::fs::read_dir(self.incoming_folder()).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let task = name.to_str().and_then(|name| name.split('.').next()?.parse().ok());
                if task.is_some_and(|task| !is_needed(task)) {
                    self.remove(&[entry.path()]);
                }
            }
        });
    }

    /// Whether a file holds just these bytes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn holds(&self, path: &Path, digest: &[u8]) -> Result<bool, Failure> {
        let mut hasher = blake3::Hasher::new();
        let hashed = in_place(|| File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ())));
        match hashed {
            Ok(()) => Ok(hasher.finalize().as_bytes() == digest),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The first byte of a file; none of one that is empty or gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn first_byte(&self, path: &Path) -> Result<Option<u8>, Failure> {
        let mut byte = [0];
        match File::open(path).and_then(|mut file| file.read(&mut byte)) {
            Ok(count) => Ok(byte.first().copied().filter(|_| count == 1)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The update of a task of this node.
    #[must_use]
    pub fn outgoing(&self, task: u64) -> PathBuf {
        self.0.join("out").join(task.to_string())
    }

    /// What a member keeps if a task's update is counted, or isn't.
    fn kept_by(&self, task: u64, counted: bool) -> PathBuf {
        let how = if counted { "counted" } else { "refused" };
        self.0.join("out").join(format!("{task}.{how}"))
    }

    fn kept(&self) -> PathBuf {
        self.0.join("kept")
    }

    fn server(&self, version: u64) -> PathBuf {
        self.0.join(format!("server-{version}"))
    }

    fn classes(&self) -> PathBuf {
        self.0.join("classes.json")
    }

    /// Keeps the names of the job's classes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn save_classes(&self, names: &[String]) -> Result<(), Failure> {
        let json = serde_json::to_vec(names).map_err(super::messages::internal)?;
        self.write(&self.classes(), &json)
    }

    /// Those that were kept.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn load_classes(&self) -> Result<Option<Vec<String>>, Failure> {
        let path = self.classes();
        if !path.exists() {
            return Ok(None);
        }
        serde_json::from_slice(&self.read(&path)?)
            .map(Some)
            .map_err(|e| Failure::new(Code::Corrupt, format!("{}: {e}", path.display())))
    }

    fn said(&self) -> PathBuf {
        self.0.join("said.json")
    }

    /// Keeps what members' next tasks begin with.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn save_said(&self, said: &BTreeMap<String, Said>) -> Result<(), Failure> {
        let json = serde_json::to_vec(said).map_err(super::messages::internal)?;
        self.write(&self.said(), &json)
    }

    /// What they begin with; nothing at first.
    ///
    /// # Errors
    /// When the disk refuses, or the file is damaged.
    pub(super) fn load_said(&self) -> Result<BTreeMap<String, Said>, Failure> {
        if !is_there(&self.said()) {
            return Ok(BTreeMap::new());
        }
        let text = self.read(&self.said())?;
        serde_json::from_slice(&text)
            .map_err(|e| Failure::new(Code::Corrupt, format!("{}: {e}", self.said().display())))
    }

    /// Of an edge that gossips: whom it meets.
    pub(super) fn neighbours(&self) -> PathBuf {
        self.0.join("neighbours.json")
    }

    fn left_out(&self) -> PathBuf {
        self.0.join("left-out.json")
    }

    /// Members that were left out, and why; known still when the job is over.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn load_left_out(&self) -> Result<BTreeMap<String, String>, Failure> {
        let path = self.left_out();
        if !is_there(&path) {
            return Ok(BTreeMap::new());
        }
        serde_json::from_slice(&self.read(&path)?)
            .map_err(|e| Failure::new(Code::Corrupt, format!("{}: {e}", path.display())))
    }

    /// Keeps that a member was left out.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn save_left_out(&self, member: &str, reason: &str) -> Result<(), Failure> {
        let mut all = self.load_left_out()?;
        all.insert(member.to_owned(), reason.to_owned());
        let json = serde_json::to_vec(&all).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        self.write(&self.left_out(), &json)
    }

    fn last_round(&self) -> PathBuf {
        self.0.join("round.json")
    }

    /// The newest model, for use; of an end, its own.
    #[must_use]
    pub fn result(&self) -> PathBuf {
        self.0.join("model.onnx")
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_result(&self) -> bool {
        is_there(&self.result())
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        in_place(|| disk::write_atomically(path, bytes, 0o600, Existing::Replace)).map_err(|e| self.failed(&e))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        in_place(|| File::open(path)?.read_to_end(&mut bytes)).map_err(|e| self.failed(&e))?;
        Ok(bytes)
    }

    /// Removes files; those that are gone already are as good.
    pub fn remove(&self, paths: &[PathBuf]) {
        in_place(|| paths.iter().for_each(|path| drop(std::fs::remove_file(path))));
    }

    /// Opens the part of an update that has come, to go on with it. Whoever sends
    /// other bytes for the same task begins anew: of a task there is one part.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn go_on(&self, task: u64, digest: &[u8]) -> Result<(File, u64), Failure> {
        let path = self.partial(task, digest);
        let open = || {
            for entry in std::fs::read_dir(self.incoming_folder())? {
                let (other, name) = (entry?.path(), format!("{task}."));
                let of_task = other.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&name));
                if of_task && other != path && other.extension() == path.extension() {
                    std::fs::remove_file(&other)?;
                }
            }
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        in_place(open).map_err(|e| self.failed(&e))
    }

    /// Ends an update that has come whole: synced, compared with its digest,
    /// and given its name.
    ///
    /// # Errors
    /// [`Code::Corrupt`] for other bytes, which are then gone; or when the disk
    /// refuses.
    pub fn finish(&self, mut file: File, partial: &Path, task: u64, digest: &[u8]) -> Result<(), Failure> {
        in_place(|| file.flush().and_then(|()| file.sync_all())).map_err(|e| self.failed(&e))?;
        if !self.holds(partial, digest)? {
            self.remove(&[partial.to_owned()]);
            let text = "the update's bytes do not match its digest; send it again";
            return Err(Failure::new(Code::Corrupt, text));
        }
        let name = || {
            std::fs::rename(partial, self.incoming(task, digest))?;
            disk::sync_folder(&self.incoming_folder())
        };
        in_place(name).map_err(|e| self.failed(&e))
    }

    /// What this member keeps between its tasks; nothing at first.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load_kept(&self) -> Result<Named, Failure> {
        self.load_named(&self.kept())
    }

    /// Keeps what a task left behind, for either way it may be settled.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_kept(&self, task: u64, counted: &Named, refused: &Named) -> Result<(), Failure> {
        self.save_named(&self.kept_by(task, true), counted)?;
        self.save_named(&self.kept_by(task, false), refused)
    }

    /// What a task left behind counts from now on, or is forgotten. Done twice,
    /// it does nothing the second time.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn settle(&self, task: u64, counted: bool) -> Result<(), Failure> {
        let left = self.kept_by(task, counted);
        let keep = || match left.exists() {
            true => std::fs::rename(&left, self.kept()).and_then(|()| disk::sync_folder(&self.0)),
            false => Ok(()),
        };
        in_place(keep).map_err(|e| self.failed(&e))?;
        self.remove(&[self.kept_by(task, !counted), self.outgoing(task)]);
        Ok(())
    }

    /// What a strategy remembers with a model.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load_server(&self, version: u64) -> Result<Named, Failure> {
        self.load_named(&self.server(version))
    }

    /// Keeps what a strategy remembers with a model.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_server(&self, version: u64, kept: &Named) -> Result<(), Failure> {
        self.save_named(&self.server(version), kept)?;
        self.remove(&[self.server(version.wrapping_sub(2))]);
        Ok(())
    }

    fn load_named(&self, path: &Path) -> Result<Named, Failure> {
        if !is_there(path) {
            return Ok(Named::new());
        }
        wire::decode_named(&self.read(path)?)
            .map_err(|e| Failure::new(Code::Corrupt, format!("{}: {e}", path.display())))
    }

    fn save_named(&self, path: &Path, vectors: &Named) -> Result<(), Failure> {
        if vectors.is_empty() && !is_there(path) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        wire::encode_named(vectors, &mut bytes);
        self.write(path, &bytes)
    }

    /// The last round, of which members haven't said all.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn load_round(&self) -> Result<Option<RoundScores>, Failure> {
        let path = self.last_round();
        if !is_there(&path) {
            return Ok(None);
        }
        serde_json::from_slice(&self.read(&path)?)
            .map(Some)
            .map_err(|e| Failure::new(Code::Corrupt, format!("{}: {e}", path.display())))
    }

    /// Keeps a round of which members haven't said all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_round(&self, round: &RoundScores) -> Result<(), Failure> {
        let json = serde_json::to_vec(round).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        self.write(&self.last_round(), &json)
    }

    /// Removes everything but the result.
    pub fn clear(&self) {
        in_place(|| {
            for folder in ["in", "out"] {
                // What stays behind only takes room.
                let _ = std::fs::remove_dir_all(self.0.join(folder));
            }
            self.remove(&[self.kept(), self.last_round(), self.neighbours(), self.said(), self.classes()]);
            for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with("server-") {
                    self.remove(&[entry.path()]);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_task_one_part_is_kept_whatever_is_sent_for_it() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::open(data.path(), Digest([1; 32])).unwrap();
        let parts = || std::fs::read_dir(folder.incoming_folder()).unwrap().count();
        let begin = |task, digest| folder.go_on(task, &[digest; 32]).unwrap();
        begin(7, 1).0.write_all(b"half").unwrap();
        assert_eq!(begin(7, 1).1, 4, "it goes on");
        // Another task's, one whose number begins alike, and what has come whole.
        begin(8, 1);
        begin(71, 1);
        std::fs::write(folder.incoming(7, &[9; 32]), "whole").unwrap();
        for digest in 2..20 {
            assert_eq!(begin(7, digest).1, 0);
        }
        assert_eq!(parts(), 4);
        assert!(folder.partial(7, &[19; 32]).exists() && folder.incoming(7, &[9; 32]).exists());
    }
}
