//! The bodies of the admin API: what the server sends and the command line reads. Fields are
//! added; none changes its name or its meaning.

pub use crate::audit::Event;
use crate::topology::Role;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// `GET /api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub cluster_id: String,
    pub lineage: String,
    /// A leader, every region up, nothing under-replicated.
    pub healthy: bool,
    /// A manifest can be pushed through the node that answers.
    pub writable: bool,
    /// Why it is not healthy, in words.
    pub reasons: Vec<String>,
    /// What works now, but should be looked at.
    pub warnings: Vec<String>,
    /// Live voters beyond the quorum.
    pub failure_tolerance: usize,
    pub leader: Option<String>,
    pub term: u64,
    pub under_replicated_blobs: u64,
    pub state_hash: StateHash,
    pub regions: Vec<Region>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    pub index: u64,
    pub hash: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Region {
    pub name: String,
    pub role: Role,
    pub state: State,
    pub applied_index: u64,
    /// Entries behind the furthest node that answered.
    pub lag: u64,
    /// From the node that answers; null for itself and for a region that does not answer.
    pub round_trip_ms: Option<f64>,
    pub blobs_held: u64,
    /// Referenced blobs with no copy recorded there.
    pub blobs_missing: u64,
    pub bytes_held: u64,
    /// Referenced blobs held only there.
    pub sole_copies: u64,
    pub disk_total: Option<u64>,
    pub disk_free: Option<u64>,
    pub version: String,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: String,
    pub role: Role,
    pub state: State,
    pub applied_index: u64,
    pub peer: String,
}

/// The order is from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Up,
    /// It takes no new copies, and is about to leave.
    Draining,
    /// It is a member, but not yet in its role.
    Joining,
    /// It does not answer the node that answers.
    Unreachable,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Up => "up",
            State::Draining => "draining",
            State::Joining => "joining",
            State::Unreachable => "unreachable",
        })
    }
}

/// `GET /api/v1/verify/metadata`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataVerification {
    pub verdict: Verdict,
    /// The index at which the hashes were compared.
    pub index: Option<u64>,
    pub nodes: Vec<NodeHash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every node has the same state at the same index.
    Equal,
    /// Two nodes have different states at one index: a defect, or a damaged disk.
    Different,
    /// Not every node answered, or their indexes did not meet.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHash {
    pub node: String,
    pub region: String,
    /// Absent when the node did not answer.
    pub index: Option<u64>,
    pub hash: Option<String>,
}

/// `POST /api/v1/probe`: the entry that a test proposal became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub index: u64,
}

/// Values by key: numbers for `ack` and `copies`, text for the others.
pub type PolicyValues = BTreeMap<String, serde_json::Value>;

/// `GET /api/v1/policies`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policies {
    /// What counts where no prefix says anything.
    pub defaults: PolicyValues,
    /// In byte order of the prefixes.
    pub policies: Vec<Policy>,
    /// Null when nothing acknowledged is missing; else how long ago the node last knew.
    pub staleness_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub prefix: String,
    pub set: PolicyValues,
}

/// `GET /api/v1/policies/PREFIX`: also of a repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyAt {
    pub prefix: String,
    /// What this very prefix sets.
    pub set: PolicyValues,
    /// What counts there.
    pub effective: BTreeMap<String, PolicyValue>,
    pub staleness_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyValue {
    pub value: serde_json::Value,
    /// The prefix that sets it; null for the cluster's default.
    pub from: Option<String>,
}

/// `PUT /api/v1/policies/PREFIX` with `{"KEY": VALUE, …}`, and `DELETE …?key=KEY&key=…`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyChange {
    pub prefix: String,
    /// What the prefix set before, and sets now.
    pub before: PolicyValues,
    pub set: PolicyValues,
    pub effective: BTreeMap<String, PolicyValue>,
    pub warnings: Vec<String>,
}

