//! Who asks at a door for applications, and may they?
//!
//! On this machine anybody may, unless the configuration says otherwise; from
//! beyond it, whoever shows a token or a certificate of the site. An operator
//! may all that there is. Asked again for each request, since connections live
//! longer than rights. Start at [`Guard::admit`].

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderValue, header};
use tierline_identity::{AppToken, Peer};
use tierline_node::applications::{Application, Stranger};
use tierline_node::places::Network;
use tierline_node::rate;
use tierline_proto::Role;
use tierline_proto::v1::{Code, Failure};

use super::applications::Shown;
use super::door::Familiar;
use crate::runtime::Context;
use crate::runtime::audit::{Entry, Kind};

/// Calls that pages and scrapers make all the time.
const LOOKED_AT: [&str; 2] = ["dashboard", "numbers"];

/// What a door asks of whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Anybody may ask.
    pub open: bool,
    /// Anybody on this machine may ask.
    pub open_here: bool,
    /// What is sent here, nobody reads on the way: it is TLS, or something in
    /// front of it is.
    pub private: bool,
}

/// Asks at one door.
#[derive(Clone)]
pub struct Guard {
    cx: Context,
    policy: Policy,
    /// Addresses from which somebody came who showed who it is.
    familiar: Arc<Familiar>,
}

/// Who asks.
#[derive(Clone)]
pub struct Asker {
    cx: Context,
    from: IpAddr,
    who: Who,
    /// What it asks for, and of which model.
    call: &'static str,
    model: Arc<OnceLock<String>>,
}

#[derive(Clone)]
enum Who {
    /// Whom nobody asks who they are; whether they are on this machine.
    Anybody { here: bool },
    /// Somebody who administers the site.
    Operator(Peer),
    /// An application, and what it shows.
    Application(Arc<Application>, Shown),
}

/// Why somebody isn't answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is nobody that is known here.
    Stranger(Stranger),
    /// What would be a secret can be read on the way.
    InTheClear,
    /// It is somebody, who may not.
    Forbidden(&'static str),
    /// It asks too often.
    TooOften(Duration),
}

impl Guard {
    /// Of a door with this policy.
    #[must_use]
    pub fn new(cx: &Context, policy: Policy) -> Self {
        Self { cx: cx.clone(), policy, familiar: Arc::default() }
    }

    /// Whether nobody reads on the way what is sent here.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.policy.private
    }

    /// Whether somebody came from there lately who showed who it is.
    #[must_use]
    pub fn knows(&self, from: IpAddr) -> bool {
        self.familiar.knows(Network::from(from))
    }

    /// Who asks, by what they show. A refusal is kept in the audit log.
    ///
    /// # Errors
    /// When they may not.
    pub fn admit(
        &self,
        call: &'static str,
        headers: &HeaderMap,
        from: IpAddr,
        peer: Option<&Peer>,
    ) -> Result<Asker, Refused> {
        let from = from.to_canonical();
        let mut shown_id = String::new();
        let who = self.who(headers, from.is_loopback(), peer, &mut shown_id);
        if matches!(who, Ok(Who::Operator(_) | Who::Application(..))) {
            self.familiar.remember(Network::from(from));
        }
        who.map(|who| Asker { cx: self.cx.clone(), from, who, call, model: Arc::default() }).inspect_err(|why| {
            let known = self.cx.applications.known();
            let name = known.iter().find(|known| known.id() == shown_id).map(|known| known.name().to_owned());
            let entry = Entry {
                who: name.unwrap_or_default(),
                id: shown_id,
                address: from.to_string(),
                call: call.to_owned(),
                of: String::new(),
                code: why.word().to_owned(),
            };
            self.cx.applications.count_refused(why.word());
            self.cx.audit.record(Kind::Refusals, entry);
        })
    }

    fn who(&self, headers: &HeaderMap, here: bool, peer: Option<&Peer>, shown_id: &mut String) -> Result<Who, Refused> {
        // What is shown is looked at also where nothing has to be: a wrong one is never as good as none.
        let shown = match self.token(headers, here)? {
            Some(token) => {
                shown_id.clone_from(&token.id);
                Some(Shown::Token(token))
            }
            None => match peer {
                Some(peer) => {
                    shown_id.clone_from(&peer.id);
                    match peer.role {
                        Role::Operator => {
                            check_operator(&self.cx, peer)?;
                            return Ok(Who::Operator(peer.clone()));
                        }
                        Role::Application => Some(Shown::Certificate(peer.clone())),
                        _ => return Err(Refused::Forbidden("a node's certificate is not an application's")),
                    }
                }
                None => None,
            },
        };
        match shown {
            Some(shown) => {
                let application = self.cx.applications.who(&shown).map_err(Refused::Stranger)?;
                Ok(Who::Application(application, shown))
            }
            None if self.policy.open || (self.policy.open_here && here) => Ok(Who::Anybody { here }),
            None => Err(Refused::Stranger(Stranger::Missing)),
        }
    }

    /// The token in a request's head, if there is one.
    fn token(&self, headers: &HeaderMap, here: bool) -> Result<Option<AppToken>, Refused> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let malformed = Refused::Stranger(Stranger::Malformed);
        if values.next().is_some() {
            return Err(malformed);
        }
        if !self.policy.private && !here {
            return Err(Refused::InTheClear);
        }
        let token = bearer(value).and_then(AppToken::read);
        token.map(Some).ok_or(malformed)
    }
}

