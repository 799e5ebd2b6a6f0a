//! Maps that a change of a chain keeps: afterwards the kernel holds what the document says, and the
//! rest is as the programs left it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code: a failure is a panic")]

use canopy_api::{Hook, wire::Action};
use canopy_kernel::{Kernel as _, KernelError, MapContents, ShareScope, SharedMap};
use canopy_kernel_aya::sys;
use canopy_kernel_tests::{
    chain::{Chains, member},
    engine::options,
    packages::{Bench, compile_text},
};
use canopy_loader::engine::Options;
use canopy_test_support::pair::HOST_LINK;
use serde_json::{Value, json};
use std::os::fd::{AsFd as _, AsRawFd as _};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

/// Counts in a variable beside the setting, and sends back what comes above a limit of 100.
fn counter(limit: &str, packets: &str) -> String {
    format!(
        "volatile __u32 limit{limit}; volatile __u64 packets{packets};\n\
         SEC(\"xdp\") int f(struct xdp_md *ctx)\n\
         {{ packets++; return limit > 100 ? XDP_TX : XDP_PASS; }}"
    )
}

const LIMIT: &str =
    "config:\n- { name: limit, type: u32, description: d, default: 0, bind: { global: limit } }\n";

fn limit(limit: u32) -> Value {
    json!([{ "name": "one", "package": "p", "config": { "limit": limit } }])
}

/// A package without settings that passes, or drops from another version on.
fn publish_plain(bench: &mut Bench) {
    let more = "config:\n- { name: number, type: u32, description: d, default: 0, bind: { global: number } }\n";
    let source = "const volatile __u32 number;\n\
                  SEC(\"xdp\") int other(struct xdp_md *ctx)\n\
                  { return number == 77 ? XDP_DROP : XDP_PASS; }";
    bench.publish("plain", "1.0.0", "other", more, source);
}

fn with_plain(number: u32, mut programs: Vec<Value>) -> Value {
    let plain = json!({ "name": "plain", "package": "plain", "config": { "number": number } });
    programs.insert(0, plain);
    Value::Array(programs)
}

#[test]
fn a_changed_variable_leaves_the_rest_of_its_section() {
    for (section, initial) in [(".bss", ("", "")), (".data", (" = 3", " = 1"))] {
        let mut bench = Bench::new();
        bench.publish("p", "1.0.0", "f", LIMIT, &counter(initial.0, initial.1));
        bench.applied(limit(7));
        assert_eq!(bench.verdict(), PASS);
        bench.applied(limit(200));
        assert_eq!(bench.verdict(), TX, "{section}: the setting took effect");
        let value = bench.map("one", section).lookup(&[0; 4]).unwrap().unwrap();
        let words: Vec<u32> =
            value.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        assert!(words.contains(&200), "{section}: {words:?}");
        // One before the change and one after, over the initial value.
        let counted = 2 + u32::from(section == ".data");
        assert!(words.contains(&counted), "{section}: {words:?}");
        bench.applied(limit(8));
        assert_eq!(bench.verdict(), PASS);
    }
}

#[test]
fn a_variable_that_is_no_setting_any_more_is_the_objects() {
    let mut bench = Bench::new();
    let kept = format!("{LIMIT}maps:\n- {{ name: .data, carry_over: true }}\n");
    bench.publish("p", "1.0.0", "f", &kept, &counter(" = 3", " = 1"));
    bench.applied(limit(200));
    assert_eq!(bench.verdict(), TX);
    let more = "maps:\n- { name: .data, carry_over: true }\n";
    bench.publish("p", "1.1.0", "f", more, &counter(" = 3", " = 1"));
    bench.applied(json!([{ "name": "one", "package": "p" }]));
    assert_eq!(bench.verdict(), PASS, "3, as the object says");
    let value = bench.map("one", ".data").lookup(&[0; 4]).unwrap().unwrap();
    assert!(
        value.as_chunks::<4>().0.contains(&3_u32.to_ne_bytes()),
        "1, and two packets: {value:?}"
    );
}

