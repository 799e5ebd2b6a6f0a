//! One stack and its surroundings.

use anyhow::{Context as _, Result, bail, ensure};
use canopy_api::{
    Hook,
    endpoint::Service,
    wire::{ApplyReply, ChainStatus, ProgramStatus},
};
use canopy_test_support::{
    packet::Udp4,
    pair::{self, HOST_LINK, PEER_IP, PEER_LINK, Pair},
    traffic::{Flood, send_frames},
    wait_for,
};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use xtask::{compile, config::Layout, outside, outside::Link, stack::Stack, tools};

/// The interface chains are attached to.
pub const INTERFACE: &str = HOST_LINK;
/// The host's id.
pub const HOST: &str = "e2e";
/// A source in the prefix that [`World::firewall`] blocks.
pub const BLOCKED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Where nobody listens: what arrives is counted by the kernel as such.
const PORT: u16 = 4242;

/// The starter packages, compiled once for all tests of a program.
static COMPILED: LazyLock<Result<Vec<PathBuf>, String>> =
    LazyLock::new(|| compile::packages().map_err(|error| format!("{error:#}")));

/// The directories of the compiled starter packages.
pub(crate) fn compiled() -> Result<&'static [PathBuf]> {
    COMPILED.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// A stack, and what it takes to send packets to it.
pub struct World {
    pair: Pair,
    stack: Stack,
    dir: TempDir,
}

/// What a command answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    /// The answer as JSON of this shape; fails with what was said if the command failed.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        ensure!(self.code == 0, "exit code {}: {}{}", self.code, self.out, self.err);
        serde_json::from_str(&self.out).with_context(|| format!("not as expected: {}", self.out))
    }

    /// The answer's text; fails with what was said if the command failed.
    pub fn text(&self) -> Result<&str> {
        ensure!(self.code == 0, "exit code {}: {}{}", self.code, self.out, self.err);
        Ok(&self.out)
    }
}

/// How long packets came through that should not have.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// How many did.
    pub leaked: u64,
    /// From the disturbance to the last of them.
    pub lasted: Duration,
}

impl World {
    /// A stack with the starter packages published, every service ready, and no chain.
    pub fn start() -> Result<Self> {
        Self::start_under(&std::env::temp_dir())
    }

    /// The same, with its files in a directory of this one.
    pub fn start_under(parent: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let compiled = compiled()?;
        let nats_server = tools::nats_server()?;
        let dir = TempDir::with_prefix_in("canopy-e2e-", parent)?;
        let layout = Layout {
            dir: dir.path().join("stack"),
            bpffs: format!("/sys/fs/bpf/canopy-e2e-{}-{number}", process::id()).into(),
            host: HOST.parse()?,
            // The namespace is ours: every port is free.
            bus: SocketAddr::from(([127, 0, 0, 1], 4222)),
            admin_port: 0,
        };
        let world = Self { pair: Pair::new()?, stack: Stack::new(layout, nats_server), dir };
        let gateway = PEER_IP.to_string();
        world.pair.host.exec(&["ip", "route", "add", "198.51.100.0/24", "via", &gateway])?;
        world.stack.prepare()?;
        world.stack.publish(compiled)?;
        world.inside(Stack::start)?;
        Ok(world)
    }

    /// Runs something in the stack's namespace.
    pub fn inside<T: Send>(&self, body: impl FnOnce(&Stack) -> Result<T> + Send) -> Result<T> {
        self.pair.host.run(|| body(&self.stack))
    }

