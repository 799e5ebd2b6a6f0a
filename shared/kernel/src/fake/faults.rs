//! Calls of the port that fail, crash, and are logged.

use super::FakeKernel;
#[cfg(doc)]
use crate::Kernel;
use crate::KernelError;

/// A call of the port that can be counted, or made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// [`Kernel::observe`].
    Observe,
    /// [`Kernel::prepare`].
    Prepare,
    /// [`Kernel::switch`].
    Switch,
    /// [`Kernel::rename`].
    Rename,
    /// [`Kernel::detach`].
    Detach,
    /// [`Kernel::discard`].
    Discard,
    /// [`Kernel::settle`].
    Settle,
    /// [`Kernel::cells`].
    Cells,
    /// [`Kernel::map_update`] and [`Kernel::map_delete`].
    MapWrite,
}

impl Call {
    /// Whether the call changes the kernel.
    pub fn changes(self) -> bool {
        match self {
            Self::Prepare
            | Self::Switch
            | Self::Rename
            | Self::Detach
            | Self::Discard
            | Self::MapWrite => true,
            Self::Observe | Self::Settle | Self::Cells => false,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with an operating system error and has done nothing.
    Fail,
    /// The process dies before the call has done anything: unwinds with [`Crashed`].
    CrashBefore,
    /// The process dies after the call took effect: unwinds with [`Crashed`].
    CrashAfter,
}

/// The payload of the unwinding that stands for the death of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashed;

impl FakeKernel {
    /// `fault` happens at the call of this kind that follows `skip` others of its kind.
    pub fn inject(&self, call: Call, skip: usize, fault: Fault) {
        self.lock().faults.push((call, skip, fault));
    }

    /// Forgets every fault not yet met.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Every call since the last time this was asked.
    pub fn take_log(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().log)
    }

    /// Logs the call; meets a fault that is due before the effect. Returns whether the process is
    /// to die after it.
    pub(super) fn enter(&self, call: Call) -> Result<bool, KernelError> {
        let mut inner = self.lock();
        inner.log.push(call);
        let due = inner.faults.iter_mut().position(|(of, skip, _)| {
            if *of != call {
                return false;
            }
            let now = *skip == 0;
            *skip = skip.saturating_sub(1);
            now
        });
        let Some(due) = due else { return Ok(false) };
        let (_, _, fault) = inner.faults.remove(due);
        drop(inner);
        match fault {
            Fault::Fail => Err(KernelError::Os {
                operation: format!("{call:?}"),
                source: std::io::Error::from_raw_os_error(5),
            }),
            Fault::CrashBefore => std::panic::resume_unwind(Box::new(Crashed)),
            Fault::CrashAfter => Ok(true),
        }
    }
}

pub(super) fn leave<T>(die: bool, result: Result<T, KernelError>) -> Result<T, KernelError> {
    if die {
        std::panic::resume_unwind(Box::new(Crashed));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::test_builds::{build, key};
    use super::*;
    use crate::Kernel as _;

    #[test]
    fn a_fault_happens_once_at_the_call_it_is_for() {
        let kernel = FakeKernel::default();
        kernel.add_interface(&key().interface);
        kernel.inject(Call::Prepare, 1, Fault::Fail);
        kernel.prepare(&build(1, &["a"])).unwrap();
        kernel.observe().unwrap();
        kernel.prepare(&build(2, &["a"])).unwrap_err();
        kernel.prepare(&build(2, &["a"])).unwrap();
        assert_eq!(kernel.pinned(&key()), [1, 2]);
        let changes: Vec<_> = kernel.take_log().into_iter().filter(|c| c.changes()).collect();
        assert_eq!(changes, [Call::Prepare; 3]);
    }
}
