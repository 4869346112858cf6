//! `tierline serve`: models for applications, from one process, with nothing
//! to set up: a site of one node that lasts as long as the command, or whose
//! identities are kept in a folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;
use tierline_daemon::config::{self, NodeConfig, Required, ServeConfig, Tls, TracesConfig};
use tierline_daemon::runtime::start::{self as daemon, Notice};
use tierline_graph::{Dim, Model};
use tierline_identity::Identity;
use tierline_proto::Role;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{Empty, InputShape, ModelAddHeader, ModelFile, ModelRemoveRequest};
use tierline_store::disk::create_private_folder;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::{Global, args, block_on, catalogue, client, engines, usage};
use crate::logging::{Format, Log};
use crate::output::{CommandError, CommandResult, ExitCode};

#[derive(Debug, clap::Args)]
pub struct Serve {
    /// ONNX files, or folders of them
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The name that a model is asked for by, in the order of the files; else the file's
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Address for HTTP, or `off`
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8000")]
    http: String,
    /// Address for gRPC, or `off`
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8001")]
    grpc: String,
    /// Serve anybody who reaches an address beyond this machine
    #[arg(long)]
    open: bool,
    /// Keep the identities of applications in this folder, and the models' measurements;
    /// `tierline --data DIR app create` makes tokens and certificates
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Who has to show an identity: callers from beyond this machine, or all
    #[arg(long, value_enum, value_name = "WHO", requires = "keep")]
    require: Option<Who>,
    /// Where TLS ends: here, at a proxy in front, or nowhere
    #[arg(long, value_enum, value_name = "WHERE")]
    tls: Option<Ends>,
    /// A certificate that clients trust, and those that signed it (PEM); else the node's own
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// That certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// A collector of traces that speaks OTLP over gRPC: http://HOST:4317
    #[arg(long, value_name = "URL")]
    traces: Option<String>,
    /// Share of requests that are traced of those whose caller doesn't say, 0 to 1
    #[arg(long, value_name = "SHARE", requires = "traces", default_value_t = TracesConfig::default().share)]
    trace_share: f64,
    /// Sizes to measure for, where inputs have free axes: NAME=1,3,640,640; else 1
    #[arg(long = "shape", value_name = "NAME=DIMS")]
    shapes: Vec<String>,
    /// Threads within an operator; 0 takes every core
    #[arg(long, default_value = "0")]
    threads: usize,
}

/// Who has to show an identity.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Who {
    Network,
    All,
}

/// Where TLS ends.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Ends {
    Own,
    Front,
    None,
}

/// A site of one node is called so.
const NAME: &str = "serve";

/// Everything is there.
#[derive(Debug, Serialize)]
struct Serving<'s> {
    event: &'static str,
    http: &'s Option<String>,
    grpc: &'s Option<String>,
    models: Vec<&'s str>,
}

pub fn serve(global: &Global, args: &Serve) -> CommandResult {
    let models = named(args)?;
    let shapes = args::shapes(&args.shapes)?;
    let folder = Folder::of(args)?;
    let config = config(global, args, folder.path())?;
    let log = Log::start(Some("warn"), Format::Text, global.output())?;
    let (ready, is_ready) = oneshot::channel();
    let ready = RefCell::new(Some(ready));
    let notify = |notice: Notice<'_>| {
        match notice {
            Notice::Ready(node) => {
                if let Some(ready) = ready.take() {
                    let _ = ready.send((node.http.clone(), node.grpc.clone()));
                }
            }
            Notice::Note(text) if text.starts_with("warning") => log.say(text),
            Notice::Filter { wanted, in_force } => {
                if !wanted.is_empty() {
                    log.set(wanted).map_err(|failed| failed.error)?;
                }
                in_force.set(log.in_force());
            }
            Notice::Stopping => log.say("ending once what is under way is answered"),
            _ => {}
        }
        Ok(())
    };
    let own = Global { data: Some(folder.path().to_owned()), ..global.clone() };
    let fill = async {
        let Ok((http, grpc)) = is_ready.await else { return std::future::pending().await };
        let mut node = client::connect(&own, None).await?;
        leave(&mut node, &models).await?;
        for (name, path) in &models {
            let model = engines::load(global, path)?;
            let (header, bytes) = addition(name, &model, &shapes)?;
            catalogue::send(&mut node, header, vec![bytes]).await?;
        }
        let serving = Serving {
            event: "serving",
            http: &http,
            grpc: &grpc,
            models: models.iter().map(|(name, _)| name.as_str()).collect(),
        };
        if global.json {
            global.output().event(&serving)?;
        } else {
            log.say(words(&serving, args.keep.as_deref()));
        }
        std::future::pending().await
    };
    block_on(async {
        tokio::select! {
            ended = daemon::run(config, Some(Role::Cloud), notify) => {
                ended?;
                Ok(())
            }
            failed = fill => failed,
        }
    })
}

/// Where the node has its data.
enum Folder {
    /// It goes with the command.
    Passing(tempfile::TempDir),
    /// It stays.
    Kept(PathBuf),
}

