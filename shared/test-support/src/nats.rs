//! A real nats-server on a free port, with the generated configuration and a certificate for each
//! of its users.

use anyhow::{Context as _, Result, bail};
use canopy_api::{
    name::HostId,
    nats::{Callout, ServerConfig, TlsPaths, User, spiffe_id},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A running server; stopped and removed when dropped.
#[derive(Debug)]
pub struct NatsServer {
    dir: TempDir,
    child: Option<Child>,
    address: SocketAddr,
    users: Vec<User>,
    callout: Option<Callout>,
    authority: Authority,
}

/// Where a client's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// Address of the server.
    pub url: String,
    /// The authority.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl NatsServer {
    /// Starts a server with the users of a development stack for these hosts.
    pub fn start(hosts: &[&str]) -> Result<Self> {
        let hosts = hosts.iter().map(|host| host.parse()).collect::<Result<Vec<HostId>, _>>()?;
        Self::with_users(User::development(&hosts)?)
    }

    /// Starts a server with these users.
    pub fn with_users(users: Vec<User>) -> Result<Self> {
        let names = users.iter().map(User::name).collect::<Result<Vec<_>, _>>()?;
        Self::make(users, &names, None)
    }

    /// Starts a server that knows only the policy service, by its nkeys, and asks it about everybody
    /// else. There are certificates of a development stack for these hosts all the same.
    pub fn asking(hosts: &[&str], callout: Callout) -> Result<Self> {
        let hosts = hosts.iter().map(|host| host.parse()).collect::<Result<Vec<HostId>, _>>()?;
        let everybody = User::development(&hosts)?;
        let names = everybody.iter().map(User::name).collect::<Result<Vec<_>, _>>()?;
        Self::make(User::policy(), &names, Some(callout))
    }

    fn make(users: Vec<User>, names: &[String], callout: Option<Callout>) -> Result<Self> {
        let dir = tempfile::tempdir().context("a directory for nats-server")?;
        let authority = Authority::new()?;
        authority.issue_all(dir.path(), names)?;
        let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ServerConfig::RANDOM_PORT);
        let mut server = Self { dir, child: None, address: listen, users, callout, authority };
        server.restart()?;
        Ok(server)
    }

    /// Who issued the certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("tls://{}", self.address)
    }

    /// Process id of the running server.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A directory of this server's own, gone with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The files of a client, by principal (`u-admin`, `h-web1-loader`, `sys`).
    pub fn client(&self, principal: &str) -> ClientFiles {
        let file = |ending| self.dir.path().join(format!("{principal}.{ending}"));
        ClientFiles {
            url: self.url(),
            ca: self.dir.path().join("ca.crt"),
            cert: file("crt"),
            key: file("key"),
        }
    }

    /// Makes a certificate for a name that the server has no user for.
    pub fn stranger(&self, name: &str) -> Result<ClientFiles> {
        let other = self.dir.path().join("other");
        Authority::new()?.issue_all(&other, &[name.to_owned()])?;
        Ok(ClientFiles {
            url: self.url(),
            ca: self.dir.path().join("ca.crt"),
            cert: other.join(format!("{name}.crt")),
            key: other.join(format!("{name}.key")),
        })
    }

    /// Makes every certificate anew, with a new authority, in the same files. The server reads them
    /// at its next [`Self::restart`].
    pub fn renew_certificates(&mut self) -> Result<()> {
        let names = self.users.iter().map(User::name).collect::<Result<Vec<_>, _>>()?;
        self.authority = Authority::new()?;
        self.authority.issue_all(self.dir.path(), &names)
    }

    /// Has the server trust another authority of clients as well, as a site's own for people; from now on.
    pub fn trust(&mut self, other: &Authority) -> Result<()> {
        let file = self.dir.path().join("ca.crt");
        fs::write(&file, self.authority.pem() + &other.pem()).context("ca.crt")?;
        self.restart()
    }

    /// Kills the server, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Already gone is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the server where it runs, and starts it on the same port.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let dir = self.dir.path();
        let config = ServerConfig {
            name: "test".to_owned(),
            listen: self.address,
            monitor: None,
            tls: TlsPaths {
                ca: dir.join("ca.crt"),
                cert: dir.join("server.crt"),
                key: dir.join("server.key"),
            },
            jetstream_dir: dir.join("jetstream"),
            ports_file_dir: Some(dir.to_owned()),
            pid_file: None,
            users: self.users.clone(),
            callout: self.callout.clone(),
            cluster: None,
        };
        let file = dir.join("nats.conf");
        fs::write(&file, config.to_text()?).context("nats.conf")?;
        let log = dir.join("nats.log");
        let output = fs::File::create(&log).context("nats.log")?;
        let child = Command::new(nats_server()?)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("nats-server")?;
        let ports = dir.join(format!("nats-server_{}.ports", child.id()));
        self.child = Some(child);
        self.address = self.wait_for_ports(&ports, &log)?;
        Ok(())
    }

    fn wait_for_ports(&mut self, ports: &Path, log: &Path) -> Result<SocketAddr> {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            let ended = match self.child.as_mut() {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                bail!("nats-server ended ({status}):\n{}", fs::read_to_string(log)?);
            }
            // The file may be seen before it is whole.
            let address = fs::read_to_string(ports)
                .ok()
                .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok())
                .and_then(|ports| {
                    ports.get("nats")?.get(0)?.as_str()?.split_once("://")?.1.parse().ok()
                });
            if let Some(address) = address {
                return Ok(address);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("nats-server did not say its port:\n{}", fs::read_to_string(log)?)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server's program: `tools/nats-server` in the target directory, else on PATH.
pub fn nats_server() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let in_tools = own.ancestors().map(|dir| dir.join("tools/nats-server")).find(|p| p.is_file());
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|p| p.is_file())
    };
    in_tools.or_else(on_path).context(
        "no nats-server (2.10 or newer) in <target>/tools nor on PATH; `cargo xtask test` installs one",
    )
}

/// An authority that issues certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = common_name("Canopy test CA");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Its key, PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Writes `<file>.crt` and `<file>.key` with these names, otherwise as `change` makes it.
    pub fn issue(
        &self,
        dir: &Path,
        file: &str,
        sans: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(file);
        params.subject_alt_names = sans;
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let paths = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
        fs::write(&paths.0, certificate.pem())?;
        private_file(&paths.1, &key.serialize_pem())?;
        Ok(paths)
    }

    /// A certificate for the server, one for each name; PEM files `<name>.crt` and `<name>.key`,
    /// and `ca.crt`.
    fn issue_all(&self, dir: &Path, names: &[String]) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("ca.crt"), self.pem())?;
        let loopback = SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let localhost = SanType::DnsName("localhost".try_into()?);
        self.issue(dir, "server", vec![loopback, localhost], |_| {})?;
        for name in names {
            self.issue(dir, name, vec![SanType::URI(spiffe_id(name).try_into()?)], |_| {})?;
        }
        Ok(())
    }
}

/// Writes a file that only its owner can read.
pub fn private_file(file: &Path, content: &str) -> Result<()> {
    fs::write(file, content)?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o600))?)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
