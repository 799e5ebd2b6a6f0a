//! The accounting of a chain: where `main` counts, and what the counts say.
//!
//! A chain has one per-CPU array map with a single entry of `u64` cells, [`STRIDE`] for each
//! member: 33 exits (packets whose way ended at this member, by verdict slot) and 33 proceeds.
//! `main` counts one exit a packet. A proceed is counted only for verdicts other than the member's
//! [`derived`] one, so that the usual packet costs one compare a member; the derived one follows
//! from the exits further on: every packet that entered a member left it by an exit here or later.

use canopy_api::{Hook, VerdictSet, verdict::CELLS};

/// Cells a member has.
pub const STRIDE: usize = 2 * CELLS;

/// Most members a chain can have: their cells must fit the largest per-CPU value the kernel
/// allocates, 32 KiB (`PCPU_MIN_UNIT_SIZE`).
pub const MAX_MEMBERS: usize = 32 * 1024 / (STRIDE * 8);

/// Size of the cells map's one value, bytes.
pub fn value_size(members: usize) -> usize {
    members * STRIDE * 8
}

/// One member's packets, by verdict slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Packets whose way ended at this member.
    pub exits: [u64; CELLS],
    /// Packets that went on after this member.
    pub proceeds: [u64; CELLS],
}

/// The slot of the verdict on which most packets go on, which `main` tests first and does not
/// count: the hook's plain "go on" (`pass`, `ok`) where the set has it, else the set's lowest.
/// `None` for an empty set.
pub fn derived(hook: Hook, proceed_on: VerdictSet) -> Option<u8> {
    let usual = match hook {
        Hook::Xdp => 2,
        Hook::TcIngress | Hook::TcEgress => 1,
    };
    let bits = proceed_on.bits();
    if bits & (1 << usual) != 0 {
        Some(usual)
    } else {
        u8::try_from(bits.trailing_zeros()).ok().filter(|slot| *slot < 32)
    }
}

/// What the summed cells of a chain say, in chain order. Exact once no packet is in the chain;
/// while packets flow, each is counted when it leaves. Missing cells count as zero.
pub fn decode(hook: Hook, proceed_on: &[VerdictSet], cells: &[u64]) -> Vec<Account> {
    let cell = |index: usize| cells.get(index).copied().unwrap_or(0);
    let mut accounts = Vec::with_capacity(proceed_on.len());
    // Runs of the member after the one at hand: every packet that left there or later.
    let mut later = 0u64;
    for (member, set) in proceed_on.iter().enumerate().rev() {
        let base = member * STRIDE;
        let exits: [u64; CELLS] = std::array::from_fn(|slot| cell(base + slot));
        let mut proceeds: [u64; CELLS] = std::array::from_fn(|slot| cell(base + CELLS + slot));
        if member + 1 < proceed_on.len()
            && let Some(hot) = derived(hook, *set)
        {
            let counted: u64 = proceeds.iter().sum();
            if let Some(cell) = proceeds.get_mut(usize::from(hot)) {
                *cell = later.saturating_sub(counted);
            }
        }
        later += exits.iter().sum::<u64>();
        accounts.push(Account { exits, proceeds });
    }
    accounts.reverse();
    accounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_chain_fits_a_per_cpu_value() {
        assert!(value_size(MAX_MEMBERS) <= 32 * 1024);
        // Offsets of memory accesses are signed 16-bit numbers.
        assert!(i16::try_from(value_size(MAX_MEMBERS)).is_ok());
    }

    #[test]
    fn the_derived_verdict_is_the_usual_one() {
        let set = |bits| VerdictSet::from_bits(bits);
        assert_eq!(derived(Hook::Xdp, set(0b101)), Some(2));
        assert_eq!(derived(Hook::Xdp, set(0b011)), Some(0));
        assert_eq!(derived(Hook::TcIngress, set(0b10011)), Some(1));
        assert_eq!(derived(Hook::TcEgress, set(1 << 31)), Some(31));
        assert_eq!(derived(Hook::Xdp, set(0)), None);
    }
}
