//! A bus server that asks, policy services that answer, and everybody who may want to connect.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use async_nats::{Client, ConnectOptions};
use canopy_api::{
    Principal,
    endpoint::policy,
    nats::{Callout, PolicyNkeys, spiffe_id},
    permission::Role,
    scope::Scope,
    subject::Target,
    wire::tokens::{Binding, TokenIssueRequest, TokenReply},
};
use canopy_bus::{Bus, BusConfig};
use canopy_identity::Certificate;
use canopy_test_support::{
    nats::{NatsServer, private_file},
    service::ServiceProcess,
};
use rcgen::{CertificateParams, SanType};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_canopy-policy");

/// Longer than anything here takes, also on a machine busy with other things.
pub const LIMIT: Duration = Duration::from_secs(30);

type ChangeAuth = Box<dyn Fn(&mut Value) + Send + Sync>;

/// The whole: dropped, it is gone.
pub struct Stack {
    pub server: NatsServer,
    pub policy: Vec<ServiceProcess>,
    /// How many were started so far.
    pub started: usize,
    pub dir: TempDir,
    /// `auth.hosts`: most tests are not about hosts.
    pub hosts: &'static str,
    /// What is otherwise in `auth`.
    pub change_auth: Option<ChangeAuth>,
}

/// What somebody connects with.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub token: Option<PathBuf>,
    /// The file with the seed of a key, for the policy service's own connections.
    pub nkey: Option<PathBuf>,
}

pub fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

impl Stack {
    /// One policy service, and `u-admin` with a token.
    pub fn start() -> Self {
        let mut stack = Self::without_policy();
        stack.start_policy();
        stack.bootstrap("u-admin");
        stack
    }

    /// The same, with an authority that signs for hosts, which have to be enrolled.
    pub fn enrolling() -> Self {
        let mut stack = Self::without_policy();
        stack.hosts = "enrolled";
        stack.start_policy();
        stack.bootstrap("u-admin");
        stack
    }

