//! Python packages that tests compare with or run against, installed beside the other tools in the
//! target directory.

use anyhow::{Context as _, Result, bail};
use std::{fs, path::PathBuf, process::Command};

/// Installs these packages (`name==version`) once; the result belongs into `PYTHONPATH`.
pub fn packages(packages: &[&str]) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("a target directory")?;
    let name = packages.join("-").replace("==", "-").replace(['[', ']', ','], "-");
    let tools = target.join("tools/python");
    let dir = tools.join(&name);
    if dir.join("installed").exists() {
        return Ok(dir);
    }
    fs::create_dir_all(&tools)?;
    // One at a time: tests of one program run side by side.
    let lock = fs::File::create(tools.join(format!("{name}.lock")))?;
    lock.lock()?;
    if dir.join("installed").exists() {
        return Ok(dir);
    }
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--upgrade", "--target"])
        .arg(&dir)
        .args(packages)
        .output()
        .context("python3 is needed: apt-get install python3 python3-pip")?;
    if !output.status.success() {
        bail!(
            "pip is needed (apt-get install python3-pip), and a package index:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::write(dir.join("installed"), "")?;
    Ok(dir)
}
