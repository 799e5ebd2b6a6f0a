//! Settings become bytes; every mistake is told at once, with its path and what to do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::document::Format;
use canopy_package::{Bindings, Manifest, bind};
use common::EVERYTHING;
use serde_json::{Value, json};

fn bind_to(config: Value) -> Result<Bindings, Vec<(String, String)>> {
    let manifest = Manifest::read(EVERYTHING, Format::Yaml).unwrap();
    let Value::Object(config) = config else { panic!("settings are an object") };
    bind(&manifest, &config, "config")
        .map_err(|bad| bad.0.into_iter().map(|p| (p.path.clone(), p.to_string())).collect())
}

fn refused(config: Value, path: &str, part: &str) {
    let problems = bind_to(config).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].0, path);
    assert!(problems[0].1.contains(part), "{:?} does not say {part:?}", problems[0].1);
}

fn map<'a>(bindings: &'a Bindings, name: &str) -> &'a [(Vec<u8>, Vec<u8>)] {
    let found = bindings.map_entries.iter().find(|(map, _)| map == name);
    &found.unwrap_or_else(|| panic!("{name} is not bound")).1
}

#[test]
fn defaults_are_filled_in_and_laid_out() {
    let bindings = bind_to(json!({})).unwrap();
    let mut slot = 5u32.to_ne_bytes().to_vec();
    slot.extend([0; 4]);
    slot.extend(10_000_000_000u64.to_ne_bytes());
    assert_eq!(map(&bindings, "settings"), [(0u32.to_ne_bytes().to_vec(), slot)]);
    let global = |name: &str| bindings.globals.iter().find(|(g, _)| g == name).unwrap().1.clone();
    assert_eq!(global("loud"), [0]);
    assert_eq!(global("peer"), [2, 0, 0x5e, 0x10, 0, 1]);
    assert_eq!(global("label"), b"on\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bindings.effective["ports"], json!([80, 443]));
    assert!(map(&bindings, "blocked4").is_empty(), "an empty list empties its maps");
    assert!(map(&bindings, "blocked6").is_empty());
}

#[test]
fn whole_addresses_go_to_the_hash_maps_that_a_list_has() {
    let filled = |list: &[&str]| {
        let bindings = bind_to(json!({ "allowed": list })).unwrap();
        let (_, value) = bindings.globals.iter().find(|(g, _)| g == "allowed_in").unwrap();
        (bindings.clone(), value.clone())
    };
    let list = ["10.0.0.0/8", "203.0.113.7", "2001:db8::9/128", "10.0.0.1/32", "2001:db8::/127"];
    let (bindings, bits) = filled(&list);
    let value = |index: u32, length: u32| [index.to_ne_bytes(), length.to_ne_bytes()].concat();
    let v6 = "2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
    assert_eq!(
        map(&bindings, "hosts4"),
        [(vec![203, 0, 113, 7], value(1, 32)), (vec![10, 0, 0, 1], value(3, 32))]
    );
    assert_eq!(map(&bindings, "hosts6"), [(v6, value(2, 128))]);
    assert_eq!(map(&bindings, "allowed4").len(), 1);
    assert_eq!(map(&bindings, "allowed6").len(), 1);
    assert_eq!(bits, [15]);
    for (list, bits) in [
        (&[][..], 0),
        (&["10.0.0.0/31"], 1),
        (&["::/0"], 2),
        (&["10.0.0.1"], 4),
        (&["::1"], 8),
        (&["::1", "0.0.0.0/0"], 9),
    ] {
        let (bindings, filled) = filled(list);
        assert_eq!(filled, [bits], "{list:?}");
        // All are there, if empty: a change of the list empties the others.
        for name in ["allowed4", "allowed6", "hosts4", "hosts6"] {
            map(&bindings, name);
        }
    }
}

#[test]
fn prefixes_go_to_their_family_with_position_and_length() {
    let bindings =
        bind_to(json!({ "blocked": ["198.51.100.0/24", "2001:db8::/32", "203.0.113.7"] })).unwrap();
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
    let key = |length: u32, address: &[u8]| [&length.to_ne_bytes()[..], address].concat();
    assert_eq!(
        map(&bindings, "blocked4"),
        [
            (key(24, &[198, 51, 100, 0]), words(&[0, 24])),
            (key(32, &[203, 0, 113, 7]), words(&[2, 32]))
        ]
    );
    let mut v6 = [0; 16];
    v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    assert_eq!(map(&bindings, "blocked6"), [(key(32, &v6), words(&[1, 32]))]);
}

#[test]
fn ports_are_keys_in_host_order() {
    let bindings = bind_to(json!({ "ports": [443, 80] })).unwrap();
    assert_eq!(
        map(&bindings, "ports"),
        [
            (443u16.to_ne_bytes().to_vec(), 0u32.to_ne_bytes().to_vec()),
            (80u16.to_ne_bytes().to_vec(), 1u32.to_ne_bytes().to_vec())
        ]
    );
}

#[test]
fn the_whole_internet_is_a_prefix() {
    let bindings = bind_to(json!({ "blocked": ["0.0.0.0/0", "::/0"] })).unwrap();
    assert_eq!(map(&bindings, "blocked4")[0].0, [0; 8]);
    assert_eq!(map(&bindings, "blocked6")[0].0, [0; 20]);
}

#[test]
fn mistakes_are_told_with_path_and_remedy() {
    refused(json!({ "raet": 1 }), "config.raet", "did you mean \"rate\"");
    refused(json!({ "rate": 0 }), "config.rate", "less than 1 packets/s");
    refused(json!({ "rate": 11 }), "config.rate", "more than 10 packets/s");
    refused(json!({ "rate": -1 }), "config.rate", "not a whole number");
    refused(json!({ "rate": 1.5 }), "config.rate", "not a whole number");
    refused(json!({ "rate": "5" }), "config.rate", "not a whole number");
    refused(json!({ "idle": 10 }), "config.idle", "not a duration");
    refused(json!({ "idle": "10 s" }), "config.idle", "not a duration");
    refused(json!({ "idle": "99999999999d" }), "config.idle", "not a duration");
    refused(json!({ "loud": "yes" }), "config.loud", "not true or false");
    refused(json!({ "peer": "02:00:5e:10:00" }), "config.peer", "not a MAC address");
    refused(json!({ "label": "sixteen letters!" }), "config.label", "16 bytes, more than 15");
    refused(json!({ "label": "a\u{0}b" }), "config.label", "zero byte");
    refused(json!({ "ports": 80 }), "config.ports", "not a list of ports");
    refused(json!({ "ports": [80, 0] }), "config.ports[1]", "not a port");
    refused(json!({ "ports": [80, 65536] }), "config.ports[1]", "not a port");
    refused(json!({ "ports": [80, 443, 80] }), "config.ports[2]", "already item 0");
    refused(json!({ "blocked": ["198.51.100.1/24"] }), "config.blocked[0]", "198.51.100.0/24");
    refused(json!({ "blocked": ["198.51.100.0/33"] }), "config.blocked[0]", "longer than 32");
    refused(
        json!({ "blocked": ["198.51.100"] }),
        "config.blocked[0]",
        "not an IPv4 or IPv6 prefix",
    );
    refused(
        json!({ "blocked": ["1.2.3.4/-1"] }),
        "config.blocked[0]",
        "not an IPv4 or IPv6 prefix",
    );
    refused(json!({ "blocked": [7] }), "config.blocked[0]", "not an IPv4 or IPv6 prefix");
    let many: Vec<_> = (1..=17).collect();
    refused(json!({ "ports": many }), "config.ports", "17 items are more than 16");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let problems = bind_to(json!({ "rate": 0, "ports": [0, 0], "loud": 1, "x": 1 })).unwrap_err();
    let paths: Vec<_> = problems.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        ["config.x", "config.rate", "config.loud", "config.ports[0]", "config.ports[1]"]
    );
}

#[test]
fn a_setting_without_default_must_be_set() {
    let manifest = EVERYTHING.replace("default: 5, ", "");
    let manifest = Manifest::read(&manifest, Format::Yaml).unwrap();
    let bad = bind(&manifest, &serde_json::Map::new(), "").unwrap_err();
    assert_eq!(bad.0[0].path, "rate");
    assert!(bad.0[0].message.contains("must be set"));
}
