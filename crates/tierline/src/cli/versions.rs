//! `tierline model push | pull | tag | ls NAME`: versions of models in the
//! site's registry.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use tierline_proto::Digest;
use tierline_proto::name::split_version;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{ModelAddHeader, ModelShowRequest, VersionInfo, VersionListReply, VersionTagRequest};
use tierline_update::card::Card;
use tonic::transport::Channel;

use super::catalogue::{self, Given};
use super::{Global, client, infer, usage};
use crate::output::{self, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Args)]
pub struct Push {
    #[command(flatten)]
    given: Given,
    /// What is said of the version: a TOML file with owner, license, intended_use, notes, metrics, evaluations
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    /// The version that it was made from
    #[arg(long, value_name = "VERSION")]
    parent: Option<u64>,
    /// The job that trained it
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Data that it learned from; again for more
    #[arg(long, value_name = "DATA")]
    trained_on: Vec<String>,
    /// A number that it was measured by: NAME=0.93; again for more
    #[arg(long = "metric", value_name = "NAME=X")]
    metrics: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Pull {
    /// The version: NAME@3 or NAME@ALIAS; a plain name is the one in production
    model: String,
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Tag {
    /// The version: NAME@3; with --remove, the model's name
    model: String,
    /// The alias, such as `canary`; `production` is what the plain name means, on every node at once
    alias: String,
    /// Take the alias away
    #[arg(long)]
    remove: bool,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

impl Push {
    /// The file's card, with what the command line says over it.
    fn card(&self) -> CommandResult<Card> {
        let mut card = match &self.card {
            Some(file) => {
                let read = |e: &dyn std::fmt::Display| anyhow::anyhow!("{}: {e}", file.display());
                let text = std::fs::read_to_string(file).map_err(|e| read(&e)).exit_with(ExitCode::Usage)?;
                toml::from_str(&text).map_err(|e| read(&e)).exit_with(ExitCode::Configuration)?
            }
            None => Card::default(),
        };
        card.parent = self.parent.or(card.parent);
        card.job = self.job.clone().or(card.job);
        card.data.extend(self.trained_on.iter().cloned());
        for metric in &self.metrics {
            let (name, value) = metric.split_once('=').ok_or_else(|| usage(format!("--metric {metric}: NAME=X")))?;
            let value = value.parse().map_err(|e| usage(format!("--metric {metric}: {e}")))?;
            card.metrics.insert(name.to_owned(), value);
        }
        card.check().map_err(anyhow::Error::from).exit_with(ExitCode::Configuration)?;
        Ok(card)
    }
}

pub fn push(global: &Global, args: &Push) -> CommandResult {
    let card = args.card()?;
    let card = if card == Card::default() { String::new() } else { serde_json::to_string(&card)? };
    catalogue::give(global, &args.given, ModelAddHeader { push: true, card, ..ModelAddHeader::default() })
}

#[derive(Serialize)]
struct Versions {
    model: String,
    versions: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    version: u64,
    aliases: Vec<String>,
    digest: String,
    /// Of the file that was given.
    source: String,
    bytes: u64,
    added_ms: u64,
    card: Card,
}

fn line(info: VersionInfo) -> CommandResult<Line> {
    let hex = |bytes: &bytes::Bytes| Digest::try_from(bytes).map_or_else(|_| String::new(), |d| d.to_string());
    let entry = info.entry.unwrap_or_default();
    Ok(Line {
        version: entry.version,
        aliases: info.aliases,
        digest: hex(&entry.model),
        source: hex(&info.source),
        bytes: entry.bytes,
        added_ms: info.added_ms,
        card: if info.card.is_empty() { Card::default() } else { serde_json::from_str(&info.card)? },
    })
}

fn print(global: &Global, reply: VersionListReply) -> CommandResult {
    let lines = reply.versions.into_iter().map(line).collect::<CommandResult<Vec<_>>>()?;
    global.output().data(&Versions { model: reply.model, versions: lines }, |of| {
        let row = |line: &Line| {
            let card = &line.card;
            let metrics: Vec<String> = card.metrics.iter().map(|(name, value)| format!("{name} {value}")).collect();
            let parent = card.parent.map_or_else(String::new, |parent| parent.to_string());
            vec![
                format!("{}@{}", of.model, line.version),
                line.aliases.join(", "),
                line.digest.chars().take(12).collect(),
                output::bytes(line.bytes),
                parent,
                metrics.join(", "),
            ]
        };
        let rows: Vec<Vec<String>> = of.versions.iter().map(row).collect();
        output::table(&["version", "aliases", "digest", "bytes", "made from", "metrics"], &rows)
    })
}

/// Lists the versions of a model.
pub async fn list(global: &Global, node: &mut LocalClient<Channel>, model: &str) -> CommandResult {
    let reply = node.version_list(ModelShowRequest { model: model.to_owned() }).await;
    print(global, reply.map_err(|s| client::refused(&s))?.into_inner())
}

pub fn tag(global: &Global, args: &Tag) -> CommandResult {
    let (model, version) = match (args.remove, split_version(&args.model)) {
        (true, (name, _)) => (name, 0),
        (false, (name, Some(version))) => match version.parse() {
            Ok(version @ 1..) => (name, version),
            _ => return Err(usage(format!("`{version}` is no version; they are 1, 2, 3 and so on"))),
        },
        (false, (name, None)) => return Err(usage(format!("which version? {name}@1, for example"))),
    };
    let request = VersionTagRequest { model: model.to_owned(), version, alias: args.alias.clone() };
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        print(global, node.version_tag(request).await.map_err(|s| client::refused(&s))?.into_inner())
    })
}

#[derive(Serialize)]
struct Pulled {
    file: PathBuf,
    digest: String,
    bytes: u64,
}

pub fn pull(global: &Global, args: &Pull) -> CommandResult {
    let out = args.out.clone().unwrap_or_else(|| format!("{}.onnx", output::file_name(&args.model)).into());
    super::block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let asked = ModelShowRequest { model: args.model.clone() };
        let mut chunks = node.version_fetch(asked).await.map_err(|s| client::refused(&s))?.into_inner();
        // Beside it first: what is broken off leaves what was there.
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or_else(|| std::path::Path::new(".")))
            .with_context(|| format!("cannot write {}", out.display()))?;
        let (mut hasher, mut bytes, mut total) = (blake3::Hasher::new(), 0u64, 0);
        while let Some(chunk) = chunks.message().await.map_err(|s| client::refused(&s))? {
            hasher.update(&chunk.data);
            file.write_all(&chunk.data).with_context(|| format!("cannot write {}", out.display()))?;
            (bytes, total) = (bytes + chunk.data.len() as u64, chunk.total);
        }
        if bytes != total {
            return Err(anyhow::anyhow!("{bytes} of {total} bytes came")).exit_with(ExitCode::Failure);
        }
        file.persist(&out).with_context(|| format!("cannot write {}", out.display()))?;
        let digest = hasher.finalize().to_hex().to_string();
        global.output().data(&Pulled { file: out, digest, bytes }, |pulled| {
            let (file, digest) = (pulled.file.display(), infer::short(&pulled.digest));
            format!("{file}  {digest}  {}", output::bytes(pulled.bytes))
        })
    })
}
