//! The configuration of nats-server, whole, from the endpoint table: TLS with client certificates,
//! the accounts, one user for each principal with its permissions.
//!
//! There are no passwords. In production the server asks the policy service about everybody who
//! connects (**auth callout**), and only the policy service's own connections are users of the
//! configuration: certificates whose URI name is `spiffe://canopy/<principal>`. Without a policy
//! service, in tests of single services, every principal is such a user.
//!
//! Accounts: **APP** has people and daemons and no JetStream; **DATA** has JetStream and no
//! requests, and takes events and audit records from APP; **AUTH** is where the server asks who may
//! connect; **SYS** is the server's own.

use crate::{
    endpoint::Service,
    name::{HostId, NameError, Principal},
    permission::{self, Permissions, Role, Seat},
    scope::Reach,
    subject::ROOT,
};
use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
};

/// What the URI names of ours begin with.
pub const TRUST_DOMAIN: &str = "spiffe://canopy/";

/// The URI name in a certificate that makes its holder this principal.
pub fn spiffe_id(principal: impl fmt::Display) -> String {
    format!("{TRUST_DOMAIN}{principal}")
}

/// Connections of one server, of everybody together.
pub const MAX_CONNECTIONS: u32 = 65_536;
/// Of these, those that people and daemons cannot take: the policy service has to get in.
pub const RESERVED_CONNECTIONS: u32 = 512;
/// Subscriptions of one connection. A daemon has a few dozen; each costs the server up to some 35 kB.
pub const MAX_SUBSCRIPTIONS: u32 = 512;
/// Tokens of a subject that is subscribed to. Those of the table have eight.
pub const MAX_SUBSCRIPTION_TOKENS: u32 = 16;
/// Longest message.
const MAX_PAYLOAD: &str = "1MB";
/// What may wait to be sent to one connection before the server ends it.
const MAX_PENDING: &str = "32MB";

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A person, in APP.
    Person {
        /// Who.
        principal: Principal,
        /// What they may do.
        role: Role,
    },
    /// A service's daemon, in APP.
    Daemon {
        /// Which service.
        service: Service,
        /// On which host, where it is host-local.
        host: Option<HostId>,
    },
    /// A further connection of the policy service.
    Policy(Seat),
}

impl User {
    /// The last part of its certificate's URI name.
    ///
    /// # Errors
    /// When host and service together make too long a principal.
    pub fn name(&self) -> Result<String, NameError> {
        Ok(match self {
            Self::Person { principal, .. } => principal.to_string(),
            Self::Daemon { service, host } => {
                permission::daemon_principal(*service, host.as_ref())?.to_string()
            }
            Self::Policy(seat) => seat.name().to_owned(),
        })
    }

    fn permissions(&self) -> Result<Permissions, NameError> {
        Ok(match self {
            Self::Person { principal, role } => {
                permission::person(principal, *role, &Reach::EVERYWHERE)
            }
            Self::Daemon { service, host } => permission::daemon(*service, host.as_ref())?,
            Self::Policy(seat) => seat.permissions(),
        })
    }

    fn account(&self) -> &'static str {
        match self {
            Self::Person { .. } | Self::Daemon { .. } => "APP",
            Self::Policy(seat) => seat.account(),
        }
    }

    /// The users of a development stack: one person of each role (`u-admin`, `u-operator`,
    /// `u-publisher`, `u-viewer`), every central service, every host-local one on each host, the
    /// policy service's further connections.
    ///
    /// # Errors
    /// When a host's id makes too long a principal.
    pub fn development(hosts: &[HostId]) -> Result<Vec<Self>, NameError> {
        let mut users = Vec::new();
        for role in Role::ALL {
            users.push(Self::Person { principal: format!("u-{role}").parse()?, role });
        }
        for service in Service::ALL {
            if service.is_host_local() {
                for host in hosts {
                    permission::daemon_principal(service, Some(host))?;
                    users.push(Self::Daemon { service, host: Some(host.clone()) });
                }
            } else {
                users.push(Self::Daemon { service, host: None });
            }
        }
        users.extend(Seat::ALL.map(Self::Policy));
        Ok(users)
    }

    /// The users of a server that asks the policy service: the policy service.
    pub fn policy() -> Vec<Self> {
        [Self::Daemon { service: Service::Policy, host: None }]
            .into_iter()
            .chain(Seat::ALL.map(Self::Policy))
            .collect()
    }
}

/// The server's certificate, its key, and the authority its clients' certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPaths {
    /// PEM; signs every client's certificate.
    pub ca: PathBuf,
    /// PEM; the server's.
    pub cert: PathBuf,
    /// PEM; the key of `cert`.
    pub key: PathBuf,
}