    pub fn without_policy() -> Self {
        // In memory: these tests measure time, and records are on the disk before what they tell of goes on.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let made = run(&["keys", "--output", dir.path().join("keys").to_str().unwrap()]);
        assert!(made.status.success(), "{made:?}");
        let public = fs::read_to_string(dir.path().join("keys/callout.json")).unwrap();
        let public: Value = serde_json::from_str(&public).unwrap();
        let nkeys = fs::read_to_string(dir.path().join("keys/nkeys.json")).unwrap();
        let nkeys: PolicyNkeys = serde_json::from_str(&nkeys).unwrap();
        let callout = Callout {
            issuer: public["issuer"].as_str().unwrap().to_owned(),
            xkey: public["xkey"].as_str().unwrap().to_owned(),
            nkeys,
        };
        let server = NatsServer::asking(&["web1", "web2"], callout).unwrap();
        fs::write(dir.path().join("ca.crt"), server.authority().pem()).unwrap();
        private_file(&dir.path().join("keys/ca.key"), &server.authority().key_pem()).unwrap();
        Self { server, policy: Vec::new(), started: 0, dir, hosts: "any", change_auth: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> Value {
        let bus = self.server.client("s-policy");
        let files = |name: &str| {
            let files = self.server.client(name);
            json!({ "cert": files.cert, "key": files.key })
        };
        let key = |name: &str| json!({ "file": self.path("keys").join(name) });
        let mut config = json!({
            "bus": { "url": bus.url, "ca": bus.ca, "cert": bus.cert, "key": bus.key },
            "auth": {
                "callout": files("s-policy-auth"),
                "data": files("s-policy-data"),
                "system": files("s-policy-system"),
                "issuer_seed": key("issuer.seed"),
                "xkey_seed": key("xkey.seed"),
                "nkeys": {
                    "app": key("nkey-app.seed"),
                    "callout": key("nkey-callout.seed"),
                    "data": key("nkey-data.seed"),
                    "system": key("nkey-system.seed"),
                },
                "signing_keys": [key("token-signing.pem")],
                "hosts": self.hosts,
                "ca": { "cert": self.path("ca.crt"), "key": key("ca.key") },
            },
        });
        if let Some(change) = &self.change_auth {
            change(&mut config["auth"]);
        }
        config
    }

    /// The same with an audit trail of its own for each instance.
    pub fn config_with_audit(&self, instance: usize) -> Value {
        let mut config = self.config();
        config["audit"] = json!({
            "dir": self.audit_dir(instance),
            "signing_key": { "file": self.path("keys/audit-signing.pem") },
            "checkpoint_seconds": 1,
        });
        config
    }

    pub fn audit_dir(&self, instance: usize) -> PathBuf {
        self.path(&format!("audit-{instance}"))
    }

    /// Starts one more policy service and waits until it answers.
    pub fn start_policy(&mut self) {
        let config = self.config_with_audit(self.started);
        self.started += 1;
        self.start_policy_with(config);
    }

    pub fn start_policy_with(&mut self, config: Value) {
        let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
        process.wait_status(200).unwrap();
        self.policy.push(process);
    }

    pub fn bootstrap(&self, principal: &str) {
        let config = self.path("bootstrap.json");
        fs::write(&config, self.config().to_string()).unwrap();
        let made = run(&[
            "bootstrap",
            "--config",
            config.to_str().unwrap(),
            "--principal",
            principal,
            "--certificate",
            self.server.client(principal).cert.to_str().unwrap(),
            "--output",
            self.path(&format!("{principal}.token")).to_str().unwrap(),
        ]);
        assert!(made.status.success(), "{made:?}");
    }

    /// With the certificate of that name, and its token or nkey if there is one.
    pub fn credentials(&self, principal: &str) -> Credentials {
        let files = self.server.client(principal);
        let token = self.path(&format!("{principal}.token"));
        let nkey = match principal {
            "s-policy" => Some("app"),
            "s-policy-auth" => Some("callout"),
            "s-policy-data" => Some("data"),
            "s-policy-system" => Some("system"),
            _ => None,
        };
        Credentials {
            cert: files.cert,
            key: files.key,
            token: token.exists().then_some(token),
            nkey: nkey.map(|seat| self.path(&format!("keys/nkey-{seat}.seed"))),
        }
    }

    /// Another certificate of the same authority.
    pub fn certificate(&self, file: &str, sans: Vec<SanType>) -> Credentials {
        self.certificate_with(file, sans, |_| {})
    }

    pub fn certificate_with(
        &self,
        file: &str,
        sans: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credentials {
        let (cert, key) =
            self.server.authority().issue(self.dir.path(), file, sans, change).unwrap();
        Credentials { cert, key, token: None, nkey: None }
    }

    pub fn config_of(&self, with: &Credentials) -> BusConfig {
        let url = self.server.url();
        let ca = self.server.client("server").ca;
        let Credentials { cert, key, token, .. } = with.clone();
        BusConfig { token, ..BusConfig::new(url, ca, cert, key) }
    }

    /// A client of ours that carries messages.
    pub async fn connect(&self, principal: &str) -> Bus {
        self.connect_with(principal, &self.credentials(principal)).await
    }

    pub async fn connect_with(&self, principal: &str, with: &Credentials) -> Bus {
        let (config, principal) = (self.config_of(with), principal.parse().unwrap());
        let bus = match &with.nkey {
            Some(seed) => {
                let seed = fs::read_to_string(seed).unwrap().into();
                Bus::connect_with_nkey(&config, principal, &seed).await.unwrap()
            }
            None => Bus::connect(&config, principal).await.unwrap(),
        };
        bus.wait_ready(LIMIT).await.unwrap();
        bus
    }

    /// A client without our library, as an adversary has: one attempt.
    pub async fn attempt(&self, with: &Credentials) -> Result<Client, String> {
        self.attempt_from(with, |options| options).await
    }

    pub async fn attempt_from(
        &self,
        with: &Credentials,
        change: impl FnOnce(ConnectOptions) -> ConnectOptions,
    ) -> Result<Client, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut options = ConnectOptions::new()
            .require_tls(true)
            .tls_first()
            .connection_timeout(LIMIT)
            .add_root_certificates(self.server.client("server").ca)
            .add_client_certificate(with.cert.clone(), with.key.clone());
        if let Some(token) = &with.token {
            options = options.token(fs::read_to_string(token).unwrap().trim().to_owned());
        }
        if let Some(seed) = &with.nkey {
            options = options.nkey(fs::read_to_string(seed).unwrap());
        }
        change(options).connect(&self.server.url()).await.map_err(|error| format!("{error:?}"))
    }

    /// Writes a token to a file, and gives these credentials with it.
    pub fn with_token(&self, credentials: &Credentials, name: &str, token: &str) -> Credentials {
        let path = self.path(&format!("{name}.token"));
        private_file(&path, token).unwrap();
        Credentials { token: Some(path), ..credentials.clone() }
    }

    /// Asks for a token as `u-admin`, bound to the person's certificate of the stack, and keeps it
    /// where [`Self::credentials`] looks.
    pub async fn issue(&self, admin: &Bus, principal: &str, role: Role) -> TokenReply {
        self.issue_for(admin, principal, role, None, Some(self.binding(principal))).await
    }

    pub fn binding(&self, principal: &str) -> Binding {
        binding_of(&self.server.client(principal).cert)
    }

    pub async fn issue_for(
        &self,
        admin: &Bus,
        principal: &str,
        role: Role,
        scope: Option<Scope>,
        binding: Option<Binding>,
    ) -> TokenReply {
        let principal: Principal = principal.parse().unwrap();
        let request = TokenIssueRequest {
            principal: principal.clone(),
            role,
            scope,
            binding,
            expires_in: None,
        };
        let reply = admin.call::<policy::TokenIssue>(&Target::Central, &request).await.unwrap();
        private_file(&self.path(&format!("{principal}.token")), &reply.token.0).unwrap();
        reply
    }
}

pub fn binding_of(certificate: &Path) -> Binding {
    Binding::Fingerprint(
        Certificate::from_pem(&fs::read(certificate).unwrap()).unwrap().fingerprint,
    )
}

pub fn uri(name: &str) -> SanType {
    SanType::URI(spiffe_id(name).as_str().try_into().unwrap())
}
