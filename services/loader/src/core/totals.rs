//! Counts that outlive the generations that made them: one total for each (interface, hook, program
//! name), which never goes back.

use super::state::pairs;
use canopy_api::{ChainKey, Hook, ProgramName, Verdict, verdict::CELLS};
use canopy_kernel::MemberCells;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Programs that have left their chain and whose totals are kept, in case they come back.
pub const DEPARTED_KEPT: usize = 1024;

/// The totals of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Totals {
    #[serde(with = "pairs")]
    programs: BTreeMap<(ChainKey, ProgramName), Total>,
}

/// The total of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Total {
    /// Packets whose way ended at the program, by slot, zero ones left out.
    #[serde(with = "pairs")]
    exits: BTreeMap<u8, u64>,
    /// Packets that went on after it, by slot, zero ones left out.
    #[serde(with = "pairs")]
    proceeds: BTreeMap<u8, u64>,
    /// When the program left the chain, seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
}

impl Total {
    /// Adds what a generation counted.
    pub fn add(&mut self, cells: &MemberCells) {
        add(&mut self.exits, &cells.exits);
        add(&mut self.proceeds, &cells.proceeds);
    }

    /// Packets the program saw.
    pub fn runs(&self) -> u64 {
        self.exits.values().chain(self.proceeds.values()).sum()
    }

    /// Packets whose way ended at the program, by verdict.
    pub fn exits(&self, hook: Hook) -> BTreeMap<String, u64> {
        named(hook, self.exits.iter())
    }

    /// Packets the program saw, by verdict.
    pub fn verdicts(&self, hook: Hook) -> BTreeMap<String, u64> {
        named(hook, self.exits.iter().chain(&self.proceeds))
    }
}

fn add(total: &mut BTreeMap<u8, u64>, cells: &[u64; CELLS]) {
    for (slot, count) in (0_u8..).zip(cells) {
        if *count > 0 {
            let at = total.entry(slot).or_default();
            *at = at.saturating_add(*count);
        }
    }
}

fn merge(total: &mut BTreeMap<u8, u64>, more: &BTreeMap<u8, u64>) {
    for (slot, count) in more {
        let at = total.entry(*slot).or_default();
        *at = at.saturating_add(*count);
    }
}

fn named<'a>(hook: Hook, counts: impl Iterator<Item = (&'a u8, &'a u64)>) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for (slot, count) in counts {
        *out.entry(Verdict::slot_name(hook, *slot)).or_default() += *count;
    }
    out
}

impl Totals {
    /// The chains that have totals, once for each program.
    pub fn chains(&self) -> impl Iterator<Item = &ChainKey> {
        self.programs.keys().map(|(key, _)| key)
    }

    /// Adds the cells of a generation that will not be read again.
    pub fn fold(&mut self, key: &ChainKey, cells: &[MemberCells]) {
        for member in cells {
            self.programs.entry((key.clone(), member.name.clone())).or_default().add(member);
        }
    }

    /// A chain goes on under another name, added to what that has counted.
    pub fn rename(&mut self, from: &ChainKey, to: &ChainKey) {
        let moved: Vec<_> = self.programs.keys().filter(|(key, _)| key == from).cloned().collect();
        for at in moved {
            if let Some(total) = self.programs.remove(&at) {
                let there = self.programs.entry((to.clone(), at.1)).or_default();
                merge(&mut there.exits, &total.exits);
                merge(&mut there.proceeds, &total.proceeds);
                there.left = None;
            }
        }
    }

    /// The total of one program.
    pub fn get(&self, key: &ChainKey, program: &ProgramName) -> Total {
        self.programs.get(&(key.clone(), program.clone())).cloned().unwrap_or_default()
    }

    /// Notes who is in a chain now and who has left, and forgets those who left first when they
    /// are more than [`DEPARTED_KEPT`].
    pub fn attend(&mut self, now: u64, present: impl Fn(&ChainKey, &ProgramName) -> bool) {
        let mut departed = Vec::new();
        for (at @ (key, program), total) in &mut self.programs {
            if present(key, program) {
                total.left = None;
            } else {
                departed.push((*total.left.get_or_insert(now), at.clone()));
            }
        }
        departed.sort();
        let excess = departed.len().saturating_sub(DEPARTED_KEPT);
        for (_, at) in departed.into_iter().take(excess) {
            self.programs.remove(&at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(name: &str, slot: usize, count: u64) -> MemberCells {
        let mut exits = [0; CELLS];
        exits[slot] = count;
        MemberCells { name: name.parse().unwrap(), exits, proceeds: [0; CELLS] }
    }

    #[test]
    fn folding_adds_by_name_and_verdict() {
        let key = ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp };
        let mut totals = Totals::default();
        totals.fold(&key, &[cells("a", 1, 3), cells("b", 2, 5)]);
        totals.fold(&key, &[cells("b", 2, 1), cells("b", 32, 7)]);
        let b = totals.get(&key, &"b".parse().unwrap());
        assert_eq!(b.runs(), 13);
        assert_eq!(b.exits(Hook::Xdp), [("other".into(), 7), ("pass".into(), 6)].into());
        let json = serde_json::to_string(&totals).unwrap();
        assert_eq!(serde_json::from_str::<Totals>(&json).unwrap(), totals);
    }

    #[test]
    fn a_chain_takes_its_totals_along_to_another_name() {
        let key = |name: &str| ChainKey {
            netns: None,
            interface: name.parse().unwrap(),
            hook: Hook::Xdp,
        };
        let mut totals = Totals::default();
        totals.fold(&key("eth0"), &[cells("a", 1, 3), cells("b", 2, 5)]);
        totals.fold(&key("wan0"), &[cells("a", 1, 4)]);
        totals.rename(&key("eth0"), &key("wan0"));
        let runs = |interface: &str, program: &str| {
            totals.get(&key(interface), &program.parse().unwrap()).runs()
        };
        assert_eq!((runs("wan0", "a"), runs("wan0", "b"), runs("eth0", "a")), (7, 5, 0));
    }

    #[test]
    fn totals_of_programs_that_left_are_kept_up_to_a_bound() {
        let key = ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp };
        let mut totals = Totals::default();
        for i in 0..DEPARTED_KEPT as u64 + 10 {
            totals.fold(&key, &[cells(&format!("p{i}"), 2, 1)]);
            totals.attend(i, |_, program| program.as_str() == "p3");
        }
        assert_eq!(totals.programs.len(), DEPARTED_KEPT + 1);
        let at = |name: &str| totals.get(&key, &name.parse().unwrap()).runs();
        assert_eq!((at("p0"), at("p3"), at("p1033")), (0, 1, 1));
    }
}
