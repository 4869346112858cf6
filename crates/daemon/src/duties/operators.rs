//! Operators and applications: everything the command line asks of a node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::limits::MODEL_FILES_MAX;
use tierline_proto::v1::local_server::{Local, LocalServer};
use tierline_proto::v1::{
    AppCreateReply, AppCreateRequest, AppListReply, AppRequest, AppTokenRequest, AuditReply, AuditRequest, Code,
    ConfigReply, DrainRequest, Empty, Event, ExampleListReply, ExampleListRequest, ExampleRemoveReply, ExampleRequest,
    Failure, InferChunk, JobControlRequest, JobInfo, JobListReply, JobRequest, JobSubmitChunk, LogFilterReply,
    LogFilterRequest, MetricsReply, ModelAddChunk, ModelAddReply, ModelListReply, ModelRemoveRequest,
    ModelRenameRequest, ModelShowReply, ModelShowRequest, NodeRemoveRequest, NodeRenameRequest, NodeRevokeRequest,
    NodeStatus, NodesReply, PlanReply, PlanRequest, ProfileProgress, ProfileRequest, RolloutControlRequest,
    RolloutInfo, RolloutListReply, RolloutRequest, RolloutStartRequest, TaskListReply, TokenCreateReply,
    TokenCreateRequest, TokenListReply, TokenRevokeRequest, VersionListReply, VersionTagRequest, WatchRequest,
    model_add_chunk,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status, Streaming};

use super::applications::Identities;
use super::artefacts::upload::Uploaded;
use super::artefacts::{Artefacts, upload};
use super::catalogue::{Catalogue, Composed, SERVICE_FILE, versions};
use super::enrolment::Enrolment;
use super::federation::{Jobs, watching};
use super::inference::{self, Inference};
use super::json;
use super::planning::Planning;
use super::profiling::Profiling;
use super::rollout::Rollouts;
use super::services::{Services, examples};
use super::site::Site;
use crate::net::door;
use crate::net::gate::{self, Door};
use crate::runtime::audit::{Entry, Kind};
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::{Context, numbers, tasks};

/// Messages of a stream ahead of the connection.
const AHEAD_MAX: usize = 8;

/// Messages between a node and its operator carry plans and profiles whole.
const LOCAL_MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Lines of the audit log in one answer, unless told otherwise, and at most.
const AUDITED_DEFAULT: usize = 100;
const AUDITED_MAX: usize = 10_000;

/// Its line in the registry; each call's rule is stated by the duty that answers, and here where that is the node
/// itself.
pub const DUTY: Registration = Registration {
    name: "operators",
    tables: &[],
    rules: &[
        Rule::new("/tierline.v1.Local/Audit", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/LogFilter", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/Config", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/TaskList", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| Box::new(LocalService::new(assembly)),
};

/// The service, and the duties that answer its calls.
#[derive(Clone)]
pub struct LocalService {
    cx: Context,
    site: Arc<Site>,
    enrolment: Arc<Enrolment>,
    identities: Arc<Identities>,
    artefacts: Arc<Artefacts>,
    catalogue: Arc<Catalogue>,
    planning: Arc<Planning>,
    profiling: Arc<Profiling>,
    inference: Arc<Inference>,
    services: Arc<Services>,
    federation: Arc<Jobs>,
    rollouts: Arc<Rollouts>,
}

impl LocalService {
    fn new(assembly: &Assembly) -> Self {
        Self {
            cx: assembly.cx.clone(),
            site: assembly.get(),
            enrolment: assembly.get(),
            identities: assembly.get(),
            artefacts: assembly.get(),
            catalogue: assembly.get(),
            planning: assembly.get(),
            profiling: assembly.get(),
            inference: assembly.get(),
            services: assembly.get(),
            federation: assembly.get(),
            rollouts: assembly.get(),
        }
    }
}

/// An operator's deed, for the audit log.
struct By<'s> {
    service: &'s LocalService,
    entry: Entry,
}

impl LocalService {
    /// Who asks, and for what.
    fn by<T>(&self, request: &Request<T>, call: &str) -> By<'_> {
        let peer = gate::caller(request).ok();
        let address = request.extensions().get::<door::Caller>().map(|caller| caller.address.to_string());
        let entry = Entry {
            // Whoever may open the node's socket.
            who: peer.as_ref().map_or_else(|| "socket".to_owned(), |peer| peer.name.clone()),
            id: peer.map_or_else(String::new, |peer| peer.id),
            address: address.unwrap_or_default(),
            call: call.to_owned(),
            of: String::new(),
            code: String::new(),
        };
        By { service: self, entry }
    }
}

