//! The registry over real directories: what is found, what is refused, what survives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::{
    ApiError, Code, Digest, Hook,
    wire::{
        ARTIFACT_CHUNK, ArtifactRequest, DescribeRequest, ListRequest, PAGE_BYTES,
        ResetRepositoryRequest, ResolveReply, ResolveRequest, SearchRequest,
    },
};
use canopy_package::{
    Index, IndexEntry, SecretKey, TrustedKey,
    index::{join, split},
    repository::{INDEX, Publisher, artifact_path, signature_path},
    sign::verify_package,
};
use canopy_registry::{Registry, index_state::IndexState, metrics::Metrics};
use common::{Directory, now, package, registry, write};
use serde_json::json;
use std::fs;

fn request(name: &str, requirement: &str) -> ResolveRequest {
    ResolveRequest {
        package: name.parse().unwrap(),
        requirement: requirement.to_owned(),
        arch: None,
        kernel: None,
    }
}

async fn resolve(
    registry: &Registry,
    name: &str,
    requirement: &str,
) -> Result<ResolveReply, ApiError> {
    Ok(registry.resolve(&request(name, requirement)).await?)
}

async fn refused(registry: &Registry, name: &str, code: Code, part: &str) {
    let error = resolve(registry, name, "*").await.unwrap_err();
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(part), "{:?} does not say {part:?}", error.message);
    assert!(error.remedy.is_some(), "{error:?}");
}

/// The paths of `p 0.1.0`.
fn paths() -> (String, String) {
    let (name, version) = ("p".parse().unwrap(), "0.1.0".parse().unwrap());
    (artifact_path(&name, &version), signature_path(&name, &version))
}

#[tokio::test]
async fn a_version_is_found_fetched_in_chunks_and_verifies_again() {
    let directory = Directory::new();
    let mut large = package("p", "0.1.0", "");
    // Not compressible, so that there are several chunks.
    let mut noise = 1u64;
    let text: String = (0..1_600_000)
        .map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(33 + u8::try_from((noise >> 33) % 94).unwrap())
        })
        .collect();
    large.readme = Some(text);
    let bytes = directory.publish(&large);
    let registry = directory.registry();

    let reply = resolve(&registry, "p", "^0.1").await.unwrap();
    assert_eq!((reply.version.version.as_str(), reply.repository.as_str()), ("0.1.0", "test"));
    let mut fetched = Vec::new();
    loop {
        let offset = fetched.len() as u64;
        let request = ArtifactRequest { digest: reply.version.digest.clone(), offset };
        let chunk = registry.artifact(&request).await.unwrap();
        assert!(chunk.data.0.len() <= ARTIFACT_CHUNK);
        fetched.extend(chunk.data.0);
        if fetched.len() as u64 == chunk.total {
            break;
        }
    }
    assert!(fetched.len() > 2 * ARTIFACT_CHUNK, "{}", fetched.len());
    assert_eq!(fetched, bytes);

    // What a loader does with the reply.
    let keys = directory.trusted();
    let index = reply.index.unwrap().0;
    let index = Index::open(&index, &reply.index_signature.unwrap(), &keys, now(), 1).unwrap();
    let entry = index.entry(&"p".parse().unwrap(), &"0.1.0".parse().unwrap()).unwrap();
    entry.check(&fetched).unwrap();
    let signature = reply.signature.unwrap();
    verify_package(&fetched, &signature, &keys, now(), &entry.name, &entry.version, &entry.digest)
        .unwrap();

    let beyond = ArtifactRequest { digest: entry.digest.clone(), offset: fetched.len() as u64 };
    let error = ApiError::from(registry.artifact(&beyond).await.unwrap_err());
    assert_eq!(error.code, Code::Invalid);
    let unknown = ArtifactRequest { digest: Digest::of(b"unknown"), offset: 0 };
    let error = ApiError::from(registry.artifact(&unknown).await.unwrap_err());
    assert_eq!(error.code, Code::NotFound);
}

#[tokio::test]
async fn a_revoked_file_is_refused_and_nothing_else() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let bad = Digest::of(&directory.publish(&package("p", "0.1.1", "")));
    let change = json!({ "revoked": [bad] });
    let registry = registry(&[directory.config("test", &["*"], &change)]);
    refused(&registry, "p", Code::Denied, "is revoked").await;
    assert_eq!(resolve(&registry, "p", "=0.1.0").await.unwrap().version.version, "0.1.0");
    let request = ArtifactRequest { digest: bad, offset: 0 };
    let error = ApiError::from(registry.artifact(&request).await.unwrap_err());
    assert_eq!(error.code, Code::Denied, "{error:?}");
}

