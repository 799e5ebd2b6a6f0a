//! What a manifest may not say, and where it must agree with its objects.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::document::Format;
use canopy_package::Manifest;
use common::{EVERYTHING, everything};

/// Paths of the problems of the full manifest with one thing changed.
fn read(from: &str, to: &str) -> Vec<String> {
    assert!(EVERYTHING.contains(from), "{from} is not in the manifest");
    let changed = EVERYTHING.replace(from, to);
    match Manifest::read(&changed, Format::Yaml) {
        Ok(_) => Vec::new(),
        Err(bad) => bad.0.into_iter().map(|problem| problem.path).collect(),
    }
}

/// The same for problems that only the objects show.
fn compare(from: &str, to: &str) -> Vec<String> {
    assert!(EVERYTHING.contains(from), "{from} is not in the manifest");
    let mut package = everything();
    package.manifest = Manifest::read(&EVERYTHING.replace(from, to), Format::Yaml).unwrap();
    match package.check_objects() {
        Ok(()) => Vec::new(),
        Err(bad) => bad.0.into_iter().map(|problem| problem.path).collect(),
    }
}

#[test]
fn a_manifest_is_checked_in_itself() {
    for (from, to, path) in [
        ("kernel: \"6.10\"", "kernel: new", "requires.kernel"),
        ("name: main,", "name: Main,", "programs[0].name"),
        ("name: out,", "name: main,", "programs[1].name"),
        ("[tc-ingress, tc-egress]", "[tc-ingress, xdp]", "programs[1].hooks"),
        ("[pass, tx]", "[pass, ok]", "programs[0].proceed_on[1]"),
        ("name: rate,", "name: Rate,", "config[0].name"),
        ("default: 5,", "default: 50,", "config[0].default"),
        ("default: 10s,", "default: 10,", "config[1].default"),
        ("offset: 8, value_size: 16", "offset: 9, value_size: 16", "config[1].bind.value_size"),
        ("offset: 8, value_size: 16", "offset: 2, value_size: 16", "config[1].bind"),
        ("offset: 8, value_size: 16", "offset: 8, value_size: 20", "config[1].bind.value_size"),
        ("bind: { global: peer }", "bind: { global: loud }", "config[3].bind"),
        ("bind: { keys: ports }", "bind: { global: ports }", "config[5].bind"),
        ("max: 15, bind", "bind", "config[4].max"),
        ("lpm_v6: blocked6", "lpm_v6: blocked4", "config[6].bind.lpm_v6"),
        ("hash_v4: hosts4", "hash_v4: allowed4", "config[7].bind.hash_v4"),
        ("hash_v6: hosts6", "hash_v6: hosts4", "config[7].bind.hash_v6"),
        ("hash_v4: hosts4", "hash_v4: blocked4", "config[7].bind"),
        ("filled: allowed_in", "filled: loud", "config[7].bind"),
        ("{ name: seen,", "{ name: Seen,", "metrics[0].name"),
        ("config: blocked }", "config: blokced }", "metrics[3].select.items.config"),
        ("config: blocked }", "config: rate }", "metrics[3].select.items.config"),
        ("label: rule,", "label: hook,", "metrics[3].select.items.label"),
        ("label: rule,", "label: netns,", "metrics[3].select.items.label"),
        ("name: sources,", "name: seen_total,", "metrics[1].name"),
        ("name: bytes, help", "name: seen_total, help", "metrics[2].name"),
        ("count: 5,", "count: 500,", "metrics[4].select.top.count"),
    ] {
        let paths = read(from, to);
        assert!(paths.iter().any(|found| found == path), "{from} → {to}: {paths:?}, not {path}");
    }
}

#[test]
fn metrics_that_are_exported_under_one_name_are_both_named() {
    let said = |changed: &str| match Manifest::read(changed, Format::Yaml) {
        Ok(_) => Vec::new(),
        Err(bad) => bad.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
    };
    let package = EVERYTHING.lines().find_map(|line| line.strip_prefix("name: ")).unwrap();
    let said_twice = said(&EVERYTHING.replace("name: bytes, help", "name: seen_total, help"));
    let exported = format!("canopy_loader_package_{}_seen_total", package.replace('-', "_"));
    assert!(
        said_twice[0].starts_with(&format!(
            "metrics[2].name: \"seen_total\" and \"seen\" (metrics[0]) are both exported as {exported}"
        )),
        "{said_twice:?}"
    );
    // A gauge keeps its name.
    let gauge = "name: seen, help: seen, kind: gauge";
    let gauge = EVERYTHING.replace("name: seen, help: seen, kind: counter", gauge);
    assert_eq!(said(&gauge.replace("name: sources,", "name: seen_total,")), [""; 0]);
    // The loader exports canopy_loader_package_cache_bytes itself.
    let cache = EVERYTHING.replace(&format!("name: {package}\n"), "name: cache\n");
    assert_eq!(said(&cache), [""; 0], "its counter is exported as bytes_total");
    let taken = said(&cache.replace("help: bytes, kind: counter", "help: bytes, kind: gauge"));
    assert!(
        taken[0].contains("canopy_loader_package_cache_bytes, which is a metric of the loader")
    );
    assert!(taken[0].starts_with("metrics[2].name: "), "{taken:?}");
}

