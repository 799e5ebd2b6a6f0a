//! What is known of registers and stack before an instruction.

use super::value::{Thing, Things, join, unknown};
use std::collections::BTreeMap;

/// What is known before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) registers: [Things; 11],
    /// Stack slots that were written as a whole: by place, with their size.
    pub(super) slots: BTreeMap<i64, (i64, Things)>,
}

impl State {
    /// At the start of a function with these arguments.
    pub(super) fn entry(arguments: [Things; 5]) -> Self {
        let mut registers: [Things; 11] = std::array::from_fn(|_| unknown());
        for (register, argument) in registers.iter_mut().skip(1).zip(arguments) {
            *register = argument;
        }
        if let Some(frame) = registers.last_mut() {
            *frame = Thing::Stack(Some(0)).into();
        }
        Self { registers, slots: BTreeMap::new() }
    }

    pub(super) fn get(&self, register: u8) -> Things {
        self.registers.get(usize::from(register)).cloned().unwrap_or_else(unknown)
    }

    pub(super) fn set(&mut self, register: u8, things: Things) {
        if let Some(place) = self.registers.get_mut(usize::from(register)) {
            *place = things;
        }
    }

    /// Takes in what is known on another path; whether that is news.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        let mut news = false;
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            news |= join(mine, theirs);
        }
        for (place, (size, mine)) in &mut self.slots {
            let theirs = other.slots.get(place).filter(|(other, _)| other == size);
            news |= join(mine, theirs.map_or(&unknown(), |(_, things)| things));
        }
        for (place, (size, theirs)) in &other.slots {
            if !self.slots.contains_key(place) && theirs.iter().any(|thing| thing.is_pointer()) {
                let mut things = theirs.clone();
                things.insert(Thing::Unknown);
                self.slots.insert(*place, (*size, things));
                news = true;
            }
        }
        news
    }

    /// What lies in a stack slot.
    pub(super) fn slot(&self, at: i64, size: i64) -> Things {
        match self.slots.get(&at) {
            Some((known, things)) if *known == size => things.clone(),
            _ => unknown(),
        }
    }

    /// Writes a stack slot.
    pub(super) fn store(&mut self, at: i64, size: i64, things: Things) {
        let overlaps = |place: i64, length: i64| place < at + size && at < place + length;
        self.slots.retain(|place, (length, _)| !overlaps(*place, *length));
        self.slots.insert(at, (size, things));
    }

    /// Numbers in the frame that somebody else may have written over.
    pub(super) fn forget_numbers(&mut self) {
        for (_, things) in self.slots.values_mut() {
            if things.iter().any(|thing| matches!(thing, Thing::Number(_))) {
                things.0.retain(|thing| !matches!(thing, Thing::Number(_)));
                things.insert(Thing::Unknown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_written_on_one_path_only_may_be_anything() {
        let mut one = State::entry(std::array::from_fn(|_| unknown()));
        let mut other = one.clone();
        one.store(-8, 8, Thing::Number(1).into());
        other.store(-16, 8, Thing::Map(0).into());
        assert!(one.join(&other));
        assert!(one.slot(-8, 8).iter().any(|thing| *thing == Thing::Unknown));
        let found: Vec<_> = one.slot(-16, 8).into_iter().collect();
        assert_eq!(found, [Thing::Unknown, Thing::Map(0)]);
        assert!(!one.join(&other), "nothing new");
    }

    #[test]
    fn a_store_replaces_every_slot_that_it_overlaps() {
        let mut state = State::entry(std::array::from_fn(|_| unknown()));
        state.store(-8, 8, Thing::Number(1).into());
        state.store(-6, 2, Thing::Number(2).into());
        assert_eq!(state.slot(-8, 8), unknown());
        assert_eq!(state.slot(-6, 2), Thing::Number(2).into());
        state.forget_numbers();
        assert_eq!(state.slot(-6, 2), unknown());
    }
}
