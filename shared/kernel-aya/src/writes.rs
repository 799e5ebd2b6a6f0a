//! Which bytes of its maps and variables an object's own programs write.
//!
//! A setting that the program itself writes is where it starts, not what it has to be: a limit is put
//! back when somebody else wrote over it, a counter that counts down from a setting is not. The code is
//! followed as the verifier follows it, without its precision: each register and stack slot has a set of
//! what it may be, joined where paths meet. Code that takes too long to follow writes nothing of its own.
mod calls;
mod state;
#[cfg(test)]
mod test_programs;
mod value;
mod walk;

use crate::object::Object;
use std::{collections::BTreeSet, ops::Range};
use walk::Walk;

/// Instructions followed in all, over all paths of an object.
const STEPS: usize = 1 << 20;

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

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "bytes that one store writes")]
mod tests {
    use super::test_programs::{ONE, ZERO, bytes, written};

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
}
