//! The stack's life: made ready, started, awaited, stopped without a trace.
//!
//! Five services and the bus, each its own process. The same code brings up the development stack
//! (`cargo xtask up`) and, in namespaces of their own, those of the end-to-end tests.

use crate::{
    compile,
    config::Layout,
    pki::{self, Pki, RoutesPki},
    process::{self, Privilege, Process},
    progress::{step, wait_for},
    running, shell, tools,
};
use anyhow::{Context as _, Result, bail};
use canopy_api::{
    endpoint::Service,
    nats::User,
    permission::{self, Role},
};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long a process may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A stack on this machine.
#[derive(Clone, Debug)]
pub struct Stack {
    layout: Layout,
    nats_server: PathBuf,
}

/// Whose a file is that is not root's, by itself or by a directory on the way to it.
fn owner(file: &Path) -> Option<u32> {
    let mut owners = file.ancestors().filter_map(|place| Some(place.metadata().ok()?.uid()));
    owners.find(|owner| *owner != 0)
}

impl Stack {
    /// A stack; nothing is touched yet.
    pub fn new(layout: Layout, nats_server: PathBuf) -> Self {
        Self { layout, nats_server }
    }

    /// Where its things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes the stack's files the caller's, whoever brought it up before: somebody with sudo after root,
    /// or root after somebody.
    pub fn take_over(&self) -> Result<()> {
        let dir = &self.layout.dir;
        if !dir.exists() {
            return Ok(());
        }
        let me = format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid());
        // Links stay what they are, and what they name stays whose it is.
        shell::quiet(shell::root("chown").args(["-R", "-h", &me, "--"]).arg(dir))
    }

    /// Gives the keys of the daemons that run as root to root: a daemon takes no key that another user
    /// could change.
    fn give_to_root(&self, pki: &Pki) -> Result<()> {
        if shell::is_root() {
            return Ok(());
        }
        let mut chown = shell::root("chown");
        chown.args(["0:0", "--"]);
        for service in Service::ALL.into_iter().filter(|service| service.is_host_local()) {
            let me = permission::daemon_principal(service, Some(&self.layout.host))?;
            chown.arg(pki.key(me.as_str()));
        }
        shell::quiet(&mut chown)
    }

    /// Makes directories, keys, certificates and configuration.
    pub fn prepare(&self) -> Result<()> {
        self.take_over()?;
        let layout = &self.layout;
        for dir in [
            layout.dir.clone(),
            layout.run_dir(),
            layout.log_dir(),
            layout.state_dir(),
            layout.repository(),
        ] {
            pki::private_dir(&dir)?;
        }
        let names = layout.users()?.iter().map(User::name).collect::<Result<Vec<_>, _>>()?;
        let pki = Pki::ensure(&layout.pki_dir(), &names)?;
        RoutesPki::ensure(&layout.routes_pki_dir())?;
        if !layout.signing_key().exists() {
            pki::private_dir(&layout.signing_dir())?;
            shell::quiet(
                Command::new(compile::binary("canopy")?)
                    .args(["package", "keygen", "--output"])
                    .arg(layout.signing_dir()),
            )?;
        }
        if !layout.policy_keys().exists() {
            shell::quiet(
                Command::new(compile::binary("canopy-policy")?)
                    .args(["keys", "--output"])
                    .arg(layout.policy_keys()),
            )?;
        }
        if !layout.audit_key().exists() {
            // A stack made before there was one.
            shell::quiet(
                Command::new(compile::binary("canopy-policy")?)
                    .args(["audit-key", "--output"])
                    .arg(layout.audit_key()),
            )?;
        }
        if !layout.policy_nkeys().exists() {
            // The same.
            shell::quiet(
                Command::new(compile::binary("canopy-policy")?)
                    .args(["nkeys", "--output"])
                    .arg(layout.policy_keys()),
            )?;
        }
        self.give_to_root(&pki)?;
        layout.write(&pki)
    }

    /// Gives each person of the stack a token and enrols the host; the policy service and the bus run.
    /// Tokens of before end.
    pub fn issue_tokens(&self) -> Result<()> {
        let layout = &self.layout;
        let tokens = layout.token("any").parent().map(Path::to_owned).unwrap_or_default();
        remove_tree(&tokens)?;
        pki::private_dir(&tokens)?;
        let certificate = |principal: &str| layout.pki_dir().join(format!("{principal}.crt"));
        for user in layout.users()? {
            let User::Person { principal, role } = user else { continue };
            let principal = principal.as_str();
            let file = layout.token(principal);
            if role == Role::Admin {
                let mut bootstrap = Command::new(compile::binary("canopy-policy")?);
                bootstrap
                    .args(["bootstrap", "--principal", principal, "--config"])
                    .arg(layout.service_config(Service::Policy))
                    .arg("--certificate")
                    .arg(certificate(principal))
                    .arg("--output")
                    .arg(&file);
                shell::quiet(&mut bootstrap)?;
            }
        }
        for user in layout.users()? {
            let User::Person { principal, role } = user else { continue };
            if role == Role::Admin {
                continue;
            }
            // One of before, if there is one.
            let _ = shell::quiet(
                self.canopy("admin")?.args(["token", "revoke"]).arg(principal.as_str()),
            );
            shell::quiet(
                self.canopy("admin")?
                    .args(["token", "issue", principal.as_str(), "--role", role.as_str()])
                    .arg("--certificate")
                    .arg(certificate(principal.as_str()))
                    .arg("--save")
                    .arg(layout.token(principal.as_str())),
            )?;
        }
        self.enrol_host()
    }

    /// Enrols the stack's host with the certificates it has.
    fn enrol_host(&self) -> Result<()> {
        let mut enrol = self.canopy("admin")?;
        enrol.args(["host", "enrol", "--replace"]);
        for service in Service::ALL.into_iter().filter(|service| service.is_host_local()) {
            let me = permission::daemon_principal(service, Some(&self.layout.host))?;
            enrol.arg("--certificate").arg(self.layout.pki_dir().join(format!("{me}.crt")));
        }
        shell::quiet(&mut enrol)
    }

    /// Starts the bus and every service, and waits until each says it is ready.
    pub fn start(&self) -> Result<()> {
        step("nats-server", || {
            self.start_bus()?;
            self.wait_for_bus()
        })?;
        // Everybody else is let in by it.
        step("canopy-policy", || {
            self.start_service(Service::Policy)?;
            self.wait_ready(Service::Policy)
        })?;
        step("tokens", || self.issue_tokens())?;
        let others = Service::ALL.into_iter().filter(|service| *service != Service::Policy);
        for service in others.clone() {
            self.start_service(service)?;
        }
        for service in others {
            step(&format!("canopy-{service}"), || self.wait_ready(service))?;
        }
        Ok(())
    }

    /// Starts the bus.
    pub fn start_bus(&self) -> Result<()> {
        let mut command = Command::new(&self.nats_server);
        command.arg("--config").arg(self.layout.bus_config());
        self.bus().start(&command, Privilege::Own)
    }

    /// Waits until the bus takes connections.
    pub fn wait_for_bus(&self) -> Result<()> {
        let bus = self.bus();
        wait_for("the bus takes connections", READY_LIMIT, || {
            if bus.pid().is_none() {
                return Err(format!("the process is gone; its last words:\n{}", bus.log_tail(5)));
            }
            TcpStream::connect_timeout(&self.layout.bus, Duration::from_secs(1))
                .map(drop)
                .map_err(|error| format!("{}: {error}", self.layout.bus))
        })
    }

    /// Starts one service.
    pub fn start_service(&self, service: Service) -> Result<()> {
        let address = self.layout.address_file(service);
        if address.exists() {
            fs::remove_file(&address)
                .with_context(|| format!("cannot remove {}", address.display()))?;
        }
        let mut command = Command::new(compile::binary(format!("canopy-{service}"))?);
        let config = self.layout.service_config(service);
        command.arg("--config").arg(&config);
        // The developer's directory is trusted by root's services too; nobody else's is.
        if let Some(owner) = owner(&config) {
            command.arg("--config-owner").arg(owner.to_string());
        }
        let privilege = if service.is_host_local() { Privilege::Root } else { Privilege::Own };
        self.process(service).start(&command, privilege)
    }

    /// Waits until a service says it is ready.
    pub fn wait_ready(&self, service: Service) -> Result<()> {
        let process = self.process(service);
        wait_for(&format!("{service} is ready"), READY_LIMIT, || {
            if process.pid().is_none() {
                return Err(format!(
                    "the process is gone; its last words:\n{}",
                    process.log_tail(5)
                ));
            }
            let address = self.admin_address(service).map_err(|error| format!("{error:#}"))?;
            match http_get(address, "/ready?verbose") {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status}: {}", body.trim())),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Where a service answers for its metrics and its health.
    pub fn admin_address(&self, service: Service) -> Result<SocketAddr> {
        let file = self.layout.address_file(service);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("no address in {} yet", file.display()))?;
        text.trim().parse().with_context(|| format!("{}: {text:?}", file.display()))
    }

    /// A service's metrics, in Prometheus' text format.
    pub fn metrics(&self, service: Service) -> Result<String> {
        let (status, body) = http_get(self.admin_address(service)?, "/metrics")?;
        if status != 200 {
            bail!("{service}: /metrics answered {status}: {body}");
        }
        Ok(body)
    }

    /// The bus's process.
    pub fn bus(&self) -> Process {
        Process::new(process::BUS, &self.layout.run_dir(), &self.layout.log_dir())
    }

    /// A service's process.
    pub fn process(&self, service: Service) -> Process {
        Process::new(&format!("canopy-{service}"), &self.layout.run_dir(), &self.layout.log_dir())
    }

    /// Ends every process: the services first, together, then the bus, so that each can say that it
    /// ends. Says how many there were.
    pub fn stop(&self) -> Result<usize> {
        let services: Vec<Process> =
            Service::ALL.into_iter().map(|service| self.process(service)).collect();
        let ended = process::stop(&services)? + process::stop(&[self.bus()])?;
        Ok(ended + process::stop_strays(&self.layout.dir)?)
    }

    /// All of them.
    pub fn processes(&self) -> Vec<Process> {
        let mut all: Vec<Process> =
            Service::ALL.into_iter().map(|service| self.process(service)).collect();
        all.push(self.bus());
        all
    }

    /// The command line, as this person (a context: `admin`, `operator`, `publisher`, `viewer`).
    pub fn canopy(&self, context: &str) -> Result<Command> {
        let mut command = Command::new(compile::binary("canopy")?);
        command
            .arg("--context-file")
            .arg(self.layout.contexts())
            .args(["--context", context])
            .env("NO_COLOR", "1");
        Ok(command)
    }

    /// Builds package files from compiled directories, signs them and adds them to the repository.
    pub fn publish(&self, compiled: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let out = self.layout.state_dir().join("packages");
        pki::private_dir(&out)?;
        for dir in compiled {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let file = out.join(format!("{name}.cpkg"));
            shell::quiet(
                self.canopy("publisher")?.args(["package", "build"]).arg(dir).arg("-o").arg(&file),
            )?;
            files.push(file);
        }
        shell::quiet(
            self.canopy("publisher")?
                .args(["package", "publish", "--repository"])
                .arg(self.layout.repository())
                .arg("--key")
                .arg(self.layout.signing_key())
                .args(&files),
        )?;
        Ok(files)
    }

    /// Ends every process, removes every pin, forgets all state; keys and certificates stay.
    /// Fails if anything is left.
    pub fn remove(&self) -> Result<()> {
        self.stop()?;
        remove_tree(&self.layout.bpffs)?;
        for dir in [self.layout.state_dir(), self.layout.repository(), self.layout.run_dir()] {
            remove_tree(&dir)?;
        }
        let left = self.leftovers();
        if !left.is_empty() {
            bail!("left behind: {}", left.join(", "));
        }
        Ok(())
    }

    /// What is still there of a stack that was removed.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .processes()
            .iter()
            .filter_map(|process| Some(format!("{} ({})", process.name(), process.pid()?)))
            .collect();
        for stray in running::of(&self.layout.dir) {
            let stray = format!("{} ({})", stray.name, stray.pid);
            if !left.contains(&stray) {
                left.push(stray);
            }
        }
        // Only root may look into a BPF file system that systemd mounted.
        if tools::works(shell::root("test").arg("-e").arg(&self.layout.bpffs)) {
            left.push(self.layout.bpffs.display().to_string());
        }
        left
    }
}

/// Removes a directory that root may have put things into.
fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => shell::quiet(shell::root("rm").args(["-rf", "--"]).arg(dir)),
    }
}

/// Status and body of a plain HTTP request.
pub fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status in the HTTP answer")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunked(body)? } else { body.to_owned() }))
}

/// The body of an answer that came in chunks (RFC 9112, 7.1).
fn unchunked(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n").context("a chunk without its length")?;
        let length =
            usize::from_str_radix(length.trim(), 16).context("a chunk without its length")?;
        if length == 0 {
            return Ok(whole);
        }
        let (chunk, rest) = rest.split_at_checked(length).context("half a chunk")?;
        whole.push_str(chunk);
        body = rest.strip_prefix("\r\n").context("a chunk without its end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        assert_eq!(unchunked("4\r\n{\"a\"\r\n3\r\n:1}\r\n0\r\n\r\n").unwrap(), "{\"a\":1}");
        for bad in ["", "4\r\nab", "x\r\n", "2\r\nab0\r\n"] {
            assert!(unchunked(bad).is_err(), "{bad:?}");
        }
    }
}
