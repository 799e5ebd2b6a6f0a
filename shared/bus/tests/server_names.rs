//! Which server a client takes for the bus.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use canopy_bus::{Bus, BusConfig};
use canopy_test_support::nats::{Authority, NatsServer};
use common::{LIMIT, config};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, time::Duration};

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// The address that clients connect to.
fn address() -> SanType {
    SanType::IpAddress(Ipv4Addr::LOCALHOST.into())
}

fn uri(name: &str) -> SanType {
    SanType::URI(format!("spiffe://canopy/{name}").as_str().try_into().unwrap())
}

/// The server with a certificate of these names.
fn server_named(
    server: &mut NatsServer,
    sans: Vec<SanType>,
    change: impl FnOnce(&mut CertificateParams),
) {
    server.authority().issue(server.dir(), "server", sans, change).unwrap();
    server.restart().unwrap();
}

fn expecting(server: &NatsServer, names: Value) -> BusConfig {
    BusConfig {
        server_names: serde_json::from_value(names).unwrap(),
        ..config(&server.client("u-admin"))
    }
}

async fn connect(config: &BusConfig) -> Result<Bus, String> {
    let bus = Bus::connect(config, "u-admin".parse().unwrap()).await.unwrap();
    match bus.wait_ready(Duration::from_secs(3)).await {
        Ok(()) => Ok(bus),
        Err(error) => Err(error.to_string()),
    }
}

/// Whoever has a certificate of the authority for the address can take the bus's place; with names, only
/// who has one of these.
#[tokio::test]
async fn a_server_of_another_name_is_not_the_bus() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    server_named(&mut server, vec![address(), dns("a.bus.example")], |_| {});
    let names = json!([{ "dns": { "glob": "*.bus.example" } }]);
    connect(&expecting(&server, names.clone())).await.unwrap();

    server_named(&mut server, vec![address(), dns("web9.example")], |_| {});
    // As long as nobody says which names the bus has.
    connect(&expecting(&server, json!([]))).await.unwrap();
    let said = connect(&expecting(&server, names.clone())).await.unwrap_err();
    assert!(said.contains("server_names") && said.contains("web9.example"), "{said}");

    // A fitting name is no way around the address and the chain.
    server_named(&mut server, vec![dns("a.bus.example")], |_| {});
    connect(&expecting(&server, names.clone())).await.unwrap_err();
    Authority::new()
        .unwrap()
        .issue(server.dir(), "server", vec![address(), dns("a.bus.example")], |_| {})
        .unwrap();
    server.restart().unwrap();
    connect(&expecting(&server, names)).await.unwrap_err();
}

/// A host's or a person's certificate makes nobody a server, whatever it may be used for.
#[tokio::test]
async fn a_clients_certificate_is_no_servers() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let any = json!([{ "any": true }]);
    for (sans, client_only) in [
        // As the policy service signs it: only the one name, and for clients.
        (vec![uri("h-web1-loader")], true),
        (vec![uri("h-web1-loader")], false),
        (vec![uri("h-web1-loader"), address()], true),
    ] {
        server_named(&mut server, sans.clone(), |params| {
            if client_only {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        });
        for names in [json!([]), any.clone()] {
            let said = connect(&expecting(&server, names)).await.map(drop).unwrap_err();
            assert!(said.contains("certificate"), "{sans:?}: {said}");
        }
    }
    // Signed elsewhere, for the address too and for any use: only who names the bus is told apart.
    server_named(&mut server, vec![uri("h-web1-loader"), address()], |_| {});
    connect(&expecting(&server, json!([]))).await.unwrap();
    let said = connect(&expecting(&server, any)).await.unwrap_err();
    assert!(said.contains("the certificate of a client"), "{said}");
}

/// Authority, certificate and key are read at each connect, as without names.
#[tokio::test]
async fn renewed_files_are_used_at_the_next_connect() {
    let mut server = NatsServer::start(&["web1"]).unwrap();
    let names = json!([{ "dns": { "exact": "localhost" } }]);
    let bus = connect(&expecting(&server, names)).await.unwrap();
    server.renew_certificates().unwrap();
    server.restart().unwrap();
    let until = std::time::Instant::now() + LIMIT;
    while bus.statistics().connects < 2 {
        assert!(std::time::Instant::now() < until, "{}", bus.wait_ready(LIMIT).await.unwrap_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bus.wait_ready(LIMIT).await.unwrap();
}
