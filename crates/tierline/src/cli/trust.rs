//! `tierline trust`: a repository of signed metadata in a folder, by hand:
//! keys, drafts, signatures, and a look at what clients would believe.
//!
//! What is decided is in `tierline_update::trust`; here are files and the clock.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use ring::digest::{Context as Hash, SHA256};
use ring::rand::SystemRandom;
use serde::Serialize;
use tierline_store::disk::{Existing, create_private_folder, write_atomically};
use tierline_update::trust::{
    Answer, Change, Client, Founders, Holders, Kind, Limits, Policy, PublicKey, Record, Repository, RoleKeys,
    SigningKey, TargetName, TrustError, UnixTime,
};

use super::{Global, usage};
use crate::output::{CommandError, CommandResult, ExitCode, ExitWith, table};

/// Bytes of a file in a repository: the largest kind of metadata.
const FILE_BYTES_MAX: u64 = 5_000_000;

/// Files of a repository: roots stay for ever, of other roles 16 versions each.
const FILES_MAX: usize = 100_000;

/// Bytes of a key in PEM.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// What was drafted is said so.
const NEXT: &str = "tierline trust sign FOLDER --key KEY";

#[derive(Debug, clap::Subcommand)]
pub enum TrustVerb {
    /// Make a key: its private part in FILE, its public part in FILE.pub
    Key(Key),
    /// Begin a repository in a folder: drafts of its root and of its targets, to be signed
    Init(Init),
    /// Name a file as a target, with its hashes
    Add(Add),
    /// Take a target out
    Rm(Rm),
    /// Give targets to a role of its own: a site, or a family of models
    Delegate(Delegate),
    /// Give a role other keys
    Rotate(Rotate),
    /// Draft a role's metadata anew as it is, with a later end
    Renew(Renew),
    /// Sign drafts with these keys, and publish what is complete; again daily for the online ones
    Sign(Sign),
    /// Say what a client that knows only this root would believe
    Verify(Verify),
    /// Show roles, keys, targets, drafts, and what ends before long
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub struct Key {
    /// Where the private part goes; keep it off the network for roots and targets
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// The repository
    folder: PathBuf,
    /// A key of the root: FILE.pub, of a person; again for more
    #[arg(long, value_name = "FILE", required = true)]
    root: Vec<PathBuf>,
    /// How many of them must sign
    #[arg(long, value_name = "N", default_value = "1")]
    root_threshold: usize,
    /// A key of the targets; again for more
    #[arg(long, value_name = "FILE", required = true)]
    targets: Vec<PathBuf>,
    /// How many of them must sign
    #[arg(long, value_name = "N", default_value = "1")]
    targets_threshold: usize,
    /// The key of the snapshot and the timestamp, which the cloud holds
    #[arg(long, value_name = "FILE")]
    online: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Add {
    /// The repository
    folder: PathBuf,
    /// The target's name, as in `detector/2/model.onnx`
    name: String,
    /// The file
    file: PathBuf,
    /// The role that says so
    #[arg(long, default_value = "targets")]
    role: String,
    /// The model that it was made from, by its digest
    #[arg(long, value_name = "DIGEST")]
    parent: Option<String>,
    /// The job that made it
    #[arg(long)]
    job: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Rm {
    /// The repository
    folder: PathBuf,
    /// The target's name
    name: String,
    /// The role that names it
    #[arg(long, default_value = "targets")]
    role: String,
}

#[derive(Debug, clap::Args)]
pub struct NewHolders {
    /// A key of the role: FILE.pub; again for more
    #[arg(long = "holder", value_name = "FILE", required = true)]
    holders: Vec<PathBuf>,
    /// How many of them must sign
    #[arg(long, value_name = "N", default_value = "1")]
    threshold: usize,
}

#[derive(Debug, clap::Args)]
pub struct Delegate {
    /// The repository
    folder: PathBuf,
    /// The new role's name
    role: String,
    /// Targets that it may name, as in `detector/*/*`; again for more
    #[arg(long = "path", value_name = "PATTERN", required = true)]
    paths: Vec<String>,
    /// Ask no role further down for these
    #[arg(long)]
    terminating: bool,
    /// The role that gives
    #[arg(long, default_value = "targets")]
    by: String,
    #[command(flatten)]
    holders: NewHolders,
}

#[derive(Debug, clap::Args)]
pub struct Rotate {
    /// The repository
    folder: PathBuf,
    /// The role: root, targets, snapshot, timestamp, or one that targets were given to
    role: String,
    #[command(flatten)]
    holders: NewHolders,
}

#[derive(Debug, clap::Args)]
pub struct Renew {
    /// The repository
    folder: PathBuf,
    /// The role
    role: String,
}

#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The repository
    folder: PathBuf,
    /// A private key; again for more
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The repository
    folder: PathBuf,
    /// The root that the client came with
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// A target to look for
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    /// The repository
    folder: PathBuf,
}

/// What became of a command that changes a repository.
#[derive(Serialize, Default)]
struct Changed {
    /// Roles with a signature more.
    signed: Vec<String>,
    /// Roles with a new version.
    published: Vec<String>,
    /// Drafts that wait, as `root 1/2`.
    waiting: Vec<String>,
}

#[derive(Serialize)]
struct Shown {
    roles: Vec<RoleShown>,
    targets: Vec<TargetShown>,
    waiting: Vec<String>,
}

#[derive(Serialize)]
struct RoleShown {
    role: String,
    version: u64,
    expires: String,
    threshold: usize,
    keys: Vec<String>,
}

#[derive(Serialize)]
struct TargetShown {
    name: String,
    role: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

/// Runs `tierline trust`.
pub fn trust(global: &Global, verb: TrustVerb) -> CommandResult {
    match verb {
        TrustVerb::Key(args) => key(global, &args.file),
        TrustVerb::Init(args) => init(global, &args),
        TrustVerb::Add(args) => {
            let (target, name) = target(&args)?;
            change(global, &args.folder, |repository, now| Ok(repository.set_target(&args.role, &name, target, now)?))
        }
        TrustVerb::Rm(args) => {
            let name = TargetName::new(&args.name).exit_with(ExitCode::Usage)?;
            change(global, &args.folder, |repository, now| Ok(repository.remove_target(&args.role, &name, now)?))
        }
        TrustVerb::Delegate(args) => {
            let holders = holders(&args.holders.holders, args.holders.threshold)?;
            change(global, &args.folder, |repository, now| {
                Ok(repository.delegate(&args.by, &args.role, &holders, &args.paths, args.terminating, now)?)
            })
        }
        TrustVerb::Rotate(args) => {
            let holders = holders(&args.holders.holders, args.holders.threshold)?;
            change(global, &args.folder, |repository, now| Ok(repository.rotate(&args.role, &holders, now)?))
        }
        TrustVerb::Renew(args) => {
            change(global, &args.folder, |repository, now| Ok(repository.renew(&args.role, now)?))
        }
        TrustVerb::Sign(args) => sign(global, &args),
        TrustVerb::Verify(args) => verify(global, &args),
        TrustVerb::Show(args) => show(global, &args.folder),
    }
}

fn key(global: &Global, file: &Path) -> CommandResult {
    let random = SystemRandom::new();
    let pem = SigningKey::generate(&random)?;
    let key = SigningKey::from_pem(&pem, &random)?;
    let beside = |e: std::io::Error, path: &Path| match e.kind() {
        // A key that is there already may be the only one of its kind.
        std::io::ErrorKind::AlreadyExists => anyhow!("{} is there; a key is never written over", path.display()),
        _ => anyhow!("{}: {e}", path.display()),
    };
    write_atomically(file, pem.as_bytes(), 0o600, Existing::Keep).map_err(|e| beside(e, file))?;
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    write_atomically(&public, key.public().to_pem().as_bytes(), 0o644, Existing::Replace)
        .map_err(|e| beside(e, &public))?;
    global.output().data(&serde_json::json!({"id": key.id()}), |_| key.id().to_owned())
}

fn init(global: &Global, args: &Init) -> CommandResult {
    let online = holders(std::slice::from_ref(&args.online), 1)?;
    let founders = Founders {
        root: holders(&args.root, args.root_threshold)?,
        targets: holders(&args.targets, args.targets_threshold)?,
        snapshot: online.clone(),
        timestamp: online,
    };
    create_private_folder(&args.folder).with_context(|| args.folder.display().to_string())?;
    let _lock = lock(&args.folder)?;
    if !read(&args.folder)?.is_empty() {
        return Err(usage(format!("{} has a repository already", args.folder.display())));
    }
    let mut repository = Repository::create(&founders, Policy::default(), now()?).exit_with(ExitCode::Usage)?;
    write(&args.folder, &mut repository)?;
    changed(global, &repository, Changed::default())
}

/// Reads the file once, for both of its hashes.
fn target(args: &Add) -> CommandResult<(tierline_update::trust::Target, TargetName)> {
    let name = TargetName::new(&args.name).exit_with(ExitCode::Usage)?;
    let opened = File::open(&args.file).with_context(|| args.file.display().to_string());
    let mut file = opened.exit_with(ExitCode::Usage)?;
    let (mut sha256, mut blake3, mut length) = (Hash::new(&SHA256), blake3::Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut buffer).with_context(|| args.file.display().to_string())?;
        if count == 0 {
            break;
        }
        sha256.update(&buffer[..count]);
        blake3.update(&buffer[..count]);
        length += count as u64;
    }
    let sha256: String = sha256.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let blake3 = blake3.finalize().to_hex().to_string();
    let record = Record { blake3, parent: args.parent.clone(), job: args.job.clone(), ..Record::default() };
    Ok((record.target(length, &sha256).exit_with(ExitCode::Usage)?, name))
}

fn change(
    global: &Global,
    folder: &Path,
    change: impl FnOnce(&mut Repository, UnixTime) -> anyhow::Result<()>,
) -> CommandResult {
    let _lock = lock(folder)?;
    let mut repository = open(folder)?;
    change(&mut repository, now()?).exit_with(ExitCode::Usage)?;
    write(folder, &mut repository)?;
    changed(global, &repository, Changed::default())
}

fn sign(global: &Global, args: &Sign) -> CommandResult {
    let random = SystemRandom::new();
    let private = |path: &PathBuf| {
        let pem = text(path, KEY_BYTES_MAX)?;
        SigningKey::from_pem(&pem, &random).with_context(|| path.display().to_string()).exit_with(ExitCode::Usage)
    };
    let keys = args.keys.iter().map(private).collect::<CommandResult<Vec<_>>>()?;
    let _lock = lock(&args.folder)?;
    let mut repository = open(&args.folder)?;
    let signed: Vec<String> = repository.sign(&keys, &random)?.into_iter().map(|(role, _)| role).collect();
    let (published, due) = repository.tend(&keys, now()?, &random)?;
    write(&args.folder, &mut repository)?;
    for ending in due.warnings() {
        global.output().say(format!(
            "`{}` ends at {}: draft it with `tierline trust renew`, or sign it",
            ending.role, ending.expires
        ));
    }
    changed(global, &repository, Changed { signed, published, waiting: Vec::new() })
}

fn changed(global: &Global, repository: &Repository, changed: Changed) -> CommandResult {
    let waiting = waiting(repository);
    let changed = Changed { waiting, ..changed };
    if !changed.waiting.is_empty() {
        global.output().say(format!("drafts wait for signatures: {NEXT}"));
    }
    global.output().data(&changed, |changed| {
        let rows = [("signed", &changed.signed), ("published", &changed.published), ("waiting", &changed.waiting)];
        let rows = rows.into_iter().filter(|(_, roles)| !roles.is_empty());
        let text: String = rows.map(|(what, roles)| format!("{what}: {}\n", roles.join(", "))).collect();
        if text.is_empty() { "nothing was to be done\n".to_owned() } else { text }
    })
}

fn waiting(repository: &Repository) -> Vec<String> {
    let waiting = repository.waiting();
    waiting.iter().map(|waiting| format!("{} {}/{}", waiting.role, waiting.have, waiting.need)).collect()
}

fn show(global: &Global, folder: &Path) -> CommandResult {
    let repository = open(folder)?;
    let row = |(role, head): (String, tierline_update::trust::Head)| {
        let holders = holders_of(&repository, &role);
        RoleShown {
            version: head.version,
            expires: head.expires.to_string(),
            threshold: holders.as_ref().map_or(0, |holders| holders.threshold),
            keys: holders.map(|holders| holders.keys.into_iter().collect()).unwrap_or_default(),
            role,
        }
    };
    let roles = repository.heads().into_iter().map(row).collect();
    let named = |(role, targets): (&str, &tierline_update::trust::Targets)| {
        let target = |(name, target): (&String, &tierline_update::trust::Target)| TargetShown {
            name: name.clone(),
            role: role.to_owned(),
            bytes: target.length,
            blake3: Record::of(target).ok().flatten().map(|record| record.blake3),
        };
        targets.targets.iter().map(target).collect::<Vec<_>>()
    };
    let targets = repository.targets().flat_map(named).collect();
    let shown = Shown { roles, targets, waiting: waiting(&repository) };
    global.output().data(&shown, |shown| {
        let mut rows = Vec::new();
        for role in &shown.roles {
            let short: Vec<&str> = role.keys.iter().map(|key| key.get(..8).unwrap_or(key)).collect();
            let keys = format!("{} of {}", role.threshold, short.join(" "));
            rows.push(vec![role.role.clone(), role.version.to_string(), role.expires.clone(), keys]);
        }
        let mut text = table(&["role", "version", "expires", "keys"], &rows);
        if !shown.targets.is_empty() {
            let mut rows = Vec::new();
            for target in &shown.targets {
                let digest = target.blake3.as_deref().and_then(|digest| digest.get(..8)).unwrap_or("-").to_owned();
                rows.push(vec![target.name.clone(), target.role.clone(), target.bytes.to_string(), digest]);
            }
            text.push('\n');
            text.push_str(&table(&["target", "role", "bytes", "digest"], &rows));
        }
        for waiting in &shown.waiting {
            text.push_str(&format!("\nwaiting: {waiting}\n"));
        }
        text
    })
}

fn holders_of(repository: &Repository, role: &str) -> Option<RoleKeys> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.word() == role);
    match kind {
        Some(kind) => repository.root().map(|root| root.role(kind).clone()),
        None => repository.holders(role),
    }
}

