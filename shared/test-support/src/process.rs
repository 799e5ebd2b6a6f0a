//! This process as the kernel sees it.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

/// A descriptor of this process (`pidfd_open(2)`).
///
/// # Errors
///
/// When the kernel has no such call.
pub fn descriptor() -> io::Result<OwnedFd> {
    let process = libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)?;
    // SAFETY: two numbers; no memory is involved.
    #[expect(unsafe_code, reason = "there is no safe wrapper for pidfd_open")]
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    #[expect(unsafe_code, reason = "a new descriptor has no owner yet")]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}
