//! Stored values, over a server that does not answer for a while.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use canopy_bus::{
    Bus, BusConfig,
    data::{Bucket, Swap, retry_for},
};
use canopy_test_support::nats::NatsServer;
use std::{process::Command, time::Duration};

fn signal(server: &NatsServer, signal: &str) {
    let pid = server.pid().unwrap().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// As while a cluster elects a leader: requests are lost, the connection is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_opens_once_the_store_answers_again() {
    let server = NatsServer::start(&[]).unwrap();
    let files = server.client("s-policy-data");
    let config = BusConfig::new(files.url, files.ca, files.cert, files.key);
    let bus = Bus::connect(&config, "s-policy-data".parse().unwrap()).await.unwrap();
    bus.wait_ready(Duration::from_secs(10)).await.unwrap();
    signal(&server, "-STOP");
    let patient = tokio::spawn({
        let bus = bus.clone();
        async move {
            retry_for(Duration::from_secs(30), async {
                let bucket = Bucket::open(&bus, "patient", 1).await?;
                bucket.create("a", &1).await
            })
            .await
        }
    });
    // As long as one attempt takes.
    let once = Bucket::open(&bus, "once", 1).await;
    signal(&server, "-CONT");
    assert!(once.is_err(), "the server was not stopped");
    assert_eq!(patient.await.unwrap().unwrap(), Swap::Done);
}
