//! The configuration of nats-server, whole, from the endpoint table: TLS with client certificates,
//! the accounts, one user for each principal with its permissions.
//!
//! There are no passwords. In production the server asks the policy service about everybody who
//! connects (**auth callout**), and only the policy service's own connections are users of the
//! configuration: each proves a key of its own (an **nkey**), whose seed only that service has. A
//! certificate alone never makes a user there: nats-server would take an e-mail address or a DNS name
//! for one, of any authority it trusts (`docs/adr/0036-nkeys-of-the-policy-service.md`). Without a
//! policy service, in tests of single services, every principal is a user by the URI name of its
//! certificate, `spiffe://canopy/<principal>`.
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
use serde::{Deserialize, Serialize};
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
    /// Public keys (`U…`) of the policy service's own connections; or `$NAME` for each.
    pub nkeys: PolicyNkeys,
}

/// One key for each of the policy service's connections, because a key belongs to one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyNkeys {
    /// Of the connection in APP, where it answers requests.
    pub app: String,
    /// Of the connection in AUTH, where the server asks.
    pub callout: String,
    /// Of the connection in DATA.
    pub data: String,
    /// Of the connection in SYS.
    pub system: String,
}

impl PolicyNkeys {
    /// The key of this user; `None` for users other than the policy service.
    fn key_of(&self, user: &User) -> Option<&str> {
        match user {
            User::Daemon { service: Service::Policy, .. } => Some(&self.app),
            User::Policy(Seat::Callout) => Some(&self.callout),
            User::Policy(Seat::Data) => Some(&self.data),
            User::Policy(Seat::System) => Some(&self.system),
            User::Daemon { .. } | User::Person { .. } => None,
        }
    }
}

/// What connects a server with the others of its cluster.
///
/// Whoever is taken for a server is everybody on the bus. So the authority is one of the routes alone, never
/// the one that signs clients, and the other's certificate has to have the DNS name of one of `routes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster's name, the same on every server.
    pub name: String,
    /// Where the other servers connect.
    pub listen: SocketAddr,
    /// Every server of the cluster, this one included, as `name:port`. Names in DNS: addresses are not
    /// compared with certificates.
    pub routes: Vec<String>,
    /// This server's certificate for routes (server and client use) and its key; `ca` is the authority of
    /// the routes.
    pub tls: TlsPaths,
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
    /// Who may connect, by certificate, where there is no `callout`. With one only the policy service's
    /// own connections are users, by nkey.
    pub users: Vec<User>,
    /// Whom to ask about everybody else. Without it nobody else connects.
    pub callout: Option<Callout>,
    /// The other servers, where there are several.
    pub cluster: Option<Cluster>,
}

impl ServerConfig {
    /// In [`Self::listen`] and [`Self::monitor`]: any free port. The server's own word for it is -1.
    pub const RANDOM_PORT: u16 = 0;

    /// The text of the configuration file.
    ///
    /// # Errors
    /// When a host's id makes too long a principal.
    pub fn to_text(&self) -> Result<String, NameError> {
        let mut out = String::from("# Generated from the endpoint table; changes here are lost.\n");
        out.push_str(if self.callout.is_some() {
            "# The policy service's connections are users by nkey; the policy service decides about all others.\n\n"
        } else {
            "# A user is a certificate: its URI name.\n\n"
        });
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
        // Mapping would make users of names that the authority's certificates have in any place.
        let verify = if self.callout.is_some() { "verify" } else { "verify_and_map" };
        let _ = write!(
            out,
            "\ntls {{\n{}  {verify}: true\n  handshake_first: true\n  timeout: 3\n  \
             min_version: \"1.3\"\n}}\n",
            tls_files(&self.tls, "  "),
        );
        if let Some(cluster) = &self.cluster {
            cluster_block(&mut out, cluster, &address(cluster.listen));
        }
        let _ = write!(
            out,
            "\njetstream {{\n  store_dir: {}\n  max_memory_store: 64MB\n  max_file_store: 4GB\n}}\n",
            quoted(&self.jetstream_dir.display().to_string())
        );
        if let Some(callout) = &self.callout {
            let users = User::policy();
            let keys = users.iter().filter_map(|user| callout.nkeys.key_of(user));
            let keys = keys.map(key_or_variable).collect::<Vec<_>>().join(", ");
            let _ = write!(
                out,
                "\nauthorization {{\n  timeout: 2\n  auth_callout {{\n    issuer: {}\n    xkey: {}\n    \
                 account: AUTH\n    auth_users: [{keys}]\n    allowed_accounts: [APP]\n  }}\n}}\n",
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
        let users = if self.callout.is_some() { User::policy() } else { self.users.clone() };
        for user in users.iter().filter(|user| user.account() == name) {
            let nkey = self.callout.as_ref().and_then(|callout| callout.nkeys.key_of(user));
            let who = match nkey {
                Some(nkey) => format!("nkey: {}", key_or_variable(nkey)),
                None => format!("user: {}", quoted(&spiffe_id(user.name()?))),
            };
            let permissions = user.permissions()?;
            let list = |subjects: &[String]| {
                subjects.iter().map(|subject| quoted(subject)).collect::<Vec<_>>().join(", ")
            };
            let _ = write!(
                out,
                "      {{\n        {who}\n        permissions: {{\n          \
                 publish: {{ allow: [{}] }}\n          \
                 subscribe: {{ allow: [{}] }}\n        }}\n      }}\n",
                list(&permissions.publish),
                list(&permissions.subscribe)
            );
        }
        out.push_str("    ]\n  }\n");
        Ok(())
    }
}

fn tls_files(tls: &TlsPaths, indent: &str) -> String {
    format!(
        "{indent}ca_file: {}\n{indent}cert_file: {}\n{indent}key_file: {}\n",
        quoted(&tls.ca.display().to_string()),
        quoted(&tls.cert.display().to_string()),
        quoted(&tls.key.display().to_string()),
    )
}

fn cluster_block(out: &mut String, cluster: &Cluster, listen: &str) {
    let _ = write!(
        out,
        "\ncluster {{\n  name: {}\n  listen: {}\n  # Clients learn the servers from their own \
         configuration.\n  no_advertise: true\n  # This server is among them: the list is the same on \
         every server.\n  routes: [\n",
        quoted(&cluster.name),
        quoted(listen),
    );
    for route in &cluster.routes {
        let _ = writeln!(out, "    {}", quoted(&format!("nats-route://{route}")));
    }
    let _ = write!(
        out,
        "  ]\n  tls {{\n    # The authority of the routes: it signs bus servers and nothing else.\n{}    \
         # A certificate of that authority with the DNS name of one of the routes above.\n    \
         verify_cert_and_check_known_urls: true\n    timeout: 3\n    min_version: \"1.3\"\n  }}\n}}\n",
        tls_files(&cluster.tls, "    "),
    );
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
            cluster: None,
        }
    }

