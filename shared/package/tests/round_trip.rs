//! A package from its manifest to a signed repository and back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_package::{
    Index, Limits, Package, PackageError,
    index::split,
    repository::{self, Publisher},
};
use common::{everything, key, minimal};

#[test]
fn a_package_survives_being_built_and_opened() {
    let package = everything();
    let bytes = package.build().unwrap();
    assert_eq!(Package::open(&bytes, &Limits::default()).unwrap(), package);
}

#[test]
fn a_manifest_agrees_with_its_object() {
    everything().check_objects().unwrap();
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    assert_eq!(everything().build().unwrap(), everything().build().unwrap());
}

#[test]
fn a_repository_grows_and_its_index_is_believed() {
    let (key, trusted) = key();
    let publisher = Publisher::new(&key, 1_000);
    let mut index: Option<Index> = None;
    for (n, version) in (1u64..).zip(["0.1.0", "0.2.0", "0.1.1"]) {
        let mut package = minimal();
        package.manifest.version = version.parse().unwrap();
        let bytes = package.build().unwrap();
        let name = &package.manifest.name;
        let signature = key.sign_package(&bytes, name, &package.manifest.version).unwrap();
        let publication = publisher.publish(index.as_ref(), &bytes, &signature, &trusted).unwrap();
        let paths: Vec<_> = publication.files.iter().map(|(path, _)| path.as_str()).collect();
        let artifact = repository::artifact_path(name, &package.manifest.version);
        assert_eq!(paths, [artifact.as_str(), &format!("{artifact}.minisig"), repository::INDEX]);
        let (json, signature) = split(&publication.files[2].1).unwrap();
        let read = Index::open(json, signature, &trusted, 1_000, n).unwrap();
        assert_eq!(read, publication.index);
        assert_eq!(read.version, n);
        index = Some(read);
    }
    let index = index.unwrap();
    let name = "minimal".parse().unwrap();
    let newest: Vec<_> = index.versions(&name).map(|entry| entry.version.to_string()).collect();
    assert_eq!(newest, ["0.2.0", "0.1.1", "0.1.0"]);
    let requirement = "^0.1".parse().unwrap();
    let found = index.matching(&name, &requirement).next().unwrap();
    assert_eq!(found.version.to_string(), "0.1.1");

    let publication = publisher.yank(&index, &name, &"0.1.1".parse().unwrap(), true).unwrap();
    let found = publication.index.matching(&name, &requirement).next().unwrap();
    assert_eq!(found.version.to_string(), "0.1.0");
}

#[test]
fn a_version_is_published_once() {
    let (key, trusted) = key();
    let publisher = Publisher::new(&key, 1_000);
    let publish = |package: &Package, index: Option<&Index>| {
        let bytes = package.build().unwrap();
        let (name, version) = (&package.manifest.name, &package.manifest.version);
        let signature = key.sign_package(&bytes, name, version).unwrap();
        publisher.publish(index, &bytes, &signature, &trusted)
    };
    let mut package = minimal();
    let first = publish(&package, None).unwrap();
    assert!(publish(&package, Some(&first.index)).is_ok(), "the same bytes again are no mistake");
    package.readme = Some("changed\n".to_owned());
    let error = publish(&package, Some(&first.index)).unwrap_err();
    assert!(matches!(error, PackageError::AlreadyPublished { .. }), "{error}");
}
