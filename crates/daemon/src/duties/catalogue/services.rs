//! Services in the catalogue: names made of several models. They flow down as
//! models do, by the digest of their document.

use std::collections::HashSet;

use tierline_plan::Service;
use tierline_proto::Digest;
use tierline_proto::limits::SERVICES_MAX;
use tierline_proto::v1::{Catalogue as CatalogueMessage, Code, Failure, ServiceEntry, ServiceInfo};
use tierline_store::State;

use super::known::{Composed, unknown_model};
use super::{Catalogue, is_late};
use crate::documents;
use crate::services::Wiring;

impl Catalogue {
    /// Takes in a service.
    ///
    /// # Errors
    /// When models come from above, the text is no service, its models aren't
    /// known or don't fit each other, or the name is taken.
    pub async fn add_service(&self, name: &str, text: &str, replace: bool) -> Result<Composed, Failure> {
        let invalid = |text: String| Failure::new(Code::InvalidInput, text);
        let service = Service::parse(text).map_err(|e| invalid(e.to_string()))?;
        let _turn = self.artefacts.naming.lock().await;
        let known = self.known.service(name);
        if self.known.named(name).is_some() {
            let text = format!("`{name}` already names a model");
            return Err(Failure::new(Code::AlreadyExists, text).with_help("choose another --name"));
        }
        if known.as_ref().is_some_and(|known| !replace && *known.service != service) {
            let text = format!("`{name}` already names another service");
            return Err(Failure::new(Code::AlreadyExists, text).with_help("add --replace, or choose another name"));
        }
        if known.is_none() && self.known.services().len() >= SERVICES_MAX {
            let text = format!("the site has {SERVICES_MAX} services, the most that it can");
            return Err(Failure::new(Code::TooLarge, text).with_help("remove some: `tierline model rm NAME`"));
        }
        self.check_members(name, &service, |_| false)?;
        self.wiring(&service)?;
        let document = self.artefacts.put(documents::write(&service)?.into()).await?;
        let composed = Composed { name: name.to_owned(), document, service: service.into() };
        self.adopt_service(composed.clone()).await?;
        self.tell_children();
        Ok(composed)
    }

    /// Members are models: a service within a service could lead back to itself.
    fn check_members(&self, name: &str, service: &Service, is_service: impl Fn(&str) -> bool) -> Result<(), Failure> {
        for model in service.models() {
            if model == name || is_service(model) || self.known.service(model).is_some() {
                let text = format!("member `{model}` is a service; members are models");
                return Err(Failure::new(Code::InvalidInput, text));
            }
        }
        Ok(())
    }

    /// How a service's models are connected, as they are now.
    ///
    /// # Errors
    /// When one of them isn't known here, or they don't fit each other.
    pub fn wiring(&self, service: &Service) -> Result<Wiring, Failure> {
        let manifest = |model: &str| match self.known.named(model) {
            Some(entry) => Ok(entry.manifest),
            None => Err(self.entry(model).err().unwrap_or_else(|| {
                // What is known by its digest only has no name.
                unknown_model(model, &self.known.list())
            })),
        };
        let manifests = service.members.iter().map(|member| manifest(&member.model));
        let manifests = manifests.collect::<Result<Vec<_>, _>>()?;
        Wiring::of(service, &manifests).map_err(|text| Failure::new(Code::InvalidInput, text))
    }

    /// Points a name at a service.
    async fn adopt_service(&self, composed: Composed) -> Result<(), Failure> {
        let (name, document) = (composed.name.clone(), composed.document);
        match self.cx.state.with(move |state| state.set_service(&name, document)).await {
            // A node below another goes on without: it hears of it again at every start.
            Err(failure) if failure.code() == Code::StorageFull && !self.cx.parents.is_empty() => {}
            other => other?,
        }
        let (kind, members) = (composed.service.kind.word(), composed.service.models().join(", "));
        let text = format!("service {}: {kind} of {members}", composed.name);
        self.cx.events.record("model", text, &serde_json::json!({ "name": composed.name }));
        if let Some(old) = self.known.insert_service(composed.clone()).filter(|old| old.document != composed.document) {
            self.let_go_of(vec![old.document]).await;
        }
        Ok(())
    }

    /// Forgets a service's name.
    async fn forget_service(&self, composed: &Composed) -> Result<(), Failure> {
        let name = composed.name.clone();
        self.cx.state.with(move |state| state.remove_service(&name)).await?;
        self.known.remove_service(&composed.name);
        self.let_go_of(vec![composed.document]).await;
        Ok(())
    }

    /// Trouble is told of; what stays for it goes with the next sweep.
    async fn let_go_of(&self, documents: Vec<Digest>) {
        if let Err(failure) = self.artefacts.remove_unneeded(documents).await {
            tracing::warn!(%failure, "a service's document that nobody needs stays");
        }
    }

