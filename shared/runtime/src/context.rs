//! What a running service is handed.

use crate::{
    config_file::ConfigFile,
    health::{Latch, Readiness},
    metrics::Common,
};
use canopy_api::{endpoint::Service, wire::Health};
use std::time::Duration;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A service's surroundings. Clones share everything.
#[derive(Clone, Debug)]
pub struct Context {
    /// Which service runs.
    pub service: Service,
    /// Cancelled when the process is asked to end.
    pub shutdown: CancellationToken,
    /// Background work; the process waits for it (with a limit) before it ends.
    pub tasks: TaskTracker,
    /// What `/metrics` shows.
    pub metrics: prometheus::Registry,
    /// What `/ready` shows.
    pub readiness: Readiness,
    /// Whether the service is served over the bus. It is among what `/ready` shows from the first
    /// moment, so that no process says it is ready before it has begun.
    pub bus: Latch,
    /// The configuration file the process was started with; none for a service that was started
    /// inside a test or a tool.
    pub config_file: Option<ConfigFile>,
    pub(crate) common: Common,
}

impl Context {
    /// A context of its own, for tests and tools that start a service inside themselves.
    pub fn new(service: Service) -> Result<Self, prometheus::Error> {
        let metrics = prometheus::Registry::new();
        let common = Common::register(service, &metrics)?;
        let readiness = Readiness::default();
        Ok(Self {
            service,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            metrics,
            bus: readiness.latch("bus"),
            readiness,
            config_file: None,
            common,
        })
    }

    /// Tells the service manager, if one asks, that the service has begun: units that are ordered
    /// behind this one start now. See `sd_notify(3)`.
    pub fn begun(&self) {
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "the service manager was not told that this service has begun");
        }
    }

    /// Answers `health` from the readiness latches.
    pub fn health(&self) -> impl Fn() -> Health + Send + Sync + 'static {
        let readiness = self.readiness.clone();
        move || readiness.health()
    }

    /// Counts what happens on the bus connection.
    pub fn bus_events(&self) -> impl Fn(&'static str) + Send + Sync + 'static {
        let common = self.common.clone();
        move |event| common.bus_event(event)
    }

    /// Counts a served request: verb, code (`ok` or the error's), time taken.
    pub fn observe(&self) -> impl Fn(&str, &str, Duration) + Send + Sync + 'static {
        let common = self.common.clone();
        move |verb, code, took| common.served(verb, code, took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_has_not_begun_is_not_ready() {
        let cx = Context::new(Service::Registry).unwrap();
        assert!(!cx.readiness.is_ready());
        // Whatever else is there already: it is not served before the bus says so.
        cx.readiness.latch("repositories").set(true, "read");
        assert!(!cx.readiness.is_ready());
        cx.bus.set(true, "connected");
        assert!(cx.readiness.is_ready());
    }
}
