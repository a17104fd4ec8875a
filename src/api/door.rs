//! Who calls the admin API, and what they administer. Each handler takes a `Caller`, which there is
//! only for somebody who has logged in, and asks it before it does anything.
//!
//! What must stay true: without accounts, and on the node's own socket, everything is allowed;
//! everywhere else nothing is without a login. A short-lived token administers nothing.

use super::Api;
use super::error::Refused;
use crate::access::Pattern;
use crate::access::Principal;
use crate::access::Who;
use crate::audit::Event;
use crate::audit::Outcome;
use crate::budget::Budget;
use crate::clock::wall_ms;
use crate::login::Denied;
use crate::login::Shown;
use crate::metadata::accounts::Account;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body as Command;
use crate::proto::state::v1::outcome::Result as Came;
use crate::topology::OwnSocket;
use axum::extract::FromRequestParts;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::http::request::Parts;
use std::net::IpAddr;

const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"registry\"");

pub(super) struct Caller {
    api: Api,
    pub principal: Principal,
    /// None: whoever it is, it has no account.
    pub account: Option<Account>,
    pub administers: Vec<Pattern>,
    from: Option<IpAddr>,
}

fn log_in(message: impl ToString) -> Refused {
    let next = "log in with --user NAME or --token TOKEN, or run `roadstead login`; on the node's own machine, --data-dir DIR needs no password";
    Refused::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message, next)
        .with(header::WWW_AUTHENTICATE, BASIC)
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(request: &mut Parts, api: &Api) -> Result<Caller, Refused> {
        let login = &api.login;
        let from = login.visitor(request).client;
        let principal = match request.extensions.get::<OwnSocket>() {
            Some(OwnSocket) => Principal::new(Who::Local),
            None => principal(api, request, from).await?,
        };
        let now_ms = wall_ms();
        let view = api.metadata.view();
        let account = principal
            .account()
            .map(|name| view.account(name))
            .transpose()?
            .flatten();
        Ok(Caller {
            administers: view.administers(&principal, now_ms)?,
            api: api.clone(),
            principal,
            account,
            from,
        })
    }
}

async fn principal(api: &Api, request: &Parts, from: Option<IpAddr>) -> Result<Principal, Refused> {
    let login = &api.login;
    let shown = match Shown::in_headers(&request.headers) {
        Err(_) if !login.has_accounts() => Ok(Shown::Nothing),
        shown => shown,
    };
    let asked = match &shown {
        Ok(shown) => login.principal(shown, from).await,
        Err(_) => Err(Denied::Wrong),
    };
    let denied = match asked {
        Ok(Principal {
            who: Who::Anonymous,
            ..
        }) => return Err(log_in("this call needs a login")),
        Ok(principal) => return Ok(principal),
        Err(Denied::Io(error)) => return Err(error.into()),
        Err(Denied::NotYet(why)) => return Err(super::error::unavailable(why)),
        Err(denied) => denied,
    };
    let who = shown.as_ref().ok().and_then(Shown::name).unwrap_or("token");
    let event = Event::new(who, "login", request.uri.path(), Outcome::Denied);
    login.audit().write(event.from(from).because(&denied));
    Err(match denied {
        Denied::Busy => {
            let next = "try again in a few seconds";
            Refused::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TOOMANYREQUESTS",
                denied,
                next,
            )
            .with(header::RETRY_AFTER, HeaderValue::from_static("5"))
        }
        denied => log_in(denied),
    })
}

impl Caller {
    pub fn is_admin_of_all(&self) -> bool {
        self.administers.contains(&Pattern::All)
    }

    pub fn is_admin_of(&self, pattern: &Pattern) -> bool {
        self.administers.iter().any(|own| own.covers(pattern))
    }

    /// May do `what` only as an admin of the whole registry.
    pub fn must_admin_all(&self, what: &str) -> Result<(), Refused> {
        self.must(
            self.is_admin_of_all(),
            what,
            "an admin of the whole registry (*:admin)",
        )
    }

    /// May do `what` to what the pattern is for.
    pub fn must_admin(&self, pattern: &Pattern, what: &str) -> Result<(), Refused> {
        self.must(
            self.is_admin_of(pattern),
            what,
            &format!("an admin of {pattern}"),
        )
    }

    fn must(&self, may: bool, what: &str, who: &str) -> Result<(), Refused> {
        if may {
            return Ok(());
        }
        let event = Event::new(self.principal.as_str(), what, "", Outcome::Denied);
        self.note(event.because(format!("only {who} may")));
        Err(Refused::denied(format!("only {who} may {what}")))
    }

    pub fn note(&self, event: Event) {
        self.api.login.audit().write(event.from(self.from));
    }

    /// How far its changes may reach, as apply judges it.
    pub fn authority(&self) -> pb::Authority {
        let is_user = |account: &Account| account.kind() == pb::AccountKind::User;
        pb::Authority {
            actor: self.principal.as_str().to_owned(),
            everything: self.is_admin_of_all(),
            patterns: self.administers.iter().map(Pattern::to_string).collect(),
            own: self.principal.scopes.is_none() && self.account.as_ref().is_some_and(is_user),
        }
    }

    /// Makes a change, and notes it in the audit log: `detail` is what exactly, never a secret. The
    /// entry that did it.
    pub async fn change(
        &self,
        action: &str,
        target: impl ToString,
        detail: impl ToString,
        body: Command,
    ) -> Result<u64, Refused> {
        let event =
            |outcome| Event::new(self.principal.as_str(), action, target.to_string(), outcome);
        let outcome = match self.api.metadata.write(body, Budget::default()).await {
            Ok(outcome) => outcome,
            Err(error) => {
                self.note(event(Outcome::Failed).because(&error));
                return Err(error.into());
            }
        };
        match outcome.result {
            Some(Came::Done(_)) => {
                self.note(event(Outcome::Done).because(detail).at_index(outcome.index));
                Ok(outcome.index)
            }
            Some(Came::Refused(refused)) => {
                let came = match refused.reason() {
                    pb::Reason::NotAllowed | pb::Reason::NameUnknown => Outcome::Denied,
                    _ => Outcome::Failed,
                };
                self.note(
                    event(came)
                        .because(&refused.message)
                        .at_index(outcome.index),
                );
                Err(Refused::by_state(&refused))
            }
            _ => {
                let why = "it is not known whether the change took effect";
                self.note(event(Outcome::Failed).because(why));
                Err(super::error::unavailable(why))
            }
        }
    }
}
