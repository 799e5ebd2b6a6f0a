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

/// An object of many sections that are all the same bytes, or whose one name is very long.
#[test]
fn an_object_that_is_more_than_its_bytes_is_refused_at_once() {
    for (sections, payload, why) in [
        (60_000_u16, 1_usize << 20, "it has more than 4096 sections"),
        (4_000, 1 << 20, "its sections lie over each other"),
        (1, 1 << 20, "a name in it is longer than 512 bytes"),
    ] {
        let mut bytes = vec![0_u8; 64 + payload];
        let names = bytes.len();
        bytes.extend(vec![b'n'; payload]);
        bytes.resize((bytes.len() + 1).next_multiple_of(8), 0);
        let table = bytes.len() as u64;
        for index in 0..sections + 2 {
            // type, flags, offset, size
            let (kind, flags, offset, size) = match index {
                0 => (0_u32, 0_u64, 0, 0),
                1 if why.contains("name") => (3, 0, names, payload + 1),
                1 => (3, 0, names + payload, 1),
                _ => (1, 2, 64, if why.contains("sections lie") { payload } else { 0 }),
            };
            let mut header = [0_u8; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&flags.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            bytes.extend(header);
        }
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        for (at, value) in
            [(16, 1), (18, 247), (20, 1), (52, 64), (58, 64), (60, sections + 2), (62, 1)]
        {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes[40..48].copy_from_slice(&table.to_le_bytes());
        let error = ObjectFile::read(&bytes).unwrap_err();
        assert_eq!(error.to_string(), why);
    }
}
