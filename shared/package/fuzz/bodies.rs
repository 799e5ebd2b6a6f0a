//! What each fuzz target does with bytes from outside. The tests of the crate do the same with every
//! file of `corpus/`: a panic here is a failure there.

#![allow(dead_code, reason = "each target uses its own")]

use canopy_api::document::Format;
use canopy_package::{
    Index, Limits, Manifest, Package, PublicKey, TrustedKey,
    elf::ObjectFile,
    index::{join, split},
    sign::verify_index,
};

/// A package file. What is opened can be built, and is the same again.
pub(crate) fn package(bytes: &[u8]) {
    let Ok(opened) = Package::open(bytes, &Limits::default()) else { return };
    let _ = opened.check_objects();
    let _ = opened.maps();
    if let Ok(built) = opened.build() {
        let again = Package::open(&built, &Limits::default());
        assert_eq!(again.ok().as_ref(), Some(&opened));
    }
}

/// A manifest. What is read can be described, and what is written is read as the same.
pub(crate) fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for format in [Format::Yaml, Format::Json] {
        let Ok(read) = Manifest::read(text, format) else { continue };
        let _ = read.config_schema();
        if let Ok(written) = read.to_yaml() {
            assert_eq!(Manifest::read(&written, Format::Yaml).ok().as_ref(), Some(&read));
        }
    }
}

/// An eBPF object.
pub(crate) fn object(bytes: &[u8]) {
    let _ = ObjectFile::read(bytes);
}

/// An index, with or without its signature.
pub(crate) fn index(bytes: &[u8]) {
    let Ok((json, signature)) = split(bytes) else { return };
    assert_eq!(join(json, signature), bytes);
    let _ = Index::open(json, signature, &trusted(), 0, 0);
    let Ok(read) = Index::open_unsigned(json) else { return };
    let written = read.to_bytes().expect("an index that was read can be written");
    assert_eq!(Index::open_unsigned(&written).ok().as_ref(), Some(&read));
}

/// A signature file.
pub(crate) fn signature(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = verify_index(b"bytes", text, &trusted(), 0);
    }
}

/// The key of `tests/attacks`, so that there are genuine signatures among the files.
fn trusted() -> Vec<TrustedKey> {
    let key = include_str!("../../../tests/attacks/data/keys/owner.pub");
    key.parse::<PublicKey>().map(TrustedKey::from).into_iter().collect()
}