    fn callout() -> Callout {
        let nkeys = PolicyNkeys {
            app: "UAPP".into(),
            callout: "UAUTH".into(),
            data: "UDATA".into(),
            system: "$SYSTEM_KEY".into(),
        };
        Callout { issuer: "AISSUER".into(), xkey: "XKEY".into(), nkeys }
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
    fn with_a_callout_users_are_nkeys_and_no_certificate_is_mapped() {
        // Users by certificate are left out, whatever is asked for.
        let config = ServerConfig { callout: Some(callout()), ..config() };
        let text = config.to_text().unwrap();
        for expected in [
            "issuer: \"AISSUER\"",
            "xkey: \"XKEY\"",
            "account: AUTH",
            "allowed_accounts: [APP]",
            "auth_users: [\"UAPP\", \"UDATA\", $SYSTEM_KEY, \"UAUTH\"]",
            "  verify: true\n",
            "nkey: \"UAPP\"",
            "nkey: \"UDATA\"",
            "nkey: $SYSTEM_KEY",
            "nkey: \"UAUTH\"",
        ] {
            assert!(text.contains(expected), "{expected} missing in\n{text}");
        }
        for absent in ["verify_and_map", "user: ", "spiffe://", "u-admin", "s-registry"] {
            assert!(!text.contains(absent), "{absent} in\n{text}");
        }
    }

    #[test]
    fn routes_trust_their_own_authority_alone() {
        let cluster = Cluster {
            name: "canopy".into(),
            listen: "0.0.0.0:6222".parse().unwrap(),
            routes: vec!["bus1.example:6222".into(), "bus2.example:6222".into()],
            tls: TlsPaths {
                ca: "/x/routes-ca.pem".into(),
                cert: "/x/route.pem".into(),
                key: "/x/route-key.pem".into(),
            },
        };
        let text = ServerConfig { cluster: Some(cluster), ..config() }.to_text().unwrap();
        let (_, block) = text.split_once("\ncluster {").unwrap();
        let (block, _) = block.split_once("\n}\n").unwrap();
        for expected in [
            "listen: \"0.0.0.0:6222\"",
            "\"nats-route://bus2.example:6222\"",
            "ca_file: \"/x/routes-ca.pem\"",
            "cert_file: \"/x/route.pem\"",
            "verify_cert_and_check_known_urls: true",
            "no_advertise: true",
        ] {
            assert!(block.contains(expected), "{expected} missing in\n{block}");
        }
        assert!(!block.contains("/x/ca.pem"), "{block}");
    }

    /// Nothing listens but for clients, for routes, and on loopback for monitoring.
    #[test]
    fn no_other_listener_is_configured() {
        for callout in [None, Some(callout())] {
            let text = ServerConfig { callout, ..config() }.to_text().unwrap();
            for absent in
                ["leafnodes", "gateway", "websocket", "mqtt", "http", "cluster", "profile"]
            {
                assert!(!text.contains(&format!("\n{absent}")), "{absent} in\n{text}");
            }
        }
    }

    #[test]
    fn paths_are_quoted() {
        let mut config = config();
        config.jetstream_dir = "/a b/\"c\"".into();
        assert!(config.to_text().unwrap().contains(r#"store_dir: "/a b/\"c\"""#));
    }
}
