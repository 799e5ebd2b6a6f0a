//! The common block of every service's configuration, and reading a configuration file.

use crate::named_files::NamedFiles;
use canopy_api::{
    document::{self, Format},
    problem::{Problem, Problems},
    san::SanPatterns,
};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// A service's configuration file.
pub trait ServiceConfig: DeserializeOwned + JsonSchema + Send + 'static {
    /// The common block.
    fn runtime(&self) -> &RuntimeConfig;

    /// What the schema cannot check; paths are paths in the file.
    fn check(&self) -> Result<(), Problems> {
        Ok(())
    }

    /// Looks at every file that it names, for `--check`; those of the common block are looked at already.
    fn check_files(&self, files: &mut NamedFiles) {
        let _ = files;
    }

    /// A private key of the user that the service runs as: where root checks, files are looked at with that
    /// user's rights.
    fn own_key(&self) -> Option<&Path> {
        None
    }
}

/// Logs, metrics, traces: the block `runtime`, the same in every service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// The listener for metrics and health.
    pub admin: AdminConfig,
    /// Logs, on standard error.
    pub log: LogConfig,
    /// Where traces go. Without it none are made.
    pub otlp: Option<OtlpConfig>,
    /// A file to write the admin listener's address to once it is bound (`127.0.0.1:40213`), for
    /// whoever asked for port 0.
    pub address_file: Option<PathBuf>,
}

/// The admin listener: `/metrics` (Prometheus), `/live`, `/ready` (`?verbose` for the reasons).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address and port; port 0 for any free one. Default: on loopback. Any other address needs
    /// `tls`.
    pub listen: SocketAddr,
    /// TLS, with certificates of clients. Without it clients are whoever reaches the address: on
    /// loopback everybody of this machine.
    pub tls: Option<AdminTls>,
    /// What to do off loopback without `tls`: `refuse` (default) or `plain_to_anybody`, which shows
    /// whoever reaches the address what runs here.
    pub off_loopback: OffLoopback,
}

/// TLS of the admin listener: 1.3, with certificates on both sides. The files are looked at every two
/// seconds, so that renewed ones are used without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminTls {
    /// PEM file of the listener's certificate.
    pub cert: PathBuf,
    /// PEM file of its key: this service's user's, mode 0600 or less.
    pub key: PathBuf,
    /// PEM file of the authorities that sign clients' certificates.
    pub ca: PathBuf,
    /// Who may ask: one of these has to fit a name in the client's certificate, such as `[{"dns":
    /// {"exact": "prometheus.example.net"}}]`.
    #[schemars(length(min = 1))]
    pub clients: SanPatterns,
}

/// An admin listener that everybody on the network can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OffLoopback {
    /// Is not started without TLS.
    #[default]
    Refuse,
    /// Answers anybody.
    PlainToAnybody,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            tls: None,
            off_loopback: OffLoopback::Refuse,
        }
    }
}

/// Logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `human` (default) or `json`, one object a line.
    pub format: LogFormat,
    /// What is logged: `error`, `warn`, `info` (default), `debug`, `trace`, or filters by module
    /// such as `info,canopy_bus=debug` (syntax of tracing-subscriber's `EnvFilter`).
    pub level: Option<String>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// For machines: one JSON object a line.
    Json,
}

/// Export of traces by OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtlpConfig {
    /// The collector, such as `http://127.0.0.1:4318/v1/traces`.
    pub endpoint: String,
}

impl RuntimeConfig {
    /// What the schema cannot check. `at` is the path of this block.
    pub fn check(&self, at: &str) -> Result<(), Problems> {
        let mut problems = Problems::default();
        let AdminConfig { listen, tls, off_loopback } = &self.admin;
        if !listen.ip().is_loopback() && tls.is_none() && *off_loopback == OffLoopback::Refuse {
            problems.push(
                Problem::new(
                    format!("{at}.admin.listen"),
                    format!(
                        "{listen} is not a loopback address, and nobody would be asked who they are"
                    ),
                )
                .remedy("give the listener `tls`, or listen on 127.0.0.1 or [::1]"),
            );
        }
        if tls.as_ref().is_some_and(|tls| tls.clients.0.is_empty()) {
            problems.push(
                Problem::new(
                    format!("{at}.admin.tls.clients"),
                    "there is no pattern, so nobody could ask",
                )
                .remedy("name who may: [{\"dns\": {\"exact\": \"prometheus.example.net\"}}]"),
            );
        }
        if let Some(level) = &self.log.level
            && let Err(error) = level.parse::<tracing_subscriber::EnvFilter>()
        {
            problems.push(
                Problem::new(
                    format!("{at}.log.level"),
                    format!("\"{level}\" is not a log filter: {error}"),
                )
                .remedy("one of error, warn, info, debug, trace, or filters such as info,canopy_bus=debug"),
            );
        }
        if let Some(otlp) = &self.otlp
            && !(otlp.endpoint.starts_with("http://") || otlp.endpoint.starts_with("https://"))
        {
            problems.push(
                Problem::new(
                    format!("{at}.otlp.endpoint"),
                    format!("\"{}\" is not an HTTP address", otlp.endpoint),
                )
                .remedy("write it as http://127.0.0.1:4318/v1/traces"),
            );
        }
        problems.into_result()
    }
}

/// Reads and checks a configuration file: JSON or YAML by extension, all mistakes at once.
pub fn load<C: ServiceConfig>(path: &Path) -> Result<C, Problems> {
    parse(path, &read_text(path)?)
}

/// Longest configuration file, bytes.
const LONGEST: u64 = 16 << 20;

/// What a configuration says is trusted: so nobody else may be able to write it.
pub(crate) fn read_text(path: &Path) -> Result<String, Problem> {
    canopy_files::check_protected(path).map_err(|open| {
        Problem::new("", format!("the configuration is not used: {open}")).remedy(open.remedy)
    })?;
    canopy_files::read_text(path, LONGEST)
        .map_err(|error| Problem::new("", format!("cannot read {}: {error}", path.display())))
}

/// Checks the text of the configuration file `path`.
pub(crate) fn parse<C: ServiceConfig>(path: &Path, text: &str) -> Result<C, Problems> {
    let format = Format::of(path).ok_or_else(|| {
        Problem::new("", format!("{} is neither JSON nor YAML by its name", path.display()))
            .remedy("name it .json, .yaml or .yml")
    })?;
    let config: C = document::load(text, format)?;
    let mut problems = Problems::default();
    for check in [config.runtime().check("runtime"), config.check()] {
        if let Err(found) = check {
            problems.0.extend(found.0);
        }
    }
    problems.into_result()?;
    Ok(config)
}
