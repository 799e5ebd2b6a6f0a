//! The paths of a program, followed as the verifier follows them.

use super::{
    Writes,
    state::State,
    value::{Thing, Things, is_value, moved, number, unknown},
};
use crate::object::Object;
use canopy_chain::{
    Code,
    insn::{Insn, PSEUDO_FUNC, PSEUDO_MAP, PSEUDO_MAP_VALUE},
};
use std::collections::{BTreeMap, BTreeSet};

/// Places at which paths meet.
const STATES: usize = 1 << 15;

/// One program being followed.
pub(super) struct Walk<'a> {
    pub(super) object: &'a Object,
    pub(super) code: &'a Code,
    /// The map of each load.
    loads: BTreeMap<usize, usize>,
    /// What is known before the instructions that paths lead to.
    states: BTreeMap<usize, State>,
    /// Those from which paths are to be followed again.
    pub(super) queue: BTreeSet<usize>,
    /// What a function may return, by its first instruction, and where it was called.
    pub(super) returns: BTreeMap<usize, (Things, BTreeSet<usize>)>,
    /// Pointers to values that lie where another function may find them.
    pub(super) escaped: Things,
    pub(super) writes: Writes,
}

/// Where an instruction leads.
enum Next {
    Follow,
    Jump(usize),
    Both(usize),
    End,
}

impl<'a> Walk<'a> {
    pub(super) fn new(object: &'a Object, code: &'a Code) -> Self {
        Self {
            object,
            code,
            loads: code.maps.iter().map(|load| (load.at, load.map)).collect(),
            states: BTreeMap::new(),
            queue: BTreeSet::new(),
            returns: BTreeMap::new(),
            escaped: Things::default(),
            writes: Writes::default(),
        }
    }

    /// Follows every path; `None` when that takes too long.
    pub(super) fn run(&mut self, left: &mut usize) -> Option<()> {
        self.reach(0, &State::entry(std::array::from_fn(|_| unknown())));
        loop {
            let known = self.escaped.len();
            self.follow(left)?;
            if self.escaped.len() == known {
                return Some(());
            }
            // Somebody may have found there what was not known to be there.
            self.queue.extend(self.states.keys());
        }
    }

    /// Follows the paths that lead on from where something is new.
    fn follow(&mut self, left: &mut usize) -> Option<()> {
        while let Some(mut at) = self.queue.pop_first() {
            if self.states.len() > STATES {
                return None;
            }
            let mut state = self.states.get(&at)?.clone();
            loop {
                *left = left.checked_sub(1)?;
                let Some(insn) = self.code.instructions.get(at).copied() else { break };
                let following = at + if insn.is_load64() { 2 } else { 1 };
                match self.step(at, insn, &mut state) {
                    Next::End => break,
                    Next::Jump(to) => {
                        self.reach(to, &state);
                        break;
                    }
                    Next::Both(to) => {
                        self.reach(to, &state);
                        self.reach(following, &state);
                        break;
                    }
                    // Where paths meet, they go on together.
                    Next::Follow if self.states.contains_key(&following) => {
                        self.reach(following, &state);
                        break;
                    }
                    Next::Follow => at = following,
                }
            }
        }
        Some(())
    }

    /// A path leads to an instruction.
    pub(super) fn reach(&mut self, at: usize, state: &State) {
        let news = if let Some(known) = self.states.get_mut(&at) {
            known.join(state)
        } else {
            self.states.insert(at, state.clone());
            true
        };
        if news {
            self.queue.insert(at);
        }
    }

    fn step(&mut self, at: usize, insn: Insn, state: &mut State) -> Next {
        let target = |distance: i64| {
            let at = i64::try_from(at).unwrap_or(i64::MAX);
            usize::try_from(at.saturating_add(1).saturating_add(distance)).unwrap_or(usize::MAX)
        };
        match insn.code & 0x07 {
            0x00 => self.load_wide(at, insn, state),
            0x01 => self.load(insn, state),
            0x02 | 0x03 => self.store(insn, state),
            0x07 => arithmetic(insn, state),
            0x04 => {
                // A move of a 32-bit number; all else is of no interest.
                let number = (insn.code == 0xb4).then_some(Thing::Number(insn.imm.into()));
                state.set(insn.dst, number.unwrap_or(Thing::Unknown).into());
            }
            _ => {
                return match insn.code {
                    0x95 => {
                        self.leave(at, &state.get(0));
                        Next::End
                    }
                    0x85 => {
                        self.call(at, insn, state);
                        Next::Follow
                    }
                    0x05 => Next::Jump(target(insn.off.into())),
                    0x06 => Next::Jump(target(insn.imm.into())),
                    _ => Next::Both(target(insn.off.into())),
                };
            }
        }
        Next::Follow
    }

    fn load_wide(&self, at: usize, insn: Insn, state: &mut State) {
        if !insn.is_load64() {
            // Of a packet, the classic way: calls clobber these.
            for register in 0..=5 {
                state.set(register, unknown());
            }
            return;
        }
        let second = self.code.instructions.get(at + 1).map_or(0, |second| second.imm);
        let thing = match (insn.src, self.loads.get(&at).copied()) {
            (PSEUDO_MAP, Some(map)) => Thing::Map(map),
            (PSEUDO_MAP_VALUE, Some(map)) => {
                let place = i64::from(second);
                let within = self.variable(map, place);
                Thing::Value { map, key: None, at: Some(place), within }
            }
            (PSEUDO_FUNC, _) => {
                let distance = usize::try_from(i64::from(insn.imm) + 1);
                let start = distance.ok().and_then(|distance| at.checked_add(distance));
                let back = || (at + 1).checked_sub(insn.imm.unsigned_abs() as usize);
                start.or_else(back).map_or(Thing::Unknown, Thing::Function)
            }
            (0, _) => {
                let low = u64::from(insn.imm.cast_unsigned());
                let high = u64::from(second.cast_unsigned()) << 32;
                Thing::Number((high | low).cast_signed())
            }
            _ => Thing::Unknown,
        };
        state.set(insn.dst, thing.into());
    }

