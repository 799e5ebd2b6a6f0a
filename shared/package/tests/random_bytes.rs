//! Whatever bytes a reader is given, it answers; it never panics and never hangs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::document::Format;
use canopy_package::{
    Index, Limits, Manifest, Package, SecretKey, elf::ObjectFile, sign::verify_index,
};
use common::{EVERYTHING, key, minimal, shapes};
use proptest::{collection::vec, prelude::*, sample::Index as Place};
use std::sync::OnceLock;

/// A good package file, built once.
fn package() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| minimal().build().unwrap())
}

/// Bytes with some of them changed, and cut.
fn spoiled(good: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    (vec((any::<Place>(), any::<u8>()), 1..8), any::<Place>(), any::<bool>()).prop_map(
        move |(changes, end, cut)| {
            let mut bytes = good.to_vec();
            for (place, value) in changes {
                let at = place.index(bytes.len());
                bytes[at] = value;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        },
    )
}

fn leaked(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_package_file(bytes in vec(any::<u8>(), 0..4096)) {
        prop_assert!(Package::open(&bytes, &Limits::default()).is_err());
    }

    #[test]
    fn a_spoiled_package_file(bytes in spoiled(package())) {
        // zstd's checksum finds every change; one that writes the same byte changes nothing.
        let opened = Package::open(&bytes, &Limits::default());
        prop_assert_eq!(opened.is_ok(), bytes == package());
    }

    #[test]
    fn a_spoiled_archive_inside(bytes in spoiled(leaked(zstd::decode_all(package()).unwrap()))) {
        let bytes = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        let _ = Package::open(&bytes, &Limits::default());
    }

    #[test]
    fn a_spoiled_object(bytes in spoiled(leaked(shapes()))) {
        let _ = ObjectFile::read(&bytes);
    }

    #[test]
    fn a_signature(text in "\\PC{0,200}", lines in vec("[A-Za-z0-9+/=]{0,120}", 0..6)) {
        let (_, trusted) = key();
        prop_assert!(verify_index(b"bytes", &text, &trusted, 0).is_err());
        prop_assert!(verify_index(b"bytes", &lines.join("\n"), &trusted, 0).is_err());
        let signed = format!(
            "untrusted comment: x\n{}\ntrusted comment: y\n{}\n",
            lines.first().map_or("", String::as_str),
            lines.last().map_or("", String::as_str)
        );
        prop_assert!(verify_index(b"bytes", &signed, &trusted, 0).is_err());
    }

    #[test]
    fn a_key(text in "\\PC{0,200}", line in "RW[A-Za-z0-9+/]{50,58}") {
        let _ = text.parse::<canopy_package::PublicKey>();
        let _ = line.parse::<canopy_package::PublicKey>();
        prop_assert!(SecretKey::from_file(&text).is_err());
        let file = format!("untrusted comment: x\n{line}\n");
        prop_assert!(SecretKey::from_file(&file).is_err());
    }

    #[test]
    fn an_index(bytes in vec(any::<u8>(), 0..512)) {
        prop_assert!(Index::open_unsigned(&bytes).is_err());
    }

    #[test]
    fn a_spoiled_manifest(bytes in spoiled(EVERYTHING.as_bytes())) {
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = Manifest::read(&text, Format::Yaml);
        }
    }
}
