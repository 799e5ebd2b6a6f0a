//! Work inside another network namespace.
//!
//! What the kernel does for an interface (rtnetlink, `BPF_LINK_CREATE`, `BPF_PROG_QUERY`) it does in
//! the namespace of the thread that asks. Each piece of such work has a thread of its own, which enters the
//! namespace and ends with the work: no thread of the caller's ever is in the wrong namespace, and
//! nothing of ours keeps a namespace alive that everybody else has left.

use crate::pins::os;
use canopy_api::Netns;
use canopy_kernel::KernelError;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{
        stat::Mode,
        statfs::{FsType, fstatfs},
    },
};
use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);

thread_local! {
    /// The namespace from which this thread was sent into another one.
    static HOME: RefCell<Option<Arc<File>>> = const { RefCell::new(None) };
}

/// Does something in a network namespace; `None` is that of whoever began.
pub(crate) fn within<T: Send>(
    netns: Option<&Netns>,
    work: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    let home = HOME.with_borrow(Clone::clone);
    let (target, home) = match (netns, home) {
        (None, None) => return work(),
        (None, Some(home)) => (Arc::clone(&home), home),
        (Some(netns), Some(home)) => (find(netns)?, home),
        (Some(netns), None) => {
            let target = find(netns)?;
            let own = File::open("/proc/thread-self/ns/net")
                .map_err(|error| os("open the own network namespace".to_owned(), error))?;
            (target, Arc::new(own))
        }
    };
    thread::scope(|scope| {
        let inside = || {
            setns(&*target, CloneFlags::CLONE_NEWNET).map_err(|error| refused(netns, error))?;
            HOME.set(Some(home));
            work()
        };
        let thread = thread::Builder::new()
            .name("canopy-netns".to_owned())
            .spawn_scoped(scope, inside)
            .map_err(|error| os("start a thread".to_owned(), error))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Which namespace this thread is in: device and inode.
pub(crate) fn identity() -> Result<(u64, u64), KernelError> {
    fs::metadata("/proc/thread-self/ns/net")
        .map(|namespace| (namespace.dev(), namespace.ino()))
        .map_err(|error| os("look at the network namespace".to_owned(), error))
}

/// Which namespace a name leads to; `None` where it leads to none.
pub(crate) fn identity_of(netns: Option<&Netns>) -> Option<(u64, u64)> {
    let Some(netns) = netns else { return identity().ok() };
    let namespace = find(netns).ok()?.metadata().ok()?;
    Some((namespace.dev(), namespace.ino()))
}

/// Whether other namespaces can be entered at all.
pub(crate) fn probe() -> Result<String, String> {
    let enter = || {
        let own = File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
        // The right is asked for even where nothing changes.
        setns(own, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
            Errno::EPERM => "missing cap_sys_admin".to_owned(),
            error => format!("enter a network namespace: {error}"),
        })
    };
    let entered = thread::scope(|scope| scope.spawn(enter).join());
    entered
        .unwrap_or_else(|_| Err("the probe died".to_owned()))
        .map(|()| "can be entered".to_owned())
}

/// The namespace, open. What is no namespace is not opened: that could wait, or do something.
fn find(netns: &Netns) -> Result<Arc<File>, KernelError> {
    let path = netns.path();
    let looked = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let seen: OwnedFd = looked.map_err(|error| unreachable(netns, &path, error))?;
    let kind = fstatfs(&seen).map_err(|error| unreachable(netns, &path, error))?;
    if kind.filesystem_type() != NSFS {
        return Err(missing(netns, format!("{} is no namespace", path.display())));
    }
    let again = PathBuf::from(format!("/proc/thread-self/fd/{}", seen.as_raw_fd()));
    let file = open(&again, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| unreachable(netns, &path, error))?;
    Ok(Arc::new(File::from(file)))
}

fn missing(netns: &Netns, why: String) -> KernelError {
    KernelError::NetnsNotFound { netns: netns.clone(), why }
}

fn unreachable(netns: &Netns, path: &Path, error: Errno) -> KernelError {
    match error {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH => {
            missing(netns, format!("{} is not there", path.display()))
        }
        Errno::EACCES | Errno::EPERM => KernelError::Unsupported {
            what: format!("{} cannot be opened: {error}", path.display()),
            remedy: "give the loader the right to it; another process's namespace takes \
                     cap_sys_ptrace, a name or a path does not"
                .to_owned(),
        },
        error => os(format!("open {}", path.display()), error.into()),
    }
}

fn refused(netns: Option<&Netns>, error: Errno) -> KernelError {
    let name = netns.map_or_else(|| "the loader's own".to_owned(), ToString::to_string);
    match (error, netns) {
        (Errno::EPERM, _) => KernelError::Unsupported {
            what: format!("network namespace {name} cannot be entered without cap_sys_admin"),
            remedy: "give the loader cap_sys_admin; for systemd that is \
                     canopy-loader.service.d/netns.conf"
                .to_owned(),
        },
        (Errno::EINVAL, Some(netns)) => {
            missing(netns, format!("{} is a namespace of another kind", netns.path().display()))
        }
        (error, _) => os(format!("enter network namespace {name}"), io::Error::from(error)),
    }
}