/// How the server asks the policy service about who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callout {
    /// Public key (`A…`) of who signs the answers; or `$NAME`, a variable of the server's
    /// environment.
    pub issuer: String,
    /// Public key (`X…`) for which questions are encrypted: they carry people's tokens; or `$NAME`.
    pub xkey: String,
}

/// Everything the configuration is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Name of the server in its cluster.
    pub name: String,
    /// Where clients connect; [`Self::RANDOM_PORT`] for any free port.
    pub listen: SocketAddr,
    /// Where the server's own HTTP monitoring listens, if anywhere. It has no authentication:
    /// loopback.
    pub monitor: Option<SocketAddr>,
    /// Certificates.
    pub tls: TlsPaths,
    /// Where JetStream stores.
    pub jetstream_dir: PathBuf,
    /// A directory in which the server writes the ports it got (`<name>_<pid>.ports`), for whoever
    /// asked for a random one.
    pub ports_file_dir: Option<PathBuf>,
    /// Where the server writes its process id.
    pub pid_file: Option<PathBuf>,
    /// Who may connect without being asked about.
    pub users: Vec<User>,
    /// Whom to ask about everybody else. Without it nobody else connects.
    pub callout: Option<Callout>,
}

impl ServerConfig {
    /// In [`Self::listen`] and [`Self::monitor`]: any free port. The server's own word for it is -1.
    pub const RANDOM_PORT: u16 = 0;

    /// The text of the configuration file.
    ///
    /// # Errors
    /// When a host's id makes too long a principal.
    pub fn to_text(&self) -> Result<String, NameError> {
        let mut out = String::from(
            "# Generated from the endpoint table; changes here are lost.\n\
             # A user is a certificate: its URI name.\n\n",
        );
        let address = |listen: SocketAddr| match listen.port() {
            Self::RANDOM_PORT => format!("{}:-1", host_of(listen)),
            port => format!("{}:{port}", host_of(listen)),
        };
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(out, "{key}: {value}");
        };
        line("server_name", &quoted(&self.name));
        line("listen", &quoted(&address(self.listen)));
        if let Some(monitor) = self.monitor {
            line("http", &quoted(&address(monitor)));
        }
        if let Some(dir) = &self.ports_file_dir {
            line("ports_file_dir", &quoted(&dir.display().to_string()));
        }
        if let Some(file) = &self.pid_file {
            line("pid_file", &quoted(&file.display().to_string()));
        }
        // Tokens travel in CONNECT.
        line("max_control_line", "16KB");
        line("max_payload", MAX_PAYLOAD);
        // A client that does not read is ended; what one principal may hold is policy's to bound.
        line("max_pending", MAX_PENDING);
        line("max_connections", &MAX_CONNECTIONS.to_string());
        // Of each connection.
        line("max_subscriptions", &MAX_SUBSCRIPTIONS.to_string());
        line("max_sub_tokens", &MAX_SUBSCRIPTION_TOKENS.to_string());
        // Who says nothing for 15 s is dropped: a policy service that hangs gets no more questions.
        line("ping_interval", "\"5s\"");
        line("ping_max", "2");
        line("write_deadline", "\"5s\"");
        let tls = &self.tls;
        let _ = write!(
            out,
            "\ntls {{\n  ca_file: {}\n  cert_file: {}\n  key_file: {}\n  verify_and_map: true\n  \
             handshake_first: true\n  timeout: 3\n  min_version: \"1.3\"\n}}\n",
            quoted(&tls.ca.display().to_string()),
            quoted(&tls.cert.display().to_string()),
            quoted(&tls.key.display().to_string()),
        );
        let _ = write!(
            out,
            "\njetstream {{\n  store_dir: {}\n  max_memory_store: 64MB\n  max_file_store: 4GB\n}}\n",
            quoted(&self.jetstream_dir.display().to_string())
        );
        if let Some(callout) = &self.callout {
            let names = self.users.iter().map(|user| Ok(quoted(&spiffe_id(user.name()?))));
            let names = names.collect::<Result<Vec<_>, NameError>>()?.join(", ");
            let _ = write!(
                out,
                "\nauthorization {{\n  timeout: 2\n  auth_callout {{\n    issuer: {}\n    xkey: {}\n    \
                 account: AUTH\n    auth_users: [{names}]\n    allowed_accounts: [APP]\n  }}\n}}\n",
                key_or_variable(&callout.issuer),
                key_or_variable(&callout.xkey),
            );
        }
        out.push_str("\nsystem_account: SYS\n\naccounts {\n");
        let stored =
            [format!("{ROOT}.event.>"), format!("{ROOT}.security.>"), format!("{ROOT}.audit.>")];
        self.account(&mut out, "APP", |out| {
            let _ = writeln!(
                out,
                "    limits: {{ max_connections: {}, max_subscriptions: {MAX_SUBSCRIPTIONS}, \
                 max_payload: {MAX_PAYLOAD} }}",
                MAX_CONNECTIONS.saturating_sub(RESERVED_CONNECTIONS)
            );
            out.push_str("    exports: [\n");
            for subject in &stored {
                let _ = writeln!(out, "      {{ stream: {} }}", quoted(subject));
            }
            out.push_str("    ]\n");
        })?;
        self.account(&mut out, "DATA", |out| {
            out.push_str("    jetstream: enabled\n    imports: [\n");
            for subject in &stored {
                let _ = writeln!(
                    out,
                    "      {{ stream: {{ account: APP, subject: {} }} }}",
                    quoted(subject)
                );
            }
            out.push_str("    ]\n");
        })?;
        self.account(&mut out, "AUTH", |_| {})?;
        self.account(&mut out, "SYS", |_| {})?;
        out.push_str("}\n");
        Ok(out)
    }

    fn account(
        &self,
        out: &mut String,
        name: &str,
        extra: impl FnOnce(&mut String),
    ) -> Result<(), NameError> {
        let _ = writeln!(out, "  {name} {{");
        extra(out);
        out.push_str("    users: [\n");
        for user in self.users.iter().filter(|user| user.account() == name) {
            let permissions = user.permissions()?;
            let list = |subjects: &[String]| {
                subjects.iter().map(|subject| quoted(subject)).collect::<Vec<_>>().join(", ")
            };
            let _ = write!(
                out,
                "      {{\n        user: {}\n        permissions: {{\n          \
                 publish: {{ allow: [{}] }}\n          \
                 subscribe: {{ allow: [{}] }}\n        }}\n      }}\n",
                quoted(&spiffe_id(user.name()?)),
                list(&permissions.publish),
                list(&permissions.subscribe)
            );
        }
        out.push_str("    ]\n  }\n");
        Ok(())
    }
}

