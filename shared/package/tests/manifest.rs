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
        ("count: 5,", "count: 500,", "metrics[4].select.top.count"),
    ] {
        let paths = read(from, to);
        assert!(paths.iter().any(|found| found == path), "{from} → {to}: {paths:?}, not {path}");
    }
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
fn what_is_not_an_ebpf_object_is_named() {
    let mut package = everything();
    package.objects.insert("main.o".to_owned(), std::fs::read("/proc/self/exe").unwrap());
    let bad = package.check_objects().unwrap_err();
    assert_eq!(bad.0[0].path, "programs[0].object");
    assert!(bad.0[0].message.contains("not for eBPF"), "{}", bad.0[0].message);
}