fn verify(global: &Global, args: &Verify) -> CommandResult {
    let anchor = text(&args.root, Limits::default().root_bytes)?;
    let files = read(&args.folder)?;
    let mut client = Client::new(anchor.as_bytes()).exit_with(ExitCode::Verification)?;
    client.begin(now()?);
    fetch(&mut client, &files).exit_with(ExitCode::Verification)?;
    if let Some(name) = &args.target {
        let name = TargetName::new(name).exit_with(ExitCode::Usage)?;
        client.search(&name).and_then(|()| fetch(&mut client, &files)).exit_with(ExitCode::Verification)?;
    }
    let found = client.found().map(|found| {
        serde_json::json!({"name": found.name.as_str(), "role": found.role, "bytes": found.target.length,
            "hashes": found.target.hashes.iter().collect::<BTreeMap<_, _>>(), "custom": found.target.custom})
    });
    let timestamp = client.timestamp().ok_or_else(|| anyhow!("no timestamp"))?;
    let body = serde_json::json!({"root": client.root().head.version, "timestamp": timestamp.head.version,
        "snapshot": timestamp.snapshot.version, "until": timestamp.head.expires.to_string(), "target": found});
    global.output().data(&body, |body| {
        let mut text = format!(
            "believed until {}: root {}, snapshot {}\n",
            timestamp.head.expires, body["root"], body["snapshot"]
        );
        if let Some(found) = client.found() {
            text.push_str(&format!("{}: {} bytes, says `{}`\n", found.name, found.target.length, found.role));
            for (function, hash) in found.target.hashes.iter() {
                text.push_str(&format!("  {function} {hash}\n"));
            }
        }
        text
    })
}