    /// The variable that a place of a data section lies in: its first byte and the one behind it.
    fn variable(&self, map: usize, place: i64) -> (i64, i64) {
        let whole = (0, self.value_size(map));
        let Some(def) = self.object.maps.get(map) else { return whole };
        let found = self.object.variables(def).into_iter().find_map(|(_, start, size)| {
            let start = i64::try_from(start).ok()?;
            let end = start.checked_add(i64::try_from(size).ok()?)?;
            (start..end).contains(&place).then_some((start, end))
        });
        found.unwrap_or(whole)
    }

    pub(super) fn value_size(&self, map: usize) -> i64 {
        self.object.maps.get(map).map_or(0, |def| i64::from(def.value_size))
    }

    fn load(&self, insn: Insn, state: &mut State) {
        let size = width(insn);
        let mut found = Things::default();
        for thing in state.get(insn.src) {
            match thing {
                Thing::Stack(Some(at)) => {
                    found.extend(state.slot(at + i64::from(insn.off), size));
                }
                Thing::Unknown | Thing::Stack(None) if size == 8 => {
                    found.extend(self.escaped.iter().copied());
                    found.insert(Thing::Unknown);
                    if thing == (Thing::Stack(None)) {
                        let slots = state.slots.values();
                        found.extend(slots.flat_map(|(_, things)| things).copied());
                    }
                }
                _ => {
                    found.insert(Thing::Unknown);
                }
            }
        }
        // Not all of what was stored: a part of a pointer is none.
        if size != 8 {
            found = found
                .into_iter()
                .map(|thing| if thing.is_pointer() { Thing::Unknown } else { thing })
                .collect();
        }
        state.set(insn.dst, found);
    }

    fn store(&mut self, insn: Insn, state: &mut State) {
        let size = width(insn);
        let atomic = insn.code & 0xe7 == 0xc3;
        // BPF_LOAD_ACQ
        if atomic && insn.imm == 0x100 {
            return self.load(insn, state);
        }
        let stored = match insn.code & 0x07 {
            0x02 => Thing::Number(insn.imm.into()).into(),
            _ if atomic => unknown(),
            _ => state.get(insn.src),
        };
        let targets = state.get(insn.dst);
        for target in &targets {
            match target.moved(Some(insn.off.into())) {
                Thing::Value { map, key, at, within } => self.write(map, key, at, size, within),
                Thing::Stack(Some(at)) if targets.len() == 1 => {
                    state.store(at, size, stored.clone());
                }
                Thing::Stack(_) => {
                    state.forget_numbers();
                    self.escaped.extend(stored.iter().copied().filter(|thing| is_value(*thing)));
                }
                _ => self.escaped.extend(stored.iter().copied().filter(|thing| is_value(*thing))),
            }
        }
        // What was there comes back in a register.
        if atomic {
            state.set(insn.src, unknown());
            if insn.imm & 0xf0 == 0xf0 {
                state.set(0, unknown());
            }
        }
    }

    /// Notes bytes that are written.
    pub(super) fn write(
        &mut self,
        map: usize,
        key: Option<u32>,
        at: Option<i64>,
        size: i64,
        within: (i64, i64),
    ) {
        let (start, end) = at.map_or(within, |at| (at, at.saturating_add(size)));
        let bytes = usize::try_from(start.max(0)).ok().zip(usize::try_from(end).ok());
        if let Some((start, end)) = bytes.filter(|(start, end)| start < end) {
            self.writes.bytes.insert((map, key, start, end));
        }
    }
}

/// Bytes of a load or store.
fn width(insn: Insn) -> i64 {
    match insn.code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// 64-bit arithmetic: what it does to pointers.
fn arithmetic(insn: Insn, state: &mut State) {
    let (add, subtract, set) = (0x00, 0x10, 0xb0);
    let by_register = insn.code & 0x08 != 0;
    let imm = i64::from(insn.imm);
    let things = match insn.code & 0xf0 {
        op if op == set && by_register && insn.off == 0 => state.get(insn.src),
        op if op == set && !by_register => Thing::Number(imm).into(),
        op if op == add && !by_register => moved(&state.get(insn.dst), Some(imm)),
        op if op == subtract && !by_register => moved(&state.get(insn.dst), imm.checked_neg()),
        op if op == add => {
            let (one, other) = (state.get(insn.dst), state.get(insn.src));
            let mut sum = moved(&one, number(&other));
            sum.extend(moved(&other, number(&one)));
            sum
        }
        op if op == subtract => {
            moved(&state.get(insn.dst), number(&state.get(insn.src)).and_then(i64::checked_neg))
        }
        _ => unknown(),
    };
    state.set(insn.dst, things);
}

#[cfg(test)]
mod tests {
    use super::{super::test_programs::written, *};

    #[test]
    fn code_that_takes_too_long_writes_nothing() {
        let found = written("volatile __u32 counted = 1;", "counted++; return 1;");
        let code = found.0.programs().next().unwrap();
        let mut left = 3;
        assert_eq!(Walk::new(&found.0, &code).run(&mut left), None);
        left = code.instructions.len();
        assert_eq!(Walk::new(&found.0, &code).run(&mut left), Some(()));
    }
}
