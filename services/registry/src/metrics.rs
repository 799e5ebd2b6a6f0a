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

/// Every metric of this service beside the runtime's own.
pub const METRICS: &[MetricSpec] =
    &[UP, UNSIGNED, INDEX_VERSION, INDEX_EXPIRES, VERSIONS, REFUSED, CACHE, CACHE_BYTES, SENT];

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
        })
    }
}
