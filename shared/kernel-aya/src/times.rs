//! Run times on request: the kernel takes them while a descriptor is open, or while an administrator
//! says so for the whole machine.

use crate::{pins::os, sys};
use canopy_kernel::KernelError;
use std::{fs, io::ErrorKind};

/// Where an administrator says so.
const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// See [`canopy_kernel::Kernel::take_times`].
pub(crate) fn take_times() -> Result<Box<dyn Send>, KernelError> {
    match sys::run_times() {
        Ok(held) => Ok(Box::new(held)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            if fs::read_to_string(SYSCTL).is_ok_and(|set| set.trim() == "1") {
                return Ok(Box::new(()));
            }
            Err(KernelError::Unsupported {
                what: "the loader may not have run times taken: the kernel demands CAP_SYS_ADMIN \
                       for that"
                    .to_owned(),
                remedy: "run `sysctl kernel.bpf_stats_enabled=1` on the host while you look, or give \
                         the unit `CapabilityBoundingSet=CAP_SYS_ADMIN` in a drop-in (`systemctl edit \
                         canopy-loader`) and restart it"
                    .to_owned(),
            })
        }
        Err(error) => Err(os("enable the kernel's run times".to_owned(), error)),
    }
}