impl By<'_> {
    /// What was done to what, and what came of it.
    fn kept<T>(self, of: &str, done: Result<T, Failure>) -> Reply1<T> {
        let code = done.as_ref().map_or_else(|failure| failure.code().as_str_name(), |_| "ok");
        let code = code.trim_start_matches("CODE_").to_lowercase();
        let entry = Entry { of: of.to_owned(), code, ..self.entry };
        tasks::in_place(|| self.service.cx.audit.record(Kind::Operators, entry));
        Ok(Response::new(done?))
    }
}

impl Duty for LocalService {
    fn serve(&self, door: Door, routes: &mut RoutesBuilder) {
        if door != Door::Strangers {
            let service = LocalServer::new(self.clone());
            routes.add_service(service.max_decoding_message_size(LOCAL_MESSAGE_BYTES_MAX));
        }
    }
}

type Reply1<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Local for LocalService {
    type ProfileStream = ReceiverStream<Result<ProfileProgress, Status>>;
    type InferStream = inference::Answered;
    type WatchStream = ReceiverStream<Result<Event, Status>>;
    type JobWatchStream = watching::Events;
    type JobModelStream = watching::Model;
    type VersionFetchStream = versions::Sent;
    type ExampleFetchStream = examples::Sent;

    async fn status(&self, _: Request<Empty>) -> Reply1<NodeStatus> {
        Ok(Response::new(self.site.status().await))
    }

    async fn nodes(&self, _: Request<Empty>) -> Reply1<NodesReply> {
        Ok(Response::new(self.site.nodes()))
    }

    async fn token_create(&self, request: Request<TokenCreateRequest>) -> Reply1<TokenCreateReply> {
        let by = self.by(&request, "token create");
        let created = self.enrolment.the_authority()?.token_create(&request.into_inner()).await;
        let id = created.as_ref().map_or_else(|_| String::new(), |made| made.token_id.clone());
        by.kept(&id, created)
    }

    async fn token_list(&self, _: Request<Empty>) -> Reply1<TokenListReply> {
        Ok(Response::new(self.enrolment.the_authority()?.token_list().await?))
    }

    async fn token_revoke(&self, request: Request<TokenRevokeRequest>) -> Reply1<Empty> {
        let by = self.by(&request, "token rm");
        let TokenRevokeRequest { token_id } = request.into_inner();
        by.kept(&token_id, self.enrolment.the_authority()?.token_revoke(&token_id).await.map(|()| Empty {}))
    }

    async fn node_revoke(&self, request: Request<NodeRevokeRequest>) -> Reply1<Empty> {
        let by = self.by(&request, "nodes revoke");
        let request = request.into_inner();
        by.kept(&request.node, self.enrolment.node_revoke(&request).await.map(|()| Empty {}))
    }

    async fn node_remove(&self, request: Request<NodeRemoveRequest>) -> Reply1<Empty> {
        let by = self.by(&request, "nodes rm");
        let request = request.into_inner();
        by.kept(&request.node, self.site.node_remove(&request).await.map(|()| Empty {}))
    }

    async fn node_rename(&self, request: Request<NodeRenameRequest>) -> Reply1<Empty> {
        let by = self.by(&request, "nodes rename");
        let request = request.into_inner();
        by.kept(&request.node, self.enrolment.node_rename(&request).await.map(|()| Empty {}))
    }

    async fn app_create(&self, request: Request<AppCreateRequest>) -> Reply1<AppCreateReply> {
        let by = self.by(&request, "app create");
        let request = request.into_inner();
        let name = request.application.as_ref().map_or_else(String::new, |of| of.name.clone());
        by.kept(&name, self.identities.create(request).await)
    }

    async fn app_list(&self, _: Request<Empty>) -> Reply1<AppListReply> {
        Ok(Response::new(self.identities.list()))
    }

    async fn app_token(&self, request: Request<AppTokenRequest>) -> Reply1<AppCreateReply> {
        let by = self.by(&request, "app token");
        let request = request.into_inner();
        by.kept(&request.application, self.identities.token(&request).await)
    }

    async fn app_revoke(&self, request: Request<AppRequest>) -> Reply1<Empty> {
        let by = self.by(&request, "app rm");
        let AppRequest { application } = request.into_inner();
        by.kept(&application, self.identities.revoke(&application).await.map(|()| Empty {}))
    }

    async fn audit(&self, request: Request<AuditRequest>) -> Reply1<AuditReply> {
        let AuditRequest { last, kind, application } = request.into_inner();
        let wanted = Kind::ALL.into_iter().find(|of| of.word() == kind);
        if wanted.is_none() && !kind.is_empty() {
            let text = "the audit log has operators, requests and refusals";
            return Err(Failure::new(Code::InvalidInput, text).into());
        }
        let last = if last == 0 { AUDITED_DEFAULT } else { (last as usize).min(AUDITED_MAX) };
        let audit = self.cx.audit.clone();
        let read = self.cx.tasks.blocking("audit read", move || audit.last(wanted, &application, last)).await?;
        let lines = read.map_err(|e| Failure::new(Code::Internal, format!("the audit log can't be read: {e}")))?;
        Ok(Response::new(AuditReply { lines }))
    }

    async fn log_filter(&self, request: Request<LogFilterRequest>) -> Reply1<LogFilterReply> {
        let by = self.by(&request, "node log");
        let LogFilterRequest { filter } = request.into_inner();
        let changes = !filter.is_empty();
        let set = self.cx.filter.set(filter.clone()).await.map(|filter| LogFilterReply { filter });
        if changes { by.kept(&filter, set) } else { Ok(Response::new(set?)) }
    }

    async fn config(&self, _: Request<Empty>) -> Reply1<ConfigReply> {
        let toml = self.cx.me.config().in_force(self.cx.me.role(), &self.cx.device);
        let toml = toml.map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        Ok(Response::new(ConfigReply { toml }))
    }

    async fn task_list(&self, _: Request<Empty>) -> Reply1<TaskListReply> {
        Ok(Response::new(TaskListReply { tasks: self.cx.tasks.list() }))
    }

    async fn model_list(&self, _: Request<Empty>) -> Reply1<ModelListReply> {
        let mut models = Vec::new();
        for entry in self.catalogue.known.list() {
            models.push(self.catalogue.info(&entry).await?);
        }
        let services = self.catalogue.known.services().iter().map(Composed::info).collect();
        Ok(Response::new(ModelListReply { models, services }))
    }

    async fn model_show(&self, request: Request<ModelShowRequest>) -> Reply1<ModelShowReply> {
        let name = request.into_inner().model;
        if let Some(composed) = self.catalogue.known.service(&name) {
            let service_json = json(composed.service.as_ref())?;
            return Ok(Response::new(ModelShowReply { service_json, ..ModelShowReply::default() }));
        }
        let entry = self.catalogue.entry(&name)?;
        let profile = self.catalogue.known.profile(entry.model);
        Ok(Response::new(ModelShowReply {
            info: Some(self.catalogue.info(&entry).await?),
            manifest_json: json(&entry.manifest)?,
            profile_json: profile.map_or(Ok(String::new()), |p| json(p.as_ref()))?,
            service_json: String::new(),
        }))
    }

    async fn model_add(&self, request: Request<Streaming<ModelAddChunk>>) -> Reply1<ModelAddReply> {
        let mut stream = request.into_inner();
        let Some(ModelAddChunk { body: Some(model_add_chunk::Body::Header(header)) }) = stream.message().await? else {
            return Err(Failure::new(Code::Protocol, "adding a model begins with its header").into());
        };
        if header.files.len() > MODEL_FILES_MAX {
            let text = format!("{} files; at most {MODEL_FILES_MAX} are taken", header.files.len());
            return Err(Failure::new(Code::TooLarge, text).into());
        }
        // Refused before anything is sent, where that is known.
        self.catalogue.check_new_model(&header)?;
        let lengths: Vec<u64> = header.files.iter().map(|file| file.length).collect();
        let uploads = upload::take(&self.artefacts, &mut stream, &lengths, |chunk| match chunk.body {
            Some(model_add_chunk::Body::Data(data)) => Some(data),
            _ => None,
        });
        let mut uploads = uploads.await?;
        if header.files.first().is_some_and(|file| file.name == SERVICE_FILE) {
            let text = uploads.files.first_mut().map_or(Ok(Bytes::new()), Uploaded::read)?;
            let text = std::str::from_utf8(&text).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))?;
            let composed = self.catalogue.add_service(&header.name, text, header.replace).await?;
            return Ok(Response::new(ModelAddReply { service: Some(composed.message()), ..ModelAddReply::default() }));
        }
        let entry = self.catalogue.add_model(header, uploads).await?;
        Ok(Response::new(ModelAddReply { entry: Some(entry.message()), ..ModelAddReply::default() }))
    }

    async fn model_remove(&self, request: Request<ModelRemoveRequest>) -> Reply1<Empty> {
        let name = request.into_inner().model;
        match self.catalogue.known.service(&name).filter(|_| self.cx.parents.is_empty()) {
            Some(composed) => self.catalogue.remove_service(&composed).await?,
            None => self.catalogue.remove_model(&name).await?,
        }
        Ok(Response::new(Empty {}))
    }

    async fn model_rename(&self, request: Request<ModelRenameRequest>) -> Reply1<ModelAddReply> {
        let ModelRenameRequest { model, name } = request.into_inner();
        if let Some(composed) = self.catalogue.known.service(&model).filter(|_| self.cx.parents.is_empty()) {
            let renamed = self.catalogue.rename_service(&composed, &name).await?;
            return Ok(Response::new(ModelAddReply { service: Some(renamed.message()), ..ModelAddReply::default() }));
        }
        let entry = self.catalogue.rename_model(&model, &name).await?;
        Ok(Response::new(ModelAddReply { entry: Some(entry.message()), ..ModelAddReply::default() }))
    }

    async fn version_list(&self, request: Request<ModelShowRequest>) -> Reply1<VersionListReply> {
        Ok(Response::new(self.catalogue.versions(&request.into_inner().model).await?))
    }

    async fn version_tag(&self, request: Request<VersionTagRequest>) -> Reply1<VersionListReply> {
        let VersionTagRequest { model, version, alias } = request.into_inner();
        self.catalogue.tag(&model, version, &alias).await?;
        Ok(Response::new(self.catalogue.versions(&model).await?))
    }

    async fn version_fetch(&self, request: Request<ModelShowRequest>) -> Reply1<Self::VersionFetchStream> {
        Ok(Response::new(self.catalogue.fetch_version(&request.into_inner().model).await?))
    }

    async fn profile(&self, request: Request<ProfileRequest>) -> Reply1<Self::ProfileStream> {
        let entry = self.catalogue.entry(&request.into_inner().model)?;
        Ok(Response::new(self.profiling.measure_aloud(entry)))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Reply1<PlanReply> {
        let request = request.into_inner();
        if let Some(reply) = self.services.explain(&request).await? {
            return Ok(Response::new(reply));
        }
        let entry = self.catalogue.entry(&request.model)?;
        self.planning.have(&entry).await?;
        Ok(Response::new(self.planning.plan_now(&entry, &request, false)?))
    }

    async fn explain(&self, request: Request<PlanRequest>) -> Reply1<PlanReply> {
        let request = request.into_inner();
        if let Some(reply) = self.services.explain(&request).await? {
            return Ok(Response::new(reply));
        }
        let entry = self.catalogue.entry(&request.model)?;
        self.planning.have(&entry).await?;
        Ok(Response::new(self.planning.plan_now(&entry, &request, true)?))
    }

    async fn infer(&self, request: Request<Streaming<InferChunk>>) -> Reply1<Self::InferStream> {
        inference::infer(&self.inference, request).await
    }

    async fn job_submit(&self, request: Request<Streaming<JobSubmitChunk>>) -> Reply1<JobInfo> {
        Ok(Response::new(watching::submit(&self.federation, request.into_inner()).await?))
    }

    async fn job_list(&self, _: Request<Empty>) -> Reply1<JobListReply> {
        Ok(Response::new(JobListReply { jobs: self.federation.job_list().await? }))
    }

    async fn job_show(&self, request: Request<JobRequest>) -> Reply1<JobInfo> {
        Ok(Response::new(self.federation.job_info(&request.into_inner().job).await?))
    }

    async fn job_control(&self, request: Request<JobControlRequest>) -> Reply1<JobInfo> {
        Ok(Response::new(watching::control(&self.federation, &request.into_inner()).await?))
    }

    async fn job_watch(&self, request: Request<JobRequest>) -> Reply1<Self::JobWatchStream> {
        Ok(Response::new(watching::watch(&self.federation, &request.into_inner().job).await?))
    }

    async fn rollout_start(&self, request: Request<RolloutStartRequest>) -> Reply1<RolloutInfo> {
        Ok(Response::new(self.rollouts.the_fleets()?.start(request.into_inner().spec).await?))
    }

    async fn rollout_list(&self, _: Request<Empty>) -> Reply1<RolloutListReply> {
        Ok(Response::new(RolloutListReply { rollouts: self.rollouts.the_fleets()?.list()? }))
    }

    async fn rollout_show(&self, request: Request<RolloutRequest>) -> Reply1<RolloutInfo> {
        Ok(Response::new(self.rollouts.the_fleets()?.show(&request.into_inner().rollout)?))
    }

    async fn rollout_control(&self, request: Request<RolloutControlRequest>) -> Reply1<RolloutInfo> {
        let request = request.into_inner();
        let what = request.what();
        Ok(Response::new(self.rollouts.the_fleets()?.control(request.rollout, what).await?))
    }

    async fn job_model(&self, request: Request<JobRequest>) -> Reply1<Self::JobModelStream> {
        Ok(Response::new(watching::model(&self.federation, &request.into_inner().job).await?))
    }

    async fn example_list(&self, request: Request<ExampleListRequest>) -> Reply1<ExampleListReply> {
        Ok(Response::new(self.services.example_list(request.into_inner()).await?))
    }

    async fn example_fetch(&self, request: Request<ExampleRequest>) -> Reply1<Self::ExampleFetchStream> {
        Ok(Response::new(self.services.example_fetch(request.into_inner().example).await?))
    }

    async fn example_remove(&self, request: Request<ExampleListRequest>) -> Reply1<ExampleRemoveReply> {
        Ok(Response::new(self.services.example_remove(request.into_inner()).await?))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Reply1<Empty> {
        self.cx.drain(Duration::from_millis(request.into_inner().grace_ms.into()));
        Ok(Response::new(Empty {}))
    }

    async fn metrics(&self, _: Request<Empty>) -> Reply1<MetricsReply> {
        Ok(Response::new(MetricsReply { text: numbers::text(&self.cx) }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Reply1<Self::WatchStream> {
        let WatchRequest { kinds, past_only } = request.into_inner();
        let (past, mut feed) = self.cx.events.subscribe();
        let told = self.cx.tasks.stream("event watch", AHEAD_MAX, |send| async move {
            let wanted = |e: &Event| kinds.is_empty() || kinds.contains(&e.kind);
            for event in past.into_iter().filter(wanted) {
                if send.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if past_only {
                return;
            }
            loop {
                match feed.recv().await {
                    Ok(event) if wanted(&event) => {
                        if send.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                    // A slow watcher misses events rather than slowing the node.
                    Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        Ok(Response::new(told))
    }
}
