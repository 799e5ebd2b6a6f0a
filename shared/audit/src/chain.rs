//! The writer's end of a chain.

use crate::record::{Head, Kind, LineHash, Record};
use canopy_api::{HostId, Principal, wire::Decision};

/// What is to be recorded; the chain adds the rest.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it says.
    pub kind: Kind,
    /// When, RFC 3339.
    pub time: String,
    /// Who asked.
    pub principal: Option<Principal>,
    /// On which host.
    pub host: Option<HostId>,
    /// What was asked.
    pub verb: Option<String>,
    /// The caller's idempotency key.
    pub request_id: Option<String>,
    /// Digest of the request's bytes.
    pub request: Option<LineHash>,
    /// The record it is about.
    pub of: Option<u64>,
    /// Hash of the line of that record, where it is gone.
    pub previous_of: Option<LineHash>,
    /// What came of it.
    pub decision: Option<Decision>,
    /// Admission rules that decided.
    pub rules: Vec<String>,
    /// Why.
    pub reason: String,
    /// The address that somebody connected from.
    pub peer: Option<String>,
    /// Id of the token that they showed.
    pub token: Option<String>,
    /// How many times it happened, where that is not once.
    pub count: Option<u64>,
}

impl Entry {
    /// An entry that says nothing yet but its kind.
    pub fn new(kind: Kind, time: impl Into<String>) -> Self {
        Self {
            kind,
            time: time.into(),
            principal: None,
            host: None,
            verb: None,
            request_id: None,
            request: None,
            of: None,
            previous_of: None,
            decision: None,
            rules: Vec::new(),
            reason: String::new(),
            peer: None,
            token: None,
            count: None,
        }
    }
}

/// A chain that grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    writer: Principal,
    id: String,
    head: Head,
}

impl Chain {
    /// A new chain; `id` is one that no other has.
    pub fn new(writer: Principal, id: String) -> Self {
        Self { writer, id, head: Head { seq: 0, hash: LineHash::NONE } }
    }

    /// A chain that goes on where it was.
    pub fn at(writer: Principal, id: String, head: Head) -> Self {
        Self { writer, id, head }
    }

    /// Its last record.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next line, and the chain once it is kept.
    pub fn next(&self, entry: Entry) -> Result<(String, Self), serde_json::Error> {
        let record = Record {
            seq: self.head.seq + 1,
            previous: self.head.hash,
            time: entry.time,
            writer: self.writer.clone(),
            chain: self.id.clone(),
            kind: entry.kind,
            principal: entry.principal,
            host: entry.host,
            verb: entry.verb,
            request_id: entry.request_id,
            request: entry.request,
            of: entry.of,
            previous_of: entry.previous_of,
            decision: entry.decision,
            rules: entry.rules,
            reason: entry.reason,
            peer: entry.peer,
            token: entry.token,
            count: entry.count,
        };
        let line = record.to_line()?;
        let head = Head { seq: record.seq, hash: LineHash::of(line.as_bytes()) };
        Ok((line, Self { head, ..self.clone() }))
    }
}
