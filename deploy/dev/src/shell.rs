//! Running other programs: plainly, as root, quietly, and with the reason when they fail.

use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsStr,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Directories that hold system tools and are often missing from an ordinary user's `PATH`.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The file of a program, on `PATH` or among the system tools.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command, found among the system tools too.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let program = program.as_ref();
    let file = program.to_str().and_then(find).unwrap_or_else(|| program.into());
    Command::new(file)
}

/// A command that runs as root: as it is for root, through sudo for anybody else.
pub fn root(program: impl AsRef<OsStr>) -> Command {
    let inner = command(program);
    if is_root() {
        return inner;
    }
    let mut sudo = command("sudo");
    if !std::io::stdin().is_terminal() {
        // Without a terminal nobody is asked for a password: sudo says so at once.
        sudo.arg("-n");
    }
    sudo.arg("--").arg(inner.get_program());
    sudo
}

/// Makes sure that root's part of the work can be done, and asks for the password now rather than
/// in the middle of it.
pub fn can_be_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    if find("sudo").is_none() {
        bail!(
            "loading programs into the kernel needs root, and there is no sudo here: run this as root, \
             or install sudo and allow this user to use it"
        );
    }
    // Not `sudo -v`, which asks for a password as soon as one of several rules for this user does.
    let Err(said) = quiet(command("sudo").args(["-n", "true"])) else { return Ok(()) };
    if !std::io::stdin().is_terminal() {
        bail!(
            "loading programs into the kernel needs root, and sudo wants a password that nobody can \
             type here: run this in a terminal, or as root, or let this user run sudo without a \
             password ({said:#})"
        );
    }
    run(command("sudo").arg("true")).context(
        "loading programs into the kernel needs root, and sudo refused: run this as root, or have this \
         user allowed to use sudo",
    )
}

/// What root needs here: namespaces and mounts, interfaces, programs and maps.
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Makes sure that root may do here what root may do on a machine, which in a container it may not.
pub fn root_is_unconfined() -> Result<()> {
    let status = output(root("cat").arg("/proc/self/status"))?;
    let lacks = lacking(&status);
    if !lacks.is_empty() {
        bail!(
            "root lacks {} here: in a container, start that with --privileged; else use a virtual \
             machine",
            lacks.join(", ")
        );
    }
    Ok(())
}

/// The capabilities that are not in a process's status, by `proc_pid_status(5)`.
fn lacking(status: &str) -> Vec<&'static str> {
    let has = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    let without = CAPABILITIES.iter().filter(|(_, bit)| has & (1 << bit) == 0);
    without.map(|(name, _)| *name).collect()
}

/// How a command reads in a message.
pub fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs it with its output shown.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", show(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", show(command));
    }
    Ok(())
}

/// Runs it and gives what it printed; an error carries what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", show(command)))?;
    if !out.status.success() {
        let said = [out.stderr, out.stdout].concat();
        bail!(
            "`{}` failed ({}): {}",
            show(command),
            out.status,
            String::from_utf8_lossy(&said).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs it, quiet unless it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_run_and_what_it_said() {
        let error = output(command("sh").args(["-c", "echo no such thing >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such thing"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn what_root_lacks_in_a_container_is_named() {
        assert_eq!(lacking("Name:\tcat\nCapEff:\t000001ffffffffff\n"), [] as [&str; 0]);
        // What a container engine leaves by default.
        assert_eq!(
            lacking("CapEff:\t00000000a80425fb\n"),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"]
        );
        assert_eq!(lacking("CapEff:\t000001bfffffffff\n"), ["CAP_PERFMON"]);
    }

    #[test]
    fn programs_outside_the_path_of_users_are_found() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
