//! Calls: of functions of the program, of helpers, and of functions of the program by helpers.

use super::{
    state::State,
    value::{Thing, Things, is_value, join, of_another_frame, unknown},
    walk::Walk,
};
use canopy_chain::insn::{Insn, PSEUDO_CALL};

// enum bpf_map_type
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;

impl Walk<'_> {
    /// A function returns.
    pub(super) fn leave(&mut self, at: usize, things: &Things) {
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

    pub(super) fn call(&mut self, at: usize, insn: Insn, state: &mut State) {
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

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "bytes that one store writes")]
mod tests {
    use super::super::test_programs::{ZERO, bytes, written};

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
}