    /// Forgets a service, here and below.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove_service(&self, composed: &Composed) -> Result<(), Failure> {
        let _turn = self.artefacts.naming.lock().await;
        self.forget_service(composed).await?;
        self.tell_children();
        Ok(())
    }

    /// Gives a service another name, here and below.
    ///
    /// # Errors
    /// When the name is taken or none; those of the store.
    pub async fn rename_service(&self, composed: &Composed, new: &str) -> Result<Composed, Failure> {
        tierline_proto::name::check_model(new).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))?;
        let _turn = self.artefacts.naming.lock().await;
        if composed.name == new {
            return Ok(composed.clone());
        }
        self.check_free(new)?;
        let renamed = Composed { name: new.to_owned(), ..composed.clone() };
        self.adopt_service(renamed.clone()).await?;
        self.forget_service(composed).await?;
        self.tell_children();
        Ok(renamed)
    }

    /// Refuses a name that a service has.
    ///
    /// # Errors
    /// [`Code::AlreadyExists`].
    pub fn check_free(&self, name: &str) -> Result<(), Failure> {
        let what = match (self.known.named(name), self.known.service(name)) {
            (Some(_), _) => "model",
            (_, Some(_)) => "service",
            _ => return Ok(()),
        };
        let help = format!("choose another name, or remove it: `tierline model rm {name}`");
        Err(Failure::new(Code::AlreadyExists, format!("`{name}` names a {what} already")).with_help(help))
    }

    /// Refuses to take a name from a model that services need by it.
    ///
    /// # Errors
    /// [`Code::Forbidden`], naming them.
    pub fn check_unneeded(&self, model: &str) -> Result<(), Failure> {
        let needing = self.known.services().into_iter().filter(|s| s.service.models().contains(&model));
        let needing: Vec<String> = needing.map(|s| format!("`{}`", s.name)).collect();
        if needing.is_empty() {
            return Ok(());
        }
        let text = format!("`{model}` is a member of {}", needing.join(", "));
        Err(Failure::new(Code::Forbidden, text).with_help("remove the service first, or give it other members"))
    }

    /// Takes over the services of the catalogue above; whether anything changed,
    /// and whether one should be tried again.
    pub(super) async fn adopt_services(&self, message: &CatalogueMessage) -> (bool, bool) {
        let (mut changed, mut late) = (false, false);
        let named: HashSet<&str> = message.services.iter().map(|service| service.name.as_str()).collect();
        for composed in self.known.services() {
            if !named.contains(composed.name.as_str()) {
                match self.forget_service(&composed).await {
                    Ok(()) => changed = true,
                    Err(failure) => {
                        late = true;
                        self.tell_trouble(&composed.name, "can't be forgotten yet", &failure);
                    }
                }
            }
        }
        for entry in &message.services {
            let is_model = message.models.iter().any(|model| model.name == entry.name);
            match self.adopt_one_service(entry, is_model, &named).await {
                Ok(new) => changed |= new,
                Err(failure) => {
                    late |= is_late(&failure) || failure.code() == Code::StorageFull;
                    self.tell_trouble(&entry.name, "could not be taken over", &failure);
                }
            }
        }
        (changed, late)
    }

    async fn adopt_one_service(
        &self,
        entry: &ServiceEntry,
        is_model: bool,
        named: &HashSet<&str>,
    ) -> Result<bool, Failure> {
        let document = Digest::try_from(&entry.document).map_err(|e| Failure::new(Code::Protocol, e.to_string()))?;
        if is_model {
            let text = format!("the catalogue has a model and a service called `{}`", entry.name);
            return Err(Failure::new(Code::Corrupt, text));
        }
        if self.known.service(&entry.name).is_some_and(|known| known.document == document) {
            return Ok(false);
        }
        let service: Service = self.artefacts.document(document).await?;
        self.check_members(&entry.name, &service, |model| named.contains(model))?;
        self.adopt_service(Composed { name: entry.name.clone(), document, service: service.into() }).await?;
        Ok(true)
    }

    fn tell_trouble(&self, name: &str, what: &str, failure: &Failure) {
        self.cx.events.record(
            "model",
            format!("service {name} {what}: {failure}"),
            &serde_json::json!({ "name": name }),
        );
    }

    /// Reads the services that were kept.
    pub(super) async fn open_services(&self) -> Result<(), Failure> {
        for (name, document) in self.cx.state.with(State::services).await? {
            let read = async { documents::read::<Service>(&self.artefacts.get(document).await?) };
            match read.await {
                Ok(service) => {
                    self.known.insert_service(Composed { name, document, service: service.into() });
                }
                Err(failure) => self.tell_trouble(&name, "can't be used here", &failure),
            }
        }
        Ok(())
    }
}

impl Composed {
    /// As it travels.
    #[must_use]
    pub fn message(&self) -> ServiceEntry {
        ServiceEntry { name: self.name.clone(), document: self.document.to_bytes() }
    }

    /// What operators are told of it.
    #[must_use]
    pub fn info(&self) -> ServiceInfo {
        ServiceInfo {
            entry: Some(self.message()),
            kind: self.service.kind.word().to_owned(),
            members: self.service.members.iter().map(|member| member.model.clone()).collect(),
        }
    }
}
