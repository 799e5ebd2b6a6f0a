//! The registry over every kind of store: the same questions, the same answers; and what a store
//! that fails, hangs or lies can and cannot do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;
mod servers;

use canopy_api::{
    ApiError, Blob, Code, Digest,
    wire::{
        ArtifactRequest, PublishIndexRequest, PublishUploadRequest, PublishedPackage, ResolveReply,
        ResolveRequest,
    },
};
use canopy_package::{
    Index,
    repository::{Publisher, artifact_path},
};
use canopy_registry::{Registry, error::PublishError, repository::Change};
use canopy_store::{Location, Store, StoreConfig};
use canopy_test_support::stores::Buckets;
use common::{Directory, now, package, registry};
use serde_json::{Value, json};
use servers::{Answer, FaultyServer, WebServer};
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

async fn resolve(
    registry: &Registry,
    name: &str,
    requirement: &str,
) -> Result<ResolveReply, ApiError> {
    let request = ResolveRequest {
        package: name.parse().unwrap(),
        requirement: requirement.to_owned(),
        arch: None,
        kernel: None,
    };
    Ok(registry.resolve(&request).await?)
}

async fn fetch(registry: &Registry, reply: &ResolveReply) -> Vec<u8> {
    let mut fetched = Vec::new();
    loop {
        let offset = fetched.len() as u64;
        let request = ArtifactRequest { digest: reply.version.digest.clone(), offset };
        let chunk = registry.artifact(&request).await.unwrap();
        fetched.extend(chunk.data.0);
        if fetched.len() as u64 == chunk.total {
            return fetched;
        }
    }
}

/// What every store has to do. `change` says where the store is; `mirror` copies the publisher's
/// directory there, as it stands.
async fn a_repository_of_any_kind(
    directory: &Directory,
    change: Value,
    mirror: impl AsyncFn(&Directory),
) {
    let registry = registry(&[directory.config("any", &["*"], &change)]);
    mirror(directory).await;
    assert_eq!(resolve(&registry, "p", "*").await.unwrap_err().code, Code::NotFound);

    let first = directory.publish(&package("p", "0.1.0", ""));
    mirror(directory).await;
    let reply = resolve(&registry, "p", "*").await.unwrap();
    assert_eq!(reply.version.version, "0.1.0");
    assert_eq!(fetch(&registry, &reply).await, first);

    // What was published before a question is part of the answer, however soon the question.
    for version in ["0.1.1", "0.1.2"] {
        directory.publish(&package("p", version, ""));
        mirror(directory).await;
        assert_eq!(resolve(&registry, "p", "^0.1").await.unwrap().version.version, version);
    }

    // Other bytes under a name that the index knows.
    directory.publish(&package("p", "0.2.0", ""));
    let path = directory.path(&artifact_path(&"p".parse().unwrap(), &"0.2.0".parse().unwrap()));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    mirror(directory).await;
    let error = resolve(&registry, "p", "*").await.unwrap_err();
    assert_eq!(error.code, Code::Denied, "{error:?}");
    let older = resolve(&registry, "p", "=0.1.2").await.unwrap();
    assert_eq!(older.version.version, "0.1.2");

    // A file the index names that is not there.
    directory.publish(&package("q", "1.0.0", ""));
    std::fs::remove_file(
        directory.path(&artifact_path(&"q".parse().unwrap(), &"1.0.0".parse().unwrap())),
    )
    .unwrap();
    mirror(directory).await;
    let error = resolve(&registry, "q", "*").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
    assert!(error.message.contains("there is no "), "{error:?}");
}

#[tokio::test]
async fn a_directory() {
    let directory = Directory::new();
    a_repository_of_any_kind(&directory, json!({}), async |_| {}).await;
}

#[tokio::test]
async fn a_web_server() {
    let directory = Directory::new();
    let server = WebServer::start(directory.dir.path());
    let change = json!({ "url": server.url(), "store": { "ca": server.ca() } });
    a_repository_of_any_kind(&directory, change, async |_| {}).await;
}

