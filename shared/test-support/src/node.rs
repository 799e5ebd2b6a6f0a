//! Node packages that tests run against, installed beside the other tools in the target directory.

use anyhow::{Context as _, Result, bail};
use std::{fs, path::PathBuf, process::Command};

/// Installs a package (`name@version`) once; its `node_modules` is in the directory given back.
pub fn package(package: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("a target directory")?;
    let tools = target.join("tools/node");
    let name = package.replace(['@', '/'], "-");
    let dir = tools.join(&name);
    if dir.join("installed").exists() {
        return Ok(dir);
    }
    fs::create_dir_all(&dir)?;
    // One at a time: tests of one program run side by side.
    let lock = fs::File::create(tools.join(format!("{name}.lock")))?;
    lock.lock()?;
    if dir.join("installed").exists() {
        return Ok(dir);
    }
    // Scripts that a package would run at its installation are not.
    let output = Command::new("npm")
        .args(["install", "--silent", "--no-fund", "--no-audit", "--ignore-scripts", "--no-save"])
        .arg("--prefix")
        .arg(&dir)
        .arg(package)
        .output()
        .context("npm is needed: apt-get install npm")?;
    if !output.status.success() {
        bail!(
            "a package index is needed for {package}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::write(dir.join("installed"), "")?;
    Ok(dir)
}
