//! Floods of the bus itself: what a host's daemon or a viewer does to the server and to others' inboxes.
//!
//! Each runs until `on` says no, by the bare library. Being cut is no error: an attacker comes back.

use anyhow::Result;
use async_nats::Client;
use bytes::Bytes;
use canopy_api::name::Principal;
use futures::StreamExt as _;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::timeout;

/// How long an attacker that was cut waits for its client to take one thing more.
const PATIENCE: Duration = Duration::from_millis(200);
/// Longest payload that the server takes.
const MEGABYTE: usize = 1_000_000;

/// A host's daemon sends 1 MB messages to the inboxes of `victims`, such as `h-web1-loader`, at the places
/// where it may publish.
///
/// # Errors
/// None; a client that is cut goes on.
pub async fn inbox_1mb(
    client: &Client,
    me: &Principal,
    victims: &[&str],
    sent: &AtomicU64,
    on: impl Fn() -> bool,
) -> Result<()> {
    let payload = Bytes::from(vec![b'x'; MEGABYTE]);
    while on() {
        for victim in victims {
            let subject = format!("_INBOX.{victim}.{me}.flood");
            if matches!(
                timeout(PATIENCE, client.publish(subject, payload.clone())).await,
                Ok(Ok(()))
            ) {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        // The library's queue holds 2,048 messages: of these, two gigabytes.
        let _ = timeout(PATIENCE, client.flush()).await;
    }
    Ok(())
}

/// A person subscribes 20,000 times to long subjects of their own inbox, and then gives up and takes
/// subscriptions as fast as it goes.
///
/// # Errors
/// None; a client that is cut goes on.
pub async fn subscriptions(
    client: &Client,
    me: &Principal,
    sent: &AtomicU64,
    on: impl Fn() -> bool,
) -> Result<()> {
    const KEPT: u64 = 20_000;
    let long = "x".repeat(4_000);
    let mut kept = Vec::new();
    for number in 0_u64.. {
        if !on() {
            break;
        }
        let subject = format!("_INBOX.{me}.{long}.{number}");
        let Ok(Ok(mut one)) = timeout(PATIENCE, client.subscribe(subject)).await else { continue };
        sent.fetch_add(1, Ordering::Relaxed);
        if number < KEPT {
            kept.push(tokio::spawn(async move { while one.next().await.is_some() {} }));
        }
        if number.is_multiple_of(256) {
            let _ = timeout(PATIENCE, client.flush()).await;
        }
    }
    for one in kept {
        one.abort();
    }
    Ok(())
}
