//! Waiting until no packet is inside a program that is no longer attached.

use crate::{pins::os, sys};
use canopy_kernel::KernelError;
use std::{io, thread, time::Duration};

/// `MEMBARRIER_CMD_GLOBAL`: returns after an RCU grace period.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// How long to wait where the kernel does not say when a grace period has passed (`nohz_full`, or a
/// sandbox without membarrier). A packet is in a program for microseconds; softirq work is cut off
/// after two jiffies (`MAX_SOFTIRQ_TIME`, 2 ms).
const UNTOLD: Duration = Duration::from_millis(200);

/// XDP and TC programs run inside one RCU read-side section per packet, so after a grace period
/// every packet that had entered an old program has left it and been counted.
pub(crate) fn settle() -> Result<(), KernelError> {
    match sys::timed(membarrier) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) =>
        {
            thread::sleep(UNTOLD);
            Ok(())
        }
        Err(error) => Err(os("wait for a grace period".to_owned(), error)),
    }
}

pub(crate) fn membarrier() -> io::Result<()> {
    // SAFETY: membarrier takes two numbers (and a CPU, unused by this command) and touches no memory
    // of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn settling_returns() {
        super::settle().unwrap();
    }
}
