//! Readiness: a set of named latches, each "there" or "not there, because".

use canopy_api::wire::{Check, Health};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// What a service needs in order to serve, and what is there now. Clones share their state.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    latches: Mutex<BTreeMap<String, Standing>>,
}

/// How it stands with one thing.
#[derive(Clone, Debug)]
struct Standing {
    ok: bool,
    warning: bool,
    detail: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(Inner {
            started: crate::clock::monotonic(),
            latches: Mutex::new(BTreeMap::new()),
        }))
    }
}

impl Readiness {
    /// Names something the service needs. It is missing until its latch says otherwise.
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let latch = Latch { readiness: self.clone(), name: name.into() };
        latch.set(false, "starting");
        latch
    }

    /// Whether everything needed is there.
    pub fn is_ready(&self) -> bool {
        self.health().ready
    }

    /// State of everything needed.
    pub fn health(&self) -> Health {
        let latches = self.0.latches.lock().unwrap_or_else(PoisonError::into_inner);
        Health {
            ready: latches.values().all(|one| one.ok),
            checks: latches
                .iter()
                .map(|(name, one)| Check {
                    name: name.clone(),
                    ok: one.ok,
                    detail: one.detail.clone(),
                    warning: one.warning,
                })
                .collect(),
            uptime_seconds: self.0.started.elapsed().as_secs(),
        }
    }

    /// Time since the service started, seconds.
    pub(crate) fn uptime(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }
}

/// One thing a service needs. Clones set the same thing.
#[derive(Clone, Debug)]
pub struct Latch {
    readiness: Readiness,
    name: String,
}

impl Latch {
    /// Says whether it is there, and its state in words.
    pub fn set(&self, ok: bool, detail: impl Into<String>) {
        self.stand(Standing { ok, warning: false, detail: detail.into() });
    }

    /// Says that it is there, but in a way that somebody should know of.
    pub fn warn(&self, detail: impl Into<String>) {
        self.stand(Standing { ok: true, warning: true, detail: detail.into() });
    }

    fn stand(&self, standing: Standing) {
        let Standing { ok, detail, .. } = standing.clone();
        let mut latches = self.readiness.0.latches.lock().unwrap_or_else(PoisonError::into_inner);
        let before = latches.insert(self.name.clone(), standing);
        drop(latches);
        if before.is_some_and(|before| before.ok != ok) {
            tracing::info!(check = %self.name, ok, %detail, "readiness changed");
        }
    }

    /// The same as a closure, for a library that reports its own state.
    pub fn reporter(&self) -> impl Fn(bool, &str) + Send + Sync + 'static {
        let latch = self.clone();
        move |ok, detail| latch.set(ok, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_latch_is_set() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let (bus, state) = (readiness.latch("bus"), readiness.latch("state"));
        bus.set(true, "connected");
        assert!(!readiness.is_ready());
        state.set(true, "");
        assert!(readiness.is_ready());
        bus.reporter()(false, "disconnected");
        let health = readiness.health();
        assert!(!health.ready);
        assert_eq!(health.checks[0].detail, "disconnected");
        bus.warn("in plain text");
        let health = readiness.health();
        assert!(health.ready && health.checks[0].warning && !health.checks[1].warning);
    }
}
