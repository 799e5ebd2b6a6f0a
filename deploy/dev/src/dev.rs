//! `cargo xtask up` and `down`: the development stack of this work tree.

use crate::{
    compile,
    config::{self, Layout},
    network::{DEMO_NAMESPACE, INTERFACE, Network},
    paths, pki,
    progress::{heading, step},
    shell,
    stack::Stack,
    tools::{self, Need},
};
use anyhow::{Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::{fs, net::SocketAddr, path::PathBuf};

/// The id of the one host.
const HOST: &str = "dev";
/// Its pins; apart from a production loader's on the same machine.
const BPFFS: &str = "/sys/fs/bpf/canopy-dev";
/// Where the bus listens if the port is free.
const BUS_PORT: u16 = 14222;

/// Where the services' admin listeners begin if those ports are free; Prometheus is told so in
/// `deploy/prometheus/prometheus.yml`.
pub const ADMIN_PORT: u16 = 19101;

/// The stack of this work tree, where it was brought up, or as it would be.
fn stack(nats_server: PathBuf, bus: SocketAddr, admin_port: u16) -> Result<Stack> {
    let layout =
        Layout { dir: paths::stack(), bpffs: BPFFS.into(), host: HOST.parse()?, bus, admin_port };
    Ok(Stack::new(layout, nats_server))
}

/// The stack as it was brought up; for stopping it or talking to it.
pub fn existing() -> Result<Stack> {
    // Neither the server's file nor its address matters for stopping what runs.
    let bus = fs::read_to_string(bus_file())
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], BUS_PORT)));
    stack("nats-server".into(), bus, ADMIN_PORT)
}

/// Its network.
pub fn network() -> Network {
    Network::new(DEMO_NAMESPACE)
}

/// Keeps others from changing the stack meanwhile; held until dropped. The stack's processes do not
/// inherit it.
pub fn lock() -> Result<Flock<fs::File>> {
    let dir = paths::stack();
    pki::private_dir(&dir)?;
    let file = fs::File::create(dir.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "another `cargo xtask` is at work on the stack in {} ({error}); wait for it",
            paths::short(&dir)
        )
    })
}

/// Remembers where the bus of the running stack listens.
fn bus_file() -> PathBuf {
    paths::stack().join("bus.address")
}

/// Brings everything up: tools, binaries, packages, keys, processes, network. Processes of an
/// earlier stack are ended first; what they kept is kept.
pub fn up() -> Result<Stack> {
    heading("This machine");
    tools::ensure(&[Need::Compile, Need::Network])?;
    shell::can_be_root()?;
    step("BPF file system, tracing", tools::mount_filesystems)?;
    let nats_server = tools::nats_server()?;

    heading("Building");
    let compiled = step("kernel-side programs", compile::packages)?;
    println!("  services and command line");
    compile::binaries()?;

    heading("Starting");
    let before = existing()?;
    if before.processes().iter().any(|process| process.pid().is_some()) {
        step("ending what runs of an earlier stack", || {
            before.processes().iter().try_for_each(|process| process.stop().map(drop))
        })?;
    }
    let stack = prepare(nats_server)?;
    let network = network();
    if !network.exists() {
        step(&format!("interface {INTERFACE} and namespace {DEMO_NAMESPACE}"), || network.make())?;
    }
    step("signing and publishing the packages", || stack.publish(&compiled))?;
    stack.start()?;
    Ok(stack)
}

/// Makes keys, certificates and configuration.
fn prepare(nats_server: PathBuf) -> Result<Stack> {
    let bus = config::free_address(BUS_PORT)?;
    let stack = stack(nats_server, bus, config::free_admin_ports(ADMIN_PORT))?;
    step("keys, certificates, configuration", || {
        stack.prepare()?;
        fs::write(bus_file(), format!("{}\n", stack.layout().bus))?;
        Ok(())
    })?;
    Ok(stack)
}

/// Makes keys, certificates, configuration and a repository with the packages, and starts nothing:
/// for running the services in another way (`deploy/docker`).
pub fn configure() -> Result<()> {
    tools::ensure(&[Need::Compile])?;
    let compiled = compile::packages()?;
    compile::binaries()?;
    let stack = prepare("nats-server".into())?;
    step("signing and publishing the packages", || stack.publish(&compiled))?;
    println!("  {} has everything a stack needs", paths::short(&paths::stack()));
    Ok(())
}

/// Gives the people of the stack their tokens; its bus and policy service run.
pub fn tokens() -> Result<()> {
    step("tokens", || existing()?.issue_tokens())
}

/// Ends everything and removes every trace but keys, certificates and logs.
pub fn down() -> Result<()> {
    let stack = existing()?;
    shell::can_be_root()?;
    step("processes, pins, state", || stack.remove())?;
    step("network", || network().remove())?;
    let left = [stack.leftovers(), network().leftovers()].concat();
    if !left.is_empty() {
        bail!("left behind: {}", left.join(", "));
    }
    println!("  nothing is left: no process, namespace, interface or pin");
    Ok(())
}

/// What to try with a running stack, and how to stop it.
pub fn hints() -> Result<()> {
    let canopy = compile::binary("canopy")?;
    println!(
        "\nThe stack is up. Try:\n\n  \
         export CANOPY_CONFIG={}\n  \
         alias canopy={}\n  \
         canopy get chains\n  \
         canopy get programs\n  \
         canopy describe chain {INTERFACE} xdp\n  \
         canopy get packages\n  \
         canopy doctor\n  \
         canopy --context viewer delete chain {INTERFACE} xdp     # refused: a viewer only reads\n  \
         canopy delete chain {INTERFACE} xdp --program limit\n  \
         canopy apply -f deploy/dev/demo.yaml\n\n\
         Logs are in {}. Stop everything with: cargo xtask down",
        paths::stack().join("contexts.json").display(),
        canopy.display(),
        paths::short(&existing()?.layout().log_dir()),
    );
    Ok(())
}