fn check_operator(cx: &Context, peer: &Peer) -> Result<(), Refused> {
    // TLS looked once; connections live longer than certificates.
    let over = SystemTime::now() > peer.not_after;
    let out = cx.revoked.check(peer).is_err();
    match (over, out) {
        (_, true) => Err(Refused::Stranger(Stranger::Unknown)),
        (true, _) => Err(Refused::Stranger(Stranger::Expired)),
        _ => Ok(()),
    }
}

/// What stands behind `Bearer`.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

impl Asker {
    /// Whether it is still who it was.
    fn check(&self) -> Result<(), Refused> {
        match &self.who {
            Who::Anybody { .. } => Ok(()),
            Who::Operator(peer) => check_operator(&self.cx, peer),
            Who::Application(_, shown) => self.cx.applications.who(shown).map(drop).map_err(Refused::Stranger),
        }
    }

    /// Another request of who is connected already; it may be over with it by
    /// now.
    ///
    /// # Errors
    /// When it may not ask any more, or not so soon.
    pub fn again(&self) -> Result<Self, Refused> {
        let asker = Self { model: Arc::default(), ..self.clone() };
        asker.check().inspect_err(|why| asker.record_refusal(why))?;
        asker.count()?;
        Ok(asker)
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When it comes too soon.
    pub fn count(&self) -> Result<(), Refused> {
        let Who::Application(application, _) = &self.who else { return Ok(()) };
        let taken = self.cx.applications.take(self.cx.clock.now(), application).map_err(Refused::TooOften);
        taken.inspect_err(|why| self.record_refusal(why))
    }

    /// What became of a request, for the audit log: `ok`, or why not.
    pub fn record(&self, code: &str, refused: bool) {
        // A page on this machine that asks all the time.
        if self.is_anybody_here() && LOOKED_AT.contains(&self.call) {
            return;
        }
        let kind = if refused { Kind::Refusals } else { Kind::Requests };
        self.cx.audit.record(kind, self.entry(code));
    }

    fn record_refusal(&self, why: &Refused) {
        self.cx.applications.count_refused(why.word());
        self.cx.audit.record(Kind::Refusals, self.entry(why.word()));
    }

    fn entry(&self, code: &str) -> Entry {
        let (who, id) = match &self.who {
            Who::Anybody { .. } => (String::new(), String::new()),
            Who::Operator(peer) => (peer.name.clone(), peer.id.clone()),
            Who::Application(application, _) => (application.name().to_owned(), application.id().to_owned()),
        };
        Entry {
            who,
            id,
            address: self.from.to_string(),
            call: self.call.to_owned(),
            of: self.model.get().cloned().unwrap_or_default(),
            code: code.to_owned(),
        }
    }

    /// Whether it may know of a model.
    #[must_use]
    pub fn may_use(&self, model: &str) -> bool {
        match &self.who {
            Who::Anybody { .. } | Who::Operator(_) => true,
            Who::Application(application, _) => application.may_use(model),
        }
    }

    /// Refuses a model that it may not use, whether there is such a one or not.
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn check_model(&self, model: &str) -> Result<(), Failure> {
        // The first one counts; there is one for each request.
        let _ = self.model.set(model.to_owned());
        if self.may_use(model) {
            return Ok(());
        }
        self.cx.applications.count_refused("forbidden");
        let model: String = model.chars().take(80).collect();
        Err(Failure::new(
            Code::Forbidden,
            format!("this application may not use a model called `{}`", model.escape_debug()),
        ))
    }

    /// Whether it may read numbers.
    #[must_use]
    pub fn may_read_numbers(&self) -> bool {
        matches!(self.who, Who::Anybody { .. }) || self.may_look()
    }

    /// Whether it may look at the dashboard.
    #[must_use]
    pub fn may_look(&self) -> bool {
        match &self.who {
            Who::Anybody { here } => *here,
            Who::Operator(_) => true,
            Who::Application(application, _) => application.may_look(),
        }
    }

    /// Whether it is on this machine, and nobody asks who it is.
    #[must_use]
    pub fn is_anybody_here(&self) -> bool {
        matches!(self.who, Who::Anybody { here: true })
    }

    /// Whose share of memory, of the device and of deep inferences it uses: an
    /// application's, wherever it asks from, else an address'.
    #[must_use]
    pub fn share(&self) -> String {
        match &self.who {
            Who::Anybody { .. } => format!("{:?}", Network::from(self.from)),
            Who::Operator(peer) => peer.id.clone(),
            Who::Application(application, _) => format!("application {}", application.id()),
        }
    }
}

impl Refused {
    /// As a failure.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let unauthenticated = |text: &str| Failure::new(Code::Unauthenticated, text);
        match self {
            Self::Stranger(Stranger::Missing) => {
                unauthenticated("who asks? show a token of this site (`Authorization: Bearer ...`) or a certificate")
            }
            Self::Stranger(Stranger::Malformed) => unauthenticated("what is shown is no token of an application"),
            Self::Stranger(Stranger::Unknown) => unauthenticated("what is shown counts here no more, or never did"),
            Self::Stranger(Stranger::Expired) => unauthenticated("what is shown has expired"),
            Self::InTheClear => Failure::new(
                Code::Forbidden,
                "a token was sent here in the clear: it is not taken, and whoever issued it should take it back",
            ),
            Self::Forbidden(text) => Failure::new(Code::Forbidden, *text),
            Self::TooOften(wait) => {
                Failure::new(Code::Overloaded, format!("too many requests; try again in {} s", rate::seconds(*wait)))
            }
        }
    }

