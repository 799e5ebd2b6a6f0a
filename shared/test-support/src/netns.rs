//! Network namespaces without names: one lives as long as its [`Netns`] (or a thread in it) does,
//! and goes away with its interfaces even when the test is killed.

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{self, Command},
    thread::{self, JoinHandle},
};

/// A network namespace.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// A new namespace, with loopback up and IPv6 off: no neighbour discovery among the packets
    /// that a test counts.
    pub fn new() -> Result<Self> {
        let make = || -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("make a network namespace (kernel tests need root: run them by sudo)")?;
            let file = File::open("/proc/thread-self/ns/net").context("open the namespace")?;
            Ok(Self(file.into()))
        };
        let netns = thread::scope(|scope| scope.spawn(make).join())
            .map_err(|_| anyhow::anyhow!("the thread of a new namespace died"))??;
        netns.run(|| {
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                // Not there when the kernel has no IPv6 at all.
                if fs::exists(&path)? {
                    fs::write(&path, "1").with_context(|| format!("write {path}"))?;
                }
            }
            Ok(())
        })?;
        netns.exec(&["ip", "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its path, for `ip link … netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    /// Runs a closure on a thread in the namespace and waits for it.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
                body()
            });
            match thread.join() {
                Ok(result) => result,
                // A failed assertion is the test's, not ours.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread in the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let netns = self.0.try_clone()?;
        Ok(thread::spawn(move || {
            setns(&netns, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            body()
        }))
    }

    /// Runs a program in the namespace; its standard output.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails, with what it wrote to standard error.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.run(|| exec(command))
    }
}

/// Runs a program; its standard output.
///
/// # Errors
///
/// When it cannot be started or fails, with what it wrote to standard error.
pub fn exec(command: &[&str]) -> Result<String> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command") };
    let output = Command::new(program).args(arguments).output().with_context(|| {
        format!("run {program} (is it installed? `cargo xtask test` installs what tests need)")
    })?;
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            command.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