#[tokio::test]
async fn what_was_just_published_is_found() {
    let directory = Directory::new();
    let registry = directory.registry();
    refused(&registry, "p", Code::NotFound, "no package \"p\"").await;
    for version in ["0.1.0", "0.1.1", "0.1.2"] {
        directory.publish(&package("p", version, ""));
        assert_eq!(resolve(&registry, "p", "^0.1").await.unwrap().version.version, version);
    }
}

#[tokio::test]
async fn a_missing_version_is_told_with_what_there_is() {
    let directory = Directory::new();
    for version in ["0.1.0", "0.2.0", "0.3.0-rc.1"] {
        directory.publish(&package("firewall", version, ""));
    }
    let registry = directory.registry();
    let error = resolve(&registry, "firewall", "^0.3").await.unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::NotFound, "requirement"));
    let remedy = error.remedy.unwrap();
    assert!(remedy.contains("0.2.0, 0.1.0") && remedy.contains("=0.3.0-rc.1"), "{remedy}");

    let error = resolve(&registry, "firewal", "*").await.unwrap_err();
    assert_eq!(error.remedy.unwrap(), "did you mean \"firewall\"?");
    let error = resolve(&registry, "firewall", "newest").await.unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "requirement"));
}

#[tokio::test]
async fn a_withdrawn_version_is_not_chosen() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    directory.publish(&package("p", "0.1.1", ""));
    let registry = directory.registry();
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.1.1");
    let publication = Publisher::new(&directory.key, now())
        .yank(&directory.index().unwrap(), &"p".parse().unwrap(), &"0.1.1".parse().unwrap(), true)
        .unwrap();
    directory.write(&publication.files);
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.1.0");
    let error = resolve(&registry, "p", "=0.1.1").await.unwrap_err();
    assert!(error.remedy.unwrap().contains("0.1.1 was withdrawn"));
}

#[tokio::test]
async fn a_host_gets_the_newest_version_that_fits_it() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", "requires: { kernel: \"5.15\" }"));
    directory.publish(&package("p", "0.2.0", "requires: { kernel: \"6.6\" }"));
    directory.publish(&package("q", "0.1.0", "requires: { arch: [riscv64] }"));
    let registry = directory.registry();
    let ask = |name: &str, kernel: &str| ResolveRequest {
        arch: Some("x86_64".to_owned()),
        kernel: Some(kernel.to_owned()),
        ..request(name, "*")
    };
    let found = registry.resolve(&ask("p", "6.18.0-rc1")).await.unwrap();
    assert_eq!(found.version.version, "0.2.0");
    let found = registry.resolve(&ask("p", "6.1.0-18-amd64")).await.unwrap();
    assert_eq!(found.version.version, "0.1.0");
    let error = ApiError::from(registry.resolve(&ask("p", "5.10")).await.unwrap_err());
    assert_eq!(error.code, Code::Unsupported);
    assert!(error.message.contains("p 0.2.0 needs kernel 6.6"), "{}", error.message);
    let error = ApiError::from(registry.resolve(&ask("q", "6.18")).await.unwrap_err());
    assert!(error.message.contains("riscv64"), "{}", error.message);
}

#[tokio::test]
async fn a_damaged_newest_version_is_an_error_and_no_step_back() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.0.9", ""));
    let good = directory.publish(&package("p", "0.1.0", ""));
    let (artifact, signature) = paths();
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    for (bytes, part) in [
        (flipped, "digest"),
        (good[..good.len() - 1].to_vec(), "bytes, not"),
        ([good.as_slice(), &[0]].concat(), "bytes, not"),
        (vec![0; (16 << 20) + 1], "larger"),
    ] {
        write(&directory.path(&artifact), &bytes);
        refused(&directory.registry(), "p", Code::Denied, part).await;
    }
    std::fs::remove_file(directory.path(&artifact)).unwrap();
    refused(&directory.registry(), "p", Code::Unavailable, "there is no").await;
    write(&directory.path(&artifact), &good);
    std::fs::remove_file(directory.path(&signature)).unwrap();
    refused(&directory.registry(), "p", Code::Denied, "not signed").await;
}

