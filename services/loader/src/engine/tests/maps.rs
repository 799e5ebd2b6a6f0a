//! Maps are read by the types of the object, and written whole or not at all.

use super::world::*;
use crate::{
    engine::{Engine, Stage},
    error::LoaderError,
};
use canopy_api::{
    ApiError, Code,
    wire::{
        AdmissionVerb, MapAccess, MapDeleteRequest, MapDumpReply, MapDumpRequest, MapEntry,
        MapGetRequest, MapListRequest, MapName, MapSetRequest, MapWrite, MapWriteWhen, PAGE_BYTES,
    },
};
use canopy_kernel::{
    Kernel as _, MapKind, MapShape,
    fake::{Call, FakeKernel, Fault},
};
use canopy_test_support::compile_text;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// The object whose types the maps of these tests have.
static OBJECT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    compile_text(
        r#"
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum state { OFF, ON };
struct count { __u64 packets; enum state state; __u32 unused; };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __be16);
	__type(value, struct count);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} cells SEC(".maps");

__u32 level = 7;
__u16 port = 80;

SEC("xdp")
int main_program(struct xdp_md *ctx)
{
	__u32 key = level + port;

	return bpf_map_lookup_elem(&counts, &key) || bpf_map_lookup_elem(&cells, &key);
}
"#,
    )
    .unwrap()
});

fn shape(kind: MapKind, key_size: u32, value_size: u32) -> MapShape {
    MapShape { kind, key_size, value_size, max_entries: 4, flags: 0, frozen: false, values: 1 }
}

/// A host whose chain on `eth0` has `a` from `block`, whose maps have the types of [`OBJECT`].
fn running() -> (World, Engine<FakeKernel>) {
    let mut world = World::new();
    world.publish_object("block", "1.0.0", &OBJECT);
    world.kernel.shape_map("counts", shape(MapKind::HASH, 2, 16));
    let cells = MapShape { values: 2, ..shape(MapKind::PERCPU_ARRAY, 4, 8) };
    world.kernel.shape_map("cells", cells);
    world.kernel.shape_map(".data", shape(MapKind::ARRAY, 4, 8));
    world.kernel.shape_map("events", shape(MapKind::RINGBUF, 0, 0));
    world.kernel.shape_map("queue", shape(MapKind::QUEUE, 0, 4));
    let constant = MapShape { frozen: true, ..shape(MapKind::ARRAY, 4, 8) };
    world.kernel.shape_map(".rodata", constant);
    let engine = world.start();
    let chain = chain("eth0", &[("a", "block", &[80, 443])]);
    world.apply(&engine, document(&[chain])).unwrap();
    (world, engine)
}

fn map(name: &str) -> MapName {
    let (interface, hook) = (eth0().interface, eth0().hook);
    MapName { netns: None, interface, hook, program: named("a"), map: name.to_owned() }
}

fn entry(key: Value, value: Value) -> MapWrite {
    MapWrite { key, value: Some(value), cpus: Vec::new() }
}

fn set(name: &str, entries: Vec<MapWrite>) -> MapSetRequest {
    MapSetRequest { map: map(name), entries, when: MapWriteWhen::Any, dry_run: false }
}

fn count(packets: u64, state: &str) -> Value {
    json!({ "packets": packets, "state": state, "unused": 0 })
}

fn dump(engine: &Engine<FakeKernel>, name: &str) -> MapDumpReply {
    engine
        .map_dump(&MapDumpRequest { map: map(name), limit: None, cursor: None }, PAGE_BYTES)
        .unwrap()
}

fn told(entries: &[MapEntry]) -> Vec<(Value, Value)> {
    entries.iter().map(|entry| (entry.key.clone(), entry.value.clone().unwrap())).collect()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, LoaderError>) -> ApiError {
    result.unwrap_err().into_api()
}

