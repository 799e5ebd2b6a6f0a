//! `cargo xtask bench`: optimised builds of the benches, run as root.

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

/// Everything in one: built alone, a package has other features, and all it uses is compiled again.
fn build() -> Result<()> {
    shell::can_be_root()?;
    tools::mount_filesystems()?;
    shell::run(compile::cargo("build")?.args(["--release", "--workspace", "--bins"]))
}

fn run(bench: &str, options: &[&str], json: Option<&Path>) -> Result<()> {
    let mut command = shell::root(paths::target()?.join("release/canopy-bench"));
    command.arg(bench).args(options);
    if let Some(file) = json {
        command.arg("--json").arg(file);
    }
    shell::run(&mut command)
}