#[tokio::test]
async fn a_package_signed_by_another_key_is_refused() {
    let directory = Directory::new();
    let bytes = directory.publish(&package("p", "0.1.0", ""));
    let foreign = SecretKey::generate().unwrap();
    let signature =
        foreign.sign_package(&bytes, &"p".parse().unwrap(), &"0.1.0".parse().unwrap()).unwrap();
    write(&directory.path(&paths().1), signature.as_bytes());
    refused(&directory.registry(), "p", Code::Denied, "not trusted").await;
}

/// Of several patterns the most specific says whose key counts on a package; the index stays its
/// owner's.
#[tokio::test]
async fn a_package_may_have_keys_of_its_own_in_a_repository() {
    let directory = Directory::new();
    let bytes = directory.publish(&package("p", "0.1.0", ""));
    directory.publish(&package("q", "0.1.0", ""));
    let author = SecretKey::generate().unwrap();
    let own = TrustedKey::from(author.public().unwrap());
    let change = json!({ "package_keys": [
        { "packages": ["*"], "keys": directory.trusted() },
        { "packages": ["p"], "keys": [own] },
    ]});
    let with_own = || registry(&[directory.config("test", &["*"], &change)]);
    refused(&with_own(), "p", Code::Denied, "not trusted").await;
    let signature =
        author.sign_package(&bytes, &"p".parse().unwrap(), &"0.1.0".parse().unwrap()).unwrap();
    write(&directory.path(&paths().1), signature.as_bytes());
    resolve(&with_own(), "p", "*").await.unwrap();
    resolve(&with_own(), "q", "*").await.unwrap();
    refused(&directory.registry(), "p", Code::Denied, "not trusted").await;
}

#[tokio::test]
async fn another_package_under_the_right_name_is_refused() {
    let directory = Directory::new();
    // Signed and indexed by the owner's key, as a thief of the key or a careless script might.
    let bytes = package("other", "0.1.0", "").build().unwrap();
    let (name, version) = ("p".parse().unwrap(), "0.1.0".parse().unwrap());
    let signature = directory.key.sign_package(&bytes, &name, &version).unwrap();
    let entry = IndexEntry {
        name,
        version,
        digest: Digest::of(&bytes),
        length: bytes.len() as u64,
        yanked: false,
    };
    let packages = vec![entry];
    let index = Index { version: 1, expires: now() + 1_000, packages, repository: None };
    let (index, index_signature) = index.sign(&directory.key).unwrap();
    let (artifact, artifact_signature) = paths();
    directory.write(&[
        (artifact, bytes),
        (artifact_signature, signature.into_bytes()),
        (INDEX.to_owned(), join(&index, &index_signature)),
    ]);
    refused(&directory.registry(), "p", Code::Denied, "holds other 0.1.0, not p 0.1.0").await;
}

#[tokio::test]
async fn an_index_that_is_not_believed_serves_nothing_at_first() {
    for (name, spoil, part) in [
        ("unsigned", 0, "not signed"),
        ("changed", 1, "changed after signing"),
        ("foreign", 2, "not trusted"),
        ("expired", 3, "expired"),
        ("garbage", 4, "cannot be read"),
    ] {
        let directory = Directory::new();
        directory.publish(&package("p", "0.1.0", ""));
        let mut index = directory.index().unwrap();
        let sign = |index: &Index, key: &SecretKey| {
            let (bytes, signature) = index.sign(key).unwrap();
            write(&directory.path(INDEX), &join(&bytes, &signature));
        };
        match spoil {
            0 => write(&directory.path(INDEX), &index.to_bytes().unwrap()),
            1 => {
                let (_, signature) = index.sign(&directory.key).unwrap();
                index.expires += 1;
                write(&directory.path(INDEX), &join(&index.to_bytes().unwrap(), &signature));
            }
            2 => sign(&index, &SecretKey::generate().unwrap()),
            3 => {
                index.expires = now() - 10;
                sign(&index, &directory.key);
            }
            _ => {
                let signature = directory.key.sign_index(b"garbage\n", 1, None).unwrap();
                write(&directory.path(INDEX), &join(b"garbage\n", &signature));
            }
        }
        let registry = directory.registry();
        refused(&registry, "p", Code::Denied, part).await;
        // Hosts may go on with what they have where it has only expired.
        let error = resolve(&registry, "p", "*").await.unwrap_err();
        assert_eq!(error.reason.as_deref() == Some("index_expired"), spoil == 3, "{error:?}");
        assert!(!registry.health()[0].usable, "{name}");
    }
}

