//! The registry in use, exchanged when the configuration changes.

use crate::{
    config::{AuditConfig, Config},
    metrics::Metrics,
    registry::Registry,
};
use canopy_api::Problems;
use canopy_bus::BusConfig;
use canopy_runtime::RuntimeConfig;
use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

/// The registry that answers. A question keeps the one it began with.
pub(crate) struct Current {
    registry: RwLock<Arc<Registry>>,
    metrics: Metrics,
    /// What only a restart changes.
    started_with: StartedWith,
}

/// What is read at the start only.
#[derive(Debug, PartialEq)]
struct StartedWith {
    bus: BusConfig,
    state_dir: Option<PathBuf>,
    audit: Option<AuditConfig>,
    runtime: RuntimeConfig,
}

impl StartedWith {
    fn of(config: &Config) -> Self {
        Self {
            bus: config.bus.clone(),
            state_dir: config.state_dir.clone(),
            audit: config.audit.clone(),
            runtime: config.runtime.clone(),
        }
    }
}

impl Current {
    pub(crate) fn new(registry: Registry, metrics: Metrics, config: &Config) -> Self {
        metrics.configured(true);
        let started_with = StartedWith::of(config);
        Self { registry: RwLock::new(Arc::new(registry)), metrics, started_with }
    }

    pub(crate) fn get(&self) -> Arc<Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a changed configuration; one with mistakes changes nothing. The new repositories
    /// are read before anybody is answered from them. Returns the configuration that is in use now,
    /// if it is another one.
    pub(crate) async fn change(&self, loaded: Result<Config, Problems>) -> Option<Config> {
        let config = match loaded {
            Ok(config) => config,
            Err(problems) => {
                self.metrics.configured(false);
                for problem in &problems.0 {
                    tracing::error!(
                        "the changed configuration is not used, the one before stays: {problem}"
                    );
                }
                return None;
            }
        };
        let before = self.get();
        let next = Arc::new(before.successor(&config.repositories, config.cache_bytes));
        next.refresh().await;
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        next.forget_gone(&before);
        tracing::info!(
            repositories = config.repositories.len(),
            "the changed configuration is in use"
        );
        let whole = self.started_with == StartedWith::of(&config);
        if !whole {
            tracing::warn!(
                "`bus`, `state_dir`, `audit` or `runtime` changed too: restart the registry to use that"
            );
        }
        self.metrics.configured(whole);
        Some(config)
    }
}
