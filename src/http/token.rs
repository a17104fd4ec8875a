//! `/token`: short-lived tokens for names and passwords, refresh tokens, and the tokens of CI systems
//! (distribution's token specification: GET, and POST as of OAuth2, RFC 6749 and RFC 8693).

use super::auth;
use super::auth::Needed;
use super::body::Incoming;
use super::error::Failure;
use super::headers;
use crate::access::Principal;
use crate::access::parse_scopes;
use crate::budget::Budget;
use crate::login::Denied;
use crate::login::Issued;
use crate::login::Login;
use crate::login::Shown;
use axum::body::Body;
use axum::response::Response;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use http::request::Parts;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const FORM_MAX: usize = 64 << 10;
const CI_GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

fn no_accounts() -> Failure {
    let told = "this registry has no accounts: it needs no token";
    Failure::new(StatusCode::NOT_FOUND, "UNSUPPORTED", told)
}

fn answer(issued: &Issued) -> Response {
    let at = OffsetDateTime::from_unix_timestamp((issued.issued_at_ms / 1000).cast_signed());
    let at = at.ok().and_then(|at| at.format(&Rfc3339).ok());
    let scope = issued
        .scopes
        .iter()
        .map(|scope| format!("{}:{}:{}", scope.kind, scope.name, scope.actions.join(",")));
    let token = issued.token.expose_secret();
    let mut body = json!({
        "token": token,
        "access_token": token,
        "expires_in": issued.expires_in,
        "issued_at": at,
        "scope": scope.collect::<Vec<_>>().join(" "),
        "token_type": "Bearer",
    });
    if let Some(refresh) = &issued.refresh {
        body["refresh_token"] = json!(refresh.expose_secret());
    }
    let mut response = Response::new(Body::from(body.to_string()));
    let set = response.headers_mut();
    set.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Nothing shown gives a token for what is public.
pub async fn get(login: &Login, request: &Parts) -> Result<Response, Failure> {
    if !login.has_accounts() {
        return Err(no_accounts());
    }
    let asking = auth::ask(login, request, &Needed::Token).await?;
    let query = Form::parse(request.uri.query().unwrap_or_default().as_bytes());
    let offline = query.get("offline_token") == Some("true");
    if asking.principal.scopes.is_some() {
        let told = "a token gives no other token; show the account's own credentials";
        return Err(Failure::new(StatusCode::FORBIDDEN, "DENIED", told));
    }
    issue(
        login,
        &asking.principal,
        parse_scopes(query.all("scope")),
        offline,
    )
}

fn issue(
    login: &Login,
    principal: &Principal,
    scopes: Vec<crate::access::Scope>,
    offline: bool,
) -> Result<Response, Failure> {
    match login.issue(principal, scopes, offline) {
        Ok(issued) => Ok(answer(&issued)),
        Err(Denied::Io(error)) => Err(Failure::internal(&error)),
        Err(error) => Err(Failure::from(crate::registry::Error::Unavailable(
            error.to_string(),
        ))),
    }
}

struct Form(Vec<(String, String)>);

impl Form {
    fn parse(text: &[u8]) -> Form {
        Form(form_urlencoded::parse(text).into_owned().collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let found = self.0.iter().filter(move |(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn secret(&self, name: &str) -> Option<SecretString> {
        self.get(name).map(|value| value.to_owned().into())
    }
}

pub async fn post(login: &Login, request: &Parts, body: Incoming) -> Result<Response, Failure> {
    if !login.has_accounts() {
        return Err(no_accounts());
    }
    let is_form = headers::text(&request.headers, header::CONTENT_TYPE)
        .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
    let unusable = |message: &str| Failure::bad_request("UNSUPPORTED", message);
    if !is_form {
        return Err(unusable(
            "POST /token takes a form (application/x-www-form-urlencoded)",
        ));
    }
    let (bytes, _turn, _) = body.collect(FORM_MAX, Budget::default()).await?;
    let form = Form::parse(&bytes);
    let visitor = login.visitor(request);
    let missing = |what: &str| unusable(&format!("this grant_type needs {what}"));
    let (shown, principal) = match form.get("grant_type") {
        Some("password") => {
            let shown = Shown::Basic {
                name: form
                    .get("username")
                    .ok_or_else(|| missing("username"))?
                    .to_owned(),
                password: form.secret("password").ok_or_else(|| missing("password"))?,
            };
            let principal = login.principal(&shown, visitor.client).await;
            (Some(shown), principal)
        }
        Some("refresh_token") => {
            let token = form
                .secret("refresh_token")
                .ok_or_else(|| missing("refresh_token"))?;
            (None, login.by_refresh_token(&token))
        }
        Some(CI_GRANT) => {
            let token = form
                .secret("subject_token")
                .ok_or_else(|| missing("subject_token"))?;
            (None, login.by_ci_token(&token, visitor.client).await)
        }
        Some(_) => {
            return Err(unusable(
                "grant_type takes password, refresh_token or a token exchange",
            ));
        }
        None => return Err(unusable("the form has no grant_type")),
    };
    let principal = principal
        .map_err(|error| auth::denied(login, &visitor, shown.as_ref(), &Needed::Token, &error))?;
    let scopes = parse_scopes(form.all("scope"));
    issue(
        login,
        &principal,
        scopes,
        form.get("access_type") == Some("offline"),
    )
}