#[test]
fn a_manifest_must_agree_with_its_objects() {
    for (from, to, path) in [
        ("function: main_prog", "function: main_porg", "programs[0].function"),
        ("global: loud", "global: laud", "config[2].bind.global"),
        (
            "type: bool, description: loud, default: false",
            "type: u32, description: loud, default: 0",
            "config[2].bind.global",
        ),
        ("keys: ports", "keys: flows", "config[5].bind.keys"),
        (
            "lpm_v4: blocked4, lpm_v6: blocked6",
            "lpm_v4: blocked6, lpm_v6: blocked4",
            "config[6].bind.lpm_v4",
        ),
        ("default: [80, 443], max: 16", "default: [80, 443], max: 17", "config[5].bind.keys"),
        ("hash_v4: hosts4", "hash_v4: hosts", "config[7].bind.hash_v4"),
        ("hash_v4: hosts4", "hash_v4: totals", "config[7].bind.hash_v4"),
        ("hash_v6: hosts6", "hash_v6: flows", "config[7].bind.hash_v6"),
        ("filled: allowed_in", "filled: allowed_on", "config[7].bind.filled"),
        ("filled: allowed_in", "filled: wide", "config[7].bind.filled"),
        (
            "map: totals, select: { slot: 0 }",
            "map: totals, select: { slot: 16 }",
            "metrics[0].select",
        ),
        ("map: totals", "map: total", "metrics[0].map"),
        ("select: count", "select: { slot: 0 }", "metrics[1].select"),
        ("offset: 8, value: u64", "offset: 9, value: u64", "metrics[2].offset"),
        // Half of a field, and parts of two.
        ("offset: 8, value: u64", "offset: 8, value: u32", "metrics[2].offset"),
        ("offset: 8, value: u64", "offset: 4, value: u64", "metrics[2].offset"),
        // Two fields as one number: rate and spare of the settings.
        (
            "map: totals, select: { slot: 0 }",
            "map: settings, select: { slot: 0 }, value: u64",
            "metrics[0].offset",
        ),
        ("offset: 0, type: ip", "offset: 16, type: u32", "metrics[4].select.top.labels[0].offset"),
        ("offset: 0, type: ip", "offset: 15, type: u16", "metrics[4].select.top.labels[0].offset"),
        ("offset: 0, type: ip", "offset: 8, type: ip", "metrics[4].select.top.labels[0].offset"),
        ("- { name: flows, carry", "- { name: flow, carry", "maps[0].name"),
    ] {
        let mut paths = compare(from, to);
        paths.dedup();
        // Exchanging two maps is a mistake at both.
        assert_eq!(paths[0], path, "{from} → {to}");
        assert!(paths.len() == 1 || from.starts_with("lpm_v4"), "{paths:?}");
    }
}

#[test]
fn the_manifest_s_size_of_a_map_counts() {
    let from = "{ name: flows, carry_over: true, shared: interface, max_entries: 100 }";
    let more = "default: [80, 443], max: 17";
    let changed = EVERYTHING
        .replace("default: [80, 443], max: 16", more)
        .replace(from, "{ name: ports, max_entries: 17 }");
    let mut package = everything();
    package.manifest = Manifest::read(&changed, Format::Yaml).unwrap();
    package.check_objects().unwrap();
}

#[test]
fn data_sections_are_maps_of_their_names() {
    let from = "{ name: flows, carry_over: true, shared: interface, max_entries: 100 }";
    assert_eq!(compare(from, "{ name: .bss, carry_over: true }"), [""; 0]);
    assert_eq!(compare(from, "{ name: .bss, shared: interface }"), [""; 0]);
    assert_eq!(compare(from, "{ name: .bss.x, carry_over: true }"), ["maps[0].name"]);
    assert_eq!(compare(from, "{ name: .bss, max_entries: 3 }"), ["maps[0].max_entries"]);
}

#[test]
fn what_is_not_an_ebpf_object_is_named() {
    let mut package = everything();
    package.objects.insert("main.o".to_owned(), std::fs::read("/proc/self/exe").unwrap());
    let bad = package.check_objects().unwrap_err();
    assert_eq!(bad.0[0].path, "programs[0].object");
    assert!(bad.0[0].message.contains("not for eBPF"), "{}", bad.0[0].message);
}

/// A key with padding, ports in both byte orders, a bit field and a lock beside the counter.
const TYPES: &str = r#"
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
struct key { __u8 protocol; __be16 port; __u32 address[4]; __be32 peer; __u16 low : 4; __u16 high : 12; };
struct value { struct bpf_spin_lock lock; __u32 first; __u32 second; union { __u64 whole; __u32 half; }; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8);
	 __type(key, struct key); __type(value, struct value); } flows SEC(".maps");
