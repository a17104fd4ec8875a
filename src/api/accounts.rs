//! Accounts: users, robot tokens, access keys, trusted CI systems. What is new is checked before it
//! is proposed, and judged again when it is applied.

use super::Api;
use super::Body;
use super::door::Caller;
use super::error::Refused;
use super::types::Account as Shown;
use super::types::Accounts;
use super::types::Ci;
use super::types::GrantOf;
use super::types::Made;
use super::types::NewAccount;
use super::types::NewPassword;
use super::types::Rotation;
use super::types::WhoAmI;
use crate::access::AccountName;
use crate::access::Grant;
use crate::access::Pattern;
use crate::clock::wall_ms;
use crate::login::SECRET_PREFIX;
use crate::login::hash_password;
use crate::login::new_secret;
use crate::login::secret_hash;
use crate::metadata::accounts::Account;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::AccountKind;
use crate::proto::state::v1::command::Body as Command;
use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use secrecy::ExposeSecret;
use secrecy::SecretString;
use std::io;

const NEXT: &str = "see `roadstead user --help`, `token --help`, `key --help` and `ci --help`";
const SHORTEST_PASSWORD: usize = 8;
const LONGEST_PASSWORD: usize = 1024;
/// Times further away are taken for mistakes.
const LONGEST_SECONDS: u64 = 20 * 366 * 24 * 3600;

pub(super) type Answer<T> = Result<Json<T>, Refused>;

pub(super) fn invalid(message: impl ToString) -> Refused {
    Refused::invalid(message, NEXT)
}

pub(super) fn kind_word(kind: AccountKind) -> &'static str {
    match kind {
        AccountKind::User => "user",
        AccountKind::Token => "token",
        AccountKind::Key => "key",
        AccountKind::Ci => "ci",
        AccountKind::Unspecified => "unknown",
    }
}

fn parse_kind(text: &str) -> Result<AccountKind, Refused> {
    let kinds = [
        AccountKind::User,
        AccountKind::Token,
        AccountKind::Key,
        AccountKind::Ci,
    ];
    let found = kinds.into_iter().find(|kind| kind_word(*kind) == text);
    found.ok_or_else(|| invalid(format!("kind takes user, token, key or ci, not {text:?}")))
}

/// 0: never.
pub(super) fn ends_at(seconds: Option<u64>) -> Result<u64, Refused> {
    match seconds {
        None => Ok(0),
        Some(seconds) if (1..=LONGEST_SECONDS).contains(&seconds) => Ok(wall_ms() + seconds * 1000),
        Some(_) => Err(invalid("it ends in 1 second to 20 years, or never")),
    }
}

pub(super) fn parse_grant(of: &GrantOf) -> Result<Grant, Refused> {
    let mut grant: Grant = of.grant.parse().map_err(invalid)?;
    grant.expires_at_ms = ends_at(of.expires_in_seconds)?;
    Ok(grant)
}

pub(super) fn shown_grants(records: &[pb::GrantRecord]) -> Vec<super::types::Grant> {
    let shown = |record: &pb::GrantRecord| {
        let grant = Grant::try_from(record).ok()?;
        Some(super::types::Grant {
            pattern: grant.pattern.to_string(),
            rights: grant
                .rights
                .to_string()
                .split(',')
                .map(str::to_owned)
                .collect(),
            expires_at_ms: (grant.expires_at_ms != 0).then_some(grant.expires_at_ms),
        })
    };
    records.iter().filter_map(shown).collect()
}

fn check_password(text: &str) -> Result<SecretString, Refused> {
    if text.starts_with(SECRET_PREFIX) {
        let told = format!("a password does not begin with {SECRET_PREFIX}, as random secrets do");
        return Err(invalid(told));
    }
    match text.chars().count() {
        0..SHORTEST_PASSWORD => Err(invalid(format!(
            "a password has at least {SHORTEST_PASSWORD} characters"
        ))),
        _ if text.len() > LONGEST_PASSWORD => Err(invalid("the password is too long")),
        _ => Ok(text.to_owned().into()),
    }
}

async fn hashed(api: &Api, password: SecretString) -> Result<String, Refused> {
    let hashing = api
        .tasks
        .spawn_blocking(move || hash_password(&password))
        .await;
    Ok(hashing.map_err(io::Error::other)??)
}

