//! Maps by the command line: who may look, who may write, and what the packets make of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: a failure is the message"
)]

use canopy_e2e::{Answer, BLOCKED, INTERFACE, World};
use canopy_test_support::{compile_text, pair::PEER_IP};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// `canopy map <verb> v0 xdp <program> <map> …`
fn map(world: &World, role: &str, verb: &str, rest: &[&str]) -> Answer {
    let (place, rest) = rest.split_at(2);
    let arguments = [&["map", verb, INTERFACE, "xdp"], place, rest].concat();
    world.canopy_as(role, &arguments).unwrap()
}

/// The key of a source in the limiter's map.
fn source(address: Ipv4Addr) -> String {
    let bytes = address.to_ipv6_mapped().octets();
    json!({ "address": { "bytes": bytes }, "kind": 4 }).to_string()
}

fn dump(world: &World, program: &str, name: &str, options: &[&str]) -> Vec<Value> {
    let rest = [&[program, name, "-o", "json"], options].concat();
    let answer: Value = map(world, "viewer", "dump", &rest).json().unwrap();
    answer["entries"].as_array().unwrap().clone()
}

#[test]
fn an_operator_writes_what_packets_feel_and_a_viewer_only_looks() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 20);

    // A bucket that another CPU is bringing to another rate lets nothing pass.
    let bucket = json!({ "full_at": 0, "interval": u64::MAX });
    let (key, value) = (source(PEER_IP), bucket.to_string());
    let entry = ["limit", "rl_sources", &key, &value];
    for role in ["viewer", "publisher"] {
        let answer = map(&world, role, "set", &entry);
        assert_eq!(answer.code, 6, "{role}: {}{}", answer.out, answer.err);
        let answer = map(&world, role, "delete", &entry[..3]);
        assert_eq!(answer.code, 6, "{role}: {}{}", answer.out, answer.err);
    }
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 20, "written by who may not");

    let rehearsed = map(&world, "operator", "set", &[&entry[..], &["--dry-run"]].concat());
    assert!(
        rehearsed.text().unwrap().contains("1 entry of v0/xdp/limit/rl_sources would be written")
    );
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 20, "a rehearsal was written");

    let written = map(&world, "operator", "set", &entry);
    assert_eq!(written.text().unwrap(), "e2e: 1 entry of v0/xdp/limit/rl_sources written\n");
    assert_eq!(
        world.send(PEER_IP, 20).unwrap(),
        0,
        "what was written is not what the program reads"
    );
    let got: Value =
        map(&world, "viewer", "get", &[&entry[..3], &["-o", "json"]].concat()).json().unwrap();
    assert_eq!(got["entries"][0]["value"], bucket);
    assert_eq!(got["entries"][0]["key"]["address"], json!(PEER_IP));

    map(&world, "operator", "delete", &entry[..3]).text().unwrap();
    assert_eq!(world.send(PEER_IP, 20).unwrap(), 20);
    world.end().unwrap();
}

#[test]
fn maps_are_listed_and_dumped_with_types_and_sums() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    assert_eq!(world.send(BLOCKED, 30).unwrap(), 0);
    assert_eq!(world.send(PEER_IP, 12).unwrap(), 12);

    let list: Vec<Value> =
        world.canopy_as("viewer", &["map", "list", "-o", "json"]).unwrap().json().unwrap();
    let named = |name: &str| list.iter().find(|info| info["map"] == name).unwrap().clone();
    assert_eq!(named("fw_blocked4")["type"], "lpm_trie");
    assert_eq!(named("fw_blocked4")["settings"], json!(["blocked"]));
    assert_eq!(
        named("rl_settings")["value_type"],
        "struct settings { __u32 rate; __u32 burst; __u32 ipv6_prefix; }"
    );
    let text = world.canopy_as("viewer", &["map", "list", INTERFACE, "xdp", "limit"]).unwrap();
    let text = text.text().unwrap();
    assert!(
        text.starts_with("HOST") && text.contains("rl_sources") && !text.contains("fw_"),
        "{text}"
    );
    let described = map(&world, "viewer", "describe", &["blocklist", ".rodata"]);
    let described = described.text().unwrap();
    assert!(described.contains("drop_malformed"), "{described}");

    // Slot 0 counts what was blocked; each CPU's value and their sum are told.
    let totals = dump(&world, "blocklist", "fw_totals", &[]);
    assert_eq!((&totals[0]["key"], &totals[0]["sum"]), (&json!(0), &json!(30)));
    assert_eq!(dump(&world, "blocklist", "fw_totals", &["--limit", "2"]), totals[..2]);
    let blocked = dump(&world, "blocklist", "fw_blocked4", &[]);
    assert_eq!(blocked.len(), 1);
    assert_eq!(blocked[0]["value"]["prefix_len"], json!(24), "{blocked:?}");
    let settings = dump(&world, "limit", "rl_settings", &[]);
    assert_eq!(settings[0]["value"]["rate"], json!(10_000_000));
    world.end().unwrap();
}