#[test]
fn entries_are_written_and_read_by_the_types_of_the_object() {
    let (world, engine) = running();
    let request = set(
        "counts",
        vec![entry(json!(80), count(5, "ON")), entry(json!(443), count(u64::MAX, "OFF"))],
    );
    let reply = engine.map_set(&request).unwrap();
    assert_eq!((reply.changed, reply.dry_run), (2, false));
    assert_eq!(
        told(&dump(&engine, "counts").entries),
        [(json!(80), count(5, "ON")), (json!(443), count(u64::MAX, "OFF"))]
    );
    // In the kernel a port is in network order.
    let generation = world.kernel.running(&eth0()).unwrap();
    let raw = world.kernel.map_entries(&eth0(), generation, &named("a"), "counts", 9).unwrap();
    assert_eq!(raw[0].0, [0, 80]);

    let keys = vec![json!(443), json!(8080)];
    let got = engine.map_get(&MapGetRequest { map: map("counts"), keys: keys.clone() }).unwrap();
    assert_eq!(told(&got.entries), [(json!(443), count(u64::MAX, "OFF"))]);
    assert_eq!(got.absent, [json!(8080)]);

    let delete = |dry_run| {
        let request = MapDeleteRequest { map: map("counts"), keys: keys.clone(), dry_run };
        let reply = engine.map_delete(&request).unwrap();
        (reply.changed, reply.absent)
    };
    assert_eq!(delete(true), (1, vec![json!(8080)]));
    assert_eq!(dump(&engine, "counts").entries.len(), 2, "a rehearsal removes nothing");
    assert_eq!(delete(false), (1, vec![json!(8080)]));
    assert_eq!(told(&dump(&engine, "counts").entries), [(json!(80), count(5, "ON"))]);
}

#[test]
fn a_write_whose_caller_left_writes_nothing() {
    let (_world, engine) = running();
    let gone = Some(std::time::Instant::now());
    let request = set("counts", vec![entry(json!(80), count(5, "ON"))]);
    let parts = |verb| engine.parts_of_map(verb, &map("counts")).unwrap();
    let asked = parts(AdmissionVerb::MapSet);
    let late = refusal(engine.map_set_as_asked(&request, gone, &asked));
    assert_eq!((late.code, late.retryable), (canopy_api::Code::Unavailable, true));
    assert!(dump(&engine, "counts").entries.is_empty());
    engine.map_set(&request).unwrap();
    let request = MapDeleteRequest { map: request.map, keys: vec![json!(80)], dry_run: false };
    let asked = parts(AdmissionVerb::MapDelete);
    assert_eq!(refusal(engine.map_delete_as_asked(&request, gone, &asked)).code, late.code);
    assert_eq!(dump(&engine, "counts").entries.len(), 1);
}

#[test]
fn a_per_cpu_entry_has_a_value_for_each_cpu_and_their_sum() {
    let (_world, engine) = running();
    let cpus = MapWrite { key: json!(0), value: None, cpus: vec![json!(u64::MAX), json!(3)] };
    engine.map_set(&set("cells", vec![cpus, entry(json!(1), json!(4))])).unwrap();
    let entries = dump(&engine, "cells").entries;
    assert_eq!(entries[0].cpus, [json!(u64::MAX), json!(3)]);
    assert_eq!(entries[0].sum, Some(json!("18446744073709551618")));
    assert_eq!((&entries[1].cpus, &entries[1].sum), (&vec![json!(4); 2], &Some(json!(8))));
    let three = MapWrite { key: json!(0), value: None, cpus: vec![json!(1); 3] };
    let error = refusal(engine.map_set(&set("cells", vec![three])));
    assert_eq!(error.remedy.unwrap(), "write \"value\" for every CPU, or \"cpus\" with 2 values");
}

#[test]
fn variables_are_entries_by_name() {
    let (world, engine) = running();
    // level, then port, then two bytes of nothing.
    let bytes = [7_u32.to_ne_bytes().to_vec(), 80_u16.to_ne_bytes().to_vec(), vec![0; 2]].concat();
    world.kernel.write_map(&eth0(), &named("a"), ".data", &[0; 4], &bytes);
    let all = told(&dump(&engine, ".data").entries);
    assert_eq!(all, [(json!("level"), json!(7)), (json!("port"), json!(80))]);
    engine.map_set(&set(".data", vec![entry(json!("port"), json!(443))])).unwrap();
    let all = told(&dump(&engine, ".data").entries);
    assert_eq!(all, [(json!("level"), json!(7)), (json!("port"), json!(443))]);
    let keys = vec![json!("level"), json!("lvel")];
    let got = engine.map_get(&MapGetRequest { map: map(".data"), keys }).unwrap();
    assert_eq!(
        (told(&got.entries), got.absent),
        (vec![(json!("level"), json!(7))], vec![json!("lvel")])
    );

    let error = refusal(engine.map_set(&set(".data", vec![entry(json!("prt"), json!(1))])));
    assert_eq!(error.path, "entries[0].key");
    assert_eq!(error.message, "\".data\" has no variable \"prt\"");
    assert_eq!(error.remedy.unwrap(), "it has level, port");
    let error = refusal(engine.map_set(&set(".rodata", vec![entry(json!("x"), json!(1))])));
    assert!(error.message.contains("is constant"), "{error}");
}

