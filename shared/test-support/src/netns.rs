//! Network namespaces without names: one lives as long as its [`Netns`] (or a thread in it) does,
//! and goes away with its interfaces even when the test is killed. And [`NamedNetns`], as `ip netns` has
//! them.

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
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
        netns.quiet()?;
        Ok(netns)
    }

    /// Brings loopback up, and turns IPv6 off.
    fn quiet(&self) -> Result<()> {
        self.run(|| {
            for scope in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                // Not there when the kernel has no IPv6 at all.
                if fs::exists(&path)? {
                    fs::write(&path, "1").with_context(|| format!("write {path}"))?;
                }
            }
            Ok(())
        })?;
        self.exec(&["ip", "link", "set", "lo", "up"]).map(drop)
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

/// A namespace with a name of its own below `/run/netns`, deleted with this.
#[derive(Debug)]
pub struct NamedNetns {
    name: String,
    there: bool,
}

impl NamedNetns {
    /// A new one, as [`Netns::new`] makes them.
    pub fn new() -> Result<(Self, Netns)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("canopy-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut named = Self { name, there: false };
        let netns = named.add()?;
        Ok((named, netns))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the name to a new namespace.
    pub fn add(&mut self) -> Result<Netns> {
        exec(&["ip", "netns", "add", &self.name])?;
        self.there = true;
        let file = File::open(format!("/run/netns/{}", self.name)).context("open the namespace")?;
        let netns = Netns(file.into());
        netns.quiet()?;
        Ok(netns)
    }

    /// Takes the name away; what still holds the namespace keeps it.
    pub fn delete(&mut self) -> Result<()> {
        self.there = false;
        exec(&["ip", "netns", "delete", &self.name]).map(drop)
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        if self.there {
            let _ = self.delete();
        }
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
