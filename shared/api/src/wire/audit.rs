//! The audit trail: records as they are told, stored and asked for.

use crate::{
    endpoint::Service,
    name::{HostId, Principal},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most lines of one request to store.
pub const AUDIT_LINES: usize = 256;
/// Most records of one answer.
pub const AUDIT_PAGE: usize = 500;

/// `audit.<service>.<host or "_">`: a request that changes something, or one that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// When it was decided.
    pub time: String,
    /// Who asked.
    pub principal: Principal,
    /// Which service was asked.
    pub service: String,
    /// On which host; absent for central services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// What was asked.
    pub verb: String,
    /// The caller's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What came of it.
    pub decision: Decision,
    /// Why, where it was not done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Its place in the writer's own trail, where it keeps one: `<chain>/<seq>:<hash>`. Kept elsewhere,
    /// it shows whether the trail was cut or written anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// `security.policy.connect.refused._`: somebody tried to connect, and was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectRefused {
    /// When.
    pub time: String,
    /// From where.
    pub address: String,
    /// What the client calls itself; anybody can say anything.
    pub client: String,
    /// Names in its certificate, at most 8.
    pub names: Vec<String>,
    /// Why, in a word.
    pub code: String,
    /// Why.
    pub reason: String,
    /// How many more were refused since the last that was told: at most 20 a second are.
    pub untold: u64,
}

/// `security.policy.connect.cut._`: connections of somebody who used more of the bus than they may were
/// ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectCut {
    /// When.
    pub time: String,
    /// Whose connections.
    pub principal: Principal,
    /// From where.
    pub addresses: Vec<String>,
    /// What there was too much of, in a word: `subscriptions`, `pending_bytes`, `messages_per_second`, `bytes_per_second`.
    pub code: String,
    /// The same in words, with numbers.
    pub reason: String,
    /// How many connections were ended.
    pub connections: u64,
    /// How often in a row this principal's connections were ended.
    pub times: u32,
    /// For how long new connections of the principal are refused, milliseconds.
    pub refused_for_ms: u64,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Done, or already so.
    Done,
    /// Tried, and failed.
    Failed,
    /// Refused: the caller may not.
    Denied,
}

/// `policy.audit-append`: a writer has its records stored, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditAppendRequest {
    /// The writer's chain: 16 hexadecimal digits.
    pub chain: String,
    /// What the writer takes to be the last stored record, `<seq>:<hash>`; absent where there is none.
    /// If it is another, nothing is stored and the answer says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The records' lines, at most 256.
    #[serde(default)]
    pub lines: Vec<String>,
}

/// Answer to `policy.audit-append`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditAppendReply {
    /// The last record that is stored of the chain now, `<seq>:<hash>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Whether lines contradicted what is stored. They were kept beside it; a writer begins a new chain.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub diverged: bool,
}

/// `event.policy.audit.finding._`: records that came to be stored do not follow from what is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditFinding {
    /// When.
    pub time: String,
    /// Whose chain.
    pub writer: Principal,
    /// Which.
    pub chain: String,
    /// Which record.
    pub seq: u64,
    /// What is wrong, in a word: `gap`, `fork`, `begun_anew`, `cut`, `foreign`.
    pub code: String,
    /// The same in words.
    pub finding: String,
}

/// Which end of the stored records an answer begins at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditOrder {
    /// The last stored first.
    #[default]
    NewestFirst,
    /// As they were stored.
    OldestFirst,
}

/// `policy.audit`: what was done, by whom. Every filter that is given has to fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditRequest {
    /// Records about this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Records of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Records of this writer, such as `h-web1-loader`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Principal>,
    /// Records of what this principal did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Principal>,
    /// Not before, RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Not after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// With this decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Of this verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<String>,
    /// Which end comes first.
    #[serde(default)]
    pub order: AuditOrder,
    /// At most so many records, 1 to 500; default 500. An answer may have fewer although there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where the answer before ended: its `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// Answer to `policy.audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditReply {
    /// The records.
    pub records: Vec<StoredRecord>,
    /// Where to go on; absent when there is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Number of the oldest record in the store.
    pub oldest: u64,
    /// Number of the newest.
    pub newest: u64,
}

/// A record in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredRecord {
    /// Its number there.
    pub stored: u64,
    /// Whose it is stored as.
    pub writer: String,
    /// Of which chain.
    pub chain: String,
    /// Whether it contradicted what was stored, and stands beside its chain.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// What was wrong with it when it came.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub finding: String,
    /// Its line, to the letter: hashes are over it.
    pub line: String,
}

/// How far a stored chain goes, signed by policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SignedCheckpoint {
    /// What is signed: JSON with writer, chain, seq, hash, stored, time, key.
    pub statement: String,
    /// Ed25519, over the line `canopy audit checkpoint 1` and the statement; base64.
    pub signature: String,
}

/// `policy.audit-checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditCheckpointsRequest {
    /// Of this writer only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Principal>,
    /// Where the answer before ended: its `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Principal>,
}

/// Answer to `policy.audit-checkpoints`: the last one of each chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditCheckpointsReply {
    /// The checkpoints.
    pub checkpoints: Vec<SignedCheckpoint>,
    /// The public key they are signed with, base64.
    pub key: String,
    /// Where to go on; absent when there is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Principal>,
}
