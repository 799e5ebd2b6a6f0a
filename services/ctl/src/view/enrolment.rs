//! Enrolment of hosts.

use crate::output::{Answer, Cell, Table, Tone, text};
use canopy_api::{
    HostId,
    endpoint::Service,
    wire::hosts::{HostRecord, HostState},
};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf};

/// What is known about enrolled hosts.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Enrolled(pub Vec<HostRecord>);

impl Answer for Enrolled {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("STATE"),
            text("LABELS").long(),
            text("CERTIFICATES UNTIL"),
            text("ENROLLED").wide(),
            text("BY").wide(),
            text("CONNECTED").wide(),
            text("KEYS").wide(),
            text("GENERATION").wide(),
        ]);
        for one in &self.0 {
            let (state, tone) = match one.state {
                HostState::Active => ("active".to_owned(), Tone::Good),
                HostState::Waiting => (format!("waits until {}", one.connect_before), Tone::Warn),
                HostState::Expired => ("expired".to_owned(), Tone::Bad),
                HostState::Revoked => ("revoked".to_owned(), Tone::Dim),
            };
            let labels: Vec<String> =
                one.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let first = one.certificates.values().map(|certificate| &certificate.until).min();
            table.row([
                (&one.host).into(),
                Cell::toned(state, tone),
                labels.join(",").into(),
                first.cloned().unwrap_or_default().into(),
                (&one.enrolled).into(),
                (&one.enrolled_by).into(),
                one.connected.clone().unwrap_or_default().into(),
                keys(one.certificates.iter().map(|(service, one)| (*service, one.key.as_str())))
                    .into(),
                (&one.generation).into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|one| one.host.to_string()).collect()
    }

    fn nothing(&self) -> String {
        "no host is enrolled".to_owned()
    }
}

fn keys<'a>(keys: impl Iterator<Item = (Service, &'a str)>) -> String {
    keys.map(|(service, key)| format!("{service}={key}")).collect::<Vec<_>>().join(",")
}

/// Keys to be compared, one a line: on the host and where it is enrolled they look the same.
pub(crate) fn key_lines(keys: &BTreeMap<Service, String>) -> Vec<String> {
    keys.iter().map(|(service, key)| format!("  {:<9} {key}", service.as_str())).collect()
}

/// A request just made.
#[derive(Debug, Serialize)]
pub struct Requested {
    /// For which host.
    pub host: HostId,
    /// SHA-256 of each daemon's public key.
    pub keys: BTreeMap<Service, String>,
    /// Where the request is.
    pub request: PathBuf,
    /// Where the keys are.
    pub dir: PathBuf,
}

impl Answer for Requested {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, _colour: bool) -> String {
        format!(
            "keys of {}:\n{}\nnext, as an administrator: canopy host enrol {} --save {}.enrolment\n\
             which shows these keys again: compare them before you say yes\n",
            self.host,
            key_lines(&self.keys).join("\n"),
            self.request.display(),
            self.host
        )
    }

    fn names(&self) -> Vec<String> {
        vec![self.request.display().to_string()]
    }
}

/// The block `bus` of a daemon's configuration.
#[derive(Debug, Serialize)]
pub struct DaemonConfig {
    /// Address of the bus.
    pub url: String,
    /// The authority.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A host that has what it needs.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// Which.
    pub host: HostId,
    /// What each daemon's configuration says of the bus.
    pub daemons: BTreeMap<Service, DaemonConfig>,
}

impl Answer for Installed {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, _colour: bool) -> String {
        let one = |(service, bus): (&Service, &DaemonConfig)| {
            let config = serde_json::json!({ "host": self.host, "bus": bus });
            format!("configuration of canopy-{service} has: {config}\n")
        };
        self.daemons.iter().map(one).collect()
    }

    fn names(&self) -> Vec<String> {
        vec![self.host.to_string()]
    }
}

/// What became of a daemon's certificate.
#[derive(Debug, Serialize)]
pub struct RenewedCertificate {
    /// Whether there is another one now.
    pub renewed: bool,
    /// Its last second, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// What became of a host's certificates.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Renewals(pub BTreeMap<Service, RenewedCertificate>);

impl Answer for Renewals {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([text("DAEMON"), text("CERTIFICATE")]);
        for (service, one) in &self.0 {
            let said = match &one.until {
                Some(until) => format!("renewed until {until}"),
                None => "good for more than a third of its time".to_owned(),
            };
            table.row([service.into(), Cell::from(said)]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0
            .iter()
            .filter(|(_, one)| one.renewed)
            .map(|(service, _)| service.to_string())
            .collect()
    }
}
