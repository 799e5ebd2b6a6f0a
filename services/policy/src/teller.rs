//! Tells of refused connections: log and event.

use crate::{connect::Refusal, connections::seconds};
use canopy_api::{
    endpoint::Service,
    time,
    wire::{ConnectCut, ConnectRefused},
};
use canopy_bus::{Bus, callout::ConnectRequest};
use canopy_runtime::clock;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Refusals told, a second; the others are counted.
const TOLD: u64 = 20;

/// Tells of refusals, not more than can be read.
pub(crate) struct Teller {
    bus: Bus,
    second: Mutex<(u64, u64)>,
    untold: AtomicU64,
}

impl Teller {
    pub(crate) fn new(bus: Bus) -> Self {
        Self { bus, second: Mutex::default(), untold: AtomicU64::new(0) }
    }

    fn may_tell(&self) -> bool {
        let now = seconds();
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0 != now {
            *second = (now, 0);
        }
        second.1 += 1;
        second.1 <= TOLD
    }

    /// Tells that connections of a principal were ended. There is one in a principal's back-off time.
    pub(crate) fn cut(&self, cut: ConnectCut) {
        tracing::warn!(
            principal = %cut.principal, addresses = ?cut.addresses, connections = cut.connections,
            times = cut.times, refused_for_ms = cut.refused_for_ms, "cut: {}", cut.reason
        );
        let bus = self.bus.clone();
        tokio::spawn(async move {
            let told = bus.publish_security_event(Service::Policy, "connect", "cut", None, &cut);
            if let Err(error) = told.await {
                tracing::warn!(%error, "the bus was not told of connections that were ended");
            }
        });
    }

    pub(crate) fn refused(&self, request: &ConnectRequest, refusal: &Refusal, names: Vec<String>) {
        if !self.may_tell() {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let refused = ConnectRefused {
            time: time::rfc3339(clock::now()),
            address: request.address.clone(),
            client: request.name.clone(),
            names,
            code: refusal.code().to_owned(),
            reason: refusal.to_string(),
            untold: self.untold.swap(0, Ordering::Relaxed),
        };
        tracing::warn!(
            address = %refused.address, client = %refused.client, names = ?refused.names,
            untold = refused.untold, "connection refused: {}", refused.reason
        );
        let bus = self.bus.clone();
        tokio::spawn(async move {
            let told =
                bus.publish_security_event(Service::Policy, "connect", "refused", None, &refused);
            if let Err(error) = told.await {
                tracing::warn!(%error, "the bus was not told of a refusal");
            }
        });
    }
}
