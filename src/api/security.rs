//! The audit log of this node, and the keys that tokens are signed with.

use super::Api;
use super::accounts::Answer;
use super::accounts::invalid;
use super::door::Caller;
use super::types::AuditLog;
use super::types::SigningKey;
use super::types::SigningKeys;
use crate::clock::wall_ms;
use crate::login::new_signing_key;
use crate::proto::state::v1::command::Body as Command;
use axum::Json;
use axum::extract::Query;
use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use serde::Deserialize;
use std::io;
use std::time::Duration;
use time::OffsetDateTime;

/// Lines of one answer: the last ones.
const MOST_LINES: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    since_seconds: Option<u64>,
}

pub(super) async fn audit(
    State(api): State<Api>,
    caller: Caller,
    query: Result<Query<Since>, QueryRejection>,
) -> Answer<AuditLog> {
    caller.must_admin_all("audit-read")?;
    let Query(Since { since_seconds }) = query.map_err(|error| invalid(error.body_text()))?;
    let back = Duration::from_secs(
        since_seconds
            .unwrap_or(24 * 3600)
            .min(100 * 366 * 24 * 3600),
    );
    let since = OffsetDateTime::now_utc() - back;
    let audit = api.login.audit().clone();
    let read = api
        .tasks
        .spawn_blocking(move || audit.read(since, MOST_LINES))
        .await;
    let events = read.map_err(io::Error::other)??;
    let region = api.metadata.identity().region().to_string();
    Ok(Json(AuditLog { region, events }))
}

pub(super) async fn signing_keys(State(api): State<Api>, caller: Caller) -> Answer<SigningKeys> {
    caller.must_admin_all("signing-key-list")?;
    let keys = api.metadata.view().signing_keys()?;
    let shown = |key: crate::metadata::accounts::SigningKey| SigningKey {
        kid: key.kid,
        created_at_ms: key.record.created_at_ms,
        retired_at_ms: (key.record.retired_at_ms != 0).then_some(key.record.retired_at_ms),
    };
    Ok(Json(SigningKeys {
        keys: keys.into_iter().map(shown).collect(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    #[serde(default)]
    drop_old: bool,
}

/// A new key signs from now on; tokens that those before have signed stay good, or are dropped: a key
/// that leaked signs for whoever has it, as long as it is known.
pub(super) async fn rotate_signing_key(
    State(api): State<Api>,
    caller: Caller,
    query: Result<Query<Rotate>, QueryRejection>,
) -> Answer<SigningKeys> {
    caller.must_admin_all("signing-key-rotate")?;
    let Query(Rotate { drop_old }) = query.map_err(|error| invalid(error.body_text()))?;
    let mut put = new_signing_key(wall_ms(), false)?;
    put.drop_others = drop_old;
    let kid = put.kid.clone();
    let detail = if drop_old {
        "the old ones are dropped"
    } else {
        ""
    };
    caller
        .change(
            "signing-key-rotate",
            kid,
            detail,
            Command::PutSigningKey(put),
        )
        .await?;
    signing_keys(State(api), caller).await
}
