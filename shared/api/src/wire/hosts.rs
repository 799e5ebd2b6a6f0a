//! `policy.*.host-*`: which hosts may connect.

use crate::{endpoint::Service, name::HostId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `policy.admin.host-enrol`: a host may connect, with these keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostEnrolRequest {
    /// Which host.
    pub host: HostId,
    /// For each daemon of the host a certificate signing request (PKCS #10, PEM) to be signed, or a
    /// certificate that the bus's authority has signed already (PEM). The one name in each is
    /// `spiffe://canopy/h-<host>-<service>`.
    pub certificates: BTreeMap<Service, String>,
    /// Its labels, which admission rules and roles speak of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Seconds within which the host has to connect for the first time; then the enrolment is void.
    /// Default: an hour. It ends with the token of who enrols, where that ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// In place of an enrolment there is: its certificates are worth nothing from now on, and its
    /// connections end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// What was signed. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEnrolReply {
    /// What is known about the host now.
    pub record: HostRecord,
    /// The certificates, PEM, by daemon.
    pub certificates: BTreeMap<Service, String>,
}

/// `policy.internal.host-renew`: another certificate for the key of the daemon that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostRenewRequest {
    /// Certificate signing request, PEM, with the key of the certificate in use.
    pub request: String,
}

/// A certificate just signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostRenewReply {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its last second.
    pub until: String,
}

/// `policy.admin.host-label`: other labels for a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostLabelRequest {
    /// Which host.
    pub host: HostId,
    /// Labels by name; `null` takes one away. Those not named stay.
    pub labels: BTreeMap<String, Option<String>>,
}

/// `policy.admin.host-revoke`: the host may not connect any more, and its connections end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostRevokeRequest {
    /// Which host.
    pub host: HostId,
}

/// `policy.admin.host-forget`: removes what is kept of a host that was revoked. It may be enrolled again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostForgetRequest {
    /// Which host.
    pub host: HostId,
}

/// `policy.read.host-list`: what is known about hosts, page by page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostListRequest {
    /// This host only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Only hosts behind this one, by id: `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<HostId>,
    /// At most so many hosts; a page may have fewer. Default: as many as one answer holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<u32>,
}

/// What is known about hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostListReply {
    /// By id.
    pub hosts: Vec<HostRecord>,
    /// The last host of this page, where there are more behind it: `after` of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<HostId>,
}

/// What is known about a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostRecord {
    /// Its id.
    pub host: HostId,
    /// Whether it may connect.
    pub state: HostState,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How often it was enrolled.
    pub generation: u64,
    /// The certificate of each of its daemons.
    pub certificates: BTreeMap<Service, HostCertificate>,
    /// When it was enrolled.
    pub enrolled: String,
    /// By whom.
    pub enrolled_by: String,
    /// When it first connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<String>,
    /// Until when it has to connect for the first time.
    pub connect_before: String,
    /// Who took it back, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<super::tokens::Revoked>,
}

/// A daemon's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostCertificate {
    /// SHA-256 of its DER, base64url without padding (`x5t#S256`, RFC 8705).
    pub fingerprint: String,
    /// SHA-256 of its public key, base64url without padding.
    pub key: String,
    /// Its last second.
    pub until: String,
}

/// Whether a host may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Enrolled; it has not connected yet.
    Waiting,
    /// It may.
    Active,
    /// It did not connect in time.
    Expired,
    /// Taken back by somebody.
    Revoked,
}

impl HostState {
    /// As shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}
