//! Which bytes of its maps and variables an object's own programs write.
//!
//! A setting that the program itself writes is where it starts, not what it has to be: a limit is put
//! back when somebody else wrote over it, a counter that counts down from a setting is not. The code is
//! followed as the verifier follows it, without its precision: each register and stack slot has a set of
//! what it may be, joined where paths meet. Code that takes too long to follow writes nothing of its own.

use crate::object::Object;
use canopy_chain::{
    Code,
    insn::{Insn, PSEUDO_CALL, PSEUDO_FUNC, PSEUDO_MAP, PSEUDO_MAP_VALUE},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    slice, vec,
};

/// Instructions followed in all, over all paths of an object.
const STEPS: usize = 1 << 20;
/// Places in a function's stack frame, with what an access may reach beyond.
const FRAME: Range<i64> = -1024..1024;
/// Places at which paths meet.
const STATES: usize = 1 << 15;
/// Things that one register may be; more are told apart no longer by their places.
const THINGS: usize = 12;

// enum bpf_map_type
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;

/// What an object's programs write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    /// Map, key where it is one of an array and known, and bytes of the value.
    bytes: BTreeSet<(usize, Option<u32>, usize, usize)>,
    /// Maps of which entries are removed.
    deletes: BTreeSet<usize>,
}

impl Writes {
    /// Those of every program of an object.
    pub(crate) fn of(object: &Object) -> Self {
        let mut writes = Self::default();
        let mut left = STEPS;
        for code in object.programs() {
            let mut walk = Walk::new(object, &code);
            if walk.run(&mut left).is_none() {
                return Self::default();
            }
            writes.bytes.append(&mut walk.writes.bytes);
            writes.deletes.append(&mut walk.writes.deletes);
        }
        writes
    }

    /// The bytes that are written of the values under a key.
    pub(crate) fn bytes(&self, map: usize, key: &[u8]) -> Vec<Range<usize>> {
        let number = key.try_into().ok().map(u32::from_ne_bytes);
        self.bytes
            .iter()
            .filter(|(of, under, ..)| *of == map && (under.is_none() || *under == number))
            .map(|(_, _, start, end)| *start..*end)
            .collect()
    }

    /// Whether entries of a map are removed.
    pub(crate) fn deletes(&self, map: usize) -> bool {
        self.deletes.contains(&map)
    }
}

/// What a register or a stack slot may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// A number, or a pointer to what is of no interest here.
    Unknown,
    Number(i64),
    /// A place in this function's stack frame; `None` for any.
    Stack(Option<i64>),
    Map(usize),
    /// A place in a value: the map, its key where that is known, the place (`None` for any) and the
    /// bytes it stays within.
    Value {
        map: usize,
        key: Option<u32>,
        at: Option<i64>,
        within: (i64, i64),
    },
    /// A function of the program, by its first instruction.
    Function(usize),
}

impl Thing {
    /// The same moved by so many bytes; `None` for an unknown number.
    fn moved(self, by: Option<i64>) -> Self {
        let moved = |at: Option<i64>| at?.checked_add(by?);
        match self {
            Self::Stack(at) => Self::Stack(moved(at).filter(|at| FRAME.contains(at))),
            Self::Value { map, key, at, within } => Self::Value { map, key, at: moved(at), within },
            Self::Number(number) => moved(Some(number)).map_or(Self::Unknown, Self::Number),
            Self::Unknown | Self::Map(_) | Self::Function(_) => Self::Unknown,
        }
    }

    fn is_pointer(self) -> bool {
        !matches!(self, Self::Unknown | Self::Number(_))
    }
}

/// All that a register or slot may be, each once. Mostly it is one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Things(Vec<Thing>);

impl Things {
    fn insert(&mut self, thing: Thing) {
        if let Err(place) = self.0.binary_search(&thing) {
            self.0.insert(place, thing);
        }
    }

