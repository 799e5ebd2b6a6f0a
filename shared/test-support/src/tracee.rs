//! A process that stops before and after every system call that changes something, so that a test
//! can kill it there, let the call fail, or change the world under it.
//!
//! By `ptrace(2)`, from the thread that started the process. A process of one thread only.

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{os::unix::process::CommandExt as _, process::Command};

/// What the process calls to tell the test that it has come somewhere. Nothing else does, and it
/// changes nothing.
const MARK: i64 = libc::SYS_getppid;

/// System calls that change something, by number.
const CHANGES: &[(i64, &str)] = &[
    (libc::SYS_write, "write"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_renameat, "rename"),
    (libc::SYS_linkat, "link"),
    (libc::SYS_unlinkat, "unlink"),
    (libc::SYS_mkdirat, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, "link"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
];

/// Commands of `bpf(2)` that change something, by number (`enum bpf_cmd`).
const BPF_CHANGES: &[(u64, &str)] = &[
    (0, "bpf map create"),
    (2, "bpf map update"),
    (3, "bpf map delete"),
    (5, "bpf prog load"),
    (6, "bpf pin"),
    (8, "bpf prog attach"),
    (9, "bpf prog detach"),
    (18, "bpf btf load"),
    (22, "bpf map freeze"),
    (28, "bpf link create"),
    (29, "bpf link update"),
    (34, "bpf link detach"),
];

/// Where the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It called [`mark`].
    Mark,
    /// It is about to make this call.
    Call(&'static str),
}

/// What is to happen to it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Go,
    /// It is killed, and the call is not made.
    KillBefore,
    /// It is killed when the call is made, before it sees the result.
    KillAfter,
    /// The call is not made, and it is told this error.
    Fail(Errno),
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// It was killed.
    Killed,
}

/// Called by the process: stops it with [`Step::Mark`].
pub fn mark() {
    let _ = nix::unistd::getppid();
}

/// Runs a program to its end and asks at each step what is to happen.
pub fn run(command: &mut Command, mut at: impl FnMut(Step) -> Act) -> Result<End> {
    #[expect(unsafe_code, reason = "a process becomes a tracee between fork and exec")]
    // SAFETY: ptrace(2) is async-signal-safe, and nothing else is called.
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    let child = command.spawn().context("start a traced process")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    // It has stopped at its exec.
    waitpid(pid, None).context("wait for the traced process")?;
    ptrace::setoptions(
        pid,
        ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACEEXEC
            | ptrace::Options::PTRACE_O_EXITKILL,
    )
    .context("trace")?;
    let mut pass_on: Option<Signal> = None;
    // What is to happen when the call that the process is in ends.
    let mut pending = None;
    loop {
        ptrace::syscall(pid, pass_on.take()).context("let the traced process go on")?;
        match waitpid(pid, None).context("wait for the traced process")? {
            WaitStatus::Exited(_, code) => return Ok(End::Exited(code)),
            WaitStatus::Signaled(..) => return Ok(End::Killed),
            WaitStatus::Stopped(_, signal) => pass_on = Some(signal),
            WaitStatus::PtraceEvent(..) => {}
            WaitStatus::PtraceSyscall(_) => match pending.take() {
                Some(Act::Fail(errno)) => set_result(pid, errno)?,
                Some(Act::KillAfter) => return end(pid),
                Some(Act::Go | Act::KillBefore) => {}
                None => {
                    let act = step(pid)?.map_or(Act::Go, &mut at);
                    match act {
                        Act::KillBefore => return end(pid),
                        Act::Fail(_) => skip_call(pid)?,
                        Act::Go | Act::KillAfter => {}
                    }
                    pending = Some(act);
                }
            },
            other => bail!("the traced process is in a state that was not expected: {other:?}"),
        }
    }
}

/// Kills it; it is gone when this returns.
fn end(pid: Pid) -> Result<End> {
    kill(pid, Signal::SIGKILL).context("kill the traced process")?;
    loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Ok(End::Killed);
            }
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for the killed process"),
        }
    }
}

/// The step that the process stands before, if it is one.
fn step(pid: Pid) -> Result<Option<Step>> {
    let info = ptrace::syscall_info(pid).context("ask for the system call")?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        bail!("the process stopped somewhere inside a system call");
    }
    #[expect(unsafe_code, reason = "a C union")]
    // SAFETY: this member is the valid one where `op` says that a call is being entered.
    let entry = unsafe { info.u.entry };
    let named = |table: &'static [(u64, &str)], number| {
        table.iter().find(|(known, _)| *known == number).map(|(_, name)| Step::Call(name))
    };
    let number = i64::try_from(entry.nr)?;
    if number == MARK {
        return Ok(Some(Step::Mark));
    }
    let first = entry.args.first().copied().unwrap_or_default();
    if number == libc::SYS_bpf {
        return Ok(named(BPF_CHANGES, first));
    }
    // What goes to standard output and error changes nothing.
    if number == libc::SYS_write && first < 3 {
        return Ok(None);
    }
    Ok(CHANGES.iter().find(|(known, _)| *known == number).map(|(_, name)| Step::Call(name)))
}

/// Makes the kernel skip the call that is being entered.
#[cfg(target_arch = "x86_64")]
fn skip_call(pid: Pid) -> Result<()> {
    let mut registers = ptrace::getregs(pid).context("read registers")?;
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers).context("write registers")
}

/// Gives the call that is being left another result.
#[cfg(target_arch = "x86_64")]
fn set_result(pid: Pid, errno: Errno) -> Result<()> {
    let mut registers = ptrace::getregs(pid).context("read registers")?;
    registers.rax = i64::from(-(errno as i32)).cast_unsigned();
    ptrace::setregs(pid, registers).context("write registers")
}

#[cfg(not(target_arch = "x86_64"))]
fn skip_call(_: Pid) -> Result<()> {
    bail!("a system call can be made to fail on x86_64 only")
}

#[cfg(not(target_arch = "x86_64"))]
fn set_result(_: Pid, _: Errno) -> Result<()> {
    bail!("a system call can be made to fail on x86_64 only")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory is made, then another.
    fn script(dir: &std::path::Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg("exec mkdir -p one/two");
        command.current_dir(dir);
        command
    }

    #[test]
    fn a_process_is_killed_between_two_calls() {
        for (act, made) in [(Act::KillBefore, false), (Act::KillAfter, true)] {
            let dir = tempfile::tempdir().unwrap();
            let mut seen = 0;
            let end = run(&mut script(dir.path()), |step| {
                seen += u32::from(step == Step::Call("mkdir"));
                if seen == 2 { act } else { Act::Go }
            });
            assert_eq!(end.unwrap(), End::Killed);
            assert!(dir.path().join("one").exists());
            assert_eq!(dir.path().join("one/two").exists(), made, "{act:?}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_call_fails_as_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let end = run(script(dir.path()).stderr(std::process::Stdio::null()), |step| {
            if step == Step::Call("mkdir") { Act::Fail(Errno::ENOSPC) } else { Act::Go }
        });
        assert_eq!(end.unwrap(), End::Exited(1));
        assert!(!dir.path().join("one").exists());
    }
}
