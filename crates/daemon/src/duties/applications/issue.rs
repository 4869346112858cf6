//! The cloud's part: new applications, more tokens, and those that are shut out.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use tierline_identity::{AppToken, Ca, Grant, IdentityError, Issued, check_new_name};
use tierline_proto::limits::{
    APPLICATION_MODELS_MAX, APPLICATION_TOKENS_MAX, APPLICATIONS_BYTES_MAX, APPLICATIONS_MAX, CSR_BYTES_MAX,
    RATE_PER_S_MAX,
};
use tierline_proto::name::check_pattern;
use tierline_proto::v1::{
    AppCreateReply, AppCreateRequest, AppTokenRequest, Application, ApplicationToken, Applications, ApplicationsNews,
    Code, Failure,
};
use tierline_proto::{Role, Sound};

use super::{Identities, SIGNED_ANEW, internal};

/// Longest life of a token or certificate: whoever leaves should be forgotten.
const LIFE_MAX: Duration = Duration::from_secs(400 * 86_400);

/// Signs the list anew every now and then.
pub async fn keep_signed(identities: Arc<Identities>) {
    loop {
        if let Ok(ca) = identities.the_ca() {
            let _changing = identities.changing.lock().await;
            let known = identities.cx.applications.known();
            // A site without applications needs no list.
            if known.sequence() > 0
                && let Err(failure) = identities.publish(ca, identities.entries(), known.sequence()).await
            {
                tracing::warn!(%failure, "the list of applications could not be signed anew");
            }
        }
        tokio::time::sleep(SIGNED_ANEW).await;
    }
}

impl Identities {
    /// Makes an application, with a token or a certificate.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] for what can't be, [`Code::AlreadyExists`] for a
    /// name that is taken, [`Code::TooLarge`] for more than a list holds.
    pub async fn create(&self, request: AppCreateRequest) -> Result<AppCreateReply, Failure> {
        let ca = self.the_ca()?;
        let wanted = request.application.unwrap_or_default();
        check(&wanted)?;
        check_life(request.valid_s)?;
        let _changing = self.changing.lock().await;
        let mut entries = self.entries();
        if entries.iter().any(|entry| entry.name == wanted.name) {
            let text = format!("another application is called `{}`", wanted.name);
            let help = "choose another name, or shut that one out: `tierline app rm NAME`";
            return Err(Failure::new(Code::AlreadyExists, text).with_help(help));
        }
        if entries.len() >= APPLICATIONS_MAX {
            let text = format!("{} applications, the most that a site can have", entries.len());
            return Err(Failure::new(Code::TooLarge, text).with_help("shut out those that are no more in use"));
        }
        let mut entry = Application {
            id: Ca::new_node_id().map_err(|e| internal(&e))?,
            tokens: Vec::new(),
            certificate: false,
            since_s: self.cx.applications.now_s(),
            ..wanted
        };
        let reply = self.issue(ca, &mut entry, request.valid_s, &request.csr_der)?;
        let (name, id) = (entry.name.clone(), entry.id.clone());
        entries.push(entry);
        self.change(ca, entries).await?;
        self.record(&name, &id, "may ask from now on");
        Ok(reply)
    }

    /// Makes another token, or a certificate, for an application that there is.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::InvalidInput`], [`Code::TooLarge`].
    pub async fn token(&self, request: &AppTokenRequest) -> Result<AppCreateReply, Failure> {
        let ca = self.the_ca()?;
        check_life(request.valid_s)?;
        let _changing = self.changing.lock().await;
        let mut entries = self.entries();
        let entry = find(&mut entries, &request.application)?;
        let now_s = self.cx.applications.now_s();
        if let Some(ends_in_s) = request.earlier_end_in_s {
            let end_s = now_s.saturating_add(ends_in_s);
            entry.tokens.iter_mut().for_each(|token| token.not_after_s = token.not_after_s.min(end_s));
            // Also those that end at once.
            entry.tokens.retain(|_| ends_in_s > 0);
        }
        entry.tokens.retain(|token| token.not_after_s >= now_s);
        let reply = self.issue(ca, entry, request.valid_s, &request.csr_der)?;
        let (name, id) = (entry.name.clone(), entry.id.clone());
        self.change(ca, entries).await?;
        self.record(&name, &id, if reply.token.is_empty() { "got a certificate" } else { "got another token" });
        Ok(reply)
    }

