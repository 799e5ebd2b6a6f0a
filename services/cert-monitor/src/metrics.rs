//! What the service measures beside what every service does (requests, durations, build, uptime).

use canopy_runtime::MetricSpec;

/// Nothing of its own yet.
pub const METRICS: &[MetricSpec] = &[];