#[tokio::test]
async fn a_bad_newer_index_leaves_the_good_one_in_use_and_is_reported() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let registry = directory.registry();
    resolve(&registry, "p", "*").await.unwrap();
    let health = &registry.health()[0];
    assert!(health.usable && !health.stale, "{health:?}");
    let old = [(INDEX.to_owned(), std::fs::read(directory.path(INDEX)).unwrap())];
    directory.publish(&package("p", "0.2.0", ""));
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.2.0");

    // Somebody puts the older index back.
    directory.write(&old);
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.2.0");
    let list = registry.list(&ListRequest::default(), PAGE_BYTES).await.unwrap();
    assert!(list.unavailable[0].reason.contains("older than version 2"), "{list:?}");
    assert_eq!(list.packages[0].versions.len(), 2);
    let health = &registry.health()[0];
    assert!(health.usable && health.stale, "{health:?}");
    // And removes it.
    std::fs::remove_file(directory.path(INDEX)).unwrap();
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.2.0");
    let detail = &registry.health()[0].detail;
    assert!(detail.contains("index.signed is gone"), "{detail}");
}

#[tokio::test]
async fn a_publication_under_way_is_never_an_error() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let registry = directory.registry();
    resolve(&registry, "p", "*").await.unwrap();
    let writer = async {
        for minor in 2..12 {
            let publication = {
                let package = package("p", &format!("0.{minor}.0"), "");
                let bytes = package.build().unwrap();
                let (name, version) = (&package.manifest.name, &package.manifest.version);
                let signature = directory.key.sign_package(&bytes, name, version).unwrap();
                Publisher::new(&directory.key, now())
                    .publish(directory.index().as_ref(), &bytes, &signature, &directory.trusted())
                    .unwrap()
            };
            for file in &publication.files {
                directory.write(std::slice::from_ref(file));
                // Readers meet every state in between.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    };
    let done = std::cell::Cell::new(false);
    let reader = async {
        while !done.get() {
            let list = registry.list(&ListRequest::default(), PAGE_BYTES).await.unwrap();
            assert!(list.unavailable.is_empty(), "{:?}", list.unavailable);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(
        async {
            writer.await;
            done.set(true);
        },
        reader
    );
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.11.0");
}

#[tokio::test]
async fn one_repository_s_trouble_is_its_own() {
    let (good, gone) = (Directory::new(), Directory::new());
    good.publish(&package("p", "0.1.0", ""));
    let url = json!({ "url": "file:///nonexistent/repository" });
    let registry =
        registry(&[good.config("good", &["*"], &json!({})), gone.config("gone", &["net-*"], &url)]);
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().repository, "good");
    refused(&registry, "net-meter", Code::Unavailable, "\"gone\" cannot be used").await;
    let list = registry.list(&ListRequest::default(), PAGE_BYTES).await.unwrap();
    assert_eq!(list.packages.len(), 1);
    assert_eq!(list.unavailable[0].repository, "gone");
}

#[tokio::test]
async fn a_pipe_in_place_of_an_index_keeps_nobody_waiting() {
    let (good, stuck) = (Directory::new(), Directory::new());
    good.publish(&package("p", "0.1.0", ""));
    nix::unistd::mkfifo(&stuck.path(INDEX), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let registry = registry(&[
        good.config("good", &["*"], &json!({})),
        stuck.config("stuck", &["net-*"], &json!({ "timeout_seconds": 30 })),
    ]);
    let before = std::time::Instant::now();
    let waiting = futures::future::join_all((0..600).map(|_| resolve(&registry, "net-x", "*")));
    let (replies, good) = tokio::join!(waiting, resolve(&registry, "p", "*"));
    good.unwrap();
    for reply in replies {
        let error = reply.unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.contains("index.signed cannot be read"), "{}", error.message);
        assert!(error.message.contains("named pipe"), "{}", error.message);
    }
    assert!(before.elapsed().as_secs() < 10, "{:?}", before.elapsed());
    // When there is an index in its place all is well.
    std::fs::remove_file(stuck.path(INDEX)).unwrap();
    stuck.publish(&package("net-x", "0.1.0", ""));
    resolve(&registry, "net-x", "*").await.unwrap();
}

#[tokio::test]
async fn a_directory_that_goes_away_leaves_what_was_verified() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let registry = directory.registry();
    let reply = resolve(&registry, "p", "*").await.unwrap();
    std::fs::remove_dir_all(directory.dir.path()).unwrap();
    assert_eq!(resolve(&registry, "p", "*").await.unwrap(), reply);
    let request = ArtifactRequest { digest: reply.version.digest, offset: 0 };
    assert!(registry.artifact(&request).await.is_ok());
}

#[tokio::test]
async fn a_package_comes_only_from_the_repository_that_is_for_it() {
    let (all, own) = (Directory::new(), Directory::new());
    // The general repository tries to take over a name that has one of its own.
    let stray = all.publish(&package("firewall", "9.9.9", ""));
    own.publish(&package("firewall", "0.1.0", ""));
    let registry = registry(&[
        all.config("all", &["*"], &json!({})),
        own.config("own", &["firewall"], &json!({})),
    ]);
    let reply = resolve(&registry, "firewall", "*").await.unwrap();
    assert_eq!((reply.repository.as_str(), reply.version.version.as_str()), ("own", "0.1.0"));
    let list = registry.list(&ListRequest::default(), PAGE_BYTES).await.unwrap();
    assert_eq!(list.packages.len(), 1);
    assert_eq!(list.packages[0].repository, "own");
    let request = ArtifactRequest { digest: Digest::of(&stray), offset: 0 };
    let error = ApiError::from(registry.artifact(&request).await.unwrap_err());
    assert_eq!(error.code, Code::NotFound);
}

#[tokio::test]
async fn loose_files_are_served_only_where_that_is_asked_for() {
    let directory = Directory::new();
    let bytes = package("p", "0.1.0", "").build().unwrap();
    write(&directory.path("anything.cpkg"), &bytes);
    write(&directory.path("broken.cpkg"), b"garbage");
    refused(&directory.registry(), "p", Code::NotFound, "no package").await;

    let unsigned = json!({ "keys": [], "trust": "unsigned-development" });
    let registry = registry(&[directory.config("dev", &["*"], &unsigned)]);
    let reply = resolve(&registry, "p", "*").await.unwrap();
    assert_eq!((reply.signature, reply.index, reply.index_signature), (None, None, None));
    let request = ArtifactRequest { digest: reply.version.digest, offset: 0 };
    assert_eq!(registry.artifact(&request).await.unwrap().data.0, bytes);
    assert!(registry.health()[0].detail.contains("UNSIGNED"));
    // Rebuilt in place, without any index to change.
    write(&directory.path("anything.cpkg"), &package("p", "0.1.1", "").build().unwrap());
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.1.1");
}

#[tokio::test]
async fn a_package_is_described_with_who_signed_it() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    directory.publish(&package("q", "0.2.0", ""));
    let registry = directory.registry();
    let request = DescribeRequest { package: "p".parse().unwrap(), requirement: None };
    let reply = registry.describe(&request).await.unwrap();
    assert_eq!(reply.signed_by.unwrap(), directory.trusted()[0].key.id());
    assert_eq!(reply.manifest["description"], "The package p");
    assert_eq!(reply.readme, "# p 0.1.0\n");
    assert_eq!(reply.config_schema["additionalProperties"], false);
    let list = registry.list(&ListRequest::default(), PAGE_BYTES).await.unwrap();
    let names: Vec<_> =
        list.packages.iter().map(|p| (p.name.as_str(), p.description.as_str())).collect();
    assert_eq!(names, [("p", "The package p"), ("q", "The package q")]);
}

#[tokio::test]
async fn packages_are_found_by_what_their_newest_version_says() {
    let directory = Directory::new();
    directory.publish(&package("firewall", "0.1.0", "keywords: [acl]"));
    directory.publish(&package("firewall", "0.2.0", "keywords: [prefixes]"));
    directory.publish(&package("meter", "0.1.0", "keywords: [flows]"));
    let registry = directory.registry();
    let search = async |words: &[&str], keyword: Option<&str>| {
        let request = SearchRequest {
            cursor: None,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            hook: Some(Hook::Xdp),
            keyword: keyword.map(str::to_owned),
        };
        let reply = registry.search(&request, PAGE_BYTES).await.unwrap();
        reply.packages.into_iter().map(|package| package.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(search(&["WALL"], None).await, ["firewall"]);
    assert_eq!(search(&["package"], None).await, ["firewall", "meter"], "by description");
    assert_eq!(search(&[], Some("prefixes")).await, ["firewall"]);
    assert_eq!(search(&[], Some("acl")).await, [] as [&str; 0], "of an older version");
    let none = SearchRequest { hook: Some(Hook::TcIngress), ..SearchRequest::default() };
    assert_eq!(registry.search(&none, PAGE_BYTES).await.unwrap().packages, []);
}

fn yank(directory: &Directory, name: &str, version: &str) {
    let publication = Publisher::new(&directory.key, now())
        .yank(&directory.index().unwrap(), &name.parse().unwrap(), &version.parse().unwrap(), true)
        .unwrap();
    directory.write(&publication.files);
}

fn remembering(directory: &Directory, state: &std::path::Path) -> Registry {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let repositories = [directory.config("test", &["*"], &json!({}))];
    let versions = IndexState::open(state).unwrap();
    Registry::remembering(&repositories, 256 << 20, metrics, now, versions)
}

/// A repository that is put back while the registry is away, asked for a package that it was never asked
/// for before; then reset, because it was put back on purpose.
#[tokio::test]
async fn a_restarted_registry_refuses_an_older_index_until_it_is_reset() {
    let (directory, state) = (Directory::new(), tempfile::tempdir().unwrap());
    directory.publish(&package("wall", "1.0.0", ""));
    directory.publish(&package("other", "1.0.0", ""));
    let older = fs::read(directory.path(INDEX)).unwrap();
    yank(&directory, "wall", "1.0.0");
    let admin = "u-admin".parse().unwrap();
    let reset = ResetRepositoryRequest { repository: "test".to_owned() };
    {
        let registry = remembering(&directory, state.path());
        registry.resolve(&request("other", "*")).await.unwrap();
    }
    write(&directory.path(INDEX), &older);
    let registry = remembering(&directory, state.path());
    let error = ApiError::from(registry.resolve(&request("wall", "*")).await.unwrap_err());
    assert_eq!(error.code, Code::Denied);
    assert!(error.message.contains("has version 2, older than version 3 seen"), "{error}");
    assert!(error.remedy.unwrap().contains("canopy package trust reset-index"));

    // Nothing is reset to what is not signed, or to a version that nobody can have come to.
    let (json, signature) = split(&older).unwrap();
    write(&directory.path(INDEX), json);
    registry.reset_index(&reset, &admin).await.unwrap_err();
    let mut used_up = Index::open_unsigned(json).unwrap();
    used_up.version = u64::MAX;
    let (bytes, signed) = used_up.sign(&directory.key).unwrap();
    write(&directory.path(INDEX), &join(&bytes, &signed));
    registry.reset_index(&reset, &admin).await.unwrap_err();
    write(&directory.path(INDEX), &join(json, signature));
    registry.resolve(&request("wall", "*")).await.unwrap_err();

    let reply = registry.reset_index(&reset, &admin).await.unwrap();
    assert_eq!((reply.from, reply.to), (3, 2));
    assert!(reply.id.is_some());
    registry.resolve(&request("wall", "*")).await.unwrap();
    drop(registry);
    let registry = remembering(&directory, state.path());
    registry.resolve(&request("wall", "*")).await.unwrap();
    drop(registry);
    // What is gone is an attack, until somebody says that the repository begins anew.
    fs::remove_file(directory.path(INDEX)).unwrap();
    let registry = remembering(&directory, state.path());
    let error = ApiError::from(registry.resolve(&request("wall", "*")).await.unwrap_err());
    assert!(error.message.contains("version 2 was seen before"), "{error}");
    let reply = registry.reset_index(&reset, &admin).await.unwrap();
    assert_eq!((reply.from, reply.to), (2, 0));
    let error = ApiError::from(registry.resolve(&request("wall", "*")).await.unwrap_err());
    assert_eq!(error.code, Code::NotFound, "{error}");
    let unknown = ResetRepositoryRequest { repository: "nobody".to_owned() };
    let error = ApiError::from(registry.reset_index(&unknown, &admin).await.unwrap_err());
    assert_eq!((error.code, error.path.as_str()), (Code::NotFound, "repository"));
}