fn fetch(client: &mut Client, files: &BTreeMap<String, Vec<u8>>) -> Result<(), TrustError> {
    while let Some(wanted) = client.next() {
        client.feed(files.get(&wanted.name).map_or(Answer::Missing, |bytes| Answer::Bytes(bytes)))?;
    }
    Ok(())
}

fn now() -> CommandResult<UnixTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(UnixTime(since.as_secs()))
}

/// Public keys in these files; a private one gives its public part.
fn holders(files: &[PathBuf], threshold: usize) -> CommandResult<Holders> {
    let random = SystemRandom::new();
    let key = |path: &PathBuf| {
        let pem = text(path, KEY_BYTES_MAX)?;
        let public = match SigningKey::from_pem(&pem, &random) {
            Ok(private) => Ok(private.public().clone()),
            Err(_) => PublicKey::from_pem(&pem),
        };
        public.with_context(|| path.display().to_string()).exit_with(ExitCode::Usage)
    };
    Ok(Holders { keys: files.iter().map(key).collect::<CommandResult<_>>()?, threshold })
}

fn text(path: &Path, bytes_max: u64) -> CommandResult<String> {
    let bytes = bounded(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| usage(format!("{} is no text", path.display())))
}

fn bounded(path: &Path, bytes_max: u64) -> CommandResult<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes));
    read.with_context(|| path.display().to_string()).exit_with(ExitCode::Usage)?;
    if bytes.len() as u64 > bytes_max {
        return Err(usage(format!("{} is longer than {bytes_max} bytes", path.display())));
    }
    Ok(bytes)
}

