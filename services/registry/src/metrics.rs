//! What the registry counts.

use canopy_runtime::metrics::{MetricSpec, int_counter_vec, int_gauge_vec};
use prometheus::{IntCounterVec, IntGaugeVec, Registry};

const UP: MetricSpec = MetricSpec::gauge(
    "canopy_registry_repository_up",
    &["repository"],
    "1 when the repository's index was read and found good the last time, else 0",
);
const UNSIGNED: MetricSpec = MetricSpec::gauge(
    "canopy_registry_repository_unsigned",
    &["repository"],
    "1 when the repository is trusted without signatures (unsigned-development), else 0",
);
const INDEX_VERSION: MetricSpec = MetricSpec::gauge(
    "canopy_registry_index_version",
    &["repository"],
    "Version of the repository's index",
);
const INDEX_EXPIRES: MetricSpec = MetricSpec::gauge(
    "canopy_registry_index_expiry_timestamp_seconds",
    &["repository"],
    "When the repository's index expires, seconds since the epoch",
);
const VERSIONS: MetricSpec = MetricSpec::gauge(
    "canopy_registry_package_versions",
    &["repository"],
    "Package versions in the repository's index",
);
const REFUSED: MetricSpec = MetricSpec::counter(
    "canopy_registry_refused_total",
    &["repository", "reason"],
    "Indexes and package files that were read and refused, or could not be read",
);
const CACHE: MetricSpec = MetricSpec::counter(
    "canopy_registry_artifact_lookups_total",
    &["result"],
    "Package files asked for: hit from memory, miss read and verified",
);
const CACHE_BYTES: MetricSpec = MetricSpec::gauge(
    "canopy_registry_artifact_memory_bytes",
    &[],
    "Verified package files kept in memory, bytes",
);
const SENT: MetricSpec = MetricSpec::counter(
    "canopy_registry_artifact_sent_bytes_total",
    &[],
    "Bytes of package files sent to hosts",
);

const CONFIGURATION: MetricSpec = MetricSpec::gauge(
    "canopy_registry_configuration_current",
    &[],
    "1 when the configuration file as it stands is in use, 0 when it has a mistake or needs a restart",
);

/// Every metric of this service beside the runtime's own.
pub const METRICS: &[MetricSpec] = &[
    UP,
    UNSIGNED,
    INDEX_VERSION,
    INDEX_EXPIRES,
    VERSIONS,
    REFUSED,
    CACHE,
    CACHE_BYTES,
    SENT,
    CONFIGURATION,
];

/// The metrics, registered.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) up: IntGaugeVec,
    pub(crate) unsigned: IntGaugeVec,
    pub(crate) index_version: IntGaugeVec,
    pub(crate) index_expires: IntGaugeVec,
    pub(crate) versions: IntGaugeVec,
    pub(crate) refused: IntCounterVec,
    pub(crate) lookups: IntCounterVec,
    pub(crate) kept_bytes: IntGaugeVec,
    pub(crate) sent: IntCounterVec,
    pub(crate) configuration: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            up: int_gauge_vec(registry, &UP)?,
            unsigned: int_gauge_vec(registry, &UNSIGNED)?,
            index_version: int_gauge_vec(registry, &INDEX_VERSION)?,
            index_expires: int_gauge_vec(registry, &INDEX_EXPIRES)?,
            versions: int_gauge_vec(registry, &VERSIONS)?,
            refused: int_counter_vec(registry, &REFUSED)?,
            lookups: int_counter_vec(registry, &CACHE)?,
            kept_bytes: int_gauge_vec(registry, &CACHE_BYTES)?,
            sent: int_counter_vec(registry, &SENT)?,
            configuration: int_gauge_vec(registry, &CONFIGURATION)?,
        })
    }

    /// Shows nothing of that repository any more; what was counted stays.
    pub(crate) fn forget(&self, repository: &str) {
        for gauge in
            [&self.up, &self.unsigned, &self.index_version, &self.index_expires, &self.versions]
        {
            // Fails for a repository that was never read, which is as good.
            let _ = gauge.remove_label_values(&[repository]);
        }
    }

    /// Says whether the configuration file as it stands is in use.
    pub(crate) fn configured(&self, current: bool) {
        self.configuration.with_label_values::<&str>(&[]).set(i64::from(current));
    }
}