#[test]
fn a_request_is_checked_as_a_whole_before_anything_is_written() {
    let (world, engine) = running();
    world.kernel.take_log();
    let request = set(
        "counts",
        vec![
            entry(json!(1), count(1, "ON")),
            entry(json!(65536), count(1, "ON")),
            entry(json!(2), count(1, "MAYBE")),
            entry(json!(1), count(1, "ON")),
        ],
    );
    let error = refusal(engine.map_set(&request));
    assert_eq!(error.code, Code::Invalid);
    let paths: Vec<&str> = error.problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["entries[1].key", "entries[2].value.state", "entries[3].key"]);
    let rehearsal =
        MapSetRequest { dry_run: true, ..set("counts", vec![entry(json!(1), count(1, "ON"))]) };
    assert_eq!(engine.map_set(&rehearsal).unwrap().changed, 1);
    let delete =
        MapDeleteRequest { map: map("counts"), keys: vec![json!(1), json!("x")], dry_run: false };
    assert_eq!(refusal(engine.map_delete(&delete)).path, "keys[1]");
    assert_eq!(world.changing_calls(), []);
    assert!(dump(&engine, "counts").entries.is_empty());
}

#[test]
fn what_was_written_is_told_exactly_when_the_kernel_refuses_in_the_middle() {
    let (world, engine) = running();
    let entries = || (1..=3).map(|key| entry(json!(key), count(1, "ON"))).collect::<Vec<_>>();
    for (skip, said) in [
        (0, "nothing was written"),
        (1, "entries[0] was written, nothing else"),
        (2, "entries[0] to entries[1] were written, nothing else"),
    ] {
        world.kernel.inject(Call::MapWrite, skip, Fault::Fail);
        let error = refusal(engine.map_set(&set("counts", entries())));
        assert!(error.message.ends_with(said), "{error}");
        assert_eq!(error.path, format!("entries[{skip}]"));
        assert_eq!(dump(&engine, "counts").entries.len(), skip);
    }
    // A map that is full, as the kernel says it.
    engine.map_set(&set("counts", entries())).unwrap();
    let more = (4..=5).map(|key| entry(json!(key), count(1, "ON"))).collect();
    let error = refusal(engine.map_set(&set("counts", more)));
    assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "entries[1]"));
    assert_eq!(error.message, "it is full; entries[0] was written, nothing else");
    let absent = MapSetRequest { when: MapWriteWhen::Absent, ..set("counts", entries()) };
    let error = refusal(engine.map_set(&absent));
    assert_eq!(error.message, "the entry is there already; nothing was written");
}

#[test]
fn what_settings_fill_is_read_and_not_written() {
    let (world, engine) = running();
    assert_eq!(dump(&engine, "ports").entries.len(), 2);
    world.kernel.take_log();
    let write = engine.map_set(&set("ports", vec![entry(json!("0050"), json!("00000000"))]));
    let remove = engine.map_delete(&MapDeleteRequest {
        map: map("ports"),
        keys: vec![json!("0050")],
        dry_run: false,
    });
    for error in [refusal(write), refusal(remove)] {
        assert_eq!(error.message, "\"ports\" is filled by the setting \"ports\" of \"a\"");
        assert_eq!(error.remedy.unwrap(), "change the setting in the document and apply it");
    }
    assert_eq!(world.changing_calls(), []);
}