    /// Shuts an application out, everywhere.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn revoke(&self, wanted: &str) -> Result<(), Failure> {
        let ca = self.the_ca()?;
        let _changing = self.changing.lock().await;
        let mut entries = self.entries();
        let Application { id, name, .. } = find(&mut entries, wanted)?.clone();
        entries.retain(|entry| entry.id != id);
        self.change(ca, entries).await?;
        self.record(&name, &id, "is shut out");
        Ok(())
    }

    pub(super) fn the_ca(&self) -> Result<&Ca, Failure> {
        self.ca.as_deref().ok_or_else(|| {
            let text = format!("{} does not hold the site's CA", self.cx.me.name());
            Failure::new(Code::Forbidden, text).with_help("ask the cloud node")
        })
    }

    pub(super) fn entries(&self) -> Vec<Application> {
        let mut entries: Vec<Application> =
            self.cx.applications.known().iter().map(|known| known.entry().clone()).collect();
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        entries
    }

    fn record(&self, name: &str, id: &str, what: &str) {
        let json = serde_json::json!({ "application": name, "id": id });
        self.cx.events.record("application", format!("application {name} {what}"), &json);
    }

    /// A token, or a certificate for the key of a request.
    fn issue(&self, ca: &Ca, entry: &mut Application, valid_s: u64, csr_der: &[u8]) -> Result<AppCreateReply, Failure> {
        let ca_der = Bytes::copy_from_slice(ca.certificate());
        let reply = AppCreateReply { id: entry.id.clone(), ca_der, ..AppCreateReply::default() };
        if !csr_der.is_empty() {
            if csr_der.len() > CSR_BYTES_MAX {
                return Err(Failure::new(Code::TooLarge, "the certificate request is too long"));
            }
            let validity = Duration::from_secs(valid_s);
            let grant = Grant { id: &entry.id, role: Role::Application, name: &entry.name, validity };
            let signed = ca.sign(csr_der, &grant, SystemTime::now());
            let Issued { chain, peer } = signed.map_err(|e| match e {
                IdentityError::BadRequest { .. } => Failure::new(Code::InvalidInput, e.to_string()),
                other => internal(&other),
            })?;
            let not_after_s = peer.not_after.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            (entry.certificate, entry.certificate_not_after_s) = (true, not_after_s);
            let certificate_chain = chain.iter().map(|c| Bytes::copy_from_slice(c)).collect();
            return Ok(AppCreateReply { certificate_chain, not_after_s, ..reply });
        }
        if entry.tokens.len() >= APPLICATION_TOKENS_MAX {
            let text = format!("application `{}` has {} tokens that are still good", entry.name, entry.tokens.len());
            return Err(Failure::new(Code::TooLarge, text).with_help("end the earlier ones: --earlier-end-in TIME"));
        }
        let token = AppToken::generate(&entry.id).map_err(|e| internal(&e))?;
        let not_after_s = self.cx.applications.now_s() + valid_s;
        let digest = Bytes::copy_from_slice(&token.secret_digest());
        entry.tokens.push(ApplicationToken { digest, not_after_s });
        Ok(AppCreateReply { token: token.text().to_string(), not_after_s, ..reply })
    }

    async fn change(&self, ca: &Ca, entries: Vec<Application>) -> Result<(), Failure> {
        let sequence = self.cx.applications.known().sequence() + 1;
        self.publish(ca, entries, sequence).await
    }

    /// Signs a list and keeps it; only then is it in force, here and below.
    pub(super) async fn publish(&self, ca: &Ca, entries: Vec<Application>, sequence: u64) -> Result<(), Failure> {
        // Later than the one before, or it would not take its place.
        let signed_s = self.cx.applications.now_s().max(self.cx.applications.known().signed_s() + 1);
        let list = Applications { sequence, signed_s, applications: entries };
        let list = Sound::read(list).map_err(|breach| breach.failure())?.into_inner();
        let list = Bytes::from(list.encode_to_vec());
        if list.len() > APPLICATIONS_BYTES_MAX {
            let text = format!("the list of applications would have {} bytes of {APPLICATIONS_BYTES_MAX}", list.len());
            let help = "shut out those that are no more in use, or give them patterns in place of many names";
            return Err(Failure::new(Code::TooLarge, text).with_help(help));
        }
        let signature = Bytes::from(ca.sign_applications(&list).map_err(|e| internal(&e))?);
        let news = ApplicationsNews { list, signature };
        let kept = news.clone();
        self.cx.state.with(move |state| state.keep_applications(&kept.list, &kept.signature)).await?;
        self.take(&news).map_err(|breach| breach.failure())?;
        self.cx.children.tell_all(tierline_proto::envelope::APPLICATIONS, &news);
        Ok(())
    }
}

fn find<'e>(entries: &'e mut [Application], wanted: &str) -> Result<&'e mut Application, Failure> {
    // Ids before names; no name looks like an id.
    let at = entries.iter().position(|entry| entry.id == wanted || entry.name == wanted);
    match at {
        Some(at) => Ok(&mut entries[at]),
        None => {
            let near = entries.iter().find(|entry| strsim::damerau_levenshtein(&entry.name, wanted) <= 2);
            let help = near
                .map_or_else(|| "`tierline app ls` lists them".to_owned(), |e| format!("did you mean `{}`?", e.name));
            let wanted: String = wanted.chars().take(80).collect();
            Err(Failure::new(Code::NotFound, format!("there is no application `{wanted}`")).with_help(help))
        }
    }
}

fn check_life(valid_s: u64) -> Result<(), Failure> {
    if (1..=LIFE_MAX.as_secs()).contains(&valid_s) {
        return Ok(());
    }
    let days = LIFE_MAX.as_secs() / 86_400;
    Err(Failure::new(Code::InvalidInput, format!("an application's token or certificate lives 1 s to {days} days")))
}

/// What an operator may ask for.
fn check(wanted: &Application) -> Result<(), Failure> {
    let invalid = |text: String| Err(Failure::new(Code::InvalidInput, text));
    if check_new_name(&wanted.name).is_err() {
        let name: String = wanted.name.chars().take(80).collect();
        let rule = "1 to 63 lower-case letters, digits and hyphens inside, and not like an identity";
        return invalid(format!("`{}` can't name an application: {rule}", name.escape_debug()));
    }
    if wanted.models.is_empty() && !wanted.dashboard {
        return invalid(
            "an application that may do nothing needs no identity: name models, or let it see dashboards".into(),
        );
    }
    if wanted.models.len() > APPLICATION_MODELS_MAX {
        return invalid(format!("{} names of models; at most {APPLICATION_MODELS_MAX}", wanted.models.len()));
    }
    for pattern in &wanted.models {
        check_pattern(pattern).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))?;
    }
    if !(0.0..=RATE_PER_S_MAX).contains(&wanted.rate_per_s) {
        return invalid(format!("a rate is 0 to {RATE_PER_S_MAX} requests per second"));
    }
    Ok(())
}
