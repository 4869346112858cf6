//! Who asked this node for what, and what became of it: JSON documents, one a
//! line, in the folder `audit` of the node's data.
//!
//! Bounded whatever is asked: the first of a kind is written at once, its like
//! are counted and written together every now and then; each kind has files of
//! its own, so that a stranger who is refused all day pushes nothing else out.
//! No token or key comes near it. Start at [`Audit`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::events::now_ms;
use super::tasks::Tasks;

/// The folder's name in the data folder.
pub const FOLDER: &str = "audit";

/// What happens again within it is counted, and written once.
pub const COUNTED_FOR: Duration = Duration::from_secs(10);

/// Lines on their way to the disk; more are lost, and counted.
const LINES_MAX: usize = 1_024;

/// Kinds of entries told apart within [`COUNTED_FOR`], of requests and of
/// refusals each; others count together.
const APART_MAX: usize = 256;

/// Bytes of a text in an entry.
const TEXT_BYTES_MAX: usize = 128;

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What operators did: identities given and taken back, and the like.
    Operators,
    /// What was asked and answered.
    Requests,
    /// What was refused.
    Refusals,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Operators, Self::Requests, Self::Refusals];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Operators => "operators",
            Self::Requests => "requests",
            Self::Refusals => "refusals",
        }
    }

    /// Bytes on the disk, the file in use and the one before it together.
    fn bytes_max(self) -> u64 {
        match self {
            Self::Requests => 32 << 20,
            Self::Operators | Self::Refusals => 8 << 20,
        }
    }
}

/// What happened, by whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    /// The application's or operator's name; empty: nobody was asked who it is.
    pub who: String,
    /// Its identity, if it has one.
    pub id: String,
    /// Its address; empty on the node's own socket.
    pub address: String,
    /// What it asked for.
    pub call: String,
    /// Of what: a model, a token's id, a name.
    pub of: String,
    /// What became of it: `ok`, or why not.
    pub code: String,
}

impl Entry {
    /// Texts as they may stand there: short, whoever chose them.
    fn bounded(mut self) -> Self {
        let texts = [&mut self.who, &mut self.id, &mut self.address, &mut self.call, &mut self.of, &mut self.code];
        for text in texts {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        }
        self
    }
}

/// A line.
#[derive(Serialize)]
struct Line<'e> {
    time_ms: u64,
    kind: Kind,
    #[serde(flatten)]
    entry: &'e Entry,
    /// How often, since the line before of its like.
    count: u64,
}

/// The log; clones share it.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    lines: SyncSender<Message>,
    counted: Mutex<Counted>,
}

enum Message {
    Line(Kind, String),
    /// Everything before is to be on the disk.
    Flush(SyncSender<()>),
}

#[derive(Default)]
struct Counted {
    /// Since they were last written.
    entries: BTreeMap<(Kind, Entry), u64>,
    lost: u64,
}

impl Counted {
    /// Counts what was written already; whether it was.
    fn again(&mut self, kind: Kind, entry: &Entry) -> bool {
        let count = self.entries.get_mut(&(kind, entry.clone()));
        count.map(|count| *count += 1).is_some()
    }
}

