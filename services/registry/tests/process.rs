//! The process on a real bus: who may ask what, and what they get.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod common;

use canopy_api::{
    ApiError, Code,
    endpoint::registry::{Artifact, Describe, Health, List, Refresh, Resolve, Search},
    subject::Target,
    wire::{ArtifactRequest, DescribeRequest, Empty, ListRequest, ResolveRequest, SearchRequest},
};
use canopy_bus::{Bus, BusConfig, CallError, CallOptions};
use canopy_package::{
    IndexEntry, SecretKey,
    index::join,
    repository::{INDEX, LOCK, artifact_path},
};
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    service::{ServiceProcess, check},
    wait_for,
};
use common::{Directory, package};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_canopy-registry");

async fn connect(server: &NatsServer, principal: &str) -> Bus {
    let ClientFiles { url, ca, cert, key } = server.client(principal);
    let config = BusConfig::new(url, ca, cert, key);
    let bus = Bus::connect(&config, principal.parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    bus
}

fn config(server: &NatsServer, directory: &Directory) -> Value {
    let ClientFiles { url, ca, cert, key } = server.client("s-registry");
    json!({
        "bus": { "url": url, "ca": ca, "cert": cert, "key": key },
        "repositories": [{
            "name": "starter",
            "url": format!("file://{}", directory.dir.path().display()),
            "packages": ["*"],
            "keys": directory.trusted(),
        }],
    })
}

fn resolve(name: &str) -> ResolveRequest {
    ResolveRequest {
        package: name.parse().unwrap(),
        requirement: "*".to_owned(),
        arch: None,
        kernel: None,
    }
}

#[tokio::test]
async fn a_host_gets_a_package_over_the_bus() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let process = ServiceProcess::start(Path::new(PROGRAM), config(&server, &directory)).unwrap();
    process.wait_status(200).unwrap();
    let (central, loader) = (Target::Central, connect(&server, "h-web1-loader").await);

    let unknown = loader.call::<Resolve>(&central, &resolve("p")).await.unwrap_err();
    assert_eq!(unknown.to_api_error().code, Code::NotFound);
    // Published while the registry runs.
    let bytes = directory.publish(&package("p", "0.1.0", ""));
    let reply = loader.call::<Resolve>(&central, &resolve("p")).await.unwrap();
    assert_eq!(reply.version.version, "0.1.0");
    let request = ArtifactRequest { digest: reply.version.digest, offset: 0 };
    let chunk = loader.call::<Artifact>(&central, &request).await.unwrap();
    assert_eq!(chunk.data.0, bytes);

    let viewer = connect(&server, "u-viewer").await;
    let list = viewer.call::<List>(&central, &ListRequest::default()).await.unwrap();
    assert_eq!(list.packages[0].repository, "starter");
    let describe = DescribeRequest { package: "p".parse().unwrap(), requirement: None };
    let described = viewer.call::<Describe>(&central, &describe).await.unwrap();
    assert_eq!(described.signed_by.unwrap(), directory.trusted()[0].key.id());
    let words = SearchRequest { words: vec!["p".to_owned()], ..SearchRequest::default() };
    let found = viewer.call::<Search>(&central, &words).await.unwrap();
    assert_eq!(found.packages[0].name.as_str(), "p");
    let refused = viewer.call::<Refresh>(&central, &Empty {}).await.unwrap_err();
    assert!(matches!(refused, CallError::NotPermitted { .. }), "{refused}");
    let publisher = connect(&server, "u-publisher").await;
    let state = publisher.call::<Refresh>(&central, &Empty {}).await.unwrap().repositories;
    assert_eq!((state[0].repository.as_str(), state[0].usable), ("starter", true));
    let refused = viewer.call::<Artifact>(&central, &request).await.unwrap_err();
    assert!(matches!(refused, CallError::NotPermitted { .. }), "{refused}");
    let health = viewer.call::<Health>(&central, &Empty {}).await.unwrap();
    assert!(health.checks.iter().any(|check| check.name == "repositories" && check.ok));

    let (_, metrics) = process.get("/metrics").unwrap();
    for expected in [
        "canopy_registry_repository_up{repository=\"starter\"} 1",
        "canopy_registry_repository_unsigned{repository=\"starter\"} 0",
        "canopy_registry_index_version{repository=\"starter\"} 1",
        "canopy_registry_package_versions{repository=\"starter\"} 1",
        "canopy_registry_artifact_lookups_total{result=\"miss\"} 1",
    ] {
        assert!(metrics.contains(expected), "{expected} is not in\n{metrics}");
    }
    assert!(process.end().unwrap().success());
}