/// What the caller may see of an account: all, or of its grants those for what it administers.
fn shown(api: &Api, caller: &Caller, account: &Account) -> Result<Option<Shown>, Refused> {
    let record = &account.record;
    let is_own = caller.principal.account().is_some_and(|own| {
        *own == account.name || record.kind() == AccountKind::Key && own.as_str() == record.owner
    });
    let is_whole = is_own || caller.is_admin_of_all();
    let within = |record: &&pb::GrantRecord| {
        is_whole
            || record
                .pattern
                .parse()
                .is_ok_and(|p: Pattern| caller.is_admin_of(&p))
    };
    let grants: Vec<pb::GrantRecord> = record.grants.iter().filter(within).cloned().collect();
    if !is_whole && grants.is_empty() {
        return Ok(None);
    }
    let ci = record.ci.as_ref().filter(|_| is_whole).map(|ci| Ci {
        issuer: ci.issuer.clone(),
        audience: ci.audience.clone(),
        claims: ci.claims.clone(),
        jwks: None,
    });
    Ok(Some(Shown {
        name: account.name.to_string(),
        kind: kind_word(record.kind()).to_owned(),
        grants: shown_grants(&grants),
        groups: if is_whole {
            record.groups.clone()
        } else {
            Vec::new()
        },
        owner: Some(record.owner.clone()).filter(|owner| !owner.is_empty()),
        expires_at_ms: (record.expires_at_ms != 0).then_some(record.expires_at_ms),
        created_at_ms: record.created_at_ms,
        created_by: record.created_by.clone(),
        used_at_ms: api.login.used_at_ms(&account.name)?,
        secrets: record.secrets.len(),
        ci,
    }))
}

pub(super) async fn who_am_i(caller: Caller) -> Answer<WhoAmI> {
    let account = caller.account.as_ref();
    Ok(Json(WhoAmI {
        name: caller.principal.as_str().to_owned(),
        kind: account.map(|account| kind_word(account.kind()).to_owned()),
        grants: account
            .map(|account| shown_grants(&account.record.grants))
            .unwrap_or_default(),
        groups: account
            .map(|account| account.record.groups.clone())
            .unwrap_or_default(),
        administers: caller.administers.iter().map(Pattern::to_string).collect(),
    }))
}

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Answer<Accounts> {
    let mut accounts = Vec::new();
    for account in api.metadata.view().accounts()? {
        accounts.extend(shown(&api, &caller, &account)?);
    }
    Ok(Json(Accounts { accounts }))
}

pub(super) async fn create(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    Body(new): Body<NewAccount>,
) -> Answer<Made> {
    let name: AccountName = name.parse().map_err(invalid)?;
    let kind = parse_kind(&new.kind)?;
    let grants = new
        .grants
        .iter()
        .map(parse_grant)
        .collect::<Result<Vec<_>, _>>()?;
    let mut record = pb::AccountRecord {
        kind: kind.into(),
        grants: grants.iter().map(pb::GrantRecord::from).collect(),
        groups: new.groups.clone(),
        expires_at_ms: ends_at(new.expires_in_seconds)?,
        created_at_ms: wall_ms(),
        created_by: caller.principal.as_str().to_owned(),
        ..pb::AccountRecord::default()
    };
    let mut secret = None;
    let is_given = |given: bool, what: &str, of: AccountKind| match given {
        true if kind != of => Err(invalid(format!("{what} is for a {}", kind_word(of)))),
        false if kind == of => Err(invalid(format!("a {} needs {what}", kind_word(of)))),
        _ => Ok(()),
    };
    is_given(new.password.is_some(), "password", AccountKind::User)?;
    is_given(new.ci.is_some(), "ci", AccountKind::Ci)?;
    if let Some(password) = &new.password {
        record.password = hashed(&api, check_password(password)?).await?;
    }
    if let Some(ci) = new.ci {
        record.ci = Some(trust(ci)?);
    }
    match kind {
        AccountKind::Key => {
            let own = caller.principal.as_str().to_owned();
            record.owner = new.owner.clone().unwrap_or(own);
        }
        _ if new.owner.is_some() => return Err(invalid("owner is for a key")),
        AccountKind::Token if record.grants.is_empty() => {
            return Err(invalid(
                "a token without grants may do nothing; give it some",
            ));
        }
        _ => {}
    }
    if matches!(kind, AccountKind::Token | AccountKind::Key) {
        let made = new_secret();
        record.secrets = vec![pb::SecretRecord {
            hash: secret_hash(made.expose_secret()).into(),
            created_at_ms: wall_ms(),
            expires_at_ms: 0,
        }];
        secret = Some(made);
    }
    let told: Vec<String> = grants.iter().map(Grant::to_string).collect();
    let put = Command::PutAccount(pb::PutAccount {
        name: name.to_string(),
        record: Some(record),
        authority: Some(caller.authority()),
        only_first: false,
    });
    let action = format!("{}-add", kind_word(kind));
    caller.change(&action, &name, told.join(" "), put).await?;
    Ok(Json(Made {
        name: name.to_string(),
        secret: secret.map(|s| s.expose_secret().to_owned()),
    }))
}