    fn iter(&self) -> slice::Iter<'_, Thing> {
        self.0.iter()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Thing> for Things {
    fn from(thing: Thing) -> Self {
        Self(vec![thing])
    }
}

impl Extend<Thing> for Things {
    fn extend<I: IntoIterator<Item = Thing>>(&mut self, more: I) {
        more.into_iter().for_each(|thing| self.insert(thing));
    }
}

impl FromIterator<Thing> for Things {
    fn from_iter<I: IntoIterator<Item = Thing>>(things: I) -> Self {
        let mut all = Self::default();
        all.extend(things);
        all
    }
}

impl IntoIterator for Things {
    type Item = Thing;
    type IntoIter = vec::IntoIter<Thing>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Things {
    type Item = &'a Thing;
    type IntoIter = slice::Iter<'a, Thing>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn unknown() -> Things {
    Thing::Unknown.into()
}

/// Adds what something else may be; whether that is news.
fn join(things: &mut Things, more: &Things) -> bool {
    let before = things.clone();
    things.extend(more.iter().copied());
    if things.len() > THINGS {
        *things = things
            .iter()
            .map(|thing| match *thing {
                Thing::Number(_) => Thing::Unknown,
                Thing::Value { map, within, .. } => {
                    Thing::Value { map, key: None, at: None, within }
                }
                Thing::Stack(_) => Thing::Stack(None),
                other => other,
            })
            .collect();
    }
    *things != before
}

/// What is known before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    registers: [Things; 11],
    /// Stack slots that were written as a whole: by place, with their size.
    slots: BTreeMap<i64, (i64, Things)>,
}

impl State {
    /// At the start of a function with these arguments.
    fn entry(arguments: [Things; 5]) -> Self {
        let mut registers: [Things; 11] = std::array::from_fn(|_| unknown());
        for (register, argument) in registers.iter_mut().skip(1).zip(arguments) {
            *register = argument;
        }
        if let Some(frame) = registers.last_mut() {
            *frame = Thing::Stack(Some(0)).into();
        }
        Self { registers, slots: BTreeMap::new() }
    }

    fn get(&self, register: u8) -> Things {
        self.registers.get(usize::from(register)).cloned().unwrap_or_else(unknown)
    }

    fn set(&mut self, register: u8, things: Things) {
        if let Some(place) = self.registers.get_mut(usize::from(register)) {
            *place = things;
        }
    }

