//! Every file of the fuzzers' corpora, through what the fuzzers do: no panic, and what holds for good
//! input holds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::{fs, path::Path};

/// Runs `body` on every file of a corpus; says how many there were.
fn replay(name: &str, body: fn(&[u8])) -> usize {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        // Dot files are the repository's.
        if path.file_name().unwrap().to_str().unwrap().starts_with('.') {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        println!("{}", path.display());
        body(&bytes);
        // Cut short, and with a bit turned over, at a few places.
        for part in 1..8 {
            let at = bytes.len() * part / 8;
            body(&bytes[..at]);
            let mut flipped = bytes.clone();
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= 1 << part;
            }
            body(&flipped);
        }
        files += 1;
    }
    files
}

#[test]
fn package_files() {
    assert!(replay("package", bodies::package) >= 3);
}

#[test]
fn manifests() {
    assert!(replay("manifest", bodies::manifest) >= 3);
}

#[test]
fn objects() {
    assert!(replay("object", bodies::object) >= 2);
}

#[test]
fn indexes() {
    assert!(replay("index", bodies::index) >= 3);
}

#[test]
fn signatures() {
    assert!(replay("signature", bodies::signature) >= 3);
}