fn trust(ci: Ci) -> Result<pb::CiTrust, Refused> {
    let is_url = ci.issuer.starts_with("https://") || ci.issuer.starts_with("http://127.0.0.1");
    if !is_url {
        return Err(invalid(
            "issuer is the https URL that the system signs its tokens as",
        ));
    }
    if ci.audience.is_empty() || ci.claims.is_empty() {
        return Err(invalid(
            "audience and at least one claim are needed: else any job of the issuer may come in",
        ));
    }
    let jwks = ci.jwks.unwrap_or_default();
    if !jwks.is_empty() && serde_json::from_str::<jsonwebtoken::jwk::JwkSet>(&jwks).is_err() {
        return Err(invalid("jwks is not a JSON Web Key Set"));
    }
    Ok(pb::CiTrust {
        issuer: ci.issuer,
        audience: ci.audience,
        claims: ci.claims,
        jwks,
    })
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<Shown> {
    let found = name
        .parse()
        .ok()
        .map(|name| api.metadata.view().account(&name))
        .transpose()?;
    let found = match found.flatten() {
        Some(account) => shown(&api, &caller, &account)?,
        None => None,
    };
    let unknown = || {
        Refused::by_state(&pb::Refused {
            reason: pb::Reason::NameUnknown.into(),
            message: format!("there is no account {name:?} that you may see"),
        })
    };
    found.map(Json).ok_or_else(unknown)
}

pub(super) async fn remove(caller: Caller, Path(name): Path<String>) -> Answer<Made> {
    let remove = Command::RemoveAccount(pb::RemoveAccount {
        name: name.clone(),
        authority: Some(caller.authority()),
    });
    caller.change("account-remove", &name, "", remove).await?;
    Ok(Json(Made { name, secret: None }))
}

pub(super) async fn set_password(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    Body(new): Body<NewPassword>,
) -> Answer<Made> {
    let set = Command::SetPassword(pb::SetPassword {
        name: name.clone(),
        password: hashed(&api, check_password(&new.password)?).await?,
        authority: Some(caller.authority()),
    });
    caller.change("user-password", &name, "", set).await?;
    Ok(Json(Made { name, secret: None }))
}

pub(super) async fn rotate(
    caller: Caller,
    Path(name): Path<String>,
    Body(how): Body<Rotation>,
) -> Answer<Made> {
    let secret = new_secret();
    let keep_old_until_ms = match how.keep_old_seconds {
        None | Some(0) => 1,
        seconds => ends_at(seconds)?,
    };
    let rotate = Command::RotateSecret(pb::RotateSecret {
        name: name.clone(),
        hash: secret_hash(secret.expose_secret()).into(),
        keep_old_until_ms,
        expires_at_ms: ends_at(how.expires_in_seconds)?,
        now_ms: wall_ms(),
        authority: Some(caller.authority()),
    });
    let kept = format!("old one good for {} s", how.keep_old_seconds.unwrap_or(0));
    caller.change("token-rotate", &name, kept, rotate).await?;
    Ok(Json(Made {
        name,
        secret: Some(secret.expose_secret().to_owned()),
    }))
}
