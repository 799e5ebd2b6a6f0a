//! `cargo xtask up` and `down`: the development stack of this work tree.

use crate::{
    compile,
    config::{self, Layout},
    network::{DEMO_NAMESPACE, INTERFACE, Network},
    paths,
    progress::{heading, step},
    running, shell,
    stack::Stack,
    tools::{self, Need},
};
use anyhow::{Result, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::{
    fs,
    net::SocketAddr,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as Name, UnixListener, UnixStream},
    },
    path::PathBuf,
};

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

/// Keeps others from changing a stack on this machine meanwhile, of whatever work tree and user: there is
/// one interface, one directory of pins. Held until dropped, also by a process that is killed; the
/// stack's processes do not inherit it.
pub fn lock() -> Result<UnixListener> {
    // A name of the network namespace's, which is what is shared; it belongs to nobody and leaves nothing.
    let name = Name::from_abstract_name("canopy-development-stack")?;
    UnixListener::bind_addr(&name).map_err(|error| {
        let holder = UnixStream::connect_addr(&name)
            .ok()
            .and_then(|holder| getsockopt(&holder, PeerCredentials).ok())
            .map(|holder| format!("process {} of user {}", holder.pid(), holder.uid()));
        match holder {
            Some(holder) => anyhow::anyhow!(
                "another `cargo xtask` is at work on a stack of this machine ({holder}); wait for it"
            ),
            None => anyhow::Error::from(error).context(
                "cannot make sure that no other `cargo xtask` is at work on a stack of this machine",
            ),
        }
    })
}

/// Refuses to go on where the stack of another work tree runs on this machine: both would use the same
/// interface and the same directory of pins.
fn alone() -> Result<()> {
    let others = running::of_other_work_trees(&paths::stack());
    let Some(first) = others.first() else { return Ok(()) };
    let tree = first.dir.parent().unwrap_or(&first.dir).display();
    let pids: Vec<String> = others.iter().map(|other| other.pid.to_string()).collect();
    let way = if first.is_in_a_container() {
        "docker compose down".to_owned()
    } else {
        format!("cargo xtask down; where that tree is gone: sudo kill {}", pids.join(" "))
    };
    bail!(
        "the development stack of another work tree, {tree}, runs on this machine ({} of process {}), \
         and there is room for one: end it there with {way}",
        first.name,
        first.pid
    )
}

/// Remembers where the bus of the running stack listens.
fn bus_file() -> PathBuf {
    paths::stack().join("bus.address")
}

/// Brings everything up: tools, binaries, packages, keys, processes, network. Processes of an
/// earlier stack are ended first; what they kept is kept.
pub fn up(build: Build) -> Result<Stack> {
    heading("This machine");
    alone()?;
    shell::can_be_root()?;
    shell::root_is_unconfined()?;
    tools::kernel()?;
    tools::ensure(&[Need::Compile, Need::Network])?;
    step("BPF file system, tracing", tools::mount_filesystems)?;
    let nats_server = tools::nats_server()?;

    let compiled = make(build)?;

    heading("Starting");
    // A long build has outlived the password.
    shell::can_be_root()?;
    let before = existing()?;
    before.take_over()?;
    if !before.leftovers().is_empty() {
        step("ending what runs of an earlier stack", || before.stop().map(drop))?;
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

/// Whether what the stack is made of is built first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// What has changed.
    Changes,
    /// Nothing: all was built before.
    Nothing,
}

/// Builds the packages, whose directories it gives, and the binaries.
fn make(build: Build) -> Result<Vec<PathBuf>> {
    if build == Build::Nothing {
        return compile::built_packages();
    }
    heading("Building");
    let compiled = step("kernel-side programs", compile::packages)?;
    println!("  services and command line");
    compile::binaries()?;
    Ok(compiled)
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
pub fn configure(build: Build) -> Result<()> {
    // The daemons' keys are given to root.
    shell::can_be_root()?;
    let before = existing()?;
    before.take_over()?;
    if let Some(running) = running::of(&paths::stack()).first() {
        bail!(
            "the stack runs ({}, process {}): its keys and ports stay as they are; end it first, with \
             cargo xtask down, or docker compose down",
            running.name,
            running.pid
        );
    }
    tools::ensure(&[Need::Compile])?;
    let compiled = make(build)?;
    shell::can_be_root()?;
    let stack = prepare("nats-server".into())?;
    step("signing and publishing the packages", || stack.publish(&compiled))?;
    println!(
        "  {} has everything a stack needs; in containers: docker compose --env-file {} up --build",
        paths::short(&paths::stack()),
        paths::short(&stack.layout().compose_env())
    );
    Ok(())
}

/// Gives the people of the stack their tokens; its bus and policy service run.
pub fn tokens() -> Result<()> {
    let stack = existing()?;
    if !stack.layout().contexts().exists() {
        bail!(
            "there is no stack in {}: cargo xtask config makes one",
            paths::short(&paths::stack())
        );
    }
    step("tokens", || stack.issue_tokens())
}

/// Ends everything and removes every trace but keys, certificates and logs.
pub fn down() -> Result<()> {
    alone()?;
    shell::can_be_root()?;
    let stack = existing()?;
    stack.take_over()?;
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
