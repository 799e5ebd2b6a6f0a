//! Programs that the tests follow.

use super::Writes;
use crate::object::Object;
use canopy_test_support::compile_text;
use std::ops::Range;

const HEAD: &str = "
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC(\"license\") = \"GPL\";
struct value { __u32 first, second; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, struct value); } slots SEC(\".maps\");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 4); __type(key, __u16); __type(value, struct value); } hash SEC(\".maps\");
";

/// What the program does, in a function's body, with declarations before it.
pub(super) fn written(before: &str, body: &str) -> (Object, Writes) {
    let text = format!("{HEAD}{before}\nSEC(\"xdp\") int f(struct xdp_md *ctx)\n{{\n{body}\n}}\n");
    let object = Object::parse(&compile_text(&text).unwrap()).unwrap();
    let writes = Writes::of(&object);
    (object, writes)
}

/// The bytes written under a key of a map.
pub(super) fn bytes(found: &(Object, Writes), map: &str, key: &[u8]) -> Vec<Range<usize>> {
    let number = found.0.maps.iter().position(|known| known.name == map).unwrap();
    let mut bytes = found.1.bytes(number, key);
    bytes.sort_by_key(|bytes| (bytes.start, bytes.end));
    bytes.dedup();
    bytes
}

pub(super) const ZERO: &[u8] = &[0; 4];
pub(super) const ONE: &[u8] = &[1, 0, 0, 0];
