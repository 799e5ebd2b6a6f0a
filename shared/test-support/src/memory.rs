//! A process that the kernel kills because memory is short.

use crate::wait::wait_for;
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    time::Duration,
};

/// What may be used before the kernel kills.
const LIMIT: &str = "67108864";

/// A control group of little memory; removed when dropped.
struct Group {
    path: PathBuf,
    /// The file of the limit, and the one that tells kills: they differ between the versions of
    /// control groups.
    limit: &'static str,
    told: &'static str,
}

impl Group {
    fn new() -> Result<Self> {
        let name = format!("canopy-test-{}", process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let group = if v1.is_dir() {
            Self { path: v1.join(name), limit: "memory.limit_in_bytes", told: "memory.oom_control" }
        } else {
            Self {
                path: Path::new("/sys/fs/cgroup").join(name),
                limit: "memory.max",
                told: "memory.events",
            }
        };
        fs::create_dir(&group.path)
            .with_context(|| format!("make the control group {}", group.path.display()))?;
        group.write(group.limit, LIMIT)?;
        Ok(group)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("write {text} to {}", path.display()))
    }

    /// How often the kernel has killed for want of memory here.
    fn kills(&self) -> Result<u32> {
        let text = fs::read_to_string(self.path.join(self.told))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(kills.context("the control group does not tell kills")?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes take a moment to go.
        let _ = wait_for(Duration::from_secs(5), "the control group is empty", || {
            fs::remove_dir(&self.path)
        });
    }
}

/// Killed when the test ends.
struct Hog(Child);

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has the kernel kill a process by its rules for a control group that is out of memory: another
/// process takes all there is, and this one is first in the order of those who may be killed.
///
/// # Errors
/// When the process is still there after 15 s, or the kernel says that it killed nobody.
pub fn kill_for_memory(pid: i32) -> Result<()> {
    let group = Group::new()?;
    group.write("cgroup.procs", &pid.to_string())?;
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")?;
    // Reads a line without an end into memory.
    let hog = Command::new("sh")
        .args(["-c", "echo $$ > \"$0\" && exec tail /dev/zero"])
        .arg(group.path.join("cgroup.procs"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Hog)?;
    let gone = wait_for(Duration::from_secs(15), "the kernel kills", || {
        // A process that nobody waits for stays as a zombie.
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => bail!("{pid} is there"),
            Ok(_) | Err(_) => Ok(()),
        }
    });
    let kills = group.kills()?;
    drop(hog);
    gone?;
    ensure!(kills > 0, "the process is gone, and the kernel has killed nobody");
    Ok(())
}