#[test]
fn what_is_taken_by_its_reader_is_neither_read_nor_written() {
    let (_world, engine) = running();
    let request = MapDumpRequest { map: map("events"), limit: None, cursor: None };
    let error = refusal(engine.map_dump(&request, PAGE_BYTES));
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.message.contains("taken from its own reader"), "{error}");
    for name in ["events", "queue"] {
        let error = refusal(engine.map_set(&set(name, vec![entry(json!(1), json!(1))])));
        assert!(error.message.contains("is not written here"), "{error}");
    }
    let get = MapGetRequest { map: map("queue"), keys: vec![json!(null)] };
    assert_eq!(refusal(engine.map_get(&get)).message, "a queue has no keys");
    let delete = MapDeleteRequest { map: map("cells"), keys: vec![json!(0)], dry_run: false };
    assert_eq!(refusal(engine.map_delete(&delete)).message, "entries of an array are always there");
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let (world, engine) = running();
    let entries = (1..=4).map(|key| entry(json!(key), count(key, "ON"))).collect();
    engine.map_set(&set("counts", entries)).unwrap();
    let page = |cursor: Option<String>| {
        engine.map_dump(&MapDumpRequest { map: map("counts"), limit: Some(3), cursor }, PAGE_BYTES)
    };
    let first = page(None).unwrap();
    assert_eq!(first.entries.len(), 3);
    let second = page(first.next.clone()).unwrap();
    assert_eq!(second.next, None);
    let keys: Vec<_> =
        first.entries.iter().chain(&second.entries).map(|entry| entry.key.clone()).collect();
    assert_eq!(keys, [1, 2, 3, 4].map(|key| json!(key)));

    let variables = |cursor| {
        engine
            .map_dump(&MapDumpRequest { map: map(".data"), limit: Some(1), cursor }, PAGE_BYTES)
            .unwrap()
    };
    world.kernel.write_map(&eth0(), &named("a"), ".data", &[0; 4], &[0; 8]);
    let port = variables(variables(None).next);
    assert_eq!((port.entries[0].key.clone(), port.next), (json!("port"), None));

    for wrong in ["x", "1-zz", "-"] {
        let error = refusal(page(Some(wrong.to_owned())));
        assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "cursor"));
    }
    // Another version, which keeps nothing of this map.
    let mut world = world;
    world.publish("block", "2.0.0");
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[80, 443])])])).unwrap();
    let error = refusal(page(first.next));
    assert_eq!(error.message, "the map was replaced since the last page");
    for limit in [0, 5000] {
        let request = MapDumpRequest { map: map("counts"), limit: Some(limit), cursor: None };
        assert_eq!(refusal(engine.map_dump(&request, PAGE_BYTES)).path, "limit");
    }
}

#[test]
fn an_answer_is_as_long_as_a_message_may_be() {
    let (world, engine) = running();
    let large = MapShape { max_entries: 100, ..shape(MapKind::HASH, 4, 100_000) };
    world.kernel.shape_map("large", large);
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[80])])])).unwrap();
    let large = vec![1; 100_000];
    for key in 0..20_u32 {
        world.kernel.write_map(&eth0(), &named("a"), "large", &key.to_be_bytes(), &large);
    }
    let (mut cursor, mut seen) = (None, 0);
    loop {
        let request = MapDumpRequest { map: map("large"), limit: Some(4096), cursor };
        let reply = engine.map_dump(&request, PAGE_BYTES).unwrap();
        assert!(serde_json::to_vec(&reply).unwrap().len() < 768 << 10);
        seen += reply.entries.len();
        cursor = reply.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, 20);
}

#[test]
fn little_json_does_not_take_much_memory() {
    let (world, engine) = running();
    let wide = MapShape { values: 4096, ..shape(MapKind::PERCPU_HASH, 4, 100_000) };
    world.kernel.shape_map("wide", wide);
    world.apply(&engine, document(&[chain("eth0", &[("a", "block", &[80])])])).unwrap();
    let error = refusal(engine.map_set(&set("wide", vec![entry(json!("00000000"), json!("00"))])));
    assert_eq!(error.message, "1 entries of 409600000 bytes in one request");
    let many = vec![entry(json!(1), count(1, "ON")); 5000];
    assert_eq!(
        refusal(engine.map_set(&set("counts", many))).message,
        "5000 entries in one request"
    );
}

