//! The process, from outside: starts without a bus, serves with one, ends in order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    endpoint::policy,
    subject::Target,
    wire::{Empty, VersionRequest},
};
use canopy_bus::{Bus, BusConfig};
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    service::{ServiceProcess, check},
};
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    time::Duration,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_canopy-policy");

fn bus(files: &ClientFiles) -> Value {
    json!({ "url": files.url, "ca": files.ca, "cert": files.cert, "key": files.key })
}

#[tokio::test]
async fn serves_over_the_bus_and_outlives_it() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let config = json!({ "bus": bus(&server.client("s-policy")) });
    let files = server.client("u-viewer");
    server.kill();
    let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
    assert_eq!(process.get("/live").unwrap().0, 200);
    process.wait_status(503).unwrap();
    server.restart().unwrap();
    process.wait_status(200).unwrap();

    let ClientFiles { url, ca, cert, key } = files;
    let viewer = BusConfig::new(url, ca, cert, key);
    let viewer = Bus::connect(&viewer, "u-viewer".parse().unwrap()).await.unwrap();
    viewer.wait_ready(Duration::from_secs(10)).await.unwrap();
    let target = Target::Central;
    let version =
        viewer.call::<policy::Version>(&target, &VersionRequest::default()).await.unwrap();
    assert_eq!(
        (version.service.as_str(), version.version.as_str()),
        ("policy", env!("CARGO_PKG_VERSION"))
    );
    let health = viewer.call::<policy::Health>(&target, &Empty {}).await.unwrap();
    assert!(health.ready, "{health:?}");

    let (status, metrics) = process.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for expected in [
        "canopy_policy_build_info{version=",
        "canopy_policy_uptime_seconds ",
        "canopy_policy_requests_total{code=\"ok\",verb=\"version\"} 1",
        "canopy_policy_request_duration_seconds_count{verb=\"version\"} 1",
    ] {
        assert!(metrics.contains(expected), "{expected} is not in\n{metrics}");
    }
    // Every verb the endpoint table says works has its handler; a file gets no colours.
    let log = process.log();
    assert!(!log.contains("ERROR") && !log.contains('\x1b'), "{log}");
    assert!(process.end().unwrap().success());
}

#[test]
fn a_bad_configuration_is_refused_with_every_mistake() {
    let config = json!({ "bus": { "url": 1 }, "runtime": { "log": { "level": 3 } }, "buss": {} });
    let output = check(Path::new(PROGRAM), &config.to_string()).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for expected in [
        "bus.url: ",
        "bus.ca: ",
        "bus.cert: ",
        "bus.key: ",
        "did you mean \"bus\"?",
        "runtime.log.level: ",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn the_admin_listener_stays_on_loopback() {
    let config = json!({
        "bus": { "url": "tls://127.0.0.1:1", "ca": "a", "cert": "b", "key": "c" },
        "runtime": { "admin": { "listen": "0.0.0.0:9000" } },
    });
    let output = check(Path::new(PROGRAM), &config.to_string()).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("runtime.admin.listen: 0.0.0.0:9000 is not a loopback address"),
        "{text}"
    );
}

/// A collector that takes one export and hands over what came.
fn collector() -> (String, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let taken = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut all, mut part) = (Vec::new(), [0; 8192]);
        loop {
            let text = String::from_utf8_lossy(&all);
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            let head = all.windows(4).position(|four| four == b"\r\n\r\n");
            if let (Some(length), Some(head)) = (length, head)
                && all.len() >= head + 4 + length
            {
                break;
            }
            let n = stream.read(&mut part).unwrap();
            assert!(n > 0, "the export ended early");
            all.extend_from_slice(&part[..n]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        all
    });
    (endpoint, taken)
}

#[tokio::test]
async fn the_last_traces_are_exported_before_the_end() {
    let server = NatsServer::start(&["web1"]).unwrap();
    let (endpoint, taken) = collector();
    let config = json!({
        "bus": bus(&server.client("s-policy")),
        "runtime": { "otlp": { "endpoint": endpoint }, "log": { "format": "json" } },
    });
    let process = ServiceProcess::start(Path::new(PROGRAM), config).unwrap();
    process.wait_status(200).unwrap();
    let ClientFiles { url, ca, cert, key } = server.client("u-viewer");
    let viewer = BusConfig::new(url, ca, cert, key);
    let viewer = Bus::connect(&viewer, "u-viewer".parse().unwrap()).await.unwrap();
    viewer.wait_ready(Duration::from_secs(10)).await.unwrap();
    viewer.call::<policy::Version>(&Target::Central, &VersionRequest::default()).await.unwrap();
    let log = process.log();
    assert!(process.end().unwrap().success());
    let export = taken.join().unwrap();
    let export = String::from_utf8_lossy(&export);
    assert!(export.starts_with("POST /v1/traces"), "{export}");
    for expected in ["canopy-policy", "request", "u-viewer"] {
        assert!(export.contains(expected), "{expected} is not in {export}");
    }
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
}

#[test]
fn keys_are_made_in_a_directory_that_is_not_there_yet() {
    let dir = tempfile::TempDir::new().unwrap();
    let run = |arguments: &[&str]| {
        std::process::Command::new(PROGRAM).args(arguments).current_dir(&dir).output().unwrap()
    };
    for (command, file) in [("keys", "issuer.seed"), ("nkeys", "nkey-app.seed")] {
        let output = run(&[command, "--output", command]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
        assert!(dir.path().join(command).join(file).is_file(), "{command}");
        // Who is to have them is looked up before anything is made.
        let output = run(&[command, "--output", "other", "--owner", "nobody-has-this-name"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("no such user on this machine"), "{command}: {said}");
        assert!(!dir.path().join("other").exists(), "{command}");
    }
}

#[test]
fn the_configuration_on_the_security_page_is_one() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("```json policy.json\n").expect("a configuration");
    let (text, _) = rest.split_once("```").expect("its end");
    let config: canopy_policy::Config = serde_json::from_str(text).unwrap();
    assert!(config.auth.is_some() && config.audit.is_some());
}

#[test]
fn help_and_mistakes_name_every_command() {
    for (word, code) in [("--help", 0), ("help", 0), ("bakup", 2)] {
        let output = std::process::Command::new(PROGRAM).arg(word).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{word}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        for command in ["keys", "nkeys", "audit-key", "backup", "restore", "bootstrap"] {
            assert!(said.contains(&format!("canopy-policy {command} ")), "{word}: {said}");
        }
    }
}