#[tokio::test]
async fn a_web_server_that_nobody_vouches_for_is_refused() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let server = WebServer::start(directory.dir.path());
    let change = json!({ "url": server.url() });
    let registry = registry(&[directory.config("any", &["*"], &change)]);
    let error = resolve(&registry, "p", "*").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
    let said = format!("{} {}", error.message, error.remedy.clone().unwrap_or_default());
    assert!(said.contains("certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3() {
    buckets(&Buckets::s3().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure() {
    buckets(&Buckets::azure().unwrap()).await;
}

/// The whole of a bucket, and a folder in another.
async fn buckets(store: &Buckets) {
    for (bucket, folder) in [("whole", ""), ("shared", "team/canopy")] {
        store.make(bucket).unwrap();
        let directory = Directory::new();
        let url = store.url(bucket, folder);
        let config: StoreConfig = serde_json::from_value(store.store().clone()).unwrap();
        let limit = Duration::from_secs(10);
        let copy = Store::new(Location::parse(&url).unwrap(), config, limit);
        let change = json!({ "url": url, "store": store.store() });
        a_repository_of_any_kind(&directory, change, async |directory: &Directory| {
            mirror(directory.dir.path(), &copy).await;
        })
        .await;
    }
}

/// Copies a directory as it stands, its index last, as a publisher would.
async fn mirror(from: &Path, to: &Store) {
    let mut files = Vec::new();
    list(from, &mut files);
    files.sort_by_key(|file| file.parent() == Some(from));
    for file in files {
        let name = file.strip_prefix(from).unwrap().to_str().unwrap();
        to.write(name, std::fs::read(&file).unwrap()).await.unwrap();
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

/// The case in which one waits longest.
const SILENT: &str = "it says nothing";

type Fault = fn(u64, &str) -> Option<Answer>;

/// Case matters in paths.
fn is_package(path: &str) -> bool {
    path.strip_suffix(".cpkg").is_some()
}

fn plain(server: &FaultyServer) -> Value {
    json!({ "url": server.url(), "store": { "transport": "plaintext" }, "timeout_seconds": 1 })
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_is_asked_again() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    // Two of three requests fail.
    let server = FaultyServer::start(directory.dir.path(), |number, _| {
        (number % 3 != 2).then_some(Answer::Status(503))
    });
    let registry = registry(&[directory.config("any", &["*"], &plain(&server))]);
    assert_eq!(resolve(&registry, "p", "*").await.unwrap().version.version, "0.1.0");
    assert!(server.requests() >= 12, "{} requests", server.requests());
}

#[tokio::test]
async fn a_hundred_hosts_that_ask_for_one_file_load_the_store_once() {
    let directory = Directory::new();
    let bytes = directory.publish(&package("p", "0.1.0", ""));
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let server = FaultyServer::start(directory.dir.path(), move |_, path| {
        counted.fetch_add(u64::from(is_package(path)), Ordering::SeqCst);
        None
    });
    let registry = registry(&[directory.config("any", &["*"], &plain(&server))]);
    let hosts = (0..100).map(|_| async {
        let reply = resolve(&registry, "p", "*").await.unwrap();
        fetch(&registry, &reply).await
    });
    for fetched in futures::future::join_all(hosts).await {
        assert_eq!(fetched, bytes);
    }
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_file_that_does_not_come_costs_all_who_wait_one_time_limit() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let server = FaultyServer::start(directory.dir.path(), |_, path| {
        is_package(path).then_some(Answer::Silence)
    });
    let registry = registry(&[directory.config("any", &["*"], &plain(&server))]);
    let before = Instant::now();
    let hosts = (0..100).map(|_| resolve(&registry, "p", "*"));
    for outcome in futures::future::join_all(hosts).await {
        assert_eq!(outcome.unwrap_err().code, Code::Unavailable);
    }
    let took = before.elapsed();
    assert!(took < Duration::from_secs(5), "a hundred questions waited {took:?}");
}

#[tokio::test]
async fn a_store_that_hangs_fails_or_lies_hurts_itself_alone() {
    let directory = Directory::new();
    let bytes = directory.publish(&package("p", "0.1.0", ""));
    let good = Directory::new();
    good.publish(&package("net", "0.1.0", ""));
    let cases: [(&str, Fault, Code); 6] = [
        (SILENT, |_, _| Some(Answer::Silence), Code::Unavailable),
        ("it always fails", |_, _| Some(Answer::Status(500)), Code::Unavailable),
        ("it refuses", |_, _| Some(Answer::Status(403)), Code::Unavailable),
        (
            "it ends in the middle of a package",
            |_, path| is_package(path).then_some(Answer::CutShort),
            Code::Unavailable,
        ),
        (
            "it says that a package is very large",
            |_, path| is_package(path).then_some(Answer::Claims(1 << 40)),
            Code::Denied,
        ),
        (
            "it gives the package's signature as the package",
            |_, path| is_package(path).then_some(Answer::File(".minisig")),
            Code::Denied,
        ),
    ];
    for (case, fault, code) in cases {
        let server = FaultyServer::start(directory.dir.path(), fault);
        let registry = registry(&[
            directory.config("faulty", &["*"], &plain(&server)),
            good.config("good", &["net"], &json!({})),
        ]);
        let faulty_ended = Cell::new(false);
        let (faulty, healthy) = tokio::join!(
            async {
                let outcome = resolve(&registry, "p", "*").await;
                faulty_ended.set(true);
                outcome
            },
            async {
                let outcome = resolve(&registry, "net", "*").await;
                (outcome, faulty_ended.get())
            }
        );
        let error = faulty.unwrap_err();
        assert_eq!(error.code, code, "{case}: {error:?}");
        let (reply, waited) = healthy;
        assert_eq!(reply.unwrap().version.version, "0.1.0", "{case}");
        if case == SILENT {
            assert!(!waited, "the healthy one waited until the silent one was given up");
        }
    }

    // The same repository without a fault: the cases above failed for their reasons.
    let server = FaultyServer::start(directory.dir.path(), |_, _| None);
    let registry = registry(&[directory.config("faulty", &["*"], &plain(&server))]);
    let reply = resolve(&registry, "p", "*").await.unwrap();
    assert_eq!(fetch(&registry, &reply).await, bytes);
}

/// Publishes a package through a registry, by the index that it has at this moment.
async fn publish_through(
    registry: &Registry,
    directory: &Directory,
    package: &canopy_package::Package,
) -> Result<u64, PublishError> {
    let by = "u-publisher".parse().unwrap();
    let repository = "any".to_owned();
    let mut file = Vec::new();
    let replaces = loop {
        let offset = file.len() as u64;
        let request = PublishIndexRequest { repository: repository.clone(), offset };
        let reply = registry.publish_index(&request).await?;
        file.extend(reply.data.0);
        if file.len() as u64 == reply.total {
            break reply.digest;
        }
    };
    let current = (!file.is_empty()).then(|| Index::read_unverified(&file).unwrap());
    let bytes = package.build().unwrap();
    let (name, version) = (&package.manifest.name, &package.manifest.version);
    let signature = directory.key.sign_package(&bytes, name, version).unwrap();
    let publication = Publisher::new(&directory.key, now())
        .publish(current.as_ref(), &bytes, &signature, &directory.trusted())
        .unwrap();
    let index = publication.files.last().unwrap().1.clone();
    for file in [&bytes, &index] {
        let request = PublishUploadRequest {
            repository: repository.clone(),
            digest: Digest::of(file),
            total: file.len() as u64,
            offset: 0,
            data: Blob(file.clone()),
        };
        registry.publish_upload(&by, request).await?;
    }
    let change = Change::Publish(vec![PublishedPackage { digest: Digest::of(&bytes), signature }]);
    let index = Digest::of(&index);
    let done = registry.publish(&by, &repository, &change, &index, replaces.as_ref()).await?;
    Ok(done.index_version)
}

/// Two registries over one bucket, several publishers at each: the store's compare and swap decides.
async fn a_bucket_is_published_to(store: &Buckets) {
    store.make("packages").unwrap();
    let directory = Directory::new();
    let change = json!({
        "url": store.url("packages", "team/canopy"), "store": store.store(),
        "writable": true, "timeout_seconds": 20,
    });
    let registries = [(); 2].map(|()| registry(&[directory.config("any", &["*"], &change)]));
    let first = package("p", "0.1.0", "");
    assert_eq!(publish_through(&registries[0], &directory, &first).await.unwrap(), 1);
    let reply = resolve(&registries[1], "p", "*").await.unwrap();
    assert_eq!(fetch(&registries[1], &reply).await, first.build().unwrap());

    let publishers = (0..4_usize).map(|number| {
        let (registries, directory) = (&registries, &directory);
        async move {
            let own = package(&format!("p{number}"), "0.1.0", "");
            for _ in 0..50 {
                match publish_through(&registries[number % 2], directory, &own).await {
                    Ok(_) => return,
                    Err(error) => assert!(matches!(error, PublishError::Overtaken), "{error}"),
                }
            }
            panic!("others were quicker 50 times");
        }
    });
    futures::future::join_all(publishers).await;
    for name in ["p", "p0", "p1", "p2", "p3"] {
        resolve(&registries[0], name, "*").await.unwrap();
    }
    // What was broken off before its index is in nobody's way; other bytes of it are.
    let config: StoreConfig = serde_json::from_value(store.store().clone()).unwrap();
    let location = Location::parse(&store.url("packages", "team/canopy")).unwrap();
    let direct = Store::new(location, config, Duration::from_secs(10));
    let broken_off = package("q", "0.1.0", "");
    let path = artifact_path(&"q".parse().unwrap(), &"0.1.0".parse().unwrap());
    direct.write(&path, b"another's".to_vec()).await.unwrap();
    let error = publish_through(&registries[0], &directory, &broken_off).await.unwrap_err();
    assert!(matches!(error, PublishError::Taken { .. }), "{error}");
    direct.write(&path, broken_off.build().unwrap()).await.unwrap();
    publish_through(&registries[0], &directory, &broken_off).await.unwrap();
    let left = direct.list_below(".uploads", 100).await.unwrap();
    let published = Digest::of(&broken_off.build().unwrap());
    assert!(!left.iter().any(|piece| piece.path.contains(published.hex())), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_is_published_to_through_the_registry() {
    a_bucket_is_published_to(&Buckets::s3().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_is_published_to_through_the_registry() {
    a_bucket_is_published_to(&Buckets::azure().unwrap()).await;
}
