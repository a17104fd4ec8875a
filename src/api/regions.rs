//! Adding a region: what it does to what the cluster survives, and the token that lets it in.

use super::Api;
use super::accounts::Answer;
use super::door::Caller;
use super::error::Refused;
use super::types::Cancelled;
use super::types::FromTo;
use super::types::JoinInvitation;
use super::types::JoinTokenRequest;
use crate::certs::JoinToken;
use crate::clock::wall_ms;
use crate::metadata::query::NodeInfo;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::topology::RegionName;
use crate::topology::Role;
use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use secrecy::SecretBox;

const NEXT: &str = "`roadstead status` shows the regions; docs/certificates.md says how one joins";
const HOURS: u64 = 24;
/// Two weeks: a word that lets someone in should not lie around.
const MOST_HOURS: u64 = 24 * 14;

/// Seconds that a token is good, for tests that cannot wait.
const TEST_SECONDS: &str = "ROADSTEAD_TEST__JOIN_TOKEN_SECONDS";

/// `POST /api/v1/regions/{name}/join-token`.
pub(super) async fn join_token(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<JoinInvitation> {
    caller.must_admin_all("region-add")?;
    let invalid = |why: String| Refused::invalid(why, NEXT);
    let region: RegionName = name.parse().map_err(|error| invalid(format!("{error}")))?;
    let asked = match body.is_empty() {
        true => Ok(JoinTokenRequest::default()),
        false => serde_json::from_slice::<JoinTokenRequest>(&body),
    };
    let asked = asked.map_err(|error| invalid(error.to_string()))?;
    let hours = asked.hours.unwrap_or(HOURS);
    if !(1..=MOST_HOURS).contains(&hours) {
        let told = format!("a join token is good for 1 to {MOST_HOURS} hours, not {hours}");
        return Err(invalid(told));
    }
    let role = asked.role.unwrap_or(Role::Voter);
    let mut invitation = plan(&api, region.clone(), role)?
        .map_err(|why| Refused::new(StatusCode::CONFLICT, "REFUSED", why, NEXT))?;
    if asked.dry_run {
        return Ok(Json(invitation));
    }
    let token = create(&api, &caller, &region, role, hours).await?;
    invitation.token = Some(token.expose());
    invitation.expires_at_ms = Some(token.expires_at_ms);
    Ok(Json(invitation))
}

/// `DELETE /api/v1/regions/{name}/join-token`: tokens that nobody has used are good for nothing any
/// more.
pub(super) async fn cancel(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<Cancelled> {
    caller.must_admin_all("region-add-cancel")?;
    let ids = api.metadata.view().unused_join_tokens(&name)?;
    for id in &ids {
        let revoke = Body::RevokeJoinToken(pb::RevokeJoinToken { id: id.clone() });
        caller
            .change("region-add-cancel", &name, id, revoke)
            .await?;
    }
    Ok(Json(Cancelled {
        region: name,
        tokens: ids.len(),
    }))
}

/// What the cluster survives before and after.
fn plan(
    api: &Api,
    region: RegionName,
    role: Role,
) -> std::io::Result<Result<JoinInvitation, String>> {
    let nodes = api.metadata.view().nodes()?;
    if nodes.iter().any(|node| node.region == region) {
        return Ok(Err(format!(
            "region {region} is a member already; remove it first, or add one under another name"
        )));
    }
    let before = nodes.iter().filter(|node| node.role.votes()).count() as u64;
    let after = before + u64::from(role.votes());
    Ok(Ok(JoinInvitation {
        region: region.to_string(),
        role,
        token: None,
        expires_at_ms: None,
        join: addresses(api, &nodes),
        raft_profile: api.raft_profile.to_owned(),
        voters: from_to(before, after, |voters| voters),
        quorum: from_to(before, after, |voters| voters / 2 + 1),
        failure_tolerance: from_to(before, after, survived),
        warnings: warnings(&region, role, before, after),
    }))
}

fn from_to(before: u64, after: u64, of: impl Fn(u64) -> u64) -> FromTo {
    FromTo {
        before: of(before),
        after: of(after),
    }
}

fn survived(voters: u64) -> u64 {
    voters.saturating_sub(1) / 2
}

fn warnings(region: &RegionName, role: Role, before: u64, after: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if role.votes() && after > 7 {
        warnings.push(format!(
            "{before} voters are the most there can be: add {region} with role learner"
        ));
    }
    if role.votes() && after == 2 {
        warnings.push(
            "with two voters the loss of either stops pushes: add a third region soon, or a witness"
                .to_owned(),
        );
    } else if role.votes() && after.is_multiple_of(2) {
        warnings.push(format!(
            "{after} voters survive the loss of {} as {before} do, and need one more to agree: an odd number is better",
            survived(after)
        ));
    }
    warnings
}

/// Peer listeners to ask, this node's first.
fn addresses(api: &Api, nodes: &[NodeInfo]) -> Vec<String> {
    let me = api.metadata.identity().node();
    let mut present: Vec<&NodeInfo> = nodes.iter().filter(|node| !node.gone).collect();
    present.sort_by_key(|node| (node.id != me, node.id));
    present.iter().map(|node| node.peer.clone()).collect()
}

async fn create(
    api: &Api,
    caller: &Caller,
    region: &RegionName,
    role: Role,
    hours: u64,
) -> Result<JoinToken, Refused> {
    let ca = api.metadata.view().ca()?;
    // Its nodes may have gone over to certificates of their operator.
    let ca = ca.filter(|ca| api.peers.trusts(&ca.certificate));
    let cluster = api.metadata.identity().cluster();
    let (Some(ca), Some(cluster)) = (ca, cluster) else {
        let next = format!(
            "issue a certificate with `roadstead certs issue --region {region}`, and start the node with peer.ca, peer.cert and peer.key; on one machine, over loopback, no certificate is needed"
        );
        let why = "this cluster does not sign certificates itself, so it makes no join tokens";
        return Err(Refused::new(StatusCode::CONFLICT, "NO_CA", why, &next));
    };
    let now_ms = wall_ms();
    let secret: [u8; 32] = rand::random();
    let token = JoinToken {
        id: hex::encode(rand::random::<[u8; 8]>()),
        secret: SecretBox::new(Box::new(secret)),
        region: region.clone(),
        role,
        expires_at_ms: now_ms + lifetime_ms(hours),
        ca: ca.certificate.to_vec(),
        cluster_id: cluster.cluster_id,
        lineage: cluster.lineage,
    };
    let create = pb::CreateJoinToken {
        id: token.id.clone(),
        region: region.to_string(),
        role: pb::Role::from(role).into(),
        secret_hash: JoinToken::secret_hash(&secret).into(),
        expires_at_ms: token.expires_at_ms,
        now_ms,
        actor: caller.principal.as_str().to_owned(),
    };
    let detail = format!("{role}, good for {hours} h");
    let create = Body::CreateJoinToken(create);
    caller.change("region-add", region, detail, create).await?;
    Ok(token)
}

fn lifetime_ms(hours: u64) -> u64 {
    let seconds = std::env::var(TEST_SECONDS).ok();
    let seconds = seconds.and_then(|text| text.parse::<u64>().ok());
    seconds.unwrap_or(hours * 3600) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_number_of_voters_and_an_eighth_are_warned_of() {
        let r9: RegionName = "r9".parse().unwrap();
        let told =
            |role, before: u64| warnings(&r9, role, before, before + u64::from(Role::votes(role)));
        assert!(told(Role::Voter, 1)[0].contains("two voters"));
        assert!(told(Role::Voter, 2).is_empty());
        assert!(told(Role::Witness, 3)[0].contains("4 voters survive the loss of 1 as 3 do"));
        assert!(told(Role::Learner, 3).is_empty());
        assert!(told(Role::Voter, 7)[0].contains("role learner"));
        assert_eq!([1, 2, 3, 4, 5].map(survived), [0, 0, 1, 1, 2]);
    }
}