    /// The stack.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Somewhere to put files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the command line as a person of that role.
    pub fn canopy_as(&self, role: &str, arguments: &[&str]) -> Result<Answer> {
        let mut command = self.stack.canopy(role)?;
        command.args(arguments).current_dir(self.dir.path());
        let output = self.pair.host.run(|| Ok(command.output()?))?;
        Ok(Answer {
            code: output.status.code().context("the command line was killed")?,
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the command line as an administrator.
    pub fn canopy(&self, arguments: &[&str]) -> Result<Answer> {
        self.canopy_as("admin", arguments)
    }

    /// Applies a document as an operator; the answer is text.
    pub fn try_apply(&self, document: &str) -> Result<Answer> {
        self.apply_with(document, &[])
    }

    /// Applies a document, which must work.
    pub fn apply(&self, document: &str) -> Result<ApplyReply> {
        self.apply_with(document, &["-o", "json"])?.json()
    }

    fn apply_with(&self, document: &str, options: &[&str]) -> Result<Answer> {
        fs::write(self.dir.path().join("document.yaml"), document)?;
        self.canopy_as("operator", &[&["apply", "-f", "document.yaml"], options].concat())
    }

    /// A chain that blocks [`BLOCKED`] and lets everything else pass a limiter that never limits.
    pub fn firewall() -> String {
        format!(
            "chains:\n\
             - interface: {INTERFACE}\n  \
               hook: xdp\n  \
               programs:\n  \
               - name: blocklist\n    \
                 package: firewall@^0.1\n    \
                 priority: 10\n    \
                 config: {{ blocked: [\"198.51.100.0/24\"] }}\n  \
               - name: limit\n    \
                 package: ratelimit@^0.1\n    \
                 priority: 20\n    \
                 config: {{ rate: 10000000, burst: 1000000 }}\n"
        )
    }

    /// Every chain, as the command line tells it.
    pub fn chains(&self) -> Result<Vec<ChainStatus>> {
        self.canopy_as("viewer", &["get", "chains", "-o", "json"])?.json()
    }

    /// The chain on a hook of [`INTERFACE`].
    pub fn chain(&self, hook: Hook) -> Result<ChainStatus> {
        self.chains()?
            .into_iter()
            .find(|chain| chain.interface.as_str() == INTERFACE && chain.hook == hook)
            .with_context(|| format!("there is no chain {INTERFACE}/{hook}"))
    }

    /// A program of the XDP chain.
    pub fn program(&self, name: &str) -> Result<ProgramStatus> {
        self.chain(Hook::Xdp)?
            .programs
            .into_iter()
            .find(|program| program.name.as_str() == name)
            .with_context(|| format!("there is no program {name}"))
    }

    /// Sends so many packets from a source, and waits until each has been counted: by the kernel
    /// as arrived, or by the chain as dropped. Returns how many arrived.
    pub fn send(&self, source: Ipv4Addr, count: usize) -> Result<u64> {
        let before = self.arrived()?;
        let sent = send_frames(&self.pair, &vec![frame(source); count])?;
        ensure!(sent == u64::try_from(count)?, "only {sent} of {count} packets were sent");
        // veth hands packets over in a softirq soon after; a packet that arrives, arrives at once.
        let mut last = self.arrived()?;
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(100) && last - before < sent {
            let now = self.arrived()?;
            if now != last {
                last = now;
                since = Instant::now();
            }
        }
        Ok(last - before)
    }

    /// Packets from a source without end.
    pub fn flood(&self, source: Ipv4Addr) -> Result<Flood> {
        Flood::start(&self.pair.peer, PEER_LINK, vec![frame(source)])
    }

    /// Packets that came through the chain and the stack so far.
    pub fn arrived(&self) -> Result<u64> {
        self.pair.host.run(|| pair::udp_counter("NoPorts"))
    }

    /// Sends from the blocked source at a steady pace, disturbs, and measures for how long packets
    /// came through: until none has for `quiet`.
    pub fn gap(
        &self,
        quiet: Duration,
        disturb: impl FnOnce(&Stack) -> Result<()> + Send,
    ) -> Result<Gap> {
        let pace = Duration::from_millis(1);
        self.pair.host.run(|| {
            let arrived = || pair::udp_counter("NoPorts");
            let mut steps = 0;
            let before = arrived()?;
            for _ in 0..50 {
                self.send_one()?;
                std::thread::sleep(pace);
            }
            ensure!(arrived()? == before, "packets came through before anything was disturbed");
            let begin = Instant::now();
            disturb(&self.stack)?;
            let mut seen = before;
            let mut last = begin;
            while last.elapsed() < quiet {
                self.send_one()?;
                std::thread::sleep(pace);
                let now = arrived()?;
                if now != seen {
                    seen = now;
                    last = Instant::now();
                }
                steps += 1;
                if steps > 60_000 {
                    bail!("packets of the blocked source never stopped coming through");
                }
            }
            Ok(Gap { leaked: seen - before, lasted: last - begin })
        })
    }

    fn send_one(&self) -> Result<()> {
        send_frames(&self.pair, &[frame(BLOCKED)]).map(drop)
    }

    /// The XDP link on the interface, as `ip` and `bpftool` tell it.
    pub fn kernel_link(&self) -> Result<Option<Link>> {
        self.inside(|_| outside::xdp_link(INTERFACE))
    }

    /// Process ids of every service and the bus; fails if one is not there.
    pub fn alive(&self) -> Result<Vec<i32>> {
        self.stack
            .processes()
            .iter()
            .map(|process| {
                process.pid().with_context(|| {
                    format!("{} is gone; its last words:\n{}", process.name(), process.log_tail(20))
                })
            })
            .collect()
    }

    /// A service's metric with exactly these labels, in any order.
    pub fn metric(&self, service: Service, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let text = self.inside(|stack| stack.metrics(service))?;
        let wanted: BTreeSet<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        text.lines()
            .find_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let labels = series.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
                let labels: BTreeSet<String> = labels.split(',').map(str::to_owned).collect();
                (labels == wanted).then(|| value.parse().ok())?
            })
            .with_context(|| format!("{service} has no {name} {wanted:?} in\n{text}"))
    }

    /// Waits until the chain is as wanted, and returns it.
    pub fn wait_for_chain(
        &self,
        what: &str,
        wanted: impl Fn(&ChainStatus) -> bool,
    ) -> Result<ChainStatus> {
        wait_for(Duration::from_secs(20), what, || match self.chain(Hook::Xdp) {
            Ok(chain) if wanted(&chain) => Ok(chain),
            Ok(chain) => Err(format!("{chain:?}")),
            Err(error) => Err(format!("{error:#}")),
        })
    }

    /// A package made from a compiled starter package under another name.
    pub fn repository(&self) -> Repository<'_> {
        Repository { world: self }
    }

