//! `tierline app`: who may ask nodes as an application.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tierline_identity::{Identity, KeyRequest, certificate_pem};
use tierline_proto::v1::{AppCreateReply, AppCreateRequest, AppRequest, AppTokenRequest, Application, Empty};
use tierline_store::disk::{Existing, create_private_folder, write_atomically};

use super::infer::parse_time;
use super::site::{Target, until};
use super::{Global, block_on, client, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Subcommand)]
pub enum AppVerb {
    /// Give an application an identity: a token, or a certificate
    Create(Create),
    /// List applications, and what they may do
    Ls(Target),
    /// Give an application another token, or a certificate
    Token(Token),
    /// Shut an application out: what it shows is refused everywhere from now on
    Rm(Rm),
}

/// How long what an application shows counts, unless told otherwise.
const VALID_DEFAULT: &str = "90 d";

#[derive(Debug, clap::Args)]
pub struct Create {
    /// Its name: lower-case letters, digits and hyphens
    name: String,
    /// A model that it may use, or a pattern as in `detector*` (repeat for more); '*': all
    #[arg(long = "model", value_name = "PATTERN")]
    models: Vec<String>,
    /// It may look at dashboards and numbers
    #[arg(long)]
    dashboard: bool,
    /// Requests per second that each node answers it; any number when left out
    #[arg(long, value_name = "PER-SECOND")]
    rate: Option<f64>,
    /// Requests at once, after a quiet time; a second's worth when left out
    #[arg(long, value_name = "REQUESTS", requires = "rate")]
    burst: Option<u32>,
    #[command(flatten)]
    given: Given,
}

#[derive(Debug, clap::Args)]
pub struct Token {
    /// The application's name or id
    application: String,
    /// End its earlier tokens behind this time, as in `1 h`; `0 s`: at once
    #[arg(long, value_parser = parse_time, value_name = "TIME")]
    earlier_end_in: Option<Duration>,
    #[command(flatten)]
    given: Given,
}

/// What an application is given, and where.
#[derive(Debug, clap::Args)]
pub struct Given {
    /// How long it counts, as in `90 d`
    #[arg(long, default_value = VALID_DEFAULT, value_parser = parse_time, value_name = "TIME")]
    valid: Duration,
    /// A certificate in place of a token: key.pem, certificate.pem and ca.pem in this folder
    #[arg(long, value_name = "FOLDER")]
    certificate: Option<PathBuf>,
    /// Write the authority's certificate to this file, by which applications know nodes
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub struct Rm {
    /// The application's name or id
    application: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Serialize)]
struct Issued {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    not_after_s: u64,
}

#[derive(Serialize)]
struct Apps {
    applications: Vec<App>,
    /// When the list was signed that the node knows.
    signed_s: u64,
}

#[derive(Serialize)]
struct App {
    id: String,
    name: String,
    models: Vec<String>,
    dashboard: bool,
    /// 0: any number.
    rate_per_s: f64,
    burst: u32,
    /// Ends of its tokens.
    tokens_not_after_s: Vec<u64>,
    /// End of its newest certificate, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_not_after_s: Option<u64>,
    since_s: u64,
}

pub fn app(global: &Global, verb: AppVerb) -> CommandResult {
    block_on(async {
        match verb {
            AppVerb::Create(args) => create(global, args).await,
            AppVerb::Token(args) => token(global, args).await,
            AppVerb::Ls(target) => list(global, &target).await,
            AppVerb::Rm(args) => {
                let mut node = client::connect(global, args.target.endpoint()).await?;
                let request = AppRequest { application: args.application.clone() };
                node.app_revoke(request).await.map_err(|s| client::refused(&s))?;
                global.output().say(format!("{} is shut out of the site", args.application));
                Ok(())
            }
        }
    })
}

async fn create(global: &Global, args: Create) -> CommandResult {
    let rate = args.rate.unwrap_or(0.0);
    if args.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
        return Err(usage("a rate is a number of requests per second above 0; leave it out for any number"));
    }
    if args.models.is_empty() && !args.dashboard {
        return Err(usage("say what it may do: --model PATTERN, as in --model 'detector*', or --dashboard"));
    }
    let request = args.given.key()?;
    let wanted = AppCreateRequest {
        application: Some(Application {
            name: args.name,
            models: args.models,
            dashboard: args.dashboard,
            rate_per_s: rate,
            burst: args.burst.unwrap_or_else(|| rate.ceil().clamp(1.0, f64::from(u32::MAX)) as u32),
            ..Application::default()
        }),
        valid_s: args.given.valid_s(),
        csr_der: csr(request.as_ref())?,
    };
    let mut node = client::connect(global, args.given.target.endpoint()).await?;
    let reply = node.app_create(wanted).await.map_err(|s| client::refused(&s))?.into_inner();
    args.given.hand_out(global, reply, request)
}