/// Two registries share the questions; when one is killed, the other gives the rest of a file, also of
/// one that it has not looked for yet.
#[tokio::test]
async fn one_of_two_registries_is_killed_in_the_middle_of_a_file() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    directory.publish(&package("q", "0.1.0", ""));
    let mut slow = config(&server, &directory);
    slow["refresh_seconds"] = json!(86_400);
    let start = || {
        let process = ServiceProcess::start(Path::new(PROGRAM), slow.clone()).unwrap();
        process.wait_status(200).unwrap();
        process
    };
    let (first, second) = (start(), start());
    let (central, loader) = (Target::Central, connect(&server, "h-web1-loader").await);
    // Published after both have looked: whoever is asked first learns of it, the other does not.
    let bytes = directory.publish(&package("p", "0.1.0", ""));
    let reply = loader.call::<Resolve>(&central, &resolve("p")).await.unwrap();
    for _ in 0..20 {
        let request = ArtifactRequest { digest: reply.version.digest.clone(), offset: 0 };
        let chunk = loader.call::<Artifact>(&central, &request).await.unwrap();
        assert_eq!(chunk.data.0, bytes);
    }
    let sent = |process: &ServiceProcess| -> u64 {
        let (_, metrics) = process.get("/metrics").unwrap();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("canopy_registry_artifact_sent_bytes_total "));
        line.map_or(0, |count| count.parse().unwrap())
    };
    let (one, two) = (sent(&first), sent(&second));
    assert_eq!(one + two, 20 * bytes.len() as u64);
    assert!(one > 0 && two > 0, "{one} and {two} bytes");

    drop(first);
    let request = ArtifactRequest { digest: reply.version.digest, offset: 10 };
    let options = || CallOptions { timeout: Some(Duration::from_secs(1)), ..Default::default() };
    // The server may not have noticed yet: a question or two are lost, as a loader's are.
    for _ in 0..20 {
        let asked = loader.call_with::<Artifact>(&central, &request, options()).await;
        match asked {
            Ok(chunk) => {
                assert_eq!(chunk.data.0, bytes[10..]);
                return;
            }
            Err(CallError::Timeout { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the second registry does not answer");
}

/// Pipes in place of files once kept a thread each for good.
#[tokio::test]
async fn pipes_in_place_of_packages_hurt_nobody_else() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let bytes = directory.publish(&package("good", "1.0.0", ""));
    let mut paths = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let package = package(name, "1.0.0", "");
        directory.publish(&package);
        let (name, version) = (&package.manifest.name, &package.manifest.version);
        paths.push(directory.path(&artifact_path(name, version)));
    }
    let whole: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for path in &paths {
        std::fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    nix::unistd::mkfifo(&directory.path(LOCK), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut config = config(&server, &directory);
    config["repositories"][0]["writable"] = json!(true);
    let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
    process.wait_status(200).unwrap();
    let (central, loader) = (Target::Central, connect(&server, "h-web1-loader").await);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap().count();
    for _ in 0..20 {
        let asked = ["a", "b", "c", "d", "e", "f"].map(async |name| {
            let error = loader.call::<Resolve>(&central, &resolve(name)).await.unwrap_err();
            error.to_api_error()
        });
        for error in futures::future::join_all(asked).await {
            assert_eq!(error.code, Code::Unavailable, "{error:?}");
            assert!(error.message.contains("named pipe"), "{error:?}");
        }
        let good = loader.call::<Resolve>(&central, &resolve("good")).await.unwrap();
        let request = ArtifactRequest { digest: good.version.digest, offset: 0 };
        assert_eq!(loader.call::<Artifact>(&central, &request).await.unwrap().data.0, bytes);
    }
    assert!(threads() < 64, "{} threads", threads());
    // When they are gone all is well at once.
    for (path, bytes) in paths.iter().zip(whole) {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    loader.call::<Resolve>(&central, &resolve("a")).await.unwrap();
    // So it is of the index, which is looked at before every answer.
    let index = directory.path(INDEX);
    let text = std::fs::read(&index).unwrap();
    std::fs::remove_file(&index).unwrap();
    nix::unistd::mkfifo(&index, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let viewer = connect(&server, "u-viewer").await;
    let list = viewer.call::<List>(&central, &ListRequest::default()).await.unwrap();
    assert!(list.unavailable[0].reason.contains("named pipe"), "{list:?}");
    std::fs::remove_file(&index).unwrap();
    std::fs::write(&index, text).unwrap();
    let list = viewer.call::<List>(&central, &ListRequest::default()).await.unwrap();
    assert_eq!(list.unavailable, []);
    let asked = Instant::now();
    assert!(process.end().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

/// Longer than a message of the bus can be.
#[tokio::test]
async fn a_package_of_a_repository_with_a_very_long_index_comes_over_the_bus() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    directory.publish(&package("p", "1.0.0", ""));
    let mut index = directory.index().unwrap();
    let entry = index.packages[0].clone();
    index.packages.extend((1..8_000).map(|minor| {
        let version = format!("0.{minor}.0").parse().unwrap();
        IndexEntry { version, ..entry.clone() }
    }));
    index.packages.sort_by(|a, b| a.version.cmp(&b.version));
    let (json, signature) = index.sign(&directory.key).unwrap();
    assert!(json.len() > 1 << 20, "{} bytes", json.len());
    directory.write(&[(INDEX.to_owned(), join(&json, &signature))]);

    let process = ServiceProcess::start(Path::new(PROGRAM), config(&server, &directory)).unwrap();
    process.wait_status(200).unwrap();
    let (central, loader) = (Target::Central, connect(&server, "h-web1-loader").await);
    let reply = loader.call::<Resolve>(&central, &resolve("p")).await.unwrap();
    let at = reply.index_at.unwrap();
    assert_eq!((reply.index, at.length), (None, json.len() as u64));
    let mut fetched = Vec::new();
    while (fetched.len() as u64) < at.length {
        let request = ArtifactRequest { digest: at.digest.clone(), offset: fetched.len() as u64 };
        fetched.extend(loader.call::<Artifact>(&central, &request).await.unwrap().data.0);
    }
    assert_eq!(fetched, json);
    let viewer = connect(&server, "u-viewer").await;
    let list = viewer.call::<List>(&central, &ListRequest::default()).await.unwrap();
    assert_eq!((list.packages[0].versions.len(), list.packages[0].older), (1_000, 7_000));
}

/// Waits until the process says that of itself.
fn wait_metric(process: &ServiceProcess, line: &str) {
    wait_for(Duration::from_secs(10), line, || {
        let (_, metrics) = process.get("/metrics").unwrap();
        metrics.lines().any(|one| one == line).then_some(()).ok_or(metrics)
    })
    .unwrap();
}

#[tokio::test]
async fn a_changed_configuration_is_used_and_a_bad_one_changes_nothing() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let good = config(&server, &directory);
    let process = ServiceProcess::start(Path::new(PROGRAM), good.clone()).unwrap();
    process.wait_status(200).unwrap();
    let (central, loader) = (Target::Central, connect(&server, "h-web1-loader").await);
    loader.call::<Resolve>(&central, &resolve("p")).await.unwrap();

    let mut bad = good.clone();
    bad["repositories"][0]["url"] = json!("file://relative");
    process.configure(bad).unwrap();
    wait_metric(&process, "canopy_registry_configuration_current 0");
    assert!(process.log().contains("repositories[0].url"), "{}", process.log());
    loader.call::<Resolve>(&central, &resolve("p")).await.unwrap();

    // A key that is lost: what it signed is refused from now on, also what was verified before.
    let mut revoked = good.clone();
    let another = SecretKey::generate().unwrap().public().unwrap();
    revoked["repositories"][0]["keys"] = json!([
        { "key": directory.trusted()[0].key, "revoked": true },
        { "key": another },
    ]);
    process.configure(revoked).unwrap();
    wait_metric(&process, "canopy_registry_configuration_current 1");
    let refused = loader.call::<Resolve>(&central, &resolve("p")).await.unwrap_err();
    assert_eq!(refused.to_api_error().code, Code::Denied);

    // Another repository instead, and what the first one was counted as is gone.
    let second = Directory::new();
    second.publish(&package("q", "2.0.0", ""));
    let mut other = good.clone();
    other["repositories"][0]["name"] = json!("second");
    other["repositories"][0]["url"] = json!(format!("file://{}", second.dir.path().display()));
    other["repositories"][0]["keys"] = json!(second.trusted());
    process.configure(other).unwrap();
    wait_metric(&process, "canopy_registry_repository_up{repository=\"second\"} 1");
    loader.call::<Resolve>(&central, &resolve("q")).await.unwrap();
    let (_, metrics) = process.get("/metrics").unwrap();
    assert!(!metrics.contains("_up{repository=\"starter\"}"), "{metrics}");
    assert!(process.end().unwrap().success());
}

#[tokio::test]
async fn a_configuration_that_changes_does_not_forget_the_index_seen() {
    let directory = Directory::new();
    directory.publish(&package("p", "0.1.0", ""));
    let old = [(INDEX.to_owned(), std::fs::read(directory.path(INDEX)).unwrap())];
    directory.publish(&package("p", "0.2.0", ""));
    let first = directory.registry();
    first.resolve(&resolve("p")).await.unwrap();

    let slower = directory.config("test", &["*"], &json!({ "timeout_seconds": 9 }));
    let next = first.successor(&[slower], 1 << 20);
    directory.write(&old);
    let error = ApiError::from(next.resolve(&resolve("p")).await.unwrap_err());
    assert_eq!(error.code, Code::Denied, "{error:?}");
}

#[tokio::test]
async fn an_unsigned_repository_is_loud() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let directory = Directory::new();
    let mut config = config(&server, &directory);
    config["repositories"][0]["keys"] = json!([]);
    config["repositories"][0]["trust"] = json!("unsigned-development");
    let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
    process.wait_status(200).unwrap();
    assert!(process.log().contains("DANGER"), "{}", process.log());
    let (_, metrics) = process.get("/metrics").unwrap();
    assert!(metrics.contains("canopy_registry_repository_unsigned{repository=\"starter\"} 1"));
}

#[test]
fn an_ambiguous_configuration_does_not_start() {
    let one = |name: &str| {
        json!({ "name": name, "url": "file:///srv/x", "packages": ["*"],
                "trust": "unsigned-development" })
    };
    let bus = json!({ "url": "tls://127.0.0.1:1", "ca": "a", "cert": "b", "key": "c" });
    let config = json!({ "bus": bus, "repositories": [one("a"), one("b")] });
    let output = check(Path::new(PROGRAM), &config.to_string()).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("repositories[1].packages[0]"), "{text}");
}

#[test]
fn check_looks_at_the_files_that_are_named() {
    let server = NatsServer::start(&[]).unwrap();
    let directory = Directory::new();
    let mut config = config(&server, &directory);
    let state = directory.dir.path().join("state");
    config["state_dir"] = json!(state);
    let output = check(Path::new(PROGRAM), &config.to_string()).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.as_str()), (Some(0), ""));
    assert!(!state.exists(), "it makes nothing");
    config["bus"]["ca"] = json!("/nonexistent/ca.crt");
    config["repositories"][0]["url"] = json!("file:///nonexistent/packages");
    config["audit"] = json!({ "dir": "/proc/sys/audit" });
    let output = check(Path::new(PROGRAM), &config.to_string()).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for expected in [
        "bus.ca: cannot read /nonexistent/ca.crt: no such file or directory (correct the path",
        "repositories[0].url: cannot read /nonexistent/packages: ",
        "audit.dir: cannot write into /proc/sys/audit: ",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

/// A bus that is gone keeps the process for no time, one that hangs for a short one.
#[test]
fn the_registry_ends_at_once_without_its_bus() {
    for (sent, most) in
        [(Signal::SIGKILL, Duration::from_secs(1)), (Signal::SIGSTOP, Duration::from_secs(3))]
    {
        let server = NatsServer::start(&[]).unwrap();
        let directory = Directory::new();
        let config = config(&server, &directory);
        let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
        process.wait_status(200).unwrap();
        kill(Pid::from_raw(server.pid().unwrap().cast_signed()), sent).unwrap();
        let begun = Instant::now();
        assert!(process.end().unwrap().success());
        assert!(begun.elapsed() < most, "{sent}: {:?}", begun.elapsed());
    }
}
