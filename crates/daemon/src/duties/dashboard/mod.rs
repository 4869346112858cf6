//! The page that shows a node at work, and what it reads.
//!
//! `/dashboard` is the page: files of the folder `dashboard`, as they are.
//! [`api`] gives what it draws. Callers on this machine are answered who asked
//! for it by an address and not by a name that might be anybody's; from beyond
//! it, who shows a token with that permission. The page is nothing without what
//! it reads, and is sent to whom nobody reads along.

mod api;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use super::catalogue::Catalogue;
use super::federation::Jobs;
use super::planning::Planning;
use super::services::Services;
use super::site::Site;
use crate::net::asking::Asker;
use crate::net::plain::{From, refusal};
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: "dashboard",
    tables: &[],
    rules: &[],
    make: |assembly| Box::new(Arc::new(Dashboard::new(assembly))),
};

/// The page: where it is asked for, what it is, its bytes.
const FILES: &[(&str, &str, &str)] = &[
    ("/dashboard", "text/html; charset=utf-8", include_str!("../../../../../dashboard/index.html")),
    ("/dashboard/style.css", "text/css; charset=utf-8", include_str!("../../../../../dashboard/style.css")),
    ("/dashboard/icon.svg", "image/svg+xml", include_str!("../../../../../dashboard/icon.svg")),
    ("/dashboard/main.js", "text/javascript; charset=utf-8", include_str!("../../../../../dashboard/main.js")),
    ("/dashboard/draw.js", "text/javascript; charset=utf-8", include_str!("../../../../../dashboard/draw.js")),
    ("/dashboard/words.js", "text/javascript; charset=utf-8", include_str!("../../../../../dashboard/words.js")),
];

/// What a browser may do with an answer: nothing that leads elsewhere.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// The duty.
struct Dashboard {
    cx: Context,
    site: Arc<Site>,
    catalogue: Arc<Catalogue>,
    planning: Arc<Planning>,
    jobs: Arc<Jobs>,
    services: Arc<Services>,
}

impl Dashboard {
    fn new(assembly: &Assembly) -> Self {
        Self {
            cx: assembly.cx.clone(),
            site: assembly.get(),
            catalogue: assembly.get(),
            planning: assembly.get(),
            jobs: assembly.get(),
            services: assembly.get(),
        }
    }
}

impl Duty for Arc<Dashboard> {
    fn http(&self) -> Router {
        let mut router = api::router().route("/", get(async || Redirect::temporary("/dashboard")));
        for (path, kind, text) in FILES.iter().copied() {
            router = router
                .route(path, get(move |State(_): State<Self>| async move { ([(header::CONTENT_TYPE, kind)], text) }));
        }
        router.with_state(Arc::clone(self)).route_layer(from_fn(guarded))
    }
}

/// Answers who may look, and says to browsers what they may do with it.
async fn guarded(request: Request<Body>, next: Next) -> Response {
    let mut response = match refused(&request) {
        None => next.run(request).await,
        Some(why) => refusal(StatusCode::FORBIDDEN, why).into_response(),
    };
    for (name, value) in HEADERS.iter().copied() {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why a caller is not answered, if it isn't.
fn refused(request: &Request<Body>) -> Option<&'static str> {
    let asker = request.extensions().get::<Asker>();
    match (request.extensions().get::<From>(), asker) {
        // What it reads.
        (_, Some(asker)) if !asker.may_look() => {
            return Some("the dashboard is for this machine, and for who has the permission `dashboard`");
        }
        // Nobody can make a browser send somebody's token.
        (_, Some(asker)) if !asker.is_anybody_here() => return None,
        (Some(from), None) if from.private && !from.here => return None,
        (Some(from), _) if from.here => {}
        _ => return Some("the dashboard is for this machine only; from another one, forward a port to it (ssh -L)"),
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // A page of elsewhere can make its own name mean this machine.
    let is_own = is_local(host) || request.extensions().get::<From>().is_some_and(|from| from.private);
    (!is_own).then_some("the dashboard is asked for as localhost or by address, not by another name")
}

/// Whether a `Host` is this machine's own, or an address.
fn is_local(host: &str) -> bool {
    let port_less = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            name
        }
        _ => host,
    };
    let bare = port_less.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(port_less);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn names_of_others_are_not_this_machine() {
        for host in
            ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "[::1]", "192.168.1.2:1"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["", "example.org", "example.org:8000", "localhost.example.org", "127.0.0.1.example.org:80", ":8000"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}