    /// Ends the stack as `cargo xtask down` does; fails if anything is left.
    pub fn end(self) -> Result<()> {
        self.inside(Stack::remove)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stdout, reason = "what a failed test shows")]
            for process in self.stack.processes() {
                println!("---- {}\n{}", process.name(), process.log_tail(40));
            }
        }
        // Whatever cannot be removed here was not removed by the test either, and shows there.
        let _ = self.stack.remove();
    }
}

fn frame(source: Ipv4Addr) -> Vec<u8> {
    Udp4 { source, ..Udp4::to_port(PORT) }.frame()
}

/// The directory repository of a world: packages are put into it, and broken in it.
#[derive(Clone, Copy)]
pub struct Repository<'a> {
    world: &'a World,
}

impl Repository<'_> {
    /// Publishes the compiled firewall under another name, after `change` had its way with the
    /// directory it is built from.
    pub fn publish(&self, name: &str, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let from = compile::ebpf_dir()?.join("firewall");
        let to = self.world.dir().join("sources").join(name);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        let manifest = to.join("package.yaml");
        let text = fs::read_to_string(&manifest)?;
        let (_, rest) = text.split_once('\n').context("an empty manifest")?;
        fs::write(&manifest, format!("name: {name}\n{rest}"))?;
        change(&to)?;
        self.world.stack.publish(&[to]).map(drop)
    }

    /// The file of a package that has one version, and that of its signature.
    pub fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        let package = self.world.stack.layout().repository().join(name);
        let mut versions = fs::read_dir(package).into_iter().flatten().flatten();
        let version = versions.next().map(|entry| entry.path()).unwrap_or_default();
        let number = version.file_name().unwrap_or_default().to_string_lossy();
        let file = format!("{name}-{number}.cpkg");
        (version.join(&file), version.join(format!("{file}.minisig")))
    }
}
