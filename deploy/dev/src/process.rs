//! The stack's processes: started apart from this one, found again by process id, start time **and**
//! the boot that the time counts from, so that a signal never hits another process that got the same
//! id. One whose id was never written down is found by its arguments ([`running`]).

use crate::{
    progress::wait_for,
    running::{self, Running},
    shell,
};
use anyhow::{Context as _, Result, bail};
use nix::{errno::Errno, sys::signal, unistd::Pid};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Opens the log named second, writes its own id to the file named first, then becomes the command
/// that follows. The log is opened here and not handed over: what sudo starts may be given sudo's own
/// pipes instead, which end with sudo.
const BECOME: &str =
    r#"umask 022; log=$1; shift; exec </dev/null >>"$log" 2>&1; echo $$ > "$0" && exec "$@""#;

/// The bus's program.
pub const BUS: &str = "nats-server";

/// How long a process may take to end once it was asked to, and once it was killed.
const ENDS: [(signal::Signal, Duration); 2] =
    [(signal::SIGTERM, Duration::from_secs(10)), (signal::SIGKILL, Duration::from_secs(5))];

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
        // Both are the caller's, whoever writes them.
        for file in [&announced, &self.log] {
            fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut detached = match privilege {
            Privilege::Own => shell::command("setsid"),
            Privilege::Root => shell::root("setsid"),
        };
        detached.args(["--fork", "sh", "-c", BECOME]).arg(&announced).arg(&self.log);
        detached.arg(command.get_program()).args(command.get_args());
        shell::quiet(&mut detached).with_context(|| format!("{}: not started", self.name))?;
        let pid = wait_for(&format!("{} starts", self.name), Duration::from_secs(10), || {
            let text = fs::read_to_string(&announced).map_err(|error| error.to_string())?;
            text.trim().parse::<i32>().map_err(|_| format!("no process id yet: {text:?}"))
        })?;
        let started = start_time(pid)
            .with_context(|| format!("{} ended at once: {}", self.name, self.log_tail(5)))?;
        fs::write(self.pid_file(), format!("{pid} {started} {}\n", boot()))?;
        fs::remove_file(&announced)?;
        Ok(())
    }

    /// Its process id, if it is alive.
    pub fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (pid, rest) = text.trim().split_once(' ')?;
        let (started, boot) = rest.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)?.to_string() == started && boot == self::boot()).then_some(pid)
    }

    /// Sends a signal; nothing happens if the process is gone.
    pub fn signal(&self, which: signal::Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        send(pid, which).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Asks it to end, insists after ten seconds, and forgets it. Says whether it was there.
    pub fn stop(&self) -> Result<bool> {
        Ok(stop(std::slice::from_ref(self))? > 0)
    }

    /// The last lines of its log, for a message.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}

/// Ends these processes together: each is asked, then all are waited for, and what has not ended after
/// ten seconds is killed. Says how many were there.
pub fn stop(processes: &[Process]) -> Result<usize> {
    let there = processes.iter().filter(|process| process.pid().is_some()).count();
    for (which, limit) in ENDS {
        for process in processes {
            process.signal(which)?;
        }
        let gone = wait_for("processes end", limit, || {
            match processes.iter().find_map(|process| Some((process, process.pid()?))) {
                None => Ok(()),
                Some((process, pid)) => Err(format!("{} ({pid}) is alive", process.name)),
            }
        });
        match gone {
            Ok(()) => {
                for process in processes {
                    // There may be none.
                    let _ = fs::remove_file(process.pid_file());
                }
                return Ok(there);
            }
            Err(error) if which == signal::SIGKILL => return Err(error),
            Err(_) => {}
        }
    }
    Ok(there)
}

/// Ends the processes of the stack in this directory whose ids were never written down, or were lost:
/// of a start that was killed half-way. Says how many there were.
pub fn stop_strays(dir: &Path) -> Result<usize> {
    let strays = running::of(dir);
    if let Some(inside) = strays.iter().find(|stray| stray.is_in_a_container()) {
        bail!(
            "{} of this stack (process {}) runs in a container, whose engine would start it again: end \
             it with `docker compose down`",
            inside.name,
            inside.pid
        );
    }
    // The bus last, so that each can say that it ends.
    for services in [true, false] {
        let left = || -> Vec<Running> {
            let all = running::of(dir).into_iter();
            all.filter(|stray| !services || stray.name != BUS).collect()
        };
        for (which, limit) in ENDS {
            for Running { pid, name, .. } in left() {
                send(pid, which).with_context(|| format!("cannot signal {name}"))?;
            }
            let gone = wait_for("processes end", limit, || match left().first() {
                None => Ok(()),
                Some(Running { pid, name, .. }) => Err(format!("{name} ({pid}) is alive")),
            });
            match gone {
                Ok(()) => break,
                Err(error) if which == signal::SIGKILL => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok(strays.len())
}

/// Signals a process, also another user's; one that has gone is as good.
fn send(pid: i32, which: signal::Signal) -> Result<()> {
    match signal::kill(Pid::from_raw(pid), which) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(Errno::EPERM) => {
            let name = which.as_str().trim_start_matches("SIG");
            shell::quiet(shell::root("sh").args(["-c", &format!("kill -s {name} {pid} || true")]))
        }
        Err(error) => Err(error.into()),
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

/// Which boot of this machine this is; start times count from it.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
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
        let me = i32::try_from(std::process::id()).unwrap();
        let started = start_time(me).unwrap();
        // As if this very process had got the id of one of the stack's that is long gone: started at
        // another time, at the same time after another boot, or written by an older version.
        for text in [
            format!("{me} 1 {}\n", boot()),
            format!("{me} {started} another-boot\n"),
            format!("{me} {started}\n"),
            format!("{me}\n"),
            "rubbish".to_owned(),
            String::new(),
        ] {
            fs::write(process.pid_file(), &text).unwrap();
            assert_eq!(process.pid(), None, "{text:?}");
            assert!(!process.stop().unwrap());
        }
        fs::write(process.pid_file(), format!("{me} {started} {}\n", boot())).unwrap();
        assert_eq!(process.pid(), Some(me));
    }

    #[test]
    fn a_process_without_a_process_id_file_is_stopped() {
        let dir = Dir::new("stray");
        let config = dir.0.join("config/nats-server.conf");
        fs::create_dir(dir.0.join("config")).unwrap();
        fs::write(&config, "listen: \"127.0.0.1:-1\"\n").unwrap();
        let mut command = Command::new(crate::tools::nats_server().unwrap());
        command.arg("--config").arg(&config);
        let process = Process::new("nats-server", &dir.0, &dir.0);
        process.start(&command, Privilege::Own).unwrap();
        let pid = wait_for("it has begun", Duration::from_secs(5), || {
            running::of(&dir.0).first().map(|one| one.pid).ok_or_else(|| "none".to_owned())
        });
        assert_eq!(Some(pid.unwrap()), process.pid());
        fs::remove_file(process.pid_file()).unwrap();
        assert_eq!(process.pid(), None);
        assert_eq!(stop_strays(&dir.0).unwrap(), 1);
        assert_eq!(running::of(&dir.0), []);
        assert_eq!(stop_strays(&dir.0).unwrap(), 0);
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
