//! Groups, and grants to accounts and groups.

use super::Api;
use super::Body;
use super::accounts::Answer;
use super::accounts::invalid;
use super::accounts::parse_grant;
use super::accounts::shown_grants;
use super::door::Caller;
use super::error::Refused;
use super::types::Changed;
use super::types::GrantOf;
use super::types::Group;
use super::types::Groups;
use super::types::NewGroup;
use crate::access::Grant;
use crate::access::Pattern;
use crate::clock::wall_ms;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body as Command;
use axum::Json;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use std::collections::BTreeMap;

/// Those that give something of what the caller administers, or that it is in.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Answer<Groups> {
    let view = api.metadata.view();
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for account in view.accounts()? {
        for group in &account.record.groups {
            members
                .entry(group.clone())
                .or_default()
                .push(account.name.to_string());
        }
    }
    let mut groups = Vec::new();
    for group in view.groups()? {
        let name = group.name.to_string();
        let members = members.remove(&name).unwrap_or_default();
        let is_in = members
            .iter()
            .any(|member| member == caller.principal.as_str());
        let is_near = group.record.grants.iter().any(|grant| {
            grant
                .pattern
                .parse()
                .is_ok_and(|pattern: Pattern| caller.is_admin_of(&pattern))
        });
        if caller.is_admin_of_all() || is_near || is_in {
            groups.push(Group {
                name,
                grants: shown_grants(&group.record.grants),
                members,
            });
        }
    }
    Ok(Json(Groups { groups }))
}

pub(super) async fn create(
    caller: Caller,
    Path(name): Path<String>,
    Body(new): Body<NewGroup>,
) -> Answer<Changed> {
    let grants = new
        .grants
        .iter()
        .map(parse_grant)
        .collect::<Result<Vec<Grant>, _>>()?;
    let put = Command::PutGroup(pb::PutGroup {
        name: name.clone(),
        record: Some(pb::GroupRecord {
            grants: grants.iter().map(pb::GrantRecord::from).collect(),
            created_at_ms: wall_ms(),
        }),
        authority: Some(caller.authority()),
    });
    let told: Vec<String> = grants.iter().map(Grant::to_string).collect();
    let index = caller
        .change("group-add", &name, told.join(" "), put)
        .await?;
    Ok(Json(Changed { name, index }))
}

pub(super) async fn remove(caller: Caller, Path(name): Path<String>) -> Answer<Changed> {
    let remove = Command::RemoveGroup(pb::RemoveGroup {
        name: name.clone(),
        authority: Some(caller.authority()),
    });
    let index = caller.change("group-remove", &name, "", remove).await?;
    Ok(Json(Changed { name, index }))
}

async fn set_member(
    caller: &Caller,
    group: String,
    account: String,
    member: bool,
) -> Answer<Changed> {
    let action = if member { "group-join" } else { "group-leave" };
    let set = Command::SetMember(pb::SetMember {
        group: group.clone(),
        account: account.clone(),
        member,
        authority: Some(caller.authority()),
    });
    let index = caller.change(action, &group, account, set).await?;
    Ok(Json(Changed { name: group, index }))
}

pub(super) async fn join(
    caller: Caller,
    Path((group, account)): Path<(String, String)>,
) -> Answer<Changed> {
    set_member(&caller, group, account, true).await
}

pub(super) async fn leave(
    caller: Caller,
    Path((group, account)): Path<(String, String)>,
) -> Answer<Changed> {
    set_member(&caller, group, account, false).await
}

/// Who gets a grant, or loses it.
enum Holder {
    Account(String),
    Group(String),
}

async fn set_grant(
    caller: &Caller,
    holder: Holder,
    grant: pb::GrantRecord,
    told: String,
) -> Answer<Changed> {
    let action = if grant.rights == 0 {
        "grant-remove"
    } else {
        "grant-add"
    };
    let (account, group) = match holder {
        Holder::Account(name) => (name, String::new()),
        Holder::Group(name) => (String::new(), name),
    };
    let name = if group.is_empty() {
        account.clone()
    } else {
        group.clone()
    };
    let set = Command::SetGrant(pb::SetGrant {
        account,
        group,
        grant: Some(grant),
        authority: Some(caller.authority()),
    });
    let index = caller.change(action, &name, told, set).await?;
    Ok(Json(Changed { name, index }))
}

async fn give(caller: &Caller, holder: Holder, of: &GrantOf) -> Answer<Changed> {
    let grant = parse_grant(of)?;
    set_grant(
        caller,
        holder,
        pb::GrantRecord::from(&grant),
        grant.to_string(),
    )
    .await
}

type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

async fn take(caller: &Caller, holder: Holder, query: Asked) -> Answer<Changed> {
    let Query(query) = query.map_err(|error| invalid(error.body_text()))?;
    let [(name, pattern)] = query.as_slice() else {
        return Err(invalid("name the grant's pattern with ?pattern="));
    };
    if name != "pattern" {
        return Err(invalid("name the grant's pattern with ?pattern="));
    }
    let pattern: Pattern = pattern.parse().map_err(invalid)?;
    let grant = pb::GrantRecord {
        pattern: pattern.to_string(),
        ..pb::GrantRecord::default()
    };
    set_grant(caller, holder, grant, pattern.to_string()).await
}

pub(super) async fn give_account(
    caller: Caller,
    Path(name): Path<String>,
    Body(of): Body<GrantOf>,
) -> Result<Json<Changed>, Refused> {
    give(&caller, Holder::Account(name), &of).await
}

pub(super) async fn take_account(
    caller: Caller,
    Path(name): Path<String>,
    query: Asked,
) -> Result<Json<Changed>, Refused> {
    take(&caller, Holder::Account(name), query).await
}

pub(super) async fn give_group(
    caller: Caller,
    Path(name): Path<String>,
    Body(of): Body<GrantOf>,
) -> Result<Json<Changed>, Refused> {
    give(&caller, Holder::Group(name), &of).await
}

pub(super) async fn take_group(
    caller: Caller,
    Path(name): Path<String>,
    query: Asked,
) -> Result<Json<Changed>, Refused> {
    take(&caller, Holder::Group(name), query).await
}
