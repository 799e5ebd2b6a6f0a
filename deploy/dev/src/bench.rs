//! `cargo xtask bench`: optimised builds of the benches; those of chains run as root.

use crate::{compile, paths, shell, tools, tools::Need};
use anyhow::Result;
use std::path::Path;

/// A request until the chain is attached, against the least that could be done; a table of
/// milliseconds, and ratios.
pub fn apply(json: Option<&Path>, runs: u32) -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Network])?;
    tools::nats_server()?;
    // It starts the services that lie beside it.
    build()?;
    run("apply", &["--runs", &runs.to_string()], json)
}

/// A chain of programs against other ways of running several: a table of times, and ratios.
pub fn chain(json: Option<&Path>, loads: u32, runs: u32) -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Network])?;
    build()?;
    run("chain", &["--loads", &loads.to_string(), "--runs", &runs.to_string()], json)
}

/// Each package against what else does its work: a table of times, and ratios.
pub fn packages(json: Option<&Path>, loads: u32, runs: u32) -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Network, Need::Peers])?;
    build()?;
    run("packages", &["--loads", &loads.to_string(), "--runs", &runs.to_string()], json)
}

/// A chain in many orders of its members: how long each takes to load, and the ratio of the slowest to
/// the fastest.
pub fn load_order(json: Option<&Path>, runs: u32) -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Network])?;
    build()?;
    run("load-order", &["--runs", &runs.to_string()], json)
}

/// Everything in one: built alone, a package has other features, and all it uses is compiled again.
fn build() -> Result<()> {
    shell::run(compile::cargo("build")?.args(["--release", "--workspace", "--bins"]))
}

/// As root.
fn run(bench: &str, options: &[&str], json: Option<&Path>) -> Result<()> {
    shell::can_be_root()?;
    tools::mount_filesystems()?;
    let mut command = shell::root(paths::target()?.join("release/canopy-bench"));
    command.arg(bench).args(options);
    if let Some(file) = json {
        command.arg("--json").arg(file);
    }
    shell::run(&mut command)
}

/// Requests and connects with full security, against a plain server.
pub fn bus(json: Option<&Path>, smoke: bool) -> Result<()> {
    tools::ensure(&[Need::Compile])?;
    tools::nats_server()?;
    let small = ["--rounds", "2", "--sequential", "50", "--parallel", "200", "--connects", "5"];
    unprivileged("bus", if smoke { &small } else { &[] }, json)
}

/// What an operator feels while somebody with a valid certificate floods the stack.
pub fn attack(json: Option<&Path>, smoke: bool) -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Network])?;
    tools::nats_server()?;
    // It starts the services that lie beside it.
    build()?;
    let small = ["--seconds", "2", "--revocations", "2"];
    run("attack", if smoke { &small } else { &[] }, json)
}

/// A large repository and many hosts.
pub fn registry(json: Option<&Path>, smoke: bool) -> Result<()> {
    tools::ensure(&[Need::Compile])?;
    let small = [
        "--packages",
        "3",
        "--versions",
        "4",
        "--questions",
        "20",
        "--hosts",
        "5",
        "--megabytes",
        "1",
    ];
    unprivileged("registry", if smoke { &small } else { &[] }, json)
}

/// As the caller.
fn unprivileged(bench: &str, options: &[&str], json: Option<&Path>) -> Result<()> {
    build()?;
    let mut command = shell::command(paths::target()?.join("release/canopy-bench"));
    command.arg(bench).args(options);
    if let Some(file) = json {
        command.arg("--json").arg(file);
    }
    shell::run(&mut command)
}
