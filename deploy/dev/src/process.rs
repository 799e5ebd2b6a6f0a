//! The stack's processes: started apart from this one, found again by process id **and** start
//! time, so that a signal never hits another process that got the same id.

use crate::{progress::wait_for, shell};
use anyhow::{Context as _, Result, bail};
use nix::{errno::Errno, sys::signal, unistd::Pid};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Writes its own id to the file named first, then becomes the command that follows.
const BECOME: &str = r#"echo $$ > "$0" && exec "$@""#;

/// A process of the stack.
#[derive(Clone, Debug)]
pub struct Process {
    name: String,
    run_dir: PathBuf,
    log: PathBuf,
}

impl Process {
    /// The process of that name; its files lie in `run_dir`, its log in `log_dir`.
    pub fn new(name: &str, run_dir: &Path, log_dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            run_dir: run_dir.to_owned(),
            log: log_dir.join(format!("{name}.log")),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    fn pid_file(&self) -> PathBuf {
        self.run_dir.join(format!("{}.pid", self.name))
    }

    /// Starts the command in a session of its own, so that it outlives this process and its
    /// terminal.
    pub fn start(&self, command: &Command, privilege: Privilege) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("{} runs already (process {pid})", self.name);
        }
        let announced = self.run_dir.join(format!("{}.starting", self.name));
        if announced.exists() {
            fs::remove_file(&announced)?;
        }
        let log = fs::File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut detached = match privilege {
            Privilege::Own => shell::command("setsid"),
            Privilege::Root => shell::root("setsid"),
        };
        detached.args(["--fork", "sh", "-c", BECOME]).arg(&announced);
        detached.arg(command.get_program()).args(command.get_args());
        let launched = detached
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("cannot run `{}`", shell::show(&detached)))?;
        if !launched.success() {
            bail!("{}: could not be started ({launched})", self.name);
        }
        let pid = wait_for(&format!("{} starts", self.name), Duration::from_secs(10), || {
            let text = fs::read_to_string(&announced).map_err(|error| error.to_string())?;
            text.trim().parse::<i32>().map_err(|error| error.to_string())
        })?;
        let started = start_time(pid)
            .with_context(|| format!("{} ended at once: {}", self.name, self.log_tail(5)))?;
        fs::write(self.pid_file(), format!("{pid} {started}\n"))?;
        // Made by root where the process is; the directory is ours either way.
        fs::remove_file(&announced)?;
        Ok(())
    }

    /// Its process id, if it is alive.
    pub fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)?.to_string() == started).then_some(pid)
    }

    /// Sends a signal; nothing happens if the process is gone.
    pub fn signal(&self, which: signal::Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        match signal::kill(Pid::from_raw(pid), which) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(Errno::EPERM) => {
                let name = which.as_str().trim_start_matches("SIG");
                shell::quiet(
                    shell::root("sh").args(["-c", &format!("kill -s {name} {pid} || true")]),
                )
            }
            Err(error) => Err(error).with_context(|| format!("cannot signal {}", self.name)),
        }
    }

    /// Asks it to end, insists after ten seconds, and forgets it. Says whether it was there.
    pub fn stop(&self) -> Result<bool> {
        let was_there = self.pid().is_some();
        for (which, limit) in [(signal::SIGTERM, 10), (signal::SIGKILL, 5)] {
            self.signal(which)?;
            let gone =
                wait_for(&format!("{} ends", self.name), Duration::from_secs(limit), || match self
                    .pid()
                {
                    None => Ok(()),
                    Some(pid) => Err(format!("process {pid} is alive")),
                });
            if gone.is_ok() {
                let _ = fs::remove_file(self.pid_file());
                return Ok(was_there);
            }
        }
        bail!("{} does not end, not even by SIGKILL", self.name)
    }

    /// The last lines of its log, for a message.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}

/// As whom a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// As the caller.
    Own,
    /// As root.
    Root,
}

/// When a process started, in clock ticks since boot; `None` if it is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything: proc_pid_stat(5).
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("canopy-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sleep(seconds: &str) -> Command {
        let mut command = shell::command("sleep");
        command.arg(seconds);
        command
    }

    #[test]
    fn a_process_is_started_found_and_stopped() {
        let dir = Dir::new("process");
        let process = Process::new("sleeper", &dir.0, &dir.0);
        process.start(&sleep("60"), Privilege::Own).unwrap();
        assert!(process.pid().is_some());
        assert!(process.start(&sleep("60"), Privilege::Own).is_err(), "started twice");
        assert!(process.stop().unwrap());
        assert_eq!(process.pid(), None);
        assert!(!process.stop().unwrap());
    }

    #[test]
    fn a_reused_process_id_is_not_taken_for_ours() {
        let dir = Dir::new("reused");
        let process = Process::new("stranger", &dir.0, &dir.0);
        let me = std::process::id();
        // As if this very process had got the id of one of the stack's that is long gone.
        fs::write(process.pid_file(), format!("{me} 1\n")).unwrap();
        assert_eq!(process.pid(), None);
        assert!(!process.stop().unwrap());
    }

    #[test]
    fn a_process_that_ends_at_once_is_reported_with_its_words() {
        let dir = Dir::new("short");
        let process = Process::new("short", &dir.0, &dir.0);
        let mut command = shell::command("sh");
        command.args(["-c", "echo bad configuration"]);
        // Either it is already gone when we look, and the error has its words, or it was seen
        // alive and is gone a moment later.
        if let Err(error) = process.start(&command, Privilege::Own) {
            assert!(error.to_string().contains("bad configuration"), "{error}");
            return;
        }
        wait_for("it ends", Duration::from_secs(5), || {
            process.pid().map_or(Ok(()), |pid| Err(format!("{pid} lives")))
        })
        .unwrap();
        assert!(process.log_tail(3).contains("bad configuration"));
    }
}
