//! Several objects of one program: the manifest says which, and they are the same to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

use canopy_api::{Problem, document::Format};
use canopy_package::{Limits, Manifest, Package};
use canopy_test_support::compile_with;
use std::path::Path;

const MANIFEST: &str = r#"
name: limit
version: 0.1.0
description: limit
license: GPL-2.0-only
requires: { kernel: "5.15" }
programs:
  - name: limit
    object: plain.o
    variants:
      - { object: ring.o, requires: { features: [ring-buffer] } }
      - { object: newer.o, requires: { kernel: "6.1" } }
    function: limit
    hooks: [xdp]
config:
  - { name: most, type: u32, description: most, default: 3, bind: { global: most } }
metrics:
  - { name: seen, help: seen, kind: gauge, map: seen, value: u32, select: { slot: 0 } }
"#;

fn object(defines: &[&str]) -> Vec<u8> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/variants.bpf.c");
    compile_with(&source, out.path(), defines).unwrap();
    std::fs::read(out.path()).unwrap()
}

/// The package with this object for `ring.o`.
fn package(manifest: &str, ring: &[u8], plain: &[u8]) -> Package {
    Package {
        manifest: Manifest::read(manifest, Format::Yaml).unwrap(),
        objects: [("ring.o", ring), ("newer.o", plain), ("plain.o", plain)]
            .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
            .into(),
        readme: None,
        license_text: None,
    }
}

fn mistakes(from: &str, to: &str) -> Vec<Problem> {
    assert!(MANIFEST.contains(from), "{from} is not in the manifest");
    Manifest::read(&MANIFEST.replace(from, to), Format::Yaml).unwrap_err().0
}

fn differences(package: &Package) -> Vec<(String, String)> {
    let bad = package.check_objects().unwrap_err();
    bad.0.into_iter().map(|problem| (problem.path, problem.message)).collect()
}

#[test]
fn variants_survive_a_package_file() {
    let package = package(MANIFEST, &object(&["-DRING"]), &object(&[]));
    package.check_objects().unwrap();
    let again = Package::open(&package.build().unwrap(), &Limits::default()).unwrap();
    assert_eq!(again, package);
    let files: Vec<_> = package.manifest.programs[0].objects().collect();
    assert_eq!(
        files,
        [
            ("variants[0].object".to_owned(), "ring.o"),
            ("variants[1].object".to_owned(), "newer.o"),
            ("object".to_owned(), "plain.o"),
        ]
    );
}

#[test]
fn each_object_has_to_be_in_the_package() {
    let plain = object(&[]);
    let mut package = package(MANIFEST, &plain, &plain);
    package.objects.remove("newer.o");
    let error = package.build().unwrap_err();
    assert!(error.remedy().contains("programs[0].variants[1].object"), "{}", error.remedy());
}

#[test]
fn every_object_is_the_choice_of_some_host() {
    for (from, to, path) in [
        ("ring.o,", "plain.o,", "programs[0].object"),
        ("newer.o,", "ring.o,", "programs[0].variants[1].object"),
        ("{ features: [ring-buffer] }", "{}", "programs[0].variants[0].requires"),
        ("{ kernel: \"6.1\" }", "{ kernel: \"5.15\" }", "programs[0].variants[1].requires"),
        ("{ kernel: \"6.1\" }", "{ kernel: \"5.4\" }", "programs[0].variants[1].requires"),
        ("{ kernel: \"6.1\" }", "{ kernel: new }", "programs[0].variants[1].requires.kernel"),
        (
            "{ kernel: \"6.1\" }",
            "{ kernel: \"6.1\", features: [ring-buffer, btf] }",
            "programs[0].variants[1].requires",
        ),
    ] {
        let found = mistakes(from, to);
        assert!(found.iter().any(|p| p.path == path), "{from} → {to}: {found:?}, not {path}");
    }
    let many = (0..9).fold(String::new(), |list, i| {
        format!("{list}      - {{ object: v{i}.o, requires: {{ features: [f{i}] }} }}\n")
    });
    let found = mistakes("      - { object: newer.o, requires: { kernel: \"6.1\" } }\n", &many);
    assert_eq!(found[0].path, "programs[0].variants");
}

#[test]
fn what_needs_more_may_stand_before_what_needs_less() {
    let more = "{ kernel: \"6.1\", features: [ring-buffer], arch: [x86_64] }";
    let manifest = MANIFEST.replace("{ features: [ring-buffer] }", more);
    Manifest::read(&manifest, Format::Yaml).unwrap();
}

#[test]
fn variants_that_differ_in_what_the_manifest_names_are_told_at_once() {
    let plain = object(&[]);
    let found = differences(&package(MANIFEST, &object(&["-DRING", "-DSKB", "-DSETTLED"]), &plain));
    let at = "programs[0].variants[0].object".to_owned();
    assert_eq!(
        found,
        [
            (
                at.clone(),
                "\"limit\" in ring.o: its section \"tc\" makes it a TC program, and the manifest \
                 declares it for xdp"
                    .to_owned()
            ),
            (
                at.clone(),
                "function \"limit\" is int (struct __sk_buff *) in ring.o, and int (struct xdp_md *) in plain.o"
                    .to_owned()
            ),
            (at.clone(), "ring.o has no global variable \"most\", plain.o has".to_owned()),
        ]
    );
    let wide = object(&["-DWIDE"]);
    let found = differences(&package(MANIFEST, &wide, &plain));
    assert!(
        found.contains(&(
            at,
            "map \"seen\" is array with keys of 4, values of 8 bytes and 4 entries in ring.o, and \
             array with keys of 4, values of 4 bytes and 4 entries in plain.o"
                .to_owned()
        )),
        "{found:?}"
    );
}

#[test]
fn what_a_variant_has_more_of_belongs_into_the_object_too() {
    let manifest = format!("{MANIFEST}maps: [{{ name: events }}]\n");
    let found = differences(&package(&manifest, &object(&["-DRING"]), &object(&[])));
    assert_eq!(
        found,
        [("programs[0].object".to_owned(), "plain.o has no map \"events\", ring.o has".to_owned())]
    );
}

#[test]
fn a_size_that_the_manifest_sets_is_nobody_s_difference() {
    let manifest = format!("{MANIFEST}maps: [{{ name: seen, max_entries: 4 }}]\n");
    package(&manifest, &object(&["-DRING"]), &object(&[])).check_objects().unwrap();
}