fn open(folder: &Path) -> CommandResult<Repository> {
    let files = read(folder)?;
    if files.is_empty() {
        return Err(usage(format!("{} has no repository; begin one with `tierline trust init`", folder.display())));
    }
    Repository::open(files, Policy::default()).exit_with(ExitCode::Verification)
}

fn lock(folder: &Path) -> CommandResult<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string()).exit_with(ExitCode::Usage)?;
    file.lock().with_context(|| path.display().to_string())?;
    Ok(file)
}

/// Metadata in the folder and in its drafts; other files are none of ours.
fn read(folder: &Path) -> CommandResult<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for within in ["", "drafts/"] {
        let Ok(entries) = fs::read_dir(folder.join(within)) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !name.ends_with(".json") || name.starts_with('.') {
                continue;
            }
            if files.len() == FILES_MAX {
                return Err(usage(format!("{} has more than {FILES_MAX} files", folder.display())));
            }
            files.insert(format!("{within}{name}"), bounded(&entry.path(), FILE_BYTES_MAX)?);
        }
    }
    Ok(files)
}

/// Writes what changed, in the order in which it may be read meanwhile.
fn write(folder: &Path, repository: &mut Repository) -> CommandResult {
    for change in repository.changes() {
        let (path, done) = match change {
            Change::Store(file, bytes) => {
                let path = folder.join(file);
                let done = write_atomically(&path, &bytes, 0o644, Existing::Replace);
                (path, done)
            }
            Change::Remove(file) => {
                let path = folder.join(file);
                let done = fs::remove_file(&path);
                (path, done)
            }
        };
        done.with_context(|| path.display().to_string()).map_err(CommandError::from)?;
    }
    Ok(())
}
