//! Three bus servers and two policy services on this machine, as `deploy/nats/cluster` has them.

use anyhow::{Context as _, Result, bail, ensure};
use canopy_api::{
    endpoint::Service,
    nats::{ServerConfig, TlsPaths},
};
use canopy_test_support::{netns::Netns, wait_for};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use xtask::{
    compile,
    config::Layout,
    pki::{Pki, RoutesPki},
    stack::{self, Stack},
    tools,
};

/// How long something may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
/// Where the first server's monitoring listens; the others follow.
const MONITOR_PORT: u16 = 8222;

/// A cluster in a network namespace of its own, where every port is free. Nothing runs at first.
pub struct Cluster {
    netns: Netns,
    dir: TempDir,
    stack: Stack,
    servers: Vec<ServerConfig>,
    running: Vec<(String, Child)>,
}

impl Cluster {
    /// Makes certificates and configurations of three servers and two policy services.
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let layout = Layout {
            dir: dir.path().join("stack"),
            bpffs: "/sys/fs/bpf/canopy-no-pins".into(),
            host: "e2e".parse()?,
            bus: SocketAddr::from((Ipv4Addr::LOCALHOST, 4222)),
            admin_port: 0,
        };
        let stack = Stack::new(layout, tools::nats_server()?);
        stack.prepare()?;
        let layout = stack.layout();
        let pki = Pki::ensure(&layout.pki_dir(), &[])?;
        let routes = RoutesPki::ensure(&layout.routes_pki_dir())?;
        let mut servers = layout.cluster(&pki, &routes, 3)?;
        for (number, server) in (0_u16..).zip(&mut servers) {
            server.monitor = Some(monitor(number));
        }
        let cluster = Self { netns: Netns::new()?, dir, stack, servers, running: Vec::new() };
        for server in &cluster.servers {
            cluster.write_server(server)?;
        }
        // Clients know every server.
        let contexts = cluster.stack.layout().contexts();
        let text = fs::read_to_string(&contexts)?;
        fs::write(&contexts, text.replace("tls://127.0.0.1:4222", &cluster.url()))?;
        cluster.write_policies(3)?;
        Ok(cluster)
    }

    /// A server of its own beside the cluster's, by the same files.
    pub fn single(&self) -> Result<ServerConfig> {
        let pki = Pki::ensure(&self.stack.layout().pki_dir(), &[])?;
        self.stack.layout().server(&pki)
    }

    /// Every server's address, as clients have it.
    pub fn url(&self) -> String {
        let urls = self.servers.iter().map(|server| format!("tls://{}", server.listen));
        urls.collect::<Vec<_>>().join(",")
    }

    /// The configurations of the servers.
    pub fn servers(&self) -> &[ServerConfig] {
        &self.servers
    }

    /// The certificates of the routes.
    pub fn routes(&self) -> Result<TlsPaths> {
        Ok(RoutesPki::ensure(&self.stack.layout().routes_pki_dir())?.tls())
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        self.stack.layout()
    }

    /// The network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A file of this cluster's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a server's configuration to `<name>.conf`.
    pub fn write_server(&self, server: &ServerConfig) -> Result<()> {
        fs::write(self.path(&format!("{}.conf", server.name)), server.to_text()?)?;
        Ok(())
    }

    /// Writes the configurations of the two policy services, with so many replicas.
    pub fn write_policies(&self, replicas: usize) -> Result<()> {
        for instance in 0..2 {
            let file = self.stack.layout().service_config(Service::Policy);
            let mut config: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
            let mut put = |at: &str, value: Value| match config.pointer_mut(at) {
                Some(place) => {
                    *place = value;
                    Ok(())
                }
                None => bail!("the policy service's configuration has no {at}"),
            };
            put("/bus/url", json!(self.url()))?;
            put("/audit/dir", json!(self.path(&format!("audit{instance}"))))?;
            put("/runtime/address_file", json!(self.path(&format!("policy{instance}.address"))))?;
            if let Some(auth) = config.get_mut("auth").and_then(Value::as_object_mut) {
                auth.insert("replicas".to_owned(), json!(replicas));
            }
            fs::write(self.path(&format!("policy{instance}.json")), config.to_string())?;
        }
        Ok(())
    }

    fn start(&mut self, name: &str, program: &Path, config: &str) -> Result<()> {
        let log = self.path(&format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.arg("--config").arg(self.path(config)).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let child = self.netns.run(|| Ok(command.spawn()?))?;
        self.running.push((name.to_owned(), child));
        Ok(())
    }

    /// Starts a bus server whose configuration was written.
    pub fn start_bus(&mut self, name: &str) -> Result<()> {
        self.start(name, &tools::nats_server()?, &format!("{name}.conf"))
    }

    /// Starts a policy service.
    pub fn start_policy(&mut self, instance: usize) -> Result<()> {
        let address = self.path(&format!("policy{instance}.address"));
        if address.exists() {
            fs::remove_file(address)?;
        }
        let program = compile::binary("canopy-policy")?;
        self.start(&format!("policy{instance}"), &program, &format!("policy{instance}.json"))
    }

    /// Starts all of it, waits until it is ready, and gives `u-admin` a token.
    pub fn start_all(&mut self) -> Result<()> {
        for number in 1..=3 {
            self.start_bus(&format!("bus{number}"))?;
        }
        for instance in 0..2 {
            self.start_policy(instance)?;
        }
        for instance in 0..2 {
            self.wait_policy(instance)?;
        }
        self.bootstrap()
    }

    /// Gives `u-admin` a token.
    pub fn bootstrap(&self) -> Result<()> {
        let layout = self.stack.layout();
        let token = layout.token("u-admin");
        fs::create_dir_all(token.parent().context("no directory of tokens")?)?;
        let certificate = layout.pki_dir().join("u-admin.crt");
        let (certificate, token) = (certificate.display(), token.display());
        let (certificate, token) = (certificate.to_string(), token.to_string());
        let rest = ["--principal", "u-admin", "--certificate", &certificate, "--output", &token];
        self.policy_command("bootstrap", &rest).map(drop)
    }

    /// Runs a command of the policy service with the first one's configuration; what it prints.
    pub fn policy_command(&self, name: &str, rest: &[&str]) -> Result<String> {
        let mut command = Command::new(compile::binary("canopy-policy")?);
        command.arg(name).arg("--config").arg(self.path("policy0.json")).args(rest);
        let done = self.netns.run(|| Ok(command.output()?))?;
        ensure!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Waits until a policy service says it is ready.
    pub fn wait_policy(&self, instance: usize) -> Result<()> {
        let waited = wait_for(LIMIT, "a policy service is ready", || {
            match self.policy_health(instance).map_err(|error| error.to_string())? {
                (200, _) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        waited.map_err(anyhow::Error::msg)
    }

    /// What a policy service says of its health: status and text.
    pub fn policy_health(&self, instance: usize) -> Result<(u16, String)> {
        let address = fs::read_to_string(self.path(&format!("policy{instance}.address")))?;
        let address = address.trim().parse()?;
        self.netns.run(|| stack::http_get(address, "/ready?verbose"))
    }

    /// Process id of one of the processes.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let child = self.running.iter().find(|(one, _)| one == name);
        child.map(|(_, child)| child.id()).with_context(|| format!("{name} does not run"))
    }

    /// Kills one, as a machine that loses its power.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.running.iter().position(|(one, _)| one == name);
        let (_, mut child) =
            self.running.remove(at.with_context(|| format!("{name} does not run"))?);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends one in order.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        let pid = self.pid(name)?.to_string();
        ensure!(Command::new("kill").args(["-TERM", &pid]).status()?.success(), "{name}: no kill");
        let waited = wait_for(LIMIT, "a process ends", || {
            let child = self.running.iter_mut().find(|(one, _)| one == name);
            match child.map(|(_, child)| child.try_wait()) {
                Some(Ok(Some(_))) => Ok(()),
                other => Err(format!("{name}: {other:?}")),
            }
        });
        waited.map_err(anyhow::Error::msg)?;
        self.kill(name)
    }

    /// What a process wrote.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(self.path(&format!("{name}.log")))?)
    }

    /// What a server's monitoring answers, by its number from 0.
    pub fn monitored(&self, number: u16, path: &str) -> Result<Value> {
        let (status, body) = self.netns.run(|| stack::http_get(monitor(number), path))?;
        ensure!(status == 200, "{path} of server {number}: {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// The names of the servers that a server has routes with.
    pub fn routes_of(&self, number: u16) -> Result<BTreeSet<String>> {
        let answer = self.monitored(number, "/routez")?;
        let routes = answer.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
        let name = |route: &Value| Some(route.get("remote_name")?.as_str()?.to_owned());
        Ok(routes.iter().filter_map(name).collect())
    }

    /// What is stored in DATA, each stream as its leader sees it; without a leader, where none of the servers
    /// that run says it is one.
    pub fn streams(&self) -> Result<Vec<StreamState>> {
        let mut found: BTreeMap<String, StreamState> = BTreeMap::new();
        for (number, server) in (0_u16..).zip(&self.servers) {
            if !self.running.iter().any(|(name, _)| *name == server.name) {
                continue;
            }
            let answer = self.monitored(number, "/jsz?acc=DATA&streams=true&config=true")?;
            let streams = answer.pointer("/account_details/0/stream_detail");
            for stream in streams.and_then(Value::as_array).into_iter().flatten() {
                let mut state = StreamState::read(stream);
                let leads = state.leader == server.name;
                if !leads {
                    // What others believe of it may be of before.
                    state.leader.clear();
                    state.current = 0;
                }
                match found.entry(state.name.clone()) {
                    Entry::Vacant(place) => drop(place.insert(state)),
                    Entry::Occupied(mut place) if leads => drop(place.insert(state)),
                    Entry::Occupied(_) => {}
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// The command line as the administrator: standard output, or what it says of its failure.
    pub fn canopy(&self, arguments: &[&str]) -> Result<String, String> {
        let run = || {
            let mut command = self.stack.canopy("admin")?;
            command.args(arguments).current_dir(self.dir.path());
            Ok(command.output()?)
        };
        let output = self.netns.run(run).map_err(|error| format!("{error:#}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (name, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = fs::read_to_string(self.dir.path().join(format!("{name}.log")));
                let log = log.unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
                eprintln!("---- {name}\n{}", last.join("\n"));
            }
        }
    }
}

/// A stream as one of the servers sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Its name.
    pub name: String,
    /// The server that leads it; empty while there is none.
    pub leader: String,
    /// How many servers are to keep it.
    pub replicas: u64,
    /// How many others keep it and are up to date.
    pub current: usize,
}

impl StreamState {
    fn read(stream: &Value) -> Self {
        let text = |at: &str| stream.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let others = stream.pointer("/cluster/replicas").and_then(Value::as_array);
        let is_current = |other: &&Value| other.get("current") == Some(&Value::Bool(true));
        Self {
            name: text("/name").to_owned(),
            leader: text("/cluster/leader").to_owned(),
            replicas: stream.pointer("/config/num_replicas").and_then(Value::as_u64).unwrap_or(0),
            current: others.into_iter().flatten().filter(is_current).count(),
        }
    }
}

fn monitor(number: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, MONITOR_PORT.saturating_add(number)))
}