async fn token(global: &Global, args: Token) -> CommandResult {
    let request = args.given.key()?;
    let wanted = AppTokenRequest {
        application: args.application,
        valid_s: args.given.valid_s(),
        csr_der: csr(request.as_ref())?,
        earlier_end_in_s: args.earlier_end_in.map(|time| time.as_secs()),
    };
    let mut node = client::connect(global, args.given.target.endpoint()).await?;
    let reply = node.app_token(wanted).await.map_err(|s| client::refused(&s))?.into_inner();
    args.given.hand_out(global, reply, request)
}

fn csr(request: Option<&KeyRequest>) -> CommandResult<bytes::Bytes> {
    match request {
        Some(request) => Ok(request.csr_der().exit_with(ExitCode::Failure)?.into()),
        None => Ok(bytes::Bytes::new()),
    }
}

impl Given {
    fn valid_s(&self) -> u64 {
        self.valid.as_secs().max(1)
    }

    /// A new key, where a certificate is wanted; the folder is tried first.
    fn key(&self) -> CommandResult<Option<KeyRequest>> {
        let Some(folder) = &self.certificate else { return Ok(None) };
        create_private_folder(folder).map_err(|e| not_written(folder, &e))?;
        let key = folder.join("key.pem");
        if key.exists() {
            return Err(usage(format!("{} is there already: name another folder", key.display())));
        }
        Ok(Some(KeyRequest::generate().exit_with(ExitCode::Failure)?))
    }

    fn hand_out(&self, global: &Global, reply: AppCreateReply, request: Option<KeyRequest>) -> CommandResult {
        if let Some(file) = &self.ca {
            write(file, &certificate_pem(&reply.ca_der), 0o644, Existing::Replace)?;
        }
        let mut issued = Issued { id: reply.id, token: None, certificate: None, not_after_s: reply.not_after_s };
        match (request, &self.certificate) {
            (Some(request), Some(folder)) => {
                let chain = reply.certificate_chain.iter().map(|c| CertificateDer::from(c.to_vec())).collect();
                let ca = CertificateDer::from(reply.ca_der.to_vec());
                let identity: Identity =
                    request.accept(chain, ca, SystemTime::now()).exit_with(ExitCode::Verification)?;
                write(&folder.join("ca.pem"), &identity.ca_pem(), 0o644, Existing::Replace)?;
                write(&folder.join("certificate.pem"), &identity.chain_pem(), 0o644, Existing::Replace)?;
                write(&folder.join("key.pem"), &identity.key_pem(), 0o600, Existing::Keep)?;
                issued.certificate = Some(folder.join("certificate.pem").display().to_string());
            }
            _ => issued.token = Some(reply.token),
        }
        global.output().data(&issued, |i| i.token.clone().or_else(|| i.certificate.clone()).unwrap_or_default())
    }
}

fn write(file: &Path, text: &str, mode: u32, existing: Existing) -> CommandResult {
    write_atomically(file, text.as_bytes(), mode, existing).map_err(|e| not_written(file, &e))
}

fn not_written(file: &Path, error: &std::io::Error) -> CommandError {
    CommandError::message(ExitCode::Failure, format!("cannot write {}: {error}", file.display()))
}

async fn list(global: &Global, target: &Target) -> CommandResult {
    let mut node = client::connect(global, target.endpoint()).await?;
    let reply = node.app_list(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
    let app = |of: Application| App {
        id: of.id,
        name: of.name,
        models: of.models,
        dashboard: of.dashboard,
        rate_per_s: of.rate_per_s,
        burst: of.burst,
        tokens_not_after_s: of.tokens.iter().map(|token| token.not_after_s).collect(),
        certificate_not_after_s: of.certificate.then_some(of.certificate_not_after_s),
        since_s: of.since_s,
    };
    let apps = Apps { applications: reply.applications.into_iter().map(app).collect(), signed_s: reply.signed_s };
    global.output().data(&apps, |apps| {
        let row = |app: &App| {
            let mut shows: Vec<String> =
                app.tokens_not_after_s.iter().map(|end| format!("token {}", until(*end))).collect();
            shows.extend(app.certificate_not_after_s.map(|end| format!("certificate {}", until(end))));
            let mut may = app.models.clone();
            may.extend(app.dashboard.then(|| "(dashboard)".to_owned()));
            let rate = match app.rate_per_s {
                0.0 => "-".to_owned(),
                rate => format!("{rate}/s, {} at once", app.burst),
            };
            vec![app.name.clone(), may.join(" "), rate, shows.join(", ")]
        };
        output::table(&["name", "may use", "rate", "valid for"], &apps.applications.iter().map(row).collect::<Vec<_>>())
    })
}
