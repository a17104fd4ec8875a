//! Who is asking, and the answer to whoever may not: a challenge that every client understands (RFC
//! 6750; distribution's token specification), or a plain no.
//!
//! What must stay true: one Bearer challenge and no other; the answer is the same whether or not there
//! is such a repository; each denial of somebody who showed a credential is in the audit log.

use super::error::Failure;
use super::headers;
use super::route::Route;
use crate::access::Action;
use crate::access::Principal;
use crate::audit::Event;
use crate::audit::Outcome;
use crate::login::Denied;
use crate::login::Login;
use crate::login::Shown;
use crate::login::Visitor;
use crate::oci::RepositoryName;
use crate::registry;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use http::request::Parts;

/// Seconds.
const LOGIN_AGAIN: HeaderValue = HeaderValue::from_static("5");

/// Where tokens are given out, and to whoever does not say how it calls this registry.
const BASIC: &str = "Basic realm=\"registry\"";

/// A request, and who sent it.
pub struct Asking {
    pub principal: Principal,
    pub visitor: Visitor,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    /// Nothing more is to be had by asking for a token.
    Whole,
    /// A short-lived token, which may be good for too little.
    Token,
}

/// For each kind of resource: what a token must be good for.
pub enum Needed<'a> {
    /// It asks for a token.
    Token,
    Login,
    Catalog,
    Repository(&'a RepositoryName, Action),
}

impl Needed<'_> {
    fn scope(&self) -> Option<String> {
        match self {
            Needed::Login | Needed::Token => None,
            Needed::Catalog => Some("registry:catalog:*".to_owned()),
            Needed::Repository(name, action) => {
                Some(format!("repository:{name}:{}", action.words()))
            }
        }
    }
}

/// What each route needs: the one table of them.
pub fn needed(route: &Route) -> Option<Needed<'_>> {
    use Needed::Repository;
    Some(match route {
        Route::Health | Route::VersionOptions | Route::GetToken | Route::PostToken => return None,
        Route::Version => Needed::Login,
        Route::Catalog => Needed::Catalog,
        Route::GetBlob(name, _)
        | Route::GetManifest(name, _)
        | Route::Tags(name)
        | Route::Referrers(name, _) => Repository(name, Action::Pull),
        Route::PutManifest(name, _)
        | Route::StartUpload(name)
        | Route::UploadStatus(name, _)
        | Route::AppendUpload(name, _)
        | Route::FinishUpload(name, _)
        | Route::CancelUpload(name, _) => Repository(name, Action::Push),
        Route::DeleteBlob(name, _) | Route::DeleteManifest(name, _) => {
            Repository(name, Action::Delete)
        }
    })
}

/// It may bring bytes for a long time.
pub fn is_upload(route: &Route) -> bool {
    matches!(
        route,
        Route::StartUpload(_) | Route::AppendUpload(..) | Route::FinishUpload(..)
    )
}

fn challenge(
    login: &Login,
    visitor: &Visitor,
    scope: Option<&str>,
    error: Option<&str>,
) -> HeaderValue {
    let Some(origin) = &visitor.origin else {
        return HeaderValue::from_static(BASIC);
    };
    let mut text = format!(
        "Bearer realm=\"{origin}/token\",service=\"{}\"",
        login.service()
    );
    for (name, value) in [("scope", scope), ("error", error)] {
        if let Some(value) = value {
            text.push_str(&format!(",{name}=\"{value}\""));
        }
    }
    headers::value(text)
}

/// Not a matter of who it is.
pub fn not_now(denied: Denied) -> Failure {
    match denied {
        Denied::Io(error) => Failure::internal(&error),
        denied => Failure::from(registry::Error::Unavailable(denied.to_string())),
    }
}

/// What is told of a login that failed; noted in the audit log.
pub fn denied(
    login: &Login,
    visitor: &Visitor,
    shown: Option<&Shown>,
    needed: &Needed<'_>,
    denied: &Denied,
) -> Failure {
    let message = denied.to_string();
    let unauthorized = |error| {
        let challenge = match needed {
            Needed::Token => HeaderValue::from_static(BASIC),
            _ => challenge(login, visitor, needed.scope().as_deref(), error),
        };
        Failure::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message.clone())
            .with(header::WWW_AUTHENTICATE, challenge)
    };
    let failure = match denied {
        Denied::Wrong | Denied::Malformed(_) => unauthorized(None),
        Denied::Token(_) => unauthorized(Some("invalid_token")),
        Denied::Busy => Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TOOMANYREQUESTS",
            message.clone(),
        )
        .with(header::RETRY_AFTER, LOGIN_AGAIN),
        Denied::NotYet(_) => return Failure::from(registry::Error::Unavailable(message)),
        Denied::Io(error) => return Failure::internal(error),
    };
    let who = shown.and_then(Shown::name).unwrap_or("token");
    let event = Event::new(who, "login", "", Outcome::Denied);
    login
        .audit()
        .write(event.from(visitor.client).because(message));
    failure
}

/// Who sent the request, as far as the route wants to know.
pub async fn ask(login: &Login, request: &Parts, needed: &Needed<'_>) -> Result<Asking, Failure> {
    let visitor = login.visitor(request);
    let shown = Shown::in_headers(&request.headers);
    let shown = match shown {
        Ok(shown) => shown,
        // Without accounts it does not matter what is shown.
        Err(_) if !login.has_accounts() => Shown::Nothing,
        Err(error) => return Err(denied(login, &visitor, None, needed, &error)),
    };
    let principal = match login.principal(&shown, visitor.client).await {
        Ok(principal) => principal,
        Err(error) => return Err(denied(login, &visitor, Some(&shown), needed, &error)),
    };
    let kind = match (&shown, &principal.scopes) {
        (Shown::Nothing, _) => Kind::Nothing,
        (_, Some(_)) => Kind::Token,
        _ => Kind::Whole,
    };
    let asking = Asking {
        principal,
        visitor,
        kind,
    };
    let may_enter = match needed {
        Needed::Login | Needed::Catalog => kind != Kind::Nothing || asking.principal.is_unbound(),
        Needed::Repository(..) | Needed::Token => true,
    };
    match may_enter {
        true => Ok(asking),
        false => Err(asking.refuse(login, needed, "log in first")),
    }
}

impl Asking {
    /// It may not: with a better token maybe, or not at all.
    pub fn refuse(&self, login: &Login, needed: &Needed<'_>, message: &str) -> Failure {
        let scope = needed.scope();
        let with_challenge = |error| {
            let challenge = challenge(login, &self.visitor, scope.as_deref(), error);
            Failure::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
                .with(header::WWW_AUTHENTICATE, challenge)
        };
        let failure = match self.kind {
            Kind::Nothing => return with_challenge(None),
            Kind::Token => with_challenge(Some("insufficient_scope")),
            Kind::Whole => Failure::new(StatusCode::FORBIDDEN, "DENIED", message),
        };
        if let Needed::Repository(name, action) = needed {
            let event = Event::new(
                self.principal.as_str(),
                action.words(),
                name,
                Outcome::Denied,
            );
            login
                .audit()
                .write(event.from(self.visitor.client).because(message));
        }
        failure
    }
}
