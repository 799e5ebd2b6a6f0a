//! A record, and the line that it is kept as.

use canopy_api::{HostId, Principal, wire::Decision};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// Bytes of the longest line of a record: writers cut what others say, and longer ones are not stored.
pub const LINE_BYTES: usize = 16 * 1024;

/// SHA-256 of a line without its line break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// What stands before the first record of a chain.
    pub const NONE: Self = Self([0; 32]);

    /// Of a line.
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for LineHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .ok()
            .filter(|()| text.bytes().all(|b| !b.is_ascii_uppercase()))
            .map(|()| Self(bytes))
            .ok_or_else(|| format!("\"{text}\" is not 64 of 0-9 and a-f"))
    }
}

impl Serialize for LineHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LineHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A chain begins; `reason` says why: there was none, or the one before was damaged.
    Opened,
    /// A request that may change something is about to be worked on.
    Begun,
    /// What came of it.
    Ended,
    /// A request was refused without being worked on.
    Refused,
    /// Records up to `of` were removed, as there is only so much room; `previous_of` is the hash of the
    /// last of them.
    Trimmed,
    /// Somebody connected to the bus.
    Connected,
}

/// A record. Fields that have no meaning for its kind are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its number in the chain, from 1.
    pub seq: u64,
    /// Hash of the line before it.
    pub previous: LineHash,
    /// When, RFC 3339.
    pub time: String,
    /// Who keeps the chain.
    pub writer: Principal,
    /// The chain: 16 hexadecimal digits, new with each.
    pub chain: String,
    /// What it says.
    pub kind: Kind,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Principal>,
    /// On which host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// What was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<String>,
    /// The caller's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Digest of the request's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<LineHash>,
    /// The record this one is about: of `ended` the one that it began with, of `trimmed` the last that
    /// was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// Hash of the line that `of` names, where it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_of: Option<LineHash>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Admission rules that decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The address that somebody connected from, or tried to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Id of the token that they showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// How many times it happened, where one record stands for several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Record {
    /// Its line, without a line break: the only text that is this record.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// A place in a chain that somebody keeps to compare with: `<seq>:<hash>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of the record.
    pub seq: u64,
    /// Hash of its line.
    pub hash: LineHash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("\"{text}\" is no place in a chain: write it as verify prints it, 12:ab34…");
        let (seq, hash) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self { seq: seq.parse().map_err(|_| bad())?, hash: hash.parse().map_err(|_| bad())? })
    }
}

impl Serialize for Head {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A record together with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it says.
    pub record: Record,
    /// Its text, without a line break.
    pub text: String,
    /// The text's hash.
    pub hash: LineHash,
}

impl Line {
    /// A line as a record. What reads as one and is written in another way is none: there must be one
    /// text only for each record.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let record: Record = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let own = record.to_line().map_err(|error| error.to_string())?;
        if own != text {
            return Err("it is not written as one".to_owned());
        }
        let hash = LineHash::of(text.as_bytes());
        Ok(Self { record, text, hash })
    }

    /// Its place in the chain.
    pub fn head(&self) -> Head {
        Head { seq: self.record.seq, hash: self.hash }
    }
}
