//! What several tests need.

#![allow(dead_code, reason = "each test uses its own part")]

use canopy_api::document::Format;
use canopy_package::{Manifest, Package, SecretKey, TrustedKey};
use std::{path::Path, sync::OnceLock};

/// `tests/objects/shapes.bpf.c`, compiled once.
pub(crate) fn shapes() -> Vec<u8> {
    static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();
    let compile = || {
        let out = tempfile::NamedTempFile::new().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/shapes.bpf.c");
        canopy_test_support::compile(&source, out.path()).unwrap();
        std::fs::read(out.path()).unwrap()
    };
    OBJECT.get_or_init(compile).clone()
}

/// A package of one XDP program and nothing else.
pub(crate) fn minimal() -> Package {
    let manifest = "
name: minimal
version: 0.1.0
description: minimal
license: MIT
programs: [{ name: main, object: main.o, function: main_prog, hooks: [xdp] }]
";
    Package {
        manifest: Manifest::read(manifest, Format::Yaml).unwrap(),
        objects: [("main.o".to_owned(), shapes())].into(),
        readme: None,
        license_text: None,
    }
}

/// Every part of a manifest, agreeing with `shapes.bpf.c`, with values that YAML is known to
/// misread.
pub(crate) const EVERYTHING: &str = r#"
name: everything
version: 1.2.3-rc.1
description: "yes: a description # with traps"
license: GPL-2.0-only
keywords: [everything, x86-64]
authors: ["Ann <ann@example.org>", "null", "0x10"]
requires: { kernel: "6.10", arch: [x86_64, aarch64], features: [tcx] }
programs:
  - { name: main, object: main.o, function: main_prog, hooks: [xdp], priority: 7, proceed_on: [pass, tx], frags: true }
  - { name: out, object: main.o, function: out_prog, hooks: [tc-ingress, tc-egress] }
config:
  - { name: rate, type: u32, description: rate, unit: packets/s, default: 5, min: 1, max: 10, bind: { map: settings, slot: 0, value_size: 16 } }
  - { name: idle, type: duration, description: idle, default: 10s, bind: { map: settings, slot: 0, offset: 8, value_size: 16 } }
  - { name: loud, type: bool, description: loud, default: false, bind: { global: loud } }
  - { name: peer, type: mac, description: peer, default: "02:00:5e:10:00:01", bind: { global: peer } }
  - { name: label, type: string, description: label, default: "on", max: 15, bind: { global: label } }
  - { name: ports, type: ports, description: ports, default: [80, 443], max: 16, bind: { keys: ports } }
  - { name: blocked, type: prefixes, description: blocked, default: [], max: 16, bind: { lpm_v4: blocked4, lpm_v6: blocked6 } }
  - { name: allowed, type: prefixes, description: allowed, default: [], max: 8, bind: { lpm_v4: allowed4, lpm_v6: allowed6, hash_v4: hosts4, hash_v6: hosts6, filled: allowed_in } }
metrics:
  - { name: seen, help: seen, kind: counter, map: totals, select: { slot: 0 } }
  - { name: sources, help: sources, kind: gauge, map: sources, select: count }
  - { name: bytes, help: bytes, kind: counter, map: flows, select: total, offset: 8, value: u64, per_cpu: sum }
  - { name: hits, help: hits, kind: counter, map: hits, select: { items: { label: rule, config: blocked } } }
  - { name: top, help: top, kind: counter, map: flows, select: { top: { count: 5, labels: [{ label: source, offset: 0, type: ip }] } } }
maps:
  - { name: flows, carry_over: true, shared: interface, max_entries: 100 }
"#;

/// A package with every part.
pub(crate) fn everything() -> Package {
    Package {
        manifest: Manifest::read(EVERYTHING, Format::Yaml).unwrap(),
        objects: [("main.o".to_owned(), shapes())].into(),
        readme: Some("# Everything\n".to_owned()),
        license_text: Some("GPL\n".to_owned()),
    }
}

/// A key and what trusts it.
pub(crate) fn key() -> (SecretKey, Vec<TrustedKey>) {
    let key = SecretKey::generate().unwrap();
    let trusted = vec![TrustedKey::from(key.public().unwrap())];
    (key, trusted)
}
