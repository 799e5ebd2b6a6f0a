//! `cargo xtask bench`: optimised builds of the benches, run as root.

use crate::{compile, paths, shell, tools, tools::Need};
use anyhow::Result;
use std::path::Path;

/// A chain of programs against other ways of running several: a table of times, and ratios.
pub fn chain(json: Option<&Path>, loads: u32, runs: u32) -> Result<()> {
    tools::ensure(&[Need::Compile, Need::Network])?;
    shell::can_be_root()?;
    tools::mount_filesystems()?;
    shell::run(compile::cargo("build")?.args(["--release", "--package", "canopy-bench"]))?;
    let mut command = shell::root(paths::target()?.join("release/canopy-bench"));
    command.arg("chain").args(["--loads", &loads.to_string(), "--runs", &runs.to_string()]);
    if let Some(file) = json {
        command.arg("--json").arg(file);
    }
    shell::run(&mut command)
}