impl Folder {
    fn of(args: &Serve) -> CommandResult<Self> {
        let Some(kept) = &args.keep else {
            let alone = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            return Ok(Self::Passing(tempfile::Builder::new().prefix("tierline-serve-").permissions(alone).tempdir()?));
        };
        let other = match Identity::load(&kept.join("identity"), SystemTime::now()) {
            Ok(identity) => identity.peer().role != Role::Cloud || identity.peer().name != NAME,
            // What is damaged, its start says.
            Err(_) => false,
        };
        if other || kept.join(config::FILE).exists() {
            let text = format!("{} is the data folder of a node, which serves by itself", kept.display());
            return Err(CommandError::message(ExitCode::Configuration, text)
                .hint("name a folder of its own with --keep DIR, or use `tierline node --http HOST:PORT`"));
        }
        create_private_folder(kept)?;
        // Relative to where the command began, for whoever is told of it.
        Ok(Self::Kept(std::path::absolute(kept)?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Passing(folder) => folder.path(),
            Self::Kept(folder) => folder,
        }
    }
}

fn config(global: &Global, args: &Serve, folder: &Path) -> CommandResult<NodeConfig> {
    // Where identities aren't kept, nobody could have one, and TLS is only for a certificate that clients trust.
    let tls = match args.tls {
        None if args.keep.is_none() && args.certificate.is_none() => Some(Tls::None),
        None => None,
        Some(Ends::Own) => Some(Tls::Own),
        Some(Ends::Front) => Some(Tls::Front),
        Some(Ends::None) => Some(Tls::None),
    };
    let config = NodeConfig {
        data: folder.to_owned(),
        name: NAME.to_owned(),
        // Nobody joins it.
        listen: Some("127.0.0.1:0".to_owned()),
        serve: ServeConfig {
            http: Some(args.http.clone()),
            grpc: Some(args.grpc.clone()),
            open: args.open,
            tls,
            require: args.require.map(|who| match who {
                Who::Network => Required::Network,
                Who::All => Required::All,
            }),
            certificate: args.certificate.clone(),
            key: args.key.clone(),
        },
        traces: TracesConfig { endpoint: args.traces.clone(), share: args.trace_share },
        engine: global.engine.clone(),
        threads: args.threads,
        ..NodeConfig::default()
    };
    config.check()?;
    Ok(config)
}

/// Lets go of what an earlier command served from the same folder.
async fn leave(node: &mut LocalClient<Channel>, models: &[(String, PathBuf)]) -> CommandResult {
    let known = node.model_list(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
    for model in known.models {
        let name = model.entry.unwrap_or_default().name;
        if !models.iter().any(|(wanted, _)| *wanted == name) {
            let gone = node.model_remove(ModelRemoveRequest { model: name }).await;
            gone.map_err(|s| client::refused(&s))?;
        }
    }
    Ok(())
}

fn words(serving: &Serving<'_>, kept: Option<&Path>) -> String {
    let at = |place: &Option<String>, how| place.as_ref().map(|place| format!("{how} {place}"));
    let places: Vec<String> = [at(serving.http, "HTTP"), at(serving.grpc, "gRPC")].into_iter().flatten().collect();
    let mut text = format!("serving {} at {}", serving.models.join(", "), places.join(", "));
    match (kept, serving.http, serving.models.first()) {
        (Some(kept), ..) => {
            text +=
                &format!("\nwho may ask: tierline --data {} app create NAME --model '*' --ca ca.pem", kept.display());
        }
        (None, Some(http), Some(first)) if http.starts_with("http:") => {
            text += &format!("\ntry: curl -s {http}/v2/models/{first}");
        }
        _ => {}
    }
    text
}

/// Models and their names.
fn named(args: &Serve) -> CommandResult<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for path in &args.models {
        if path.is_dir() {
            let mut inside: Vec<PathBuf> = std::fs::read_dir(path)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
                .collect();
            if inside.is_empty() {
                return Err(usage(format!("{} holds no .onnx file", path.display())));
            }
            inside.sort();
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    if args.names.len() > files.len() {
        return Err(usage(format!("{} names for {} models", args.names.len(), files.len())));
    }
    let mut names = args.names.iter();
    let mut models: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut order = Vec::new();
    for file in files {
        let name = names.next().cloned().unwrap_or_else(|| name_of(&file));
        tierline_proto::name::check_model(&name)
            .map_err(|e| usage(format!("{}: {e}", file.display())).hint("give it another with --name"))?;
        if let Some(other) = models.insert(name.clone(), file.clone()) {
            let text = format!("{} and {} are both `{name}`", other.display(), file.display());
            return Err(usage(text).hint("give them names with --name"));
        }
        order.push((name, file));
    }
    Ok(order)
}

/// A file's name as a model's.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    stem.chars().map(fit).collect()
}

/// A model as it is added: measured at 1 where an axis is free and nobody said otherwise.
fn addition(name: &str, model: &Model, given: &BTreeMap<String, Vec<u64>>) -> CommandResult<(ModelAddHeader, Bytes)> {
    let bytes = Bytes::from(model.to_bytes()?);
    let mut shapes = Vec::new();
    for input in model.inputs() {
        let free = input.shape.as_ref().map(|axes| axes.iter().map(|axis| Dim::known(axis).unwrap_or(1)).collect());
        match (given.get(&input.name).cloned(), free) {
            (Some(shape), _) | (None, Some(shape)) => shapes.push(InputShape { name: input.name, shape }),
            (None, None) => {
                let text = format!("{name}: input `{0}` doesn't say how many axes it has", input.name);
                return Err(CommandError::message(ExitCode::Usage, text)
                    .hint(format!("say what size to measure for: --shape {}=1,3,224,224", input.name)));
            }
        }
    }
    let header = ModelAddHeader {
        name: name.to_owned(),
        files: vec![ModelFile { name: "model.onnx".into(), length: bytes.len() as u64 }],
        shapes,
        // Everything runs here.
        cuts_max: 1,
        // In a folder that is kept there may be another by this name.
        replace: true,
        ..ModelAddHeader::default()
    };
    Ok((header, bytes))
}
