//! What every service answers: health and version.

use crate::{known::Fields, name::HostId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request that carries nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Answer to `health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Whether everything the service needs is there.
    pub ready: bool,
    /// Each thing it needs, and its state.
    pub checks: Vec<Check>,
    /// Seconds since the service started.
    pub uptime_seconds: u64,
}

/// One thing a service needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What is needed.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// State in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// There, but in a way that somebody should know of: a protection that is switched off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
}

/// Asks for the version of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionRequest {
    /// Which fields the requests of its verbs may have, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fields: bool,
}

/// Answer to `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The service.
    pub service: String,
    /// Its semantic version.
    pub version: String,
    /// The host it runs on; absent for central services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The fields of its requests by verb, as paths such as `entries[].key`, where they were asked for. A
    /// caller looks here before it sends a field that earlier releases do not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
}
