//! How to reach the bus, and what can go wrong on the way.

use crate::{refusal::Refusal, unreachable::UnreachableCause};
use canopy_api::san::SanPatterns;
use canopy_secrets::SecretError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{io, path::PathBuf, time::Duration};

/// How to reach the bus, and with which certificate. The certificate files are read again at every
/// reconnect, so rotated ones are picked up without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BusConfig {
    /// Address of the server: `tls://127.0.0.1:4222`. Several, separated by commas, for a cluster.
    pub url: String,
    /// PEM file of the authority that signed the server's certificate. System authorities are not
    /// trusted.
    pub ca: PathBuf,
    /// PEM file of the client certificate. Its URI name says who connects:
    /// `spiffe://canopy/<principal>`.
    pub cert: PathBuf,
    /// PEM file of the certificate's key: this program's user's, mode 0600 or less.
    pub key: PathBuf,
    /// File with a person's token, as private as the key. Services have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<PathBuf>,
    /// Names the server's certificate has to have, beside the address in `url`: one of these has to
    /// fit, such as `[{"dns": {"glob": "*.bus.example.net"}}]`. Certificates of clients
    /// (`spiffe://canopy/…`) do not fit. Without it, whoever has a certificate of the authority for
    /// the address is the server.
    #[serde(default, skip_serializing_if = "SanPatterns::is_empty")]
    pub server_names: SanPatterns,
}

impl BusConfig {
    /// A server, the authority of its certificate, and a certificate with its key; no token, and any
    /// name of the server's.
    pub fn new(url: String, ca: PathBuf, cert: PathBuf, key: PathBuf) -> Self {
        Self { url, ca, cert, key, token: None, server_names: SanPatterns::default() }
    }

    /// The same server, with the certificate of another of this program's connections.
    #[must_use]
    pub fn with_certificate(&self, cert: PathBuf, key: PathBuf) -> Self {
        Self { cert, key, ..self.clone() }
    }
}

/// The bus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A certificate file is missing or unreadable.
    #[error("cannot read {path} ({field})")]
    File {
        /// Field of the configuration that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may write what is trusted.
    #[error("{field} is not used: {open}; {}", open.remedy)]
    Unprotected {
        /// Field of the configuration that names it.
        field: &'static str,
        /// What is open to whom.
        open: canopy_files::Unprotected,
    },
    /// A key or a token is missing, or others may use it.
    #[error("{field} cannot be used: {error}; {}", error.remedy)]
    Secret {
        /// Field of the configuration that names it.
        field: &'static str,
        /// What is wrong with it, and what to do.
        error: SecretError,
    },
    /// The address is not one.
    #[error("\"{url}\" is not a bus address: write it as tls://127.0.0.1:4222")]
    Address {
        /// As given.
        url: String,
    },
    /// No connection, or one that carries no messages.
    #[error("no bus at {url} after {waited:?}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// How long was waited.
        waited: Duration,
        /// The kind of it.
        cause: UnreachableCause,
        /// What the last attempt met.
        reason: String,
    },
    /// The server does not let this process in.
    #[error("the bus at {url} refuses {principal}: {refusal}")]
    Refused {
        /// Where.
        url: String,
        /// Who.
        principal: String,
        /// Why.
        refusal: Refusal,
    },
    /// The server refused something this process needs.
    #[error(
        "the bus does not let {principal} {what}; is the certificate {principal}'s own, and the server's configuration of this version?"
    )]
    NotPermitted {
        /// Who.
        principal: String,
        /// `publish to …` or `subscribe to …`.
        what: String,
    },
    /// The connection ended for good.
    #[error("the bus connection is closed")]
    Closed,
    /// The file that remembers answered requests cannot be used.
    #[error("cannot use {path} to remember answered requests")]
    Remembering {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store of the bus (JetStream, account DATA) does not answer, or takes nothing now.
    #[error("the bus's store: {0}")]
    Unavailable(String),
    /// What is stored in DATA cannot be read.
    #[error("the bus's store: {0}")]
    Store(String),
    /// A mistake in the program that uses this crate.
    #[error("defect: {0}")]
    Defect(String),
}