/// `GET /api/v1/whoami`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// `anonymous` where there are no accounts, `local` on the node's own socket.
    pub name: String,
    /// user, token, key or ci; null without an account.
    pub kind: Option<String>,
    pub grants: Vec<Grant>,
    pub groups: Vec<String>,
    /// Patterns; `*` is the whole registry.
    pub administers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    pub pattern: String,
    pub rights: Vec<String>,
    /// Milliseconds since 1970, as all such times; null: it does not end.
    pub expires_at_ms: Option<u64>,
}

/// `GET /api/v1/accounts`: those that the caller may see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accounts {
    pub accounts: Vec<Account>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    pub name: String,
    /// user, token, key or ci.
    pub kind: String,
    pub grants: Vec<Grant>,
    pub groups: Vec<String>,
    /// Of a key: the user that it acts as.
    pub owner: Option<String>,
    pub expires_at_ms: Option<u64>,
    pub created_at_ms: u64,
    pub created_by: String,
    /// As far as this region has heard.
    pub used_at_ms: Option<u64>,
    /// How many are good or have not run out: two while a rotation keeps the old one.
    pub secrets: usize,
    pub ci: Option<Ci>,
}

/// `PUT /api/v1/accounts/NAME`: 409 when the name is taken.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    pub kind: String,
    #[serde(default)]
    pub password: Option<String>,
    #[serde(default)]
    pub grants: Vec<GrantOf>,
    #[serde(default)]
    pub groups: Vec<String>,
    #[serde(default)]
    pub owner: Option<String>,
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
    #[serde(default)]
    pub ci: Option<Ci>,
}

/// `team/*:pull,push`, for so long or for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantOf {
    pub grant: String,
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
}

/// Whose tokens are taken: of this issuer, for this audience, with all of these claims.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ci {
    pub issuer: String,
    pub audience: String,
    /// `*` in a value stands for any text.
    pub claims: BTreeMap<String, String>,
    /// The issuer's keys as a JSON Web Key Set; without it the issuer is asked. Not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
}

/// What came of a change to an account; a new secret is here, and nowhere again.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// `PUT /api/v1/accounts/NAME/password`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    pub password: String,
}

/// `POST /api/v1/accounts/NAME/rotate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// The old secret is good for so long still; absent or 0: not at all.
    #[serde(default)]
    pub keep_old_seconds: Option<u64>,
    /// Of the account, from now on; absent: it does not expire.
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
}

/// `GET /api/v1/groups`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    pub grants: Vec<Grant>,
    pub members: Vec<String>,
}

/// `PUT /api/v1/groups/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    #[serde(default)]
    pub grants: Vec<GrantOf>,
}

/// What was changed, and the entry of the log that did it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    pub name: String,
    pub index: u64,
}

/// `GET /api/v1/signing-keys`, and `POST` for a new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SigningKeys {
    pub keys: Vec<SigningKey>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SigningKey {
    pub kid: String,
    pub created_at_ms: u64,
    /// Null: it signs.
    pub retired_at_ms: Option<u64>,
}

/// `GET /api/v1/audit?since_seconds=N`: of the node that answers, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditLog {
    pub region: String,
    pub events: Vec<Event>,
}

/// The body of `POST /api/v1/regions/NAME/join-token`; may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// What the region is to be; a voter, if not said.
    pub role: Option<Role>,
    /// How long the token is good; 24, if not said.
    pub hours: Option<u64>,
    /// Only what would change; no token is made.
    #[serde(default)]
    pub dry_run: bool,
}

/// What lets a new region in, and what it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinInvitation {
    pub region: String,
    pub role: Role,
    /// Null on a dry run.
    pub token: Option<String>,
    /// Wall clock.
    pub expires_at_ms: Option<u64>,
    /// Peer listeners to join through.
    pub join: Vec<String>,
    pub raft_profile: String,
    pub voters: FromTo,
    /// How many voters have to agree.
    pub quorum: FromTo,
    /// How many may be lost.
    pub failure_tolerance: FromTo,
    pub warnings: Vec<String>,
}

/// `DELETE /api/v1/regions/NAME/join-token`: how many were taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    pub region: String,
    pub tokens: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromTo {
    pub before: u64,
    pub after: u64,
}

/// Every refusal and failure, from the server and, with `-o json`, on stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    pub code: String,
    pub message: String,
    /// What to do.
    pub next: String,
}
