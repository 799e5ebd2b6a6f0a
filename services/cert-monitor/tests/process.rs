//! The process, from outside: starts without a bus, serves with one, ends in order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    endpoint::cert_monitor,
    subject::Target,
    wire::{Empty, VersionRequest},
};
use canopy_bus::{Bus, BusConfig};
use canopy_test_support::{
    nats::{ClientFiles, NatsServer},
    service::{ServiceProcess, check},
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

const PROGRAM: &str = env!("CARGO_BIN_EXE_canopy-cert-monitor");

fn bus(files: &ClientFiles) -> Value {
    json!({ "url": files.url, "ca": files.ca, "cert": files.cert, "key": files.key })
}

#[tokio::test]
async fn serves_over_the_bus_and_outlives_it() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let config = json!({ "bus": bus(&server.client("s-cert-monitor")) });
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
        viewer.call::<cert_monitor::Version>(&target, &VersionRequest::default()).await.unwrap();
    assert_eq!(
        (version.service.as_str(), version.version.as_str()),
        ("cert-monitor", env!("CARGO_PKG_VERSION"))
    );
    let health = viewer.call::<cert_monitor::Health>(&target, &Empty {}).await.unwrap();
    assert!(health.ready, "{health:?}");

    let (status, metrics) = process.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for expected in [
        "canopy_cert_monitor_build_info{version=",
        "canopy_cert_monitor_uptime_seconds ",
        "canopy_cert_monitor_requests_total{code=\"ok\",verb=\"version\"} 1",
        "canopy_cert_monitor_request_duration_seconds_count{verb=\"version\"} 1",
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
