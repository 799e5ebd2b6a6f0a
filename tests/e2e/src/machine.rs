//! A machine as a new developer finds it: an ordinary user with sudo, a work tree that was built, and a
//! network and a BPF file system that nobody uses.

use crate::{Answer, world::compiled};
use anyhow::{Context as _, Result, bail, ensure};
use canopy_test_support::netns::Netns;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use xtask::{paths, running, tools};

/// The ordinary user.
const USER: &str = "canopy-user";
/// Their number, and their group's.
const USER_ID: u32 = 64_321;

/// The next machine's number.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Who does something on a [`Machine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The ordinary user.
    User,
    /// The superuser.
    Root,
}

/// Namespaces of network and mounts: interfaces, ports, pins and users are apart from those of the machine
/// that runs the test, which sees none of it.
pub struct Machine {
    netns: Netns,
    /// Keeps the mounts until its standard input ends.
    holder: Child,
    /// The user's work tree; named for this machine, whose processes are seen by the one that runs the test.
    tree: PathBuf,
}

/// Mounts what is to be different. `$1` is the directory of binaries, `$2` that of tools, `$3` the compiled
/// packages, `$4` the real work tree, `$5` the user, `$6` their number, `$7` their work tree.
const MOUNTS: &str = r#"
set -eu
mkdir -p /run/netns
mount -t tmpfs -o mode=755 tmpfs /run/netns
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /home
mkdir /home/.etc
for file in passwd group shadow; do cp -p /etc/$file /home/.etc/$file; done
echo "$5:x:$6:$6::/home/$5:/bin/sh" >> /home/.etc/passwd
echo "$5:x:$6:" >> /home/.etc/group
echo "$5:*:19000:0:99999:7:::" >> /home/.etc/shadow
for file in passwd group shadow; do mount --bind /home/.etc/$file /etc/$file; done
mount -t tmpfs -o mode=755 tmpfs /etc/sudoers.d
echo "$5 ALL=(ALL:ALL) NOPASSWD: ALL" > /etc/sudoers.d/$5
chmod 440 /etc/sudoers.d/$5
mkdir -p "$7/target/debug" "$7/target/tools" "$7/deploy/dev"
cp "$4/deploy/dev/demo.yaml" "$7/deploy/dev/"
cp -r "$3" "$7/target/ebpf"
chown -R "$6:$6" "/home/$5"
mount --bind "$1" "$7/target/debug"
mount --bind "$2" "$7/target/tools"
echo ready
exec cat
"#;

impl Machine {
    /// A new one, with nothing running.
    pub fn new() -> Result<Self> {
        compiled()?;
        tools::nats_server()?;
        let binaries = paths::binaries()?;
        ensure!(
            fs::metadata(binaries.join("xtask")).is_ok(),
            "{} has no xtask: cargo build --package xtask",
            binaries.display()
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tree = format!("/home/{USER}/canopy-{}-{number}", std::process::id()).into();
        let netns = Netns::new()?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", MOUNTS, "sh"]);
        command.arg(binaries).arg(tools::tools_dir()?).arg(xtask::compile::ebpf_dir()?);
        command.arg(paths::workspace()).args([USER, &USER_ID.to_string()]).arg(&tree);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = netns.run(|| command.spawn().context("unshare"))?;
        let mut said = String::new();
        let out = holder.stdout.take().context("a pipe")?;
        BufReader::new(out).read_line(&mut said)?;
        if said.trim() != "ready" {
            let mut why = String::new();
            holder.stderr.take().context("a pipe")?.read_to_string(&mut why)?;
            bail!("the machine's mounts: {why}");
        }
        Ok(Self { netns, holder, tree })
    }

    /// The user's work tree.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The directory of its stack.
    pub fn stack_dir(&self) -> PathBuf {
        self.tree.join(".canopy")
    }

    /// Its network.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A command on it, with an environment as after a login; no terminal.
    pub fn command(&self, who: Who, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.path()));
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.args(["--wd=/", "--"]);
        let (name, home) = match who {
            Who::User => (USER, format!("/home/{USER}")),
            Who::Root => ("root", "/root".to_owned()),
        };
        if who == Who::User {
            let id = USER_ID.to_string();
            command.args(["setpriv", "--reuid", &id, "--regid", &id, "--init-groups"]);
        }
        // What an ordinary user's shell has: no sbin.
        command.args(["env", "--ignore-environment", "PATH=/usr/local/bin:/usr/bin:/bin"]);
        command.arg(format!("HOME={home}")).arg(format!("USER={name}")).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command on it.
    pub fn run(&self, who: Who, command: &[&str]) -> Result<Answer> {
        let (program, arguments) = command.split_first().context("no command")?;
        let output = self.command(who, program).args(arguments).output()?;
        Ok(Answer {
            code: output.status.code().context("the command was killed")?,
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `cargo xtask` in the user's work tree, with what was built before.
    pub fn xtask(&self, who: Who, arguments: &[&str]) -> Result<Answer> {
        self.xtask_of(&self.tree, who, arguments)
    }

    /// The same in another work tree.
    pub fn xtask_of(&self, tree: &Path, who: Who, arguments: &[&str]) -> Result<Answer> {
        let program = self.tree.join("target/debug/xtask");
        let (program, tree) = (program.display().to_string(), tree.display().to_string());
        let words = [&[program.as_str(), "--built", "--work-tree", &tree], arguments].concat();
        self.run(who, &words)
    }

    /// Kills every process of the stack, as nothing on earth can be caught.
    pub fn kill_everything(&self) -> Result<Vec<i32>> {
        let pids: Vec<i32> = running::of(&self.stack_dir()).iter().map(|one| one.pid).collect();
        for pid in &pids {
            kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
        }
        canopy_test_support::wait_for(std::time::Duration::from_secs(10), "they end", || {
            match running::of(&self.stack_dir()) {
                left if left.is_empty() => Ok(()),
                left => Err(left),
            }
        })?;
        Ok(pids)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whatever is not ended here was not ended by the test either, and shows there.
        let _ = self.kill_everything();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
