//! Several objects of one program, on the real kernel: which one runs is asked of the kernel's own
//! listing of the instructions, of the maps that are there, and of packets.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Digest, Hook, document::Format, wire::ChainStatus};
use canopy_kernel_tests::{
    chain::{Chains, member, object_with, packet},
    engine::{Host, Loader},
    package::number,
};
use canopy_loader::core::resolve::Located;
use canopy_package::{Manifest, Package};
use canopy_test_support::pair::HOST_LINK;
use serde_json::json;
use std::sync::Arc;

/// `variants`, whose second object needs what is given here.
fn package(version: &str, needs: &str) -> Package {
    let manifest = format!(
        "
name: variants
version: {version}
description: Sums the bytes of packets
license: GPL-2.0-only
requires: {{ kernel: \"5.15\" }}
programs:
  - name: variants
    object: plain.o
    variants:
      - {{ object: later.o, requires: {{ kernel: \"99.0\" }} }}
      - {{ object: loop.o, requires: {needs} }}
    function: variants
    hooks: [xdp]
metrics:
  - {{ name: packets, help: packets, kind: counter, map: seen, select: {{ slot: 0 }} }}
maps:
  - {{ name: seen, carry_over: true }}
"
    );
    let object = |options: &[&str]| object_with("variants", options).to_vec();
    let package = Package {
        manifest: Manifest::read(&manifest, Format::Yaml).unwrap(),
        objects: [
            ("later.o".to_owned(), object(&["-DLATER"])),
            ("loop.o".to_owned(), object(&["-DLOOP"])),
            ("plain.o".to_owned(), object(&[])),
        ]
        .into(),
        readme: None,
        license_text: None,
    };
    package.check_objects().unwrap();
    package
}

/// A host that has both versions: 0.1.0 whose second object fits no host, 0.2.0 whose does here.
fn host() -> Host {
    let mut host = Host::new();
    for (version, needs) in
        [("0.1.0", "{ features: [no-such-fact] }"), ("0.2.0", "{ features: [ring-buffer] }")]
    {
        let package = Arc::new(package(version, needs));
        let digest = Digest::of(&package.build().unwrap());
        host.shelf.put(digest.clone(), Arc::clone(&package));
        host.located
            .insert(format!("variants@={version}"), Located { digest, package, signed_by: None });
    }
    host
}

fn apply(host: &Host, loader: &Loader, version: &str) -> Vec<String> {
    let chain = json!([{ "interface": HOST_LINK, "hook": "xdp", "programs": [
        { "name": "sums", "package": format!("variants@={version}") } ]}]);
    host.apply(loader, &chain).unwrap().chains.remove(0).notes
}

/// The instructions that the kernel has, and the kinds of the maps that they use.
fn kernel_s(host: &Host, status: &ChainStatus) -> (String, String) {
    let id = status.observed.as_ref().unwrap().program_id.to_string();
    let code = host.exec(&["bpftool", "prog", "dump", "xlated", "id", &id]);
    let program = host.exec(&["bpftool", "--json", "prog", "show", "id", &id]);
    let program: serde_json::Value = serde_json::from_str(&program).unwrap();
    let kinds: Vec<_> = program["map_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| {
            let map = host.exec(&["bpftool", "--json", "map", "show", "id", &id.to_string()]);
            let map: serde_json::Value = serde_json::from_str(&map).unwrap();
            map["type"].as_str().unwrap().to_owned()
        })
        .collect();
    (code, kinds.join(" "))
}

fn variant(status: &ChainStatus) -> (String, Vec<String>) {
    let variant = status.programs[0].variant.clone().unwrap();
    assert_eq!(variant.kernel, nix::sys::utsname::uname().unwrap().release().to_str().unwrap());
    let over =
        variant.passed_over.into_iter().map(|over| format!("{}: {}", over.object, over.needs));
    (variant.object, over.collect())
}

#[test]
fn the_kernel_runs_the_object_that_was_chosen() {
    let host = host();
    let loader = host.start();
    let later = format!(
        "later.o: kernel 99.0 or later; this is {}",
        nix::sys::utsname::uname().unwrap().release().to_str().unwrap()
    );

    apply(&host, &loader, "0.1.0");
    assert_eq!(host.pings(), 3, "what is for a later kernel drops everything");
    let status = host.status(&loader, Hook::Xdp);
    let lacks = "loop.o: \"no-such-fact\", which this host does not have".to_owned();
    assert_eq!(variant(&status), ("plain.o".to_owned(), vec![later.clone(), lacks]));
    let (code, maps) = kernel_s(&host, &status);
    assert!(!code.contains("bpf_loop") && !maps.contains("ringbuf"), "{maps}\n{code}");
    assert!((status.programs[0].metrics[0].value - 3.0).abs() < 0.5);

    // Another version of the package, another object: what the manifest keeps goes over.
    let notes = apply(&host, &loader, "0.2.0");
    assert!(notes.iter().any(|note| *note == "\"sums\" keeps the contents of seen"), "{notes:?}");
    assert_eq!(host.pings(), 3);
    let status = host.status(&loader, Hook::Xdp);
    assert_eq!(variant(&status), ("loop.o".to_owned(), vec![later]));
    let (code, maps) = kernel_s(&host, &status);
    // The verifier puts a loop of its own in the place of the call.
    assert!(code.contains("subprog") && maps.contains("ringbuf"), "{maps}\n{code}");
    assert!((status.programs[0].metrics[0].value - 6.0).abs() < 0.5);

    // A restart finds the same and touches nothing.
    let before = status.observed.unwrap();
    drop(loader);
    let loader = host.start();
    let status = host.status(&loader, Hook::Xdp);
    assert_eq!(variant(&status).0, "loop.o");
    assert_eq!(status.observed.unwrap().program_id, before.program_id);
}

/// Both objects say the same of the same packet.
#[test]
fn the_objects_are_one_program() {
    let packet = packet(b"the same bytes for both");
    let sum: u64 = packet.iter().map(|byte| u64::from(*byte)).sum();
    let chains = Chains::new();
    for (generation, options) in [(1, [].as_slice()), (2, &["-DLOOP"])] {
        let object = object_with("variants", options);
        chains.load(Hook::Xdp, generation, vec![member("sums", Hook::Xdp, &object, "variants")]);
        let output = chains.run_many(Hook::Xdp, generation, &packet, 5);
        assert_eq!(output.retval, 2, "XDP_PASS");
        let seen = chains.map(Hook::Xdp, generation, "sums", "seen");
        let seen = seen.lookup(&[0; 4]).unwrap().unwrap();
        assert_eq!((number(&seen, 0), number(&seen, 8)), (5, 5 * sum), "{options:?}");
    }
}