#[test]
fn what_is_wrong_is_said_in_a_line_with_what_is_there() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    for (arguments, code, said) in [
        (
            &["dump", "limit", "rl_source"][..],
            4,
            "the program has rl_settings, rl_sources, rl_totals",
        ),
        (&["dump", "limits", "x"], 4, "the chain has blocklist, limit"),
        (&["get", "limit", "rl_totals", "x"], 2, "\"x\" is not a whole number"),
        (&["get", "limit", "rl_totals", "9"], 4, "v0/xdp/limit/rl_totals has no entry for 9"),
        (
            &["set", "limit", "rl_settings", "0", "{}"],
            2,
            "is filled by the setting \"rate\" of \"limit\"",
        ),
        (&["set", "limit", "rl_totals", "0", "-1"], 2, "-1 is out of range"),
        (&["delete", "limit", "rl_totals", "0"], 2, "entries of an array are always there"),
        (&["describe", "limit", "rl_sorces"], 4, "did you mean \"rl_sources\"?"),
        (&["set", "limit", "rl_totals", "0"], 2, "one key and one value are needed"),
    ] {
        let answer = map(&world, "operator", arguments[0], &arguments[1..]);
        assert_eq!(answer.code, code, "{arguments:?}: {}{}", answer.out, answer.err);
        assert!(answer.err.contains(said), "{arguments:?}: {}", answer.err);
    }
    let file = world.dir().join("entries.yaml");
    std::fs::write(&file, "- { key: 0, value: 5 }\n- { key: 1, value: 6 }\n").unwrap();
    let written =
        map(&world, "operator", "set", &["limit", "rl_totals", "-f", file.to_str().unwrap()]);
    assert_eq!(written.text().unwrap(), "e2e: 2 entries of v0/xdp/limit/rl_totals written\n");
    world.end().unwrap();
}

const WATCH: &str = r#"
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct event { __u32 bytes; char from[8]; };

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
	__type(value, struct event);
} events SEC(".maps");

SEC("xdp")
int watch(struct xdp_md *ctx)
{
	struct event event = { .bytes = ctx->data_end - ctx->data, .from = "watch" };

	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
"#;

#[test]
fn a_ring_buffer_is_followed_by_who_may_write() {
    let world = World::start().unwrap();
    world
        .repository()
        .publish("watch", |dir| {
            std::fs::write(
                dir.join("package.yaml"),
                "name: watch\nversion: 0.1.0\ndescription: d\nlicense: GPL-2.0-only\n\
                 programs: [{ name: watch, object: watch.o, function: watch, hooks: [xdp] }]\n",
            )?;
            std::fs::remove_file(dir.join("firewall.bpf.o"))?;
            Ok(std::fs::write(dir.join("watch.o"), compile_text(WATCH)?)?)
        })
        .unwrap();
    world
        .apply(&format!(
            "chains:\n- interface: {INTERFACE}\n  hook: xdp\n  programs:\n  \
             - {{ name: a, package: watch }}\n"
        ))
        .unwrap();
    assert_eq!(world.send(PEER_IP, 40).unwrap(), 40);
    let dumped = map(&world, "operator", "dump", &["a", "events"]);
    assert_eq!(dumped.code, 8, "{}", dumped.err);
    assert!(dumped.err.contains("canopy map follow"), "{}", dumped.err);
    let refused = map(&world, "viewer", "follow", &["a", "events", "--count", "1"]);
    assert_eq!(refused.code, 6, "{}", refused.err);

    // All that was there, in order, also what came before somebody looked.
    let followed =
        map(&world, "operator", "follow", &["a", "events", "--count", "40", "-o", "json"]);
    let records: Vec<Value> =
        followed.text().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<u64> = records.iter().map(|r| r["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    assert!(records.iter().all(|r| r["record"]["from"] == "watch"), "{records:?}");
    let wrong = map(&world, "operator", "follow", &["a", "events", "--type", "struct evnt"]);
    assert!(wrong.code == 4 || wrong.code == 5, "{}", wrong.err);
    world.end().unwrap();
}