#[test]
fn names_that_are_not_there_are_answered_with_those_that_are() {
    let (_world, engine) = running();
    let ask = |map| {
        refusal(engine.map_dump(&MapDumpRequest { map, limit: None, cursor: None }, PAGE_BYTES))
    };
    let error = ask(MapName { interface: eth1().interface, ..map("counts") });
    assert_eq!(error.remedy.unwrap(), "this host has eth0/xdp");
    let error = ask(MapName { program: named("b"), ..map("counts") });
    assert_eq!(error.remedy.unwrap(), "the chain has a");
    let error = ask(map("count"));
    assert_eq!(error.code, Code::NotFound);
    assert_eq!(error.message, "program \"a\" of the chain on eth0/xdp has no map \"count\"");
    assert_eq!(
        error.remedy.unwrap(),
        "the program has .data, .rodata, cells, counts, events, ports, queue"
    );
}

#[test]
fn the_list_tells_types_settings_and_what_can_be_done() {
    let (_world, engine) = running();
    let list = engine.map_list(&MapListRequest::default(), PAGE_BYTES).unwrap();
    let info = |name: &str| list.maps.iter().find(|info| info.name.map == name).unwrap().clone();
    let counts = info("counts");
    assert_eq!((counts.kind.as_str(), counts.access), ("hash", MapAccess::ReadWrite));
    assert_eq!(counts.key_type.unwrap(), "__be16");
    assert_eq!(
        counts.value_type.unwrap(),
        "struct count { __u64 packets; enum state { OFF, ON } state; __u32 unused; }"
    );
    assert_eq!(info("ports").settings, ["ports"]);
    assert_eq!(info("events").access, MapAccess::Nothing);
    assert_eq!(info("queue").access, MapAccess::Peek);
    assert_eq!(info(".rodata").access, MapAccess::Read);
    assert_eq!(info("cells").values, 2);
    let variables: Vec<_> =
        info(".data").variables.into_iter().map(|v| (v.name, v.kind.unwrap())).collect();
    assert_eq!(
        variables,
        [("level", "__u32"), ("port", "__u16")].map(|(n, t)| (n.to_owned(), t.to_owned()))
    );
    let other = MapListRequest { program: Some(named("b")), ..MapListRequest::default() };
    assert_eq!(engine.map_list(&other, PAGE_BYTES).unwrap().maps, []);
}

#[test]
fn nothing_is_written_while_a_change_is_in_between() {
    let (world, engine) = running();
    // One chain goes, the other cannot come, and the first cannot come back for now.
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    world.kernel.inject(Call::Switch, 0, Fault::Fail);
    let swap = document(&[chain("eth0", &[]), chain("eth1", &[("a", "block", &[])])]);
    world.apply_with(&engine, swap, &atomic()).unwrap_err();
    world.kernel.inject(Call::Observe, 0, Fault::Fail);
    let error = refusal(engine.map_set(&set("counts", vec![entry(json!(1), count(1, "ON"))])));
    assert_eq!(error.code, Code::Unavailable, "{error}");
    world.kernel.clear_faults();
    engine.map_set(&set("counts", vec![entry(json!(1), count(1, "ON"))])).unwrap();
}

/// How far the two threads of the test below have come.
static STEP: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

#[test]
fn what_is_written_during_a_change_is_in_the_generation_that_runs() {
    use std::sync::atomic::Ordering::SeqCst;
    let (mut world, engine) = running();
    // Another version, which keeps nothing of the map.
    world.publish_object("block", "2.0.0", &[OBJECT.as_slice(), &[0]].concat());
    let before = world.kernel.running(&eth0()).unwrap();
    at_stage(Stage::Prepared, |_| {
        STEP.store(1, SeqCst);
        // Until the writer has begun, as far as can be seen.
        while STEP.load(SeqCst) != 2 {
            std::thread::yield_now();
        }
    });
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            while STEP.load(SeqCst) != 1 {
                std::thread::yield_now();
            }
            STEP.store(2, SeqCst);
            engine.map_set(&set("counts", vec![entry(json!(1), count(1, "ON"))])).unwrap()
        });
        let next = document(&[chain("eth0", &[("a", "block", &[80, 443])])]);
        world.apply(&engine, next).unwrap();
        let now = world.kernel.running(&eth0()).unwrap();
        assert_ne!(now, before);
        assert_eq!(writer.join().unwrap().generation, now);
    });
    assert_eq!(told(&dump(&engine, "counts").entries), [(json!(1), count(1, "ON"))]);
}
