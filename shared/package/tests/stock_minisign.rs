//! Files of the stock `minisign` tool are read here, and ours there.
//!
//! `tests/minisign` was made by minisign 0.11 (Debian), without a password:
//!
//! ```text
//! minisign -G -W -p stock.pub -s stock.key
//! minisign -S -s stock.key -m file -x file.minisig -t "package=firewall version=0.1.0 digest=sha256:…"
//! minisign -S -l -s stock.key -m file -x legacy.minisig -t …
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::Digest;
use canopy_package::{PackageError, PublicKey, SecretKey, TrustedKey, sign::verify_package};
use common::key;
use std::process::Command;

const FILE: &[u8] = include_bytes!("minisign/file");
const PUBLIC: &str = include_str!("minisign/stock.pub");
const SIGNATURE: &str = include_str!("minisign/file.minisig");
const LEGACY: &str = include_str!("minisign/legacy.minisig");

fn verify(signature: &str) -> Result<String, PackageError> {
    let key: PublicKey = PUBLIC.parse().unwrap();
    let (name, version) = ("firewall".parse().unwrap(), "0.1.0".parse().unwrap());
    let digest = Digest::of(FILE);
    verify_package(FILE, signature, &[TrustedKey::from(key)], 0, &name, &version, &digest)
        .map(|key| key.id())
}

#[test]
fn a_signature_of_the_stock_tool_is_good() {
    let id = verify(SIGNATURE).unwrap();
    assert!(PUBLIC.contains(&id), "{id} is the id the tool wrote");
}

#[test]
fn a_legacy_signature_is_refused() {
    let error = verify(LEGACY).unwrap_err();
    assert!(error.to_string().contains("legacy"), "{error}");
}

#[test]
fn a_public_key_is_read_as_file_and_as_line() {
    let file: PublicKey = PUBLIC.parse().unwrap();
    let line: PublicKey = PUBLIC.lines().nth(1).unwrap().parse().unwrap();
    assert_eq!(file, line);
    assert_eq!(file.to_file().parse::<PublicKey>().unwrap(), file);
}

#[test]
fn a_secret_key_survives_its_file_and_is_never_shown() {
    let (key, trusted) = key();
    let file = key.to_file().unwrap();
    let read = SecretKey::from_file(&file).unwrap();
    assert_eq!(read.public().unwrap(), trusted[0].key);
    let secret = file.lines().nth(1).unwrap();
    let shown = format!("{read:?}");
    assert!(!secret.contains(&shown) && shown.len() < 40, "{shown}");
}

#[test]
fn a_key_with_a_password_says_so() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let file = key().0.to_file().unwrap();
    let mut bytes = STANDARD.decode(file.lines().nth(1).unwrap()).unwrap();
    bytes[2..4].copy_from_slice(b"Sc");
    let locked = format!("untrusted comment: locked\n{}\n", STANDARD.encode(bytes));
    assert!(matches!(SecretKey::from_file(&locked), Err(PackageError::KeyLocked)));
}

/// With the tool on the machine, the other direction too: it reads our key files and verifies our
/// signatures, and we verify what it signs with our key.
#[test]
fn the_stock_tool_reads_our_files() {
    if Command::new("minisign").arg("-v").output().is_err() {
        println!("SKIPPED the_stock_tool_reads_our_files: no `minisign` on PATH");
        return;
    }
    let (key, trusted) = key();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (name, version) = ("firewall".parse().unwrap(), "0.1.0".parse().unwrap());
    std::fs::write(at("file"), FILE).unwrap();
    std::fs::write(at("key"), key.to_file().unwrap()).unwrap();
    std::fs::write(at("key.pub"), trusted[0].key.to_file()).unwrap();
    let ours = key.sign_package(FILE, &name, &version).unwrap();
    std::fs::write(at("file.minisig"), ours).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("minisign")
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&["-V", "-p", "key.pub", "-m", "file"]);
    let comment = canopy_package::sign::comment(&name, &version, &Digest::of(FILE));
    assert!(said.contains(&comment), "{said}");

    run(&["-S", "-s", "key", "-m", "file", "-x", "theirs", "-t", &comment]);
    let theirs = std::fs::read_to_string(at("theirs")).unwrap();
    let digest = Digest::of(FILE);
    verify_package(FILE, &theirs, &trusted, 0, &name, &version, &digest).unwrap();
}