    /// In a word, for the audit log.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Stranger(Stranger::Missing) => "no identity",
            Self::Stranger(Stranger::Malformed) => "malformed",
            Self::Stranger(Stranger::Unknown) => "unknown",
            Self::Stranger(Stranger::Expired) => "expired",
            Self::InTheClear => "in the clear",
            Self::Forbidden(_) => "forbidden",
            Self::TooOften(_) => "too often",
        }
    }

    /// The status over HTTP.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            Self::TooOften(_) => 429,
            other => other.failure().code().http_status(),
        }
    }

    /// How to show who one is (RFC 6750), where that would help.
    #[must_use]
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Stranger(Stranger::Missing) => Some("Bearer realm=\"tierline\""),
            Self::Stranger(_) => Some("Bearer realm=\"tierline\", error=\"invalid_token\""),
            Self::InTheClear | Self::Forbidden(_) | Self::TooOften(_) => None,
        }
    }

    /// Whole seconds until another try makes sense.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::TooOften(wait) => Some(rate::seconds(*wait)),
            _ => None,
        }
    }

    /// The refusal of a call over gRPC.
    #[must_use]
    pub fn status(&self) -> tonic::Status {
        let failure = self.failure();
        let mut status = tonic::Status::new(tierline_proto::failure::grpc_code(failure.code()), failure.message);
        let mut say = |name: &'static str, value: String| {
            if let Ok(value) = value.parse() {
                status.metadata_mut().insert(name, value);
            }
        };
        if let Some(challenge) = self.challenge() {
            say("www-authenticate", challenge.to_owned());
        }
        if let Self::TooOften(wait) = self {
            say("retry-after", rate::seconds(*wait).to_string());
            // What clients of gRPC wait for by themselves.
            say("grpc-retry-pushback-ms", wait.as_millis().max(1).to_string());
        }
        status
    }
}
