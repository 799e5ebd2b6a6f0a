//! What the stack's processes read: the bus server's configuration, one JSON file a service, the
//! command line's contexts.

use crate::pki::{self, Pki, RoutesPki};
use anyhow::{Context as _, Result};
use canopy_api::{
    HostId,
    endpoint::Service,
    nats::{Callout, Cluster, PolicyNkeys, ServerConfig, TlsPaths, User},
    permission::{self, Seat},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Where the first server of a cluster on this machine listens for the others; they follow.
const ROUTES_PORT: u16 = 6222;

/// Everything that tells one stack from another.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Directory of the stack's files.
    pub dir: PathBuf,
    /// Directory of the pins, in a BPF file system; names without dots.
    pub bpffs: PathBuf,
    /// The id of the one host.
    pub host: HostId,
    /// Where the bus listens.
    pub bus: SocketAddr,
    /// Port of the first service's admin listener on loopback, the others' follow in the order of
    /// the endpoint table; 0 for any free ones.
    pub admin_port: u16,
}

impl Layout {
    /// Certificates and keys.
    pub fn pki_dir(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// The authority of the routes between bus servers, and a certificate of it.
    pub fn routes_pki_dir(&self) -> PathBuf {
        self.dir.join("routes-pki")
    }

    /// The package-signing key pair, `canopy.key` and `canopy.pub`.
    pub fn signing_dir(&self) -> PathBuf {
        self.dir.join("signing")
    }

    /// The policy service's keys, as `canopy-policy keys` makes them.
    pub fn policy_keys(&self) -> PathBuf {
        self.dir.join("policy-keys")
    }

    /// The key that signs audit checkpoints; its public half ends in `.pub`.
    pub fn audit_key(&self) -> PathBuf {
        self.policy_keys().join("audit-signing.pem")
    }

    /// The public halves of the keys by which the bus server knows the policy service's connections.
    pub fn policy_nkeys(&self) -> PathBuf {
        self.policy_keys().join("nkeys.json")
    }

    /// A person's token.
    pub fn token(&self, principal: &str) -> PathBuf {
        self.dir.join(format!("tokens/{principal}.token"))
    }

    /// Process ids and addresses.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// One log a process.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What the services keep.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The directory repository of packages.
    pub fn repository(&self) -> PathBuf {
        self.dir.join("repository")
    }

    /// A service's configuration.
    pub fn service_config(&self, service: Service) -> PathBuf {
        self.dir.join(format!("config/{service}.json"))
    }

    /// The bus server's configuration.
    pub fn bus_config(&self) -> PathBuf {
        self.dir.join("config/nats-server.conf")
    }

    /// The command line's contexts, one a role.
    pub fn contexts(&self) -> PathBuf {
        self.dir.join("contexts.json")
    }

    /// What `docker-compose.yml` has to know: the directory, and whose it is.
    pub fn compose_env(&self) -> PathBuf {
        self.dir.join("compose.env")
    }

    /// Where a service says which address its admin listener got.
    pub fn address_file(&self, service: Service) -> PathBuf {
        self.run_dir().join(format!("{service}.address"))
    }

    /// Everybody who has a certificate.
    pub fn users(&self) -> Result<Vec<User>> {
        Ok(User::development(std::slice::from_ref(&self.host))?)
    }

    /// The secret key that signs packages.
    pub fn signing_key(&self) -> PathBuf {
        self.signing_dir().join("canopy.key")
    }

    /// The public key, as trusted by registry and loader: the second line of a minisign file.
    pub fn public_key(&self) -> Result<String> {
        let file = self.signing_dir().join("canopy.pub");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let line = text.lines().nth(1).map(str::trim).filter(|line| !line.is_empty());
        Ok(line.with_context(|| format!("{} has no key", file.display()))?.to_owned())
    }

    /// Writes every configuration.
    pub fn write(&self, pki: &Pki) -> Result<()> {
        pki::private_dir(&self.dir.join("config"))?;
        pki::private_file(&self.bus_config(), &self.server(pki)?.to_text()?)?;
        for service in Service::ALL {
            let config = serde_json::to_string_pretty(&self.service(service, pki)?)?;
            pki::private_file(&self.service_config(service), &config)?;
        }
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let env = format!(
            "CANOPY_DIR={}\nCANOPY_USER={user}:{group}\nCANOPY_OWNER={user}\n",
            self.dir.display()
        );
        pki::private_file(&self.compose_env(), &env)?;
        pki::private_file(&self.contexts(), &serde_json::to_string_pretty(&self.cli(pki)?)?)
    }

    /// The bus server's configuration, of one that is alone.
    pub fn server(&self, pki: &Pki) -> Result<ServerConfig> {
        Ok(ServerConfig {
            name: format!("canopy-{}", self.host),
            listen: self.bus,
            monitor: None,
            tls: TlsPaths { ca: pki.ca(), cert: pki.cert("server"), key: pki.key("server") },
            jetstream_dir: self.state_dir().join("jetstream"),
            ports_file_dir: None,
            pid_file: None,
            users: User::policy(),
            callout: Some(self.callout()?),
            cluster: None,
        })
    }

    /// The configurations of a cluster of so many bus servers on this machine: clients at [`Self::bus`] and
    /// the ports behind it, routes at 6222 and the ports behind it.
    pub fn cluster(
        &self,
        pki: &Pki,
        routes: &RoutesPki,
        servers: u16,
    ) -> Result<Vec<ServerConfig>> {
        let port = |number: u16| ROUTES_PORT.saturating_add(number);
        let all: Vec<String> =
            (0..servers).map(|number| format!("localhost:{}", port(number))).collect();
        let server = |number: u16| {
            let mut listen = self.bus;
            listen.set_port(self.bus.port().saturating_add(number));
            Ok(ServerConfig {
                name: format!("bus{}", number + 1),
                listen,
                jetstream_dir: self.state_dir().join(format!("jetstream{}", number + 1)),
                cluster: Some(Cluster {
                    name: "canopy".to_owned(),
                    listen: SocketAddr::from(([127, 0, 0, 1], port(number))),
                    routes: all.clone(),
                    tls: routes.tls(),
                }),
                ..self.server(pki)?
            })
        };
        (0..servers).map(server).collect()
    }

    /// The public halves of the policy service's keys.
    fn callout(&self) -> Result<Callout> {
        let file = self.policy_keys().join("callout.json");
        let public: BTreeMap<String, String> = read_public(&file)?;
        let key = |name: &str| {
            public.get(name).cloned().with_context(|| format!("{}: no {name}", file.display()))
        };
        let nkeys: PolicyNkeys = read_public(&self.policy_nkeys())?;
        Ok(Callout { issuer: key("issuer")?, xkey: key("xkey")?, nkeys })
    }

    /// Who may connect, in the policy service's configuration.
    fn auth(&self, pki: &Pki) -> Value {
        let seat =
            |seat: Seat| json!({ "cert": pki.cert(seat.name()), "key": pki.key(seat.name()) });
        let key = |name: &str| json!({ "file": self.policy_keys().join(name) });
        json!({
            "callout": seat(Seat::Callout),
            "data": seat(Seat::Data),
            "system": seat(Seat::System),
            "issuer_seed": key("issuer.seed"),
            "xkey_seed": key("xkey.seed"),
            "nkeys": {
                "app": key("nkey-app.seed"),
                "callout": key("nkey-callout.seed"),
                "data": key("nkey-data.seed"),
                "system": key("nkey-system.seed"),
            },
            "signing_keys": [key("token-signing.pem")],
            "ca": { "cert": pki.ca(), "key": { "file": pki.key("ca") } },
        })
    }

    fn service(&self, service: Service, pki: &Pki) -> Result<Value> {
        let host = service.is_host_local().then_some(&self.host);
        let me = permission::daemon_principal(service, host)?;
        let mut config = json!({
            "bus": {
                "url": self.bus_url(),
                "ca": pki.ca(),
                "cert": pki.cert(me.as_str()),
                "key": pki.key(me.as_str()),
            },
            "runtime": {
                "admin": { "listen": self.admin(service) },
                "address_file": self.address_file(service),
            },
        });
        if let Some(host) = host {
            put(&mut config, "host", json!(host));
        }
        let keys = json!([{ "key": self.public_key()? }]);
        match service {
            Service::Loader => {
                put(&mut config, "state_dir", json!(self.state_dir().join("loader")));
                put(&mut config, "bpffs", json!(self.bpffs));
                put(&mut config, "trust", json!([{ "packages": ["*"], "keys": keys }]));
            }
            Service::Registry => {
                let url = format!("file://{}", self.repository().display());
                put(
                    &mut config,
                    "repositories",
                    json!([{ "name": "dev", "url": url, "packages": ["*"], "keys": keys }]),
                );
                let dir = self.state_dir().join("registry/audit");
                put(&mut config, "audit", json!({ "dir": dir }));
            }
            Service::Policy => {
                put(&mut config, "auth", self.auth(pki));
                put(
                    &mut config,
                    "audit",
                    json!({
                        "dir": self.state_dir().join("policy/audit"),
                        "signing_key": { "file": self.audit_key() },
                        "checkpoint_seconds": 5,
                    }),
                );
            }
            Service::CertMonitor | Service::Enforcer => {}
        }
        Ok(config)
    }

    fn admin(&self, service: Service) -> SocketAddr {
        let place = Service::ALL.iter().position(|other| *other == service).unwrap_or_default();
        let port = match self.admin_port {
            0 => 0,
            first => first.saturating_add(u16::try_from(place).unwrap_or_default()),
        };
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn cli(&self, pki: &Pki) -> Result<Value> {
        let mut contexts = Vec::new();
        for user in self.users()? {
            if let User::Person { principal, role } = user {
                contexts.push(json!({
                    "name": role.as_str(),
                    "url": self.bus_url(),
                    "ca": pki.ca(),
                    "cert": pki.cert(principal.as_str()),
                    "key": pki.key(principal.as_str()),
                    "token": self.token(principal.as_str()),
                    "principal": principal,
                    "host": self.host,
                }));
            }
        }
        Ok(json!({ "current": "admin", "contexts": contexts }))
    }

    /// The bus as a URL.
    pub fn bus_url(&self) -> String {
        format!("tls://{}", self.bus)
    }
}

/// A file with public keys that canopy-policy wrote.
fn read_public<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("not as canopy-policy writes it: {}", file.display()))
}

fn put(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(map) = object {
        map.insert(key.to_owned(), value);
    }
}

/// An address on loopback that is free now: the usual one where it can be had.
pub fn free_address(usual: u16) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", usual))
        .or_else(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))
        .context("no free port on loopback")?;
    Ok(listener.local_addr()?)
}

/// The first of as many neighbouring ports as there are services, all free on loopback; 0 where one
/// of them is taken.
pub fn free_admin_ports(first: u16) -> u16 {
    let mut ports = (first..).take(Service::ALL.len());
    let free = ports.all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    if free { first } else { 0 }
}