impl Audit {
    /// The log of a node's data folder, whose thread begins.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn keep(data: &Path, tasks: &Tasks) -> std::io::Result<Self> {
        let folder = data.join(FOLDER);
        let (lines, to_write) = sync_channel(LINES_MAX);
        let (own, tasks) = (folder.clone(), tasks.clone());
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            let _ = tasks.guarded("audit", || write_all(&own, &to_write));
        })?;
        Ok(Self(Arc::new(Inner { folder, lines, counted: Mutex::default() })))
    }

    /// Something happened.
    pub fn record(&self, kind: Kind, entry: Entry) {
        let mut entry = entry.bounded();
        let mut counted = self.0.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if kind != Kind::Operators {
            if counted.again(kind, &entry) {
                return;
            }
            let apart = counted.entries.keys().filter(|(of, _)| *of == kind).count();
            if apart >= APART_MAX {
                let many = || "others".to_owned();
                entry = Entry { who: many(), address: many(), id: String::new(), of: String::new(), ..entry };
                // However many calls and codes there are.
                if apart >= 2 * APART_MAX {
                    entry = Entry { call: many(), code: many(), ..entry };
                }
                if counted.again(kind, &entry) {
                    return;
                }
            }
            counted.entries.insert((kind, entry.clone()), 0);
        }
        counted.lost += u64::from(!self.write(kind, &entry, 1));
    }

    /// Writes what was counted since; to be called every [`COUNTED_FOR`].
    pub fn write_counted(&self) {
        let (entries, lost) = {
            let mut counted = self.0.counted.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut counted.entries), std::mem::take(&mut counted.lost))
        };
        for ((kind, entry), count) in entries.into_iter().filter(|(_, count)| *count > 0) {
            self.write(kind, &entry, count);
        }
        if lost > 0 {
            tracing::warn!("{lost} lines of the audit log could not be written in time");
        }
    }

    /// Writes everything, and waits for the disk.
    pub fn flush(&self) {
        self.write_counted();
        let (done, written) = sync_channel(1);
        if self.0.lines.send(Message::Flush(done)).is_ok() {
            let _ = written.recv();
        }
    }

    /// The last lines, the oldest first: of one kind or all, of one application
    /// or all, `max` at most. Waits for the disk.
    ///
    /// # Errors
    /// Files that can't be read.
    pub fn last(&self, kind: Option<Kind>, who: &str, max: usize) -> std::io::Result<Vec<String>> {
        self.flush();
        let mut found: Vec<(u64, String)> = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|of| kind.is_none_or(|kind| kind == *of)) {
            let mut lines = Vec::new();
            for file in [before(&self.0.folder, kind), current(&self.0.folder, kind)] {
                let text = match std::fs::read(&file) {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                // The last one may have been cut short by a power cut.
                let read = text.lines().filter_map(|line| {
                    let value: serde_json::Value = serde_json::from_str(line).ok()?;
                    let is = who.is_empty() || value["who"] == who || value["id"] == who;
                    is.then(|| (value["time_ms"].as_u64().unwrap_or(0), line.to_owned()))
                });
                lines.extend(read);
            }
            let left_out = lines.len().saturating_sub(max);
            found.extend(lines.drain(left_out..));
        }
        found.sort_by_key(|(time, _)| *time);
        let left_out = found.len().saturating_sub(max);
        Ok(found.drain(left_out..).map(|(_, line)| line).collect())
    }

    fn write(&self, kind: Kind, entry: &Entry, count: u64) -> bool {
        let Ok(line) = serde_json::to_string(&Line { time_ms: now_ms(), kind, entry, count }) else { return false };
        match kind {
            // Few, and each counts: whoever does something waits for it.
            Kind::Operators => self.0.lines.send(Message::Line(kind, line)).is_ok(),
            Kind::Requests | Kind::Refusals => self.0.lines.try_send(Message::Line(kind, line)).is_ok(),
        }
    }
}

fn current(folder: &Path, kind: Kind) -> PathBuf {
    folder.join(format!("{}.jsonl", kind.word()))
}

fn before(folder: &Path, kind: Kind) -> PathBuf {
    folder.join(format!("{}.1.jsonl", kind.word()))
}

