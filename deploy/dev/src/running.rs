//! Which processes of development stacks run on this machine: found by what they were started as, so
//! that none is overlooked whose process id was never written down, or of another work tree.

use crate::shell;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A process that reads a stack's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: i32,
    /// The program: `nats-server`, `canopy-loader`, …
    pub name: String,
    /// The stack's directory: the one above its configuration's.
    pub dir: PathBuf,
}

/// Every process on this machine that was started as one of a stack.
pub fn everywhere() -> Vec<Running> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Running> = entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            // One that has just ended has none.
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let (name, dir) = of_a_stack(&arguments)?;
            Some(Running { pid, name, dir })
        })
        .collect();
    found.sort_by_key(|running| running.pid);
    found
}

/// Those of the stack in this directory.
pub fn of(dir: &Path) -> Vec<Running> {
    everywhere().into_iter().filter(|running| running.dir == dir).collect()
}

/// Those of development stacks of other work trees that share interfaces, ports or pins with this one:
/// namespaces of the network or of mounts.
pub fn of_other_work_trees(dir: &Path) -> Vec<Running> {
    everywhere()
        .into_iter()
        .filter(|running| running.dir != dir && running.dir.file_name() == dir.file_name())
        .filter(|running| ["net", "mnt"].iter().any(|kind| shares(running.pid, kind)))
        .collect()
}

impl Running {
    /// Whether it runs in a container, whose engine would start it again.
    pub fn is_in_a_container(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        // One id for each namespace of processes that it is in, from ours on: proc_pid_status(5).
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ids.is_some_and(|ids| ids.split_whitespace().count() > 1)
    }
}

/// Program and stack's directory of a command line: `PROGRAM --config DIR/config/FILE`.
fn of_a_stack(arguments: &[u8]) -> Option<(String, PathBuf)> {
    let text = String::from_utf8_lossy(arguments);
    let mut words = text.split('\0');
    let name = Path::new(words.next()?).file_name()?.to_str()?.to_owned();
    if name != "nats-server" && !name.starts_with("canopy-") {
        return None;
    }
    let config = match words.next()?.split_once('=') {
        Some(("--config", file)) => file,
        Some(_) => return None,
        None => words.next()?,
    };
    let place = Path::new(config).parent()?;
    (place.file_name()? == "config").then(|| Some((name, place.parent()?.to_owned())))?
}

/// Whether a process is in the same namespace of this kind as this one. Only root may look at another
/// user's.
fn shares(pid: i32, kind: &str) -> bool {
    let file = format!("/proc/{pid}/ns/{kind}");
    let theirs = fs::read_link(&file).ok().or_else(|| {
        shell::output(shell::root("readlink").arg(&file)).ok().map(|text| text.trim().into())
    });
    theirs.is_some() && theirs == fs::read_link(format!("/proc/self/ns/{kind}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Option<(String, PathBuf)> {
        of_a_stack(words.join("\0").as_bytes())
    }

    #[test]
    fn processes_of_a_stack_are_known_by_their_arguments() {
        let found = |name: &str| Some((name.to_owned(), PathBuf::from("/w/.canopy")));
        let loader = ["/w/target/debug/canopy-loader", "--config", "/w/.canopy/config/loader.json"];
        assert_eq!(read(&loader), found("canopy-loader"));
        let bus = ["nats-server", "--config", "/w/.canopy/config/nats-server.conf", ""];
        assert_eq!(read(&bus), found("nats-server"));
        assert_eq!(
            read(&["canopy-policy", "--config=/w/.canopy/config/policy.json"]),
            found("canopy-policy")
        );
        // What starts or looks at one is none.
        for other in [
            &["sh", "-c", "exec", "canopy-loader", "--config", "/w/.canopy/config/loader.json"][..],
            &["canopy-policy", "bootstrap", "--config", "/w/.canopy/config/policy.json"],
            &["/usr/bin/canopy-loader", "--config", "/etc/canopy/loader.json"],
            &["canopy-loader", "--help"],
            &["canopy-loader"],
            &[""],
        ] {
            assert_eq!(read(other), None, "{other:?}");
        }
    }

    #[test]
    fn this_process_shares_its_own_namespaces() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(shares(me, "net") && shares(me, "mnt"));
        assert!(!shares(0, "net"));
    }
}
