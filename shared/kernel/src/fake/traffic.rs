//! Packets, whose verdicts the test gives.

use super::{FakeKernel, running, state::InFlight};
#[cfg(doc)]
use crate::Kernel;
use canopy_api::ChainKey;

impl FakeKernel {
    /// A packet goes through whatever is attached: one verdict slot a member, in chain order.
    /// Returns whether a generation of ours saw it.
    pub fn packet(&self, key: &ChainKey, verdicts: &[u8]) -> bool {
        let mut inner = self.lock();
        let Some(generation) = running(&inner, key) else { return false };
        inner.count(key, generation, verdicts);
        true
    }

    /// A packet enters what is attached now and is counted there only at the next
    /// [`Kernel::settle`], whatever is attached by then.
    pub fn packet_in_flight(&self, key: &ChainKey, verdicts: &[u8]) {
        let mut inner = self.lock();
        if let Some(generation) = running(&inner, key) {
            inner.in_flight.push(InFlight {
                key: key.clone(),
                generation,
                verdicts: verdicts.to_vec(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_builds::{build, key};
    use super::*;
    use crate::{Expect, Kernel as _, MemberCells};
    use canopy_api::XdpMode;

    #[test]
    fn exits_account_for_every_packet() {
        const DROP: u8 = 1;
        const PASS: u8 = 2;
        let kernel = FakeKernel::default();
        kernel.add_interface(&key().interface);
        kernel.prepare(&build(1, &["a", "b"])).unwrap();
        kernel.switch(&key(), 1, XdpMode::Best, Expect::Nothing).unwrap();
        kernel.packet(&key(), &[DROP]);
        kernel.packet(&key(), &[PASS, PASS]);
        kernel.packet_in_flight(&key(), &[PASS, DROP]);
        let runs = |kernel: &FakeKernel| {
            let cells = kernel.cells(&key(), 1).unwrap();
            cells.iter().map(MemberCells::runs).collect::<Vec<_>>()
        };
        assert_eq!(runs(&kernel), [2, 1]);
        kernel.settle().unwrap();
        assert_eq!(runs(&kernel), [3, 2]);
    }
}