/// Writes lines until nobody has any more.
fn write_all(folder: &Path, lines: &Receiver<Message>) {
    let mut files: BTreeMap<Kind, (File, u64)> = BTreeMap::new();
    let mut failed = 0u64;
    while let Ok(message) = lines.recv() {
        let (kind, line) = match message {
            Message::Line(kind, line) => (kind, line),
            Message::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if let Err(error) = write_one(folder, &mut files, kind, line) {
            // Tried anew with the next line.
            files.remove(&kind);
            failed += 1;
            if failed.is_power_of_two() {
                tracing::warn!(%error, "the audit log can't be written ({failed} lines so far)");
            }
        }
    }
}

fn write_one(folder: &Path, files: &mut BTreeMap<Kind, (File, u64)>, kind: Kind, line: String) -> std::io::Result<()> {
    let bytes = (line + "\n").into_bytes();
    if files.get(&kind).is_some_and(|(_, length)| length + bytes.len() as u64 > kind.bytes_max() / 2) {
        files.remove(&kind);
        std::fs::rename(current(folder, kind), before(folder, kind))?;
    }
    let (file, length) = match files.entry(kind) {
        MapEntry::Occupied(open) => open.into_mut(),
        MapEntry::Vacant(free) => {
            tierline_store::disk::create_private_folder(folder)?;
            let file = File::options().create(true).append(true).open(current(folder, kind))?;
            let length = file.metadata()?.len();
            free.insert((file, length))
        }
    };
    file.write_all(&bytes)?;
    *length += bytes.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::events::Events;
    use super::*;

    fn audit() -> (tempfile::TempDir, Audit) {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::keep(folder.path(), &Tasks::new(Events::default())).unwrap();
        (folder, audit)
    }

    fn entry(address: &str, of: &str) -> Entry {
        Entry {
            who: "shop".into(),
            id: String::new(),
            address: address.into(),
            call: "infer".into(),
            of: of.into(),
            code: "ok".into(),
        }
    }

    fn counts(lines: &[String]) -> Vec<u64> {
        let count = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["count"].as_u64().unwrap();
        lines.iter().map(count).collect()
    }

    #[test]
    fn what_happens_again_is_counted() {
        let (_folder, audit) = audit();
        (0..1_000).for_each(|_| audit.record(Kind::Requests, entry("a", "m")));
        audit.record(Kind::Requests, entry("a", "n"));
        let lines = audit.last(None, "", 10).unwrap();
        let mut seen = counts(&lines);
        seen.sort_unstable();
        assert_eq!(seen, [1, 1, 999], "{lines:?}");
        audit.record(Kind::Operators, entry("a", "m"));
        audit.record(Kind::Operators, entry("a", "m"));
        assert_eq!(audit.last(Some(Kind::Operators), "", 10).unwrap().len(), 2, "each of these counts");
        assert_eq!(audit.last(None, "nobody", 10).unwrap().len(), 0);
        assert_eq!(audit.last(None, "shop", 2).unwrap().len(), 2);
    }

    #[test]
    fn a_stranger_fills_neither_the_log_nor_the_disk() {
        let (folder, audit) = audit();
        audit.record(Kind::Operators, entry("", "shop"));
        for n in 0..50_000 {
            audit.record(Kind::Refusals, entry(&format!("{n}"), &"\"\n\u{202e}".repeat(1 << 10)));
        }
        let lines = audit.last(Some(Kind::Refusals), "", usize::MAX).unwrap();
        assert!(lines.len() <= APART_MAX + 2, "{}", lines.len());
        assert_eq!(counts(&lines).iter().sum::<u64>(), 50_000);
        assert_eq!(audit.last(Some(Kind::Operators), "", 10).unwrap().len(), 1);
        // One interval after the other.
        for n in 0..200_000u32 {
            audit.record(Kind::Refusals, entry(&format!("{n}"), &"x".repeat(100)));
            if n % 200 == 0 {
                audit.flush();
            }
        }
        let size = |of: PathBuf| std::fs::metadata(of).map_or(0, |meta| meta.len());
        let own = folder.path().join(FOLDER);
        let all = size(current(&own, Kind::Refusals)) + size(before(&own, Kind::Refusals));
        assert!(all > 4 << 20 && all <= 8 << 20, "{all}");
        assert_eq!(audit.last(Some(Kind::Operators), "", 10).unwrap().len(), 1);
    }

    #[test]
    fn lines_are_one_document_each_whatever_they_say() {
        let (_folder, audit) = audit();
        audit.record(Kind::Operators, entry("", "a\nb\"c\r\u{0}"));
        let lines = audit.last(None, "", 10).unwrap();
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&line["of"], &line["kind"]), (&"a\nb\"c\r\u{0}".into(), &"operators".into()));
    }
}