    /// Takes in what is known on another path; whether that is news.
    fn join(&mut self, other: &Self) -> bool {
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
    fn slot(&self, at: i64, size: i64) -> Things {
        match self.slots.get(&at) {
            Some((known, things)) if *known == size => things.clone(),
            _ => unknown(),
        }
    }

    /// Writes a stack slot.
    fn store(&mut self, at: i64, size: i64, things: Things) {
        let overlaps = |place: i64, length: i64| place < at + size && at < place + length;
        self.slots.retain(|place, (length, _)| !overlaps(*place, *length));
        self.slots.insert(at, (size, things));
    }

    /// Numbers in the frame that somebody else may have written over.
    fn forget_numbers(&mut self) {
        for (_, things) in self.slots.values_mut() {
            if things.iter().any(|thing| matches!(thing, Thing::Number(_))) {
                things.0.retain(|thing| !matches!(thing, Thing::Number(_)));
                things.insert(Thing::Unknown);
            }
        }
    }
}

/// One program being followed.
struct Walk<'a> {
    object: &'a Object,
    code: &'a Code,
    /// The map of each load.
    loads: BTreeMap<usize, usize>,
    /// What is known before the instructions that paths lead to.
    states: BTreeMap<usize, State>,
    /// Those from which paths are to be followed again.
    queue: BTreeSet<usize>,
    /// What a function may return, by its first instruction, and where it was called.
    returns: BTreeMap<usize, (Things, BTreeSet<usize>)>,
    /// Pointers to values that lie where another function may find them.
    escaped: Things,
    writes: Writes,
}

/// Where an instruction leads.
enum Next {
    Follow,
    Jump(usize),
    Both(usize),
    End,
}

impl<'a> Walk<'a> {
    fn new(object: &'a Object, code: &'a Code) -> Self {
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
    fn run(&mut self, left: &mut usize) -> Option<()> {
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
    fn reach(&mut self, at: usize, state: &State) {
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

    fn value_size(&self, map: usize) -> i64 {
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
    fn write(
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

    /// A function returns.
    fn leave(&mut self, at: usize, things: &Things) {
        let function = self.code.functions.iter().map(|function| function.start);
        let Some(start) = function.filter(|start| *start <= at).max() else { return };
        let (known, callers) = self.returns.entry(start).or_default();
        let things: Things = things.iter().copied().map(of_another_frame).collect();
        if join(known, &things) {
            let callers = callers.clone();
            self.queue.extend(callers);
        }
    }

    /// A function of the program begins with these arguments.
    fn enter(&mut self, start: usize, arguments: [Things; 5]) {
        let arguments =
            arguments.map(|things| things.into_iter().map(of_another_frame).collect::<Things>());
        self.reach(start, &State::entry(arguments));
    }

    fn call(&mut self, at: usize, insn: Insn, state: &mut State) {
        let arguments: [Things; 5] =
            std::array::from_fn(|n| state.get(u8::try_from(n + 1).unwrap_or(1)));
        let result = match insn.src {
            PSEUDO_CALL => self.call_local(at, insn, state, arguments),
            0 => self.call_helper(insn.imm, state, &arguments),
            _ => {
                self.may_write(state, &arguments);
                unknown()
            }
        };
        for register in 1..=5 {
            state.set(register, unknown());
        }
        state.set(0, result);
    }

    fn call_local(
        &mut self,
        at: usize,
        insn: Insn,
        state: &mut State,
        arguments: [Things; 5],
    ) -> Things {
        let to = i64::try_from(at).unwrap_or(i64::MAX).saturating_add(1 + i64::from(insn.imm));
        let Ok(start) = usize::try_from(to) else { return unknown() };
        if arguments.iter().flatten().any(|thing| matches!(thing, Thing::Stack(_))) {
            self.escape(state);
        }
        // Here it goes on again when the function is found to return something else.
        self.reach(at, state);
        self.enter(start, arguments);
        let (things, callers) = self.returns.entry(start).or_default();
        callers.insert(at);
        if things.is_empty() { unknown() } else { things.clone() }
    }

    /// The frame is another function's to look into and to write.
    fn escape(&mut self, state: &mut State) {
        let values = state.slots.values().flat_map(|(_, things)| things);
        self.escaped.extend(values.copied().filter(|thing| is_value(*thing)));
        state.forget_numbers();
    }

    /// Something of the kernel may write what these lead to.
    fn may_write(&mut self, state: &mut State, arguments: &[Things; 5]) {
        for thing in arguments.iter().flatten() {
            match *thing {
                Thing::Value { map, key, at, within } => {
                    let start = at.unwrap_or(within.0);
                    self.write(map, key, Some(start), within.1.saturating_sub(start), within);
                }
                Thing::Stack(_) => state.forget_numbers(),
                _ => {}
            }
        }
    }

    fn call_helper(&mut self, helper: i32, state: &mut State, arguments: &[Things; 5]) -> Things {
        let [first, second, third, ..] = arguments;
        let maps = |things: &Things| -> Vec<usize> {
            let of = |thing: &Thing| match thing {
                Thing::Map(map) | Thing::Value { map, .. } => Some(*map),
                _ => None,
            };
            things.iter().filter_map(of).collect()
        };
        match helper {
            // map_lookup_elem, map_lookup_percpu_elem
            1 | 195 => return self.found(&maps(first), second, state),
            // map_update_elem, map_push_elem
            2 | 87 => {
                for map in maps(first) {
                    let size = self.value_size(map);
                    for key in self.keys(map, second, state) {
                        self.write(map, key, None, size, (0, size));
                    }
                }
            }
            // map_delete_elem
            3 => self.writes.deletes.extend(maps(first)),
            // get_local_storage and the storage of sockets, inodes, tasks, cgroups
            81 | 107 | 145 | 156 | 210 => return self.found(&maps(first), &unknown(), state),
            // for_each_map_elem, timer_set_callback: callbacks with map, key, value
            164 | 170 => {
                let values = self.found(&maps(first), &unknown(), state);
                let context = if helper == 164 { third.clone() } else { unknown() };
                self.call_back(second, state, [first.clone(), unknown(), values, context]);
            }
            // loop, user_ringbuf_drain
            181 | 209 => {
                self.call_back(second, state, [unknown(), third.clone(), unknown(), unknown()]);
            }
            // Those that only read what they are given, or write what is the kernel's own in it: output,
            // checksums, bytes of packets, locks, timers, pointers.
            6 | 9 | 12 | 21 | 25 | 28 | 30 | 44 | 51 | 93 | 94 | 111 | 126 | 127 | 130 | 169
            | 171 | 172 | 177 | 182 | 190 | 194 | 202 => {}
            _ => self.may_write(state, arguments),
        }
        unknown()
    }

    /// A helper calls a function of the program.
    fn call_back(&mut self, functions: &Things, state: &mut State, arguments: [Things; 4]) {
        self.escape(state);
        let [one, two, three, four] = arguments;
        for function in functions {
            if let Thing::Function(start) = function {
                let arguments = [one.clone(), two.clone(), three.clone(), four.clone(), unknown()];
                self.enter(*start, arguments);
            }
        }
    }

    /// The keys that a pointer leads to, where the map is an array and they are known; else any.
    fn keys(&self, map: usize, pointer: &Things, state: &State) -> Vec<Option<u32>> {
        let any = vec![None];
        let kind = self.object.maps.get(map).map(|def| def.map_type);
        if !matches!(kind, Some(ARRAY | PERCPU_ARRAY)) {
            return any;
        }
        let mut keys = Vec::new();
        for thing in pointer {
            let Thing::Stack(Some(at)) = thing else { return any };
            let Some((4, things)) = state.slots.get(at) else { return any };
            for thing in things {
                let Thing::Number(number) = thing else { return any };
                // The lower half, as it was stored.
                keys.push(u32::try_from(number & i64::from(u32::MAX)).ok());
            }
        }
        keys
    }

    /// What a look-up in these maps finds: a place in a value, or a map.
    fn found(&self, maps: &[usize], key: &Things, state: &State) -> Things {
        let mut found = Things::default();
        for map in maps {
            let Some(def) = self.object.maps.get(*map) else { continue };
            if def.inner.is_some() {
                found.extend(self.object.held_maps(def).map(Thing::Map));
                continue;
            }
            let within = (0, i64::from(def.value_size));
            for key in self.keys(*map, key, state) {
                found.insert(Thing::Value { map: *map, key, at: Some(0), within });
            }
        }
        if found.is_empty() { unknown() } else { found }
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

fn is_value(thing: Thing) -> bool {
    matches!(thing, Thing::Value { .. } | Thing::Map(_))
}

/// A place in one function's frame is nothing that another one knows.
fn of_another_frame(thing: Thing) -> Thing {
    if matches!(thing, Thing::Stack(_)) { Thing::Unknown } else { thing }
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

/// The number that it is, where it can be no other.
fn number(things: &Things) -> Option<i64> {
    match things.iter().next() {
        Some(Thing::Number(number)) if things.len() == 1 => Some(*number),
        _ => None,
    }
}

fn moved(things: &Things, by: Option<i64>) -> Things {
    things.iter().map(|thing| thing.moved(by)).collect()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "bytes that one store writes")]
mod tests {
    use super::*;
    use canopy_test_support::compile_text;

    const HEAD: &str = "
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC(\"license\") = \"GPL\";
struct value { __u32 first, second; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, struct value); } slots SEC(\".maps\");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 4); __type(key, __u16); __type(value, struct value); } hash SEC(\".maps\");
";

    /// What the program does, in a function's body, with declarations before it.
    fn written(before: &str, body: &str) -> (Object, Writes) {
        let text =
            format!("{HEAD}{before}\nSEC(\"xdp\") int f(struct xdp_md *ctx)\n{{\n{body}\n}}\n");
        let object = Object::parse(&compile_text(&text).unwrap()).unwrap();
        let writes = Writes::of(&object);
        (object, writes)
    }

    /// The bytes written under a key of a map.
    fn bytes(found: &(Object, Writes), map: &str, key: &[u8]) -> Vec<Range<usize>> {
        let number = found.0.maps.iter().position(|known| known.name == map).unwrap();
        let mut bytes = found.1.bytes(number, key);
        bytes.sort_by_key(|bytes| (bytes.start, bytes.end));
        bytes.dedup();
        bytes
    }

    const ZERO: &[u8] = &[0; 4];
    const ONE: &[u8] = &[1, 0, 0, 0];

    #[test]
    fn variables_are_written_each_by_itself() {
        let found = written(
            "volatile __u32 read = 1, counted = 1, row[4] = { 1 }; volatile __u8 flag = 1;",
            "counted++; row[ctx->rx_queue_index & 3]++; flag = 0; return read > 5;",
        );
        let place = |name: &str| {
            let (_, at, size) = found.0.global(name).unwrap();
            at..at + size
        };
        let mut expected = ["counted", "row", "flag"].map(place).to_vec();
        expected.sort_by_key(|place| place.start);
        assert_eq!(bytes(&found, ".data", ZERO), expected);
    }

    #[test]
    fn slots_are_told_apart_where_their_number_is_known() {
        let found = written(
            "static __attribute__((noinline)) void spend(struct value *v) { v->second--; }",
            "__u32 zero = 0, one = 1; struct value *v = bpf_map_lookup_elem(&slots, &zero),\n\
             *w = bpf_map_lookup_elem(&slots, &one);\n\
             if (v) spend(v); if (w) w->first++; return 1;",
        );
        assert_eq!(bytes(&found, "slots", ZERO), [4..8]);
        assert_eq!(bytes(&found, "slots", ONE), [0..4]);
        let found = written(
            "",
            "__u32 any = ctx->rx_queue_index; struct value *v = bpf_map_lookup_elem(&slots, &any);\n\
             if (v) __sync_fetch_and_add(&v->first, 1); return 1;",
        );
        assert_eq!(bytes(&found, "slots", ZERO), [0..4]);
        assert_eq!(bytes(&found, "slots", ONE), [0..4]);
    }

    #[test]
    fn pointers_are_followed_through_memory_and_callbacks() {
        let found = written(
            "struct box { struct value *one; };\n\
             static __attribute__((noinline)) void put(struct box *box) { if (box->one) box->one->first = 1; }\n\
             static long each(void *map, __u16 *key, struct value *value, void *ctx) { value->second = 2; return 0; }",
            "__u32 zero = 0; struct box box = { bpf_map_lookup_elem(&slots, &zero) };\n\
             put(&box); bpf_for_each_map_elem(&hash, each, 0, 0); return 1;",
        );
        assert_eq!(bytes(&found, "slots", ZERO), [0..4]);
        assert_eq!(bytes(&found, "hash", &[1, 0]), [4..8]);
    }

    #[test]
    fn helpers_write_update_and_delete() {
        let found = written(
            "",
            "__u32 zero = 0; __u16 key = 7; struct value v = {}, *at = bpf_map_lookup_elem(&slots, &zero);\n\
             if (at) bpf_probe_read_kernel(&at->second, 4, ctx);\n\
             bpf_map_update_elem(&hash, &key, &v, 0); bpf_map_delete_elem(&hash, &key); return 1;",
        );
        assert_eq!(bytes(&found, "slots", ZERO), [4..8]);
        assert_eq!(bytes(&found, "hash", &[9, 0]), [0..8]);
        let number = |map: &str| found.0.maps.iter().position(|known| known.name == map).unwrap();
        assert!(found.1.deletes(number("hash")) && !found.1.deletes(number("slots")));
    }

    #[test]
    fn what_is_only_read_is_not_written() {
        let found = written(
            "volatile __u32 limit = 1; __u64 total;",
            "__u32 zero = 0; __u16 key = 7; struct value copy = {}, *v = bpf_map_lookup_elem(&slots, &zero),\n\
             *w = bpf_map_lookup_elem(&hash, &key); if (v) copy = *v; if (w) copy.first += w->first;\n\
             for (__u32 i = 0; i < 40; i++) if (i == limit) copy.second += i;\n\
             __sync_fetch_and_add(&total, copy.first + copy.second); return copy.first > limit;",
        );
        for map in ["slots", "hash", ".data"] {
            assert!(bytes(&found, map, ZERO).is_empty(), "{map}");
        }
        assert_eq!(bytes(&found, ".bss", ZERO), [0..8]);
    }

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