fn key_or_variable(text: &str) -> String {
    if text.starts_with('$') { text.to_owned() } else { quoted(text) }
}

/// The address without its port, IPv6 in brackets.
fn host_of(listen: SocketAddr) -> String {
    match listen {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

/// A string of the server's configuration language: JSON's form is understood.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ServerConfig {
        ServerConfig {
            name: "dev".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            monitor: None,
            tls: TlsPaths {
                ca: "/x/ca.pem".into(),
                cert: "/x/c.pem".into(),
                key: "/x/k.pem".into(),
            },
            jetstream_dir: "/x/js".into(),
            ports_file_dir: None,
            pid_file: None,
            users: User::development(&["web1".parse().unwrap()]).unwrap(),
            callout: None,
        }
    }

    #[test]
    fn the_text_has_what_the_design_asks_for() {
        let text = config().to_text().unwrap();
        for expected in [
            "verify_and_map: true",
            "handshake_first: true",
            "timeout: 3",
            "max_control_line: 16KB",
            "system_account: SYS",
            "max_connections: 65536",
            "max_subscriptions: 512",
            "max_pending: 32MB",
            "limits: { max_connections: 65024, max_subscriptions: 512, max_payload: 1MB }",
            "listen: \"127.0.0.1:-1\"",
            "user: \"spiffe://canopy/u-admin\"",
            "user: \"spiffe://canopy/h-web1-loader\"",
            "user: \"spiffe://canopy/s-policy-data\"",
            "user: \"spiffe://canopy/s-policy-system\"",
        ] {
            assert!(text.contains(expected), "{expected} missing in\n{text}");
        }
        // A responder that may answer "whatever was asked" would publish where a forged reply
        // subject points.
        assert!(!text.contains("allow_responses"));
        assert_eq!(text.matches("jetstream: enabled").count(), 1);
        let (app, _) = text.split_once("  DATA {").unwrap();
        assert!(!app.contains("jetstream: enabled") && !app.contains("$JS"));
    }

    #[test]
    fn a_server_that_asks_knows_nobody_but_whom_it_asks() {
        let callout = Callout { issuer: "AISSUER".into(), xkey: "XKEY".into() };
        let config = ServerConfig { users: User::policy(), callout: Some(callout), ..config() };
        let text = config.to_text().unwrap();
        for expected in [
            "issuer: \"AISSUER\"",
            "xkey: \"XKEY\"",
            "account: AUTH",
            "allowed_accounts: [APP]",
            "auth_users: [\"spiffe://canopy/s-policy\", \"spiffe://canopy/s-policy-data\"",
        ] {
            assert!(text.contains(expected), "{expected} missing in\n{text}");
        }
        assert!(!text.contains("u-admin") && !text.contains("s-registry"), "{text}");
    }

    #[test]
    fn paths_are_quoted() {
        let mut config = config();
        config.jetstream_dir = "/a b/\"c\"".into();
        assert!(config.to_text().unwrap().contains(r#"store_dir: "/a b/\"c\"""#));
    }
}
