//! Messages of garbage to every endpoint: each is answered with an error, and nobody dies.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: a failure is the message"
)]

use async_nats::{Client, ConnectOptions, HeaderMap};
use canopy_api::{
    Hook,
    endpoint::{self, Class, Status},
    subject::{self, Target},
};
use canopy_e2e::{BLOCKED, HOST, World};
use futures::StreamExt as _;
use std::fs;
use std::time::Duration;

const ME: &str = "u-admin";

async fn connect(world: &World) -> Client {
    let pki = world.stack().layout().pki_dir();
    let token = fs::read_to_string(world.stack().layout().token("u-admin")).unwrap();
    ConnectOptions::new()
        .token(token.trim().to_owned())
        .require_tls(true)
        .tls_first()
        .add_root_certificates(pki.join("ca.crt"))
        .add_client_certificate(pki.join("u-admin.crt"), pki.join("u-admin.key"))
        .connect(world.stack().layout().bus_url())
        .await
        .unwrap()
}

/// Sends to an endpoint and gives the error code the answer carries, if it is an error.
async fn ask(
    client: &Client,
    subject: &str,
    responder: &str,
    number: usize,
    json: bool,
    payload: Vec<u8>,
) -> Option<String> {
    let inbox = format!("_INBOX.{ME}.{responder}.garbage{number}");
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let mut headers = HeaderMap::new();
    if json {
        headers.insert("Content-Type", "application/json");
    }
    client
        .publish_with_reply_and_headers(subject.to_owned(), inbox, headers, payload.into())
        .await
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), answers.next())
        .await
        .unwrap_or_else(|_| panic!("{subject}: no answer to garbage {number}"))
        .unwrap();
    answer
        .headers
        .and_then(|headers| headers.get("Nats-Service-Error-Code").map(ToString::to_string))
}

#[test]
fn garbage_is_answered_with_an_error_and_hurts_nobody() {
    let world = World::start().unwrap();
    world.apply(&World::firewall()).unwrap();
    let (link, processes) = (world.kernel_link().unwrap(), world.alive().unwrap());

    world
        .inside(|_| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = connect(&world).await;
                let me = ME.parse().unwrap();
                let endpoints = endpoint::all()
                    .filter(|spec| spec.status == Status::Works && spec.class != Class::Internal);
                let mut number = 0;
                for spec in endpoints {
                    let target = if spec.service.is_host_local() {
                        Target::Host(HOST.parse().unwrap())
                    } else {
                        Target::Central
                    };
                    let subject = subject::request(spec, &target, &me);
                    let responder = target.responder(spec.service);
                    for (json, payload) in [
                        (false, vec![0xc1]),
                        (false, vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
                        (false, vec![0x91; 100_000]),
                        (false, b"\xff\xfe not MessagePack".to_vec()),
                        (false, (0..=255).cycle().take(900_000).collect()),
                        (true, b"{".to_vec()),
                        (true, b"[".repeat(100_000)),
                        (true, b"{\"document\": [1, 2".to_vec()),
                        (true, b"\"a string\"".to_vec()),
                        (true, vec![0; 1000]),
                    ] {
                        number += 1;
                        let code = ask(&client, &subject, &responder, number, json, payload).await;
                        assert_eq!(code.as_deref(), Some("400"), "{subject}, garbage {number}");
                    }
                }
                assert!(number >= 100, "only {number} messages were sent");
            });
            Ok(())
        })
        .unwrap();

    assert_eq!(world.alive().unwrap(), processes);
    assert_eq!(world.kernel_link().unwrap(), link);
    assert_eq!(world.send(BLOCKED, 10).unwrap(), 0);
    assert_eq!(world.chain(Hook::Xdp).unwrap().programs[0].exits.get("drop"), Some(&10));
    world.end().unwrap();
}