/// Drops when port 80 is listed, sends when the slot is above 100; adds port 9 itself and counts in
/// another slot, and in the rest of the slot that has the setting.
const PORTS: &str = "
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, __u16); __type(value, __u32); } ports SEC(\".maps\");
struct value { __u32 limit; __u32 unused; __u64 seen; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2); __type(key, __u32); __type(value, struct value); } slots SEC(\".maps\");
SEC(\"xdp\") int f(struct xdp_md *ctx)
{
	__u16 port = 80, mine = 9;
	__u32 zero = 0, one = 1;
	struct value *slot = bpf_map_lookup_elem(&slots, &zero), *other = bpf_map_lookup_elem(&slots, &one);

	if (slot)
		slot->seen++;
	if (other)
		other->seen++;
	bpf_map_update_elem(&ports, &mine, &one, BPF_ANY);
	if (bpf_map_lookup_elem(&ports, &port))
		return XDP_DROP;
	return slot && slot->limit > 100 ? XDP_TX : XDP_PASS;
}";

const PORTS_CONFIG: &str = "
config:
- { name: blocked, type: ports, description: d, default: [], max: 4, bind: { keys: ports } }
- { name: limit, type: u32, description: d, default: 0, bind: { map: slots, slot: 0, value_size: 16 } }
";

fn ports(name: &str, blocked: &[u16], limit: u32) -> Value {
    json!({ "name": name, "package": "p", "config": { "blocked": blocked, "limit": limit } })
}

fn keys(ports: &[u16]) -> Vec<Vec<u8>> {
    let mut keys: Vec<_> = ports.iter().map(|port| port.to_ne_bytes().to_vec()).collect();
    keys.sort();
    keys
}

#[test]
fn settings_in_maps_change_and_nothing_else_does() {
    for scope in ["", "interface", "host"] {
        let mut bench = Bench::new();
        let maps = match scope {
            "" => String::new(),
            scope => format!(
                "maps:\n- {{ name: ports, shared: {scope} }}\n- {{ name: slots, shared: {scope} }}\n"
            ),
        };
        bench.publish("p", "1.0.0", "f", &format!("{PORTS_CONFIG}{maps}"), PORTS);
        bench.applied(json!([ports("one", &[80], 7)]));
        assert_eq!(bench.verdict(), DROP, "{scope}");
        bench.applied(json!([ports("one", &[443, 444], 7)]));
        assert_eq!(bench.verdict(), PASS, "{scope}");
        assert_eq!(bench.keys("one", "ports"), keys(&[443, 444, 9]), "{scope}: its own stays");
        bench.applied(json!([ports("one", &[443, 444], 200)]));
        assert_eq!(bench.verdict(), TX, "{scope}");
        assert_eq!(bench.keys("one", "ports"), keys(&[443, 444, 9]), "{scope}");
        assert_eq!(bench.number("one", "slots", 0, 8), 3, "{scope}: beside the setting");
        assert_eq!(bench.number("one", "slots", 1, 8), 3, "{scope}: in another slot");
        bench.applied(json!([ports("one", &[], 200)]));
        assert_eq!(bench.keys("one", "ports"), keys(&[9]), "{scope}");
    }
}

#[test]
fn a_setting_that_something_took_away_is_put_back() {
    let mut bench = Bench::new();
    publish_plain(&mut bench);
    bench.publish("p", "1.0.0", "f", PORTS_CONFIG, PORTS);
    bench.applied(with_plain(1, vec![ports("one", &[80], 7)]));
    bench.map("one", "ports").delete(&80_u16.to_ne_bytes()).unwrap();
    assert_eq!(bench.verdict(), PASS);
    bench.applied(with_plain(2, vec![ports("one", &[80], 7)]));
    assert_eq!(bench.verdict(), DROP);
}

#[test]
fn the_same_document_puts_back_what_was_written_over() {
    for scope in ["", "interface", "host"] {
        let mut bench = Bench::new();
        let maps = match scope {
            "" => String::new(),
            scope => format!(
                "maps:\n- {{ name: ports, shared: {scope} }}\n- {{ name: slots, shared: {scope} }}\n"
            ),
        };
        bench.publish("p", "1.0.0", "f", &format!("{PORTS_CONFIG}{maps}"), PORTS);
        let wanted = || json!([ports("one", &[443], 7)]);
        bench.applied(wanted());
        assert_eq!(bench.verdict(), PASS, "{scope}");
        // The first four bytes are the setting.
        bench.map("one", "slots").update(&[0; 4], &[200; 16], 0).unwrap();
        assert_eq!(bench.verdict(), TX, "{scope}");
        bench.applied(wanted());
        assert_eq!(bench.verdict(), PASS, "{scope}: written over");
        bench.map("one", "ports").delete(&443_u16.to_ne_bytes()).unwrap();
        bench.applied(wanted());
        assert_eq!(bench.keys("one", "ports"), keys(&[443, 9]), "{scope}: taken away");
        // With nothing lost nothing is done.
        let before = bench.map("one", "ports").info().id;
        bench.applied(wanted());
        assert_eq!(bench.map("one", "ports").info().id, before, "{scope}");
    }
}

#[test]
fn programs_that_share_a_map_agree_on_its_settings() {
    let mut bench = Bench::new();
    let maps = "maps:\n- { name: ports, shared: host }\n- { name: slots, shared: host }\n";
    bench.publish("p", "1.0.0", "f", &format!("{PORTS_CONFIG}{maps}"), PORTS);
    bench.interface("d1");
    let refusal =
        bench.refusal(&[(HOST_LINK, json!([ports("one", &[443], 1), ports("two", &[80], 1)]))]);
    assert!(refusal.contains("\\\"one\\\"") && refusal.contains("\\\"two\\\""), "{refusal}");
    assert!(refusal.contains("ports") && refusal.contains("different settings"), "{refusal}");

    bench.applied(json!([ports("one", &[443], 1), ports("two", &[443], 1)]));
    // A chain elsewhere that says otherwise, one that says the same, and one that changes alone.
    let refusal = bench.refusal(&[("d1", json!([ports("far", &[443], 2)]))]);
    assert!(refusal.contains("slots") && refusal.contains("different settings"), "{refusal}");
    bench.apply_all(&[("d1", json!([ports("far", &[443], 1)]))], &options()).unwrap();
    let refusal = bench.refusal(&[("d1", json!([ports("far", &[80], 1)]))]);
    assert!(refusal.contains("one") && refusal.contains(HOST_LINK), "{refusal}");

    // Together they change, atomic or not.
    for (atomic, port) in [(true, 80), (false, 81)] {
        let both = json!([ports("one", &[port], 1), ports("two", &[port], 1)]);
        let all = [(HOST_LINK, both), ("d1", json!([ports("far", &[port], 1)]))];
        bench.apply_all(&all, &Options { atomic, ..options() }).unwrap();
        assert_eq!(bench.verdict(), if port == 80 { DROP } else { PASS });
        assert_eq!(bench.verdict_on("d1"), bench.verdict());
        let id = |path| sys::map_info(&sys::obj_get(path).unwrap()).unwrap().id;
        let ids = [
            id(&bench.map_path(HOST_LINK, "one", "ports")),
            id(&bench.map_path(HOST_LINK, "two", "ports")),
            id(&bench.map_path("d1", "far", "ports")),
        ];
        assert!(ids.iter().all(|one| *one == ids[0]), "one map: {ids:?}");
    }
    // Whoever comes later finds the newest.
    bench.interface("d2");
    bench.apply_all(&[("d2", json!([ports("last", &[81], 1)]))], &options()).unwrap();
    assert_eq!(bench.verdict_on("d2"), PASS);
}

#[test]
fn a_reader_is_built_anew_when_a_writer_joins_it() {
    let mut bench = Bench::new();
    let maps = "maps:\n- { name: ports, shared: host }\n";
    bench.publish("p", "1.0.0", "f", &format!("{PORTS_CONFIG}{maps}"), PORTS);
    bench.publish("reader", "1.0.0", "f", maps, PORTS);
    bench.interface("d1");
    let reader = json!([{ "name": "reader", "package": "reader" }]);
    bench.applied(reader.clone());
    assert_eq!(bench.verdict(), PASS);
    let writer = json!([ports("writer", &[80], 1)]);
    let refusal = bench.refusal(&[("d1", writer.clone())]);
    assert!(refusal.contains("\\\"reader\\\"") && refusal.contains("--atomic"), "{refusal}");
    bench.apply_all(&[(HOST_LINK, reader), ("d1", writer)], &options()).unwrap();
    assert_eq!(bench.verdict(), DROP, "the reader has the writer's list");
    assert_eq!(bench.keys("reader", "ports"), keys(&[80, 9]));
}

#[test]
fn constants_are_never_shared() {
    let mut bench = Bench::new();
    let more = format!("{LIMIT}maps:\n- {{ name: .rodata, shared: interface }}\n");
    let source = "const volatile __u32 limit = 1;\n\
                  SEC(\"xdp\") int f(struct xdp_md *ctx) { return limit > 100 ? XDP_TX : XDP_PASS; }";
    bench.publish("p", "1.0.0", "f", &more, source);
    bench.applied(limit(7));
    assert_eq!(bench.verdict(), PASS);
    bench.applied(limit(200));
    assert_eq!(bench.verdict(), TX);
}

#[test]
fn counters_of_list_items_stay_with_their_items() {
    let mut bench = Bench::new();
    let source = "
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, __u16); __type(value, __u32); } ports SEC(\".maps\");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 8); __type(key, __u32); __type(value, __u64); } hits SEC(\".maps\");
SEC(\"xdp\") int f(struct xdp_md *ctx) { __u16 port = 80; __u32 *place = bpf_map_lookup_elem(&ports, &port);
	__u64 *count = place ? bpf_map_lookup_elem(&hits, place) : 0; if (count) ++*count; return XDP_PASS; }";
    let more = "
config:
- { name: ports, type: ports, description: d, default: [], max: 8, bind: { keys: ports } }
metrics:
- { name: hits, help: h, kind: counter, map: hits, select: { items: { label: port, config: ports } } }
";
    bench.publish("p", "1.0.0", "f", more, source);
    let list =
        |ports: Value| json!([{ "name": "one", "package": "p", "config": { "ports": ports } }]);
    bench.applied(list(json!([80, 443])));
    bench.verdict();
    bench.verdict();
    bench.applied(list(json!([22, 443, 80])));
    assert_eq!([0, 1, 2].map(|slot| bench.number("one", "hits", slot, 0)), [0, 0, 2]);
    bench.verdict();
    bench.applied(list(json!([22])));
    bench.applied(list(json!([22, 80])));
    assert_eq!([0, 1, 2].map(|slot| bench.number("one", "hits", slot, 0)), [0, 0, 0]);
}

/// Jumps to a target that returns this.
fn jump(pinned: bool, verdict: &str) -> String {
    let pinned = if pinned { "__uint(pinning, LIBBPF_PIN_BY_NAME);" } else { "" };
    format!(
        "int target(struct xdp_md *ctx);\n\
         struct {{ __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 4); __uint(key_size, 4); {pinned} \
         __array(values, int (void *)); }} jumps SEC(\".maps\") = {{ .values = {{ [0] = (void *)&target }} }};\n\
         SEC(\"xdp\") int target(struct xdp_md *ctx) {{ return {verdict}; }}\n\
         SEC(\"xdp\") int f(struct xdp_md *ctx) {{ bpf_tail_call(ctx, &jumps, 0); return XDP_ABORTED; }}"
    )
}

#[test]
fn a_filled_program_array_has_its_own_versions_targets() {
    for (pinned, maps) in [
        (true, ""),
        (false, "maps:\n- { name: jumps, shared: interface }\n"),
        (false, "maps:\n- { name: jumps, shared: host }\n"),
        (false, "maps:\n- { name: jumps, carry_over: true }\n"),
    ] {
        let mut bench = Bench::new();
        bench.publish("p", "1.0.0", "f", maps, &jump(pinned, "XDP_PASS"));
        let one = json!({ "name": "one", "package": "p" });
        bench.applied(json!([one]));
        assert_eq!(bench.verdict(), PASS);
        // Another package with an array of the same name.
        bench.publish("q", "1.0.0", "f", maps, &jump(pinned, "XDP_TX"));
        bench.applied(json!([one, { "name": "two", "package": "q" }]));
        assert_eq!(bench.verdict(), TX, "the first passes, the second sends");
        bench.publish("p", "1.1.0", "f", maps, &jump(pinned, "XDP_DROP"));
        bench.applied(json!([one, { "name": "two", "package": "q" }]));
        assert_eq!(bench.verdict(), DROP, "the new version's target: {maps} {pinned}");
    }
}

#[test]
fn entries_that_others_put_into_a_filled_array_stay() {
    let mut bench = Bench::new();
    publish_plain(&mut bench);
    bench.publish("p", "1.0.0", "f", "", &jump(false, "XDP_PASS"));
    let one = json!({ "name": "one", "package": "p" });
    bench.applied(with_plain(1, vec![one.clone()]));
    let (drop, _) = target(false);
    let jumps = bench.map("one", "jumps");
    jumps.update(&2_u32.to_ne_bytes(), &drop.as_fd().as_raw_fd().to_ne_bytes(), 0).unwrap();
    let id = jumps.lookup(&2_u32.to_ne_bytes()).unwrap();
    bench.applied(with_plain(2, vec![one]));
    let jumps = bench.map("one", "jumps");
    assert_eq!(jumps.lookup(&2_u32.to_ne_bytes()).unwrap(), id);
    assert_eq!(bench.verdict(), PASS);
}

/// A program that drops, loaded for multi-buffer packets or not; and its id.
fn target(frags: bool) -> (std::os::fd::OwnedFd, u32) {
    // r0 = XDP_DROP; exit
    let code = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]].concat();
    let load = sys::ProgLoad {
        expected_attach_type: 37,
        flags: if frags { 1 << 5 } else { 0 },
        ..sys::ProgLoad::new(6, &code, "GPL", "a_target")
    };
    let prog = sys::prog_load(&load).map_err(|rejected| format!("{rejected:?}")).unwrap();
    let id = sys::prog_info(&prog).unwrap().id;
    (prog, id)
}

