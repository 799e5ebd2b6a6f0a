//! What the service measures beside what every service does (requests, durations, build, uptime).

use canopy_runtime::metrics::{MetricSpec, histogram_vec, int_counter_vec, int_gauge_vec};
use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec, Registry};

const CONNECTS: MetricSpec = MetricSpec::counter(
    "canopy_policy_connects_total",
    &["result"],
    "Connections the bus server asked about: granted, or why refused",
);
const CONNECT_SECONDS: MetricSpec = MetricSpec::histogram(
    "canopy_policy_connect_duration_seconds",
    &[],
    "Time from the bus server's question to the decision, seconds",
);
const ENDED: MetricSpec = MetricSpec::counter(
    "canopy_policy_connections_ended_total",
    &[],
    "Connections ended because their token was regenerated, revoked or has ended",
);
const CONFIGURATION: MetricSpec = MetricSpec::gauge(
    "canopy_policy_configuration_current",
    &[],
    "1 when the configuration file as it stands is in use, 0 when it has a mistake or needs a restart",
);

/// Every metric of this service beside the runtime's own.
pub const METRICS: &[MetricSpec] = &[CONNECTS, CONNECT_SECONDS, ENDED, CONFIGURATION];

/// The metrics, registered.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) connects: IntCounterVec,
    pub(crate) connect_seconds: HistogramVec,
    pub(crate) ended: IntCounterVec,
    pub(crate) configuration: IntGaugeVec,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connects: int_counter_vec(registry, &CONNECTS)?,
            connect_seconds: histogram_vec(registry, &CONNECT_SECONDS)?,
            ended: int_counter_vec(registry, &ENDED)?,
            configuration: int_gauge_vec(registry, &CONFIGURATION)?,
        })
    }
}