SEC("xdp") int main_prog(struct xdp_md *ctx)
{ struct key key = {}; return bpf_map_lookup_elem(&flows, &key) ? XDP_DROP : XDP_PASS; }
char _license[] SEC("license") = "GPL";
"#;

#[test]
fn metrics_are_compared_with_the_types_of_the_map() {
    let object = canopy_test_support::compile_text(TYPES).unwrap();
    let problem = |offset: u32, value: &str, label: &str| {
        let text = format!(
            "{{ name: p, version: 1.0.0, description: p, license: MIT, programs: [{{ name: p, \
             object: p.o, function: main_prog, hooks: [xdp] }}], metrics: [{{ name: m, help: m, \
             kind: counter, map: flows, offset: {offset}, value: {value}, select: {{ top: {{ \
             count: 5, labels: [{{ label: l, {label} }}] }} }} }}] }}"
        );
        let package = canopy_package::Package {
            manifest: Manifest::read(&text, Format::Yaml).unwrap(),
            objects: [("p.o".to_owned(), object.clone())].into(),
            readme: None,
            license_text: None,
        };
        let problems = package.check_objects().err().map(|bad| bad.0).unwrap_or_default();
        assert!(problems.iter().all(|problem| problem.remedy.is_some()));
        problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("; ")
    };
    for (offset, value, label) in [
        (4, "u32", "offset: 0, type: protocol"),
        (8, "u32", "offset: 2, type: be16"),
        (16, "u64", "offset: 4, type: ip"),
        (16, "u32", "offset: 20, type: be32"),
    ] {
        assert_eq!(problem(offset, value, label), "", "{offset} {value} {label}");
    }
    for (offset, value, label, part) in [
        (4, "u64", "offset: 0, type: u8", "not one field but first, second"),
        (0, "u32", "offset: 0, type: u8", "lock, which is no number"),
        (12, "u32", "offset: 0, type: u8", "padding"),
        (4, "u32", "offset: 1, type: u8", "padding"),
        (4, "u32", "offset: 2, type: u16", "port is in network byte order"),
        (4, "u32", "offset: 20, type: u32", "peer is in network byte order"),
        (4, "u32", "offset: 24, type: u16", "bit field"),
        (4, "u32", "offset: 2, type: be32", "port"),
    ] {
        let said = problem(offset, value, label);
        assert!(said.contains(part), "{offset} {value} {label}: {said}");
    }
}

#[test]
fn text_with_characters_that_nobody_sees_is_refused() {
    for hidden in ["\\u202e", "\\u2066", "\\u200b", "\\u200d", "\\ufeff", "\\u061c", "\\u00ad"] {
        for (from, to, path) in [
            ("help: sources,", "help: \"a…b\",", "metrics[1].help"),
            ("description: loud,", "description: \"a…b\",", "config[2].description"),
            ("label: rule,", "label: \"ru…le\",", "metrics[3].select.items.label"),
            ("function: main_prog", "function: \"main_…prog\"", "programs[0].function"),
        ] {
            let paths = read(from, &to.replace('…', hidden));
            assert!(paths.iter().any(|found| found == path), "{hidden} at {path}: {paths:?}");
        }
    }
    // What has a sign of its own is text, in every script.
    assert_eq!(read("help: sources,", "help: \"Ünïcode, עברית, 漢字, ⚠\\ufe0f\","), [""; 0]);
    let author = |name: &str| read("\"Ann <ann@example.org>\"", &format!("\"{name}\""));
    assert_eq!(author("Änn <ann@example.org>"), [""; 0]);
    for name in ["a\\u202eb", "a\\nb", "a\\u001b[2J", ""] {
        assert!(author(name).contains(&"authors[0]".to_owned()), "{name}");
    }
}

#[test]
fn more_time_series_than_a_package_may_have_are_refused() {
    let of = |max: u64| {
        let mut manifest = Manifest::read(EVERYTHING, Format::Yaml).unwrap();
        let blocked = manifest.config.iter_mut().find(|setting| setting.name == "blocked").unwrap();
        blocked.max = Some(max);
        manifest
    };
    // Two single ones, a total, and the five of a top besides.
    assert_eq!(of(9_992).most_series(), 10_000);
    of(9_992).check().unwrap();
    let bad = of(9_993).check().unwrap_err();
    let problem = &bad.0[0];
    assert_eq!(problem.path, "metrics");
    for said in ["10001 time series", "at most 10000"] {
        assert!(problem.message.contains(said), "{problem}");
    }
    assert!(problem.remedy.as_ref().unwrap().contains("`max` of `blocked`"), "{problem}");
    // A list without a bound of its own has the longest.
    let mut manifest = of(1);
    manifest.config.iter_mut().for_each(|setting| setting.max = None);
    assert_eq!(manifest.most_series(), 65_536 + 8);
    // What is set decides what a host has.
    let settings = serde_json::json!({ "blocked": ["10.0.0.0/8", "fd00::/8"] });
    assert_eq!(of(9_992).series(settings.as_object().unwrap()), 10);
    assert_eq!(of(9_992).series(&serde_json::Map::new()), 8);
}