const HOOK: &str = "
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __uint(key_size, 4); __uint(value_size, 4); } hooks SEC(\".maps\");
SEC(\"xdp.frags\") int f(struct xdp_md *ctx) { bpf_tail_call(ctx, &hooks, 0); return XDP_PASS; }";

#[test]
fn a_program_array_outlives_changes_of_the_frags_flag() {
    for maps in
        ["maps:\n- { name: hooks, carry_over: true }\n", "maps:\n- { name: hooks, shared: host }\n"]
    {
        let mut bench = Bench::new();
        publish_plain(&mut bench);
        bench.publish("p", "1.0.0", "f", maps, HOOK);
        let hook = json!({ "name": "one", "package": "p", "priority": 200 });
        let put = |bench: &Bench, frags| {
            let (prog, _) = target(frags);
            let fd = prog.as_fd().as_raw_fd().to_ne_bytes();
            bench.map("one", "hooks").update(&[0; 4], &fd, 0)
        };
        let empty = |bench: &Bench| bench.map("one", "hooks").delete(&[0; 4]).unwrap();

        // Not filled: members come and go.
        bench.applied(json!([hook]));
        bench.applied(with_plain(1, vec![hook.clone()]));
        bench.delete("plain").unwrap();
        // Filled for multi-buffer packets: a member that does not handle them is refused, and why.
        put(&bench, false).unwrap_err();
        put(&bench, true).unwrap();
        assert_eq!(bench.verdict(), DROP);
        let refusal = bench.refusal(&[(HOST_LINK, with_plain(1, vec![hook.clone()]))]);
        assert!(refusal.contains("\\\"hooks\\\"") && refusal.contains("a_target"), "{refusal}");
        assert!(refusal.contains("xdp.frags") && refusal.contains("\\\"plain\\\""), "{refusal}");
        empty(&bench);
        bench.applied(with_plain(1, vec![hook.clone()]));
        // Filled for others: the member can go again, and what it is filled with stays.
        put(&bench, false).unwrap();
        assert_eq!(bench.verdict(), DROP);
        let reply = bench.delete("plain").unwrap();
        let notes = reply.chains[0].notes.join("; ");
        assert!(notes.contains("multi-buffer"), "{notes}");
        assert_eq!(bench.verdict(), DROP);
        empty(&bench);
        bench.publish("p", "1.1.0", "f", maps, HOOK);
        bench.applied(json!([hook]));
        put(&bench, true).unwrap();
        assert_eq!(bench.verdict(), DROP);
    }
}

/// Redirects by device maps, and counts.
fn devices(pinned: bool) -> String {
    let pinned = if pinned { "__uint(pinning, LIBBPF_PIN_BY_NAME);" } else { "" };
    format!(
        "struct {{ __uint(type, BPF_MAP_TYPE_DEVMAP); __uint(max_entries, 4); {pinned} __type(key, __u32); __type(value, __u32); }} dev SEC(\".maps\");\n\
         struct {{ __uint(type, BPF_MAP_TYPE_DEVMAP_HASH); __uint(max_entries, 4); {pinned} __type(key, __u32); __type(value, struct bpf_devmap_val); }} devh SEC(\".maps\");\n\
         struct {{ __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 5); __uint(map_flags, BPF_F_NO_COMMON_LRU); {pinned} __type(key, __u32); __type(value, __u64); }} lru SEC(\".maps\");\n\
         SEC(\"xdp\") int f(struct xdp_md *ctx) {{ __u32 one = 1; __u64 two = 2; bpf_map_update_elem(&lru, &one, &two, BPF_ANY); \
         if (ctx->rx_queue_index > 100) return bpf_redirect_map(&devh, 7, XDP_PASS); return bpf_redirect_map(&dev, 0, XDP_PASS); }}"
    )
}

#[test]
fn maps_that_the_kernel_adjusts_are_kept() {
    for pinned in [false, true] {
        let mut bench = Bench::new();
        publish_plain(&mut bench);
        bench.publish("p", "1.0.0", "f", "", &devices(pinned));
        let one = json!({ "name": "one", "package": "p" });
        bench.applied(with_plain(1, vec![one.clone()]));
        let link = bench.host.exec(&["ip", "-o", "link", "show", HOST_LINK]);
        let index: u32 = link.split(':').next().unwrap().trim().parse().unwrap();
        bench
            .host
            .here(|| bench.map("one", "dev").update(&[0; 4], &index.to_ne_bytes(), 0))
            .unwrap();
        assert_eq!(bench.verdict(), 4, "redirected");
        let ids = |bench: &Bench| ["dev", "devh", "lru"].map(|map| bench.map("one", map).info().id);
        let before = ids(&bench);
        let notes = bench.applied(with_plain(2, vec![one.clone()]));
        assert_eq!(ids(&bench), before, "{notes:?}");
        assert_eq!(bench.verdict(), 4);
        let two = json!({ "name": "two", "package": "p" });
        bench.applied(with_plain(2, vec![one, two]));
        assert_eq!(bench.verdict(), 4);
    }
}

/// Counts in a map that others use too.
fn shared_counter(value: &str, pinned: bool) -> String {
    let pinned = if pinned { "__uint(pinning, LIBBPF_PIN_BY_NAME);" } else { "" };
    format!(
        "struct value {{ __u64 count; {value} }};\n\
         struct {{ __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); {pinned} __type(key, __u32); __type(value, struct value); }} all SEC(\".maps\");\n\
         SEC(\"xdp\") int f(struct xdp_md *ctx) {{ __u32 zero = 0; struct value *v = bpf_map_lookup_elem(&all, &zero); if (v) v->count++; return XDP_PASS; }}"
    )
}

#[test]
fn a_shared_map_changes_shape_with_all_its_users() {
    for (maps, pinned) in [("maps:\n- { name: all, shared: host }\n", false), ("", true)] {
        let mut bench = Bench::new();
        bench.interface("d1");
        let one = json!([{ "name": "one", "package": "p" }, { "name": "two", "package": "p" }]);
        let far = json!([{ "name": "far", "package": "p" }]);
        bench.publish("p", "1.0.0", "f", maps, &shared_counter("", pinned));
        bench.applied(one.clone());
        bench.verdict();
        // Alone.
        bench.publish("p", "1.1.0", "f", maps, &shared_counter("__u64 more;", pinned));
        let notes = bench.applied(one.clone());
        assert!(
            notes.iter().any(|note| note.contains("\"all\"") && note.contains("value size")),
            "{notes:?}"
        );
        assert_eq!(bench.number("one", "all", 0, 0), 0);
        bench.verdict();
        assert_eq!(bench.number("two", "all", 0, 0), 2, "one map");
        bench.apply_all(&[("d1", far.clone())], &options()).unwrap();
        // With another chain: refused without it, done with it.
        bench.publish("p", "1.2.0", "f", maps, &shared_counter("__u64 more[2];", pinned));
        if pinned {
            // Its scope is the interface: the other chain has a map of its own.
            bench.applied(one.clone());
        } else {
            let refusal = bench.refusal(&[(HOST_LINK, one.clone())]);
            assert!(refusal.contains("\\\"far\\\"") && refusal.contains("value size"), "{refusal}");
            let all = [(HOST_LINK, one.clone()), ("d1", far.clone())];
            bench.apply_all(&all, &Options { atomic: true, ..options() }).unwrap();
        }
        bench.verdict();
        assert_eq!(bench.number("one", "all", 0, 0), 2);
        assert_eq!(bench.verdict_on("d1"), PASS);
        let expected = if pinned { 2 } else { 3 };
        assert_eq!(bench.number("one", "all", 0, 0), expected);
    }
}

#[test]
fn a_map_that_becomes_pinned_by_name_keeps_its_contents() {
    let mut bench = Bench::new();
    let maps = "maps:\n- { name: all, carry_over: true }\n";
    let one = json!([{ "name": "one", "package": "p" }]);
    bench.publish("p", "1.0.0", "f", maps, &shared_counter("", false));
    bench.applied(one.clone());
    bench.verdict();
    bench.publish("p", "1.1.0", "f", maps, &shared_counter("", true));
    bench.applied(one.clone());
    assert_eq!(bench.number("one", "all", 0, 0), 1);
    let two = json!([{ "name": "one", "package": "p" }, { "name": "two", "package": "p" }]);
    bench.applied(two.clone());
    bench.verdict();
    assert_eq!(bench.number("two", "all", 0, 0), 3, "shared now");
    // And back: each has its own, with what was in it.
    bench.publish("p", "1.2.0", "f", maps, &shared_counter("", false));
    bench.applied(two);
    bench.verdict();
    assert_eq!([bench.number("one", "all", 0, 0), bench.number("two", "all", 0, 0)], [4, 4]);
}

#[test]
fn an_object_says_which_maps_it_pins_by_name() {
    let chains = Chains::new();
    let names = |pinned| chains.kernel.pinned_by_name(&compile_text(&shared_counter("", pinned)));
    assert_eq!(names(true), ["all"]);
    assert_eq!(names(false), [""; 0]);
    assert_eq!(chains.kernel.pinned_by_name(b"no object"), [""; 0]);
}

#[test]
fn a_shared_program_array_has_one_kind_of_programs() {
    let chains = Chains::new();
    let object = compile_text(
        "struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __uint(pinning, LIBBPF_PIN_BY_NAME); \
         __uint(key_size, 4); __uint(value_size, 4); } hooks SEC(\".maps\");\n\
         SEC(\"xdp\") int x(struct xdp_md *ctx) { bpf_tail_call(ctx, &hooks, 0); return XDP_PASS; }\n\
         SEC(\"tc\") int t(struct __sk_buff *ctx) { bpf_tail_call(ctx, &hooks, 0); return 0; }",
    );
    chains.load(Hook::Xdp, 1, vec![member("one", Hook::Xdp, &object, "x")]);
    let tc = || vec![member("two", Hook::TcIngress, &object, "t")];
    let error = chains.prepare(Hook::TcIngress, 1, tc()).unwrap_err();
    let KernelError::SharedMap { member: blamed, reason, users, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(blamed.as_str(), "two");
    assert_eq!(users, [Chains::key(Hook::Xdp)]);
    assert!(reason.contains("\"hooks\"") && reason.contains("\"one\""), "{reason}");
    chains.kernel.discard(&Chains::key(Hook::Xdp), 1).unwrap();
    chains.load(Hook::TcIngress, 1, tc());
}

/// What a map holds, as foreign eyes see it.
fn dump(bench: &Bench, member: &str, map: &str) -> String {
    let path = bench.map_path(HOST_LINK, member, map);
    let output = std::process::Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A program that the verifier refuses.
fn publish_refused(bench: &mut Bench) {
    let source = "SEC(\"xdp\") int bad(struct xdp_md *ctx)\n\
                  { return *(volatile int *)((long)ctx->data + 5); }";
    bench.publish("bad", "1.0.0", "bad", "", source);
}

#[test]
fn a_dry_run_or_failed_change_writes_into_no_shared_map() {
    let mut bench = Bench::new();
    let maps = "maps:\n- { name: ports, shared: host }\n- { name: slots, shared: host }\n";
    bench.publish("p", "1.0.0", "f", &format!("{PORTS_CONFIG}{maps}"), PORTS);
    publish_refused(&mut bench);
    bench.interface("d1");
    bench.interface("d2");
    let one = || json!([ports("one", &[443], 7)]);
    let all = [(HOST_LINK, one()), ("d1", json!([ports("far", &[443], 7)]))];
    bench.apply_all(&all, &options()).unwrap();
    // Somebody takes one setting away and writes over another.
    bench.map("one", "ports").delete(&443_u16.to_ne_bytes()).unwrap();
    bench.map("one", "slots").update(&[0; 4], &[200; 16], 0).unwrap();
    let contents = |bench: &Bench| ["ports", "slots"].map(|map| dump(bench, "one", map));
    let lost = contents(&bench);

    let dry = Options { dry_run: true, ..options() };
    let reply = bench.apply_all(&[(HOST_LINK, one())], &dry).unwrap();
    assert!(reply.chains[0].notes.join(";").contains("put back"), "{:?}", reply.chains[0].notes);
    assert_eq!(contents(&bench), lost, "a dry run");
    // Another member is refused behind it.
    let refused = json!([ports("one", &[443], 7), { "name": "bad", "package": "bad" }]);
    bench.refusal(&[(HOST_LINK, refused)]);
    assert_eq!(contents(&bench), lost, "a change that cannot be prepared");
    // Another chain of the same step cannot be attached: its hook is somebody else's.
    let (other, _) = target(false);
    let held = bench.host.here(|| {
        let index = nix::net::if_::if_nametoindex("d2").unwrap();
        sys::link_create(&other, index, sys::LinkTarget::XdpNative).unwrap()
    });
    let both = [(HOST_LINK, one()), ("d2", json!([ports("third", &[443], 7)]))];
    let atomic = Options { atomic: true, ..options() };
    bench.apply_all(&both, &atomic).unwrap_err();
    assert_eq!(contents(&bench), lost, "a change that cannot be attached");
    drop(held);
    // A change that is made puts them back, for all who share the map.
    bench.apply_all(&both, &atomic).unwrap();
    assert_eq!(bench.keys("one", "ports"), keys(&[443]));
    assert_eq!(bench.verdict(), PASS);
    assert_eq!(bench.verdict_on("d1"), PASS);
    assert_eq!(bench.apply_all(&both, &dry).unwrap().chains[0].notes, [""; 0]);
}

/// Writes some of its own settings: variables, parts of a slot, values and entries of hashes.
const WRITER: &str = "
volatile __u32 budget = 1, limit = 1, window[4] = { 1 };
struct value { __u32 rate, tokens; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2); __type(key, __u32); __type(value, struct value); } slots SEC(\".maps\");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, __u16); __type(value, __u32); } hits SEC(\".maps\");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, __u16); __type(value, __u32); } once SEC(\".maps\");
static __attribute__((noinline)) void spend(struct value *slot) { slot->tokens--; }
SEC(\"xdp\") int f(struct xdp_md *ctx)
{
	__u16 port = 80;
	__u32 zero = 0, one = 1, *hit = bpf_map_lookup_elem(&hits, &port);
	struct value *slot = bpf_map_lookup_elem(&slots, &zero), *other = bpf_map_lookup_elem(&slots, &one);

	if (budget)
		budget--;
	window[ctx->rx_queue_index & 3]++;
	if (slot)
		spend(slot);
	if (other)
		other->rate++;
	if (hit)
		++*hit;
	bpf_map_delete_elem(&once, &port);
	return limit > 100 || (slot && slot->rate > 100) ? XDP_TX : XDP_PASS;
}";

const WRITER_CONFIG: &str = "
config:
- { name: budget, type: u32, description: d, default: 1, bind: { global: budget } }
- { name: limit, type: u32, description: d, default: 1, bind: { global: limit } }
- { name: rate, type: u32, description: d, default: 1, bind: { map: slots, slot: 0, value_size: 8 } }
- { name: tokens, type: u32, description: d, default: 1, bind: { map: slots, slot: 0, offset: 4, value_size: 8 } }
- { name: hits, type: ports, description: d, default: [], max: 4, bind: { keys: hits } }
- { name: once, type: ports, description: d, default: [], max: 4, bind: { keys: once } }
";

#[test]
fn settings_that_programs_write_are_left_as_they_are() {
    for maps in [
        "",
        "maps:\n- { name: .data, shared: host }\n- { name: slots, shared: host }\n\
         - { name: hits, shared: host }\n- { name: once, shared: host }\n",
    ] {
        let mut bench = Bench::new();
        publish_plain(&mut bench);
        bench.publish("w", "1.0.0", "f", &format!("{WRITER_CONFIG}{maps}"), WRITER);
        let writer = |budget: u32, limit: u32| {
            json!({ "name": "one", "package": "w", "config": {
                "budget": budget, "limit": limit, "rate": 1, "tokens": 10,
                "hits": [80, 443], "once": [80, 443] } })
        };
        // Budget, tokens, hits of port 80, ports that were not met yet.
        let left = |bench: &Bench| {
            let data = bench.map("one", ".data").lookup(&[0; 4]).unwrap().unwrap();
            let slot = bench.map("one", "slots").lookup(&[0; 4]).unwrap().unwrap();
            let hits = bench.map("one", "hits").lookup(&80_u16.to_ne_bytes()).unwrap().unwrap();
            (data[..4].to_vec(), slot[4..].to_vec(), hits, bench.keys("one", "once"))
        };
        let now = |budget: u32, tokens: u32, hits: u32| {
            let [budget, tokens, hits] = [budget, tokens, hits].map(|n| n.to_ne_bytes().to_vec());
            (budget, tokens, hits, keys(&[443]))
        };
        bench.applied(with_plain(1, vec![writer(9, 7)]));
        for _ in 0..3 {
            assert_eq!(bench.verdict(), PASS);
        }
        assert_eq!(left(&bench), now(6, 7, 3), "{maps}");
        // The same again: nothing is done.
        let reply = bench.apply(with_plain(1, vec![writer(9, 7)])).unwrap();
        assert_eq!(reply.chains[0].action, Action::Unchanged, "{:?}", reply.chains[0]);
        // Another program's setting, and another setting of its own.
        bench.applied(with_plain(2, vec![writer(9, 7)]));
        assert_eq!(left(&bench), now(6, 7, 3), "{maps}");
        bench.applied(with_plain(2, vec![writer(9, 8)]));
        assert_eq!(left(&bench), now(6, 7, 3), "{maps}");
        // What it only reads is put back as ever.
        bench.map("one", "slots").update(&[0; 4], &[200; 8], 0).unwrap();
        assert_eq!(bench.verdict(), TX);
        bench.applied(with_plain(2, vec![writer(9, 8)]));
        assert_eq!(bench.verdict(), PASS, "{maps}");
        bench.map("one", "hits").delete(&443_u16.to_ne_bytes()).unwrap();
        bench.applied(with_plain(2, vec![writer(9, 8)]));
        assert_eq!(bench.keys("one", "hits"), keys(&[80, 443]), "it removes none of those");
        // And what the document changes is in effect.
        bench.applied(with_plain(2, vec![writer(20, 8)]));
        assert_eq!(left(&bench).0, 20_u32.to_ne_bytes(), "{maps}");
    }
}

#[test]
fn a_copy_tells_what_of_the_kernels_starts_anew() {
    let mut bench = Bench::new();
    let source = "
struct value { struct bpf_timer timer; __u32 limit; __u32 seen; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, struct value); } flows SEC(\".maps\");
struct bpf_spin_lock guard SEC(\".data.own\");
volatile __u32 number SEC(\".data.own\") = 1;
SEC(\"xdp\") int f(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct value *value = bpf_map_lookup_elem(&flows, &zero);

	if (!value)
		return XDP_ABORTED;
	bpf_timer_init(&value->timer, &flows, 1);
	value->seen++;
	bpf_spin_lock(&guard);
	bpf_spin_unlock(&guard);
	return number > 100 || value->limit > 100 ? XDP_TX : XDP_PASS;
}";
    let config = "
config:
- { name: limit, type: u32, description: d, default: 1, bind: { map: flows, slot: 0, offset: 16, value_size: 24 } }
- { name: number, type: u32, description: d, default: 1, bind: { global: number } }
";
    publish_plain(&mut bench);
    bench.publish("p", "1.0.0", "f", config, source);
    let one = |limit: u32, number: u32| json!({ "name": "one", "package": "p", "config": { "limit": limit, "number": number } });
    bench.applied(with_plain(1, vec![one(1, 1)]));
    assert_eq!(bench.verdict(), PASS);
    // Kept: nothing starts anew.
    let anew = |notes: &[String]| -> Vec<String> {
        notes.iter().filter(|note| note.contains("starts anew")).cloned().collect()
    };
    assert_eq!(anew(&bench.applied(with_plain(2, vec![one(1, 1)]))), [""; 0]);
    let notes = anew(&bench.applied(with_plain(2, vec![one(200, 1)])));
    assert!(notes.len() == 1 && notes[0].contains("\"one\": map \"flows\""), "{notes:?}");
    assert!(notes[0].contains("\"timer\" (bpf_timer)"), "{notes:?}");
    assert_eq!(bench.verdict(), TX);
    assert_eq!(bench.number("one", "flows", 0, 16) >> 32, 2, "what is the program's is copied");
    let notes = anew(&bench.applied(with_plain(2, vec![one(1, 200)])));
    let section = notes.iter().find(|note| note.contains("\".data.own\"")).unwrap();
    assert!(section.contains("\"guard\" (bpf_spin_lock)"), "{notes:?}");
    assert_eq!(bench.verdict(), TX);
}

#[test]
fn settings_put_back_into_a_shared_map_can_be_taken_back() {
    let chains = Chains::new();
    let object = compile_text(
        "struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, __u16); __type(value, __u32); } \
         ports SEC(\".maps\");\n\
         SEC(\"xdp\") int x(struct xdp_md *ctx) { __u16 port = 80; return bpf_map_lookup_elem(&ports, &port) ? XDP_DROP : XDP_PASS; }\n\
         SEC(\"tc\") int t(struct __sk_buff *ctx) { __u16 port = 80; return bpf_map_lookup_elem(&ports, &port) ? 2 : 0; }",
    );
    let with_ports = |name: &str, hook: Hook, function: &str| {
        let entry =
            |port: u16, place: u32| (port.to_ne_bytes().to_vec(), place.to_ne_bytes().to_vec());
        let entries = vec![entry(80, 0), entry(443, 1)];
        let mut member = member(name, hook, &object, function);
        member.map_entries = vec![MapContents { map: "ports".to_owned(), entries }];
        let scope = ShareScope::Interface;
        member.shared_maps = vec![SharedMap { map: "ports".to_owned(), scope }];
        vec![member]
    };
    chains.load(Hook::TcIngress, 1, with_ports("two", Hook::TcIngress, "t"));
    chains.load(Hook::Xdp, 1, with_ports("one", Hook::Xdp, "x"));
    let map = chains.map(Hook::Xdp, 1, "one", "ports");
    let held = || [80_u16, 443].map(|port| map.lookup(&port.to_ne_bytes()).unwrap());
    let all = held();
    map.delete(&80_u16.to_ne_bytes()).unwrap();
    map.update(&443_u16.to_ne_bytes(), &9_u32.to_ne_bytes(), 0).unwrap();
    let lost = held();
    assert_ne!(lost, all);
    chains.load(Hook::Xdp, 2, with_ports("one", Hook::Xdp, "x"));
    assert_eq!(held(), lost, "prepared");
    let key = Chains::key(Hook::Xdp);
    assert_eq!(chains.kernel.restore_shared_settings(&key, 2).unwrap(), None);
    assert_eq!(held(), all);
    chains.kernel.undo_restored_settings(&key, 2).unwrap();
    assert_eq!(held(), lost, "as it was");
    assert_eq!(chains.kernel.restore_shared_settings(&key, 2).unwrap(), None);
    chains.kernel.keep_restored_settings(&key, 2);
    chains.kernel.undo_restored_settings(&key, 2).unwrap();
    chains.kernel.discard(&key, 1).unwrap();
    assert_eq!(held(), all, "committed, it stays");
    // A preparation that is dropped has nothing left to be done.
    map.delete(&80_u16.to_ne_bytes()).unwrap();
    chains.load(Hook::Xdp, 3, with_ports("one", Hook::Xdp, "x"));
    chains.kernel.discard(&key, 3).unwrap();
    assert_eq!(chains.kernel.restore_shared_settings(&key, 3).unwrap(), None);
    assert_eq!(held()[0], None);
}
