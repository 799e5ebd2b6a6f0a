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
    "Connections ended because their token or enrolment was replaced, revoked or has ended",
);
const CUT: MetricSpec = MetricSpec::counter(
    "canopy_policy_connections_cut_total",
    &["limit"],
    "Connections ended because their principal exceeded a limit: subscriptions, pending_bytes, messages_per_second, bytes_per_second",
);
const RULES: MetricSpec =
    MetricSpec::gauge("canopy_policy_admission_rules", &[], "Admission rules in force");
const OPEN: MetricSpec = MetricSpec::gauge(
    "canopy_policy_admission_open",
    &[],
    "1 while no rules are configured, so that whoever the bus lets through may change hosts, else 0",
);
const CURRENT: MetricSpec = MetricSpec::gauge(
    "canopy_policy_admission_rules_current",
    &[],
    "1 when the file of the rules as it stands is in force, 0 when it has a mistake",
);
const DECIDED: MetricSpec = MetricSpec::counter(
    "canopy_policy_admissions_total",
    &["decision"],
    "Questions of loaders by decision: allowed, denied (a part at least), unavailable (no rules could be read)",
);
const CONFIGURATION: MetricSpec = MetricSpec::gauge(
    "canopy_policy_configuration_current",
    &[],
    "1 when the configuration file as it stands is in use, 0 when it has a mistake or needs a restart",
);
const COPIES: MetricSpec = MetricSpec::gauge(
    "canopy_policy_store_copies",
    &[],
    "Bus servers that have all of what is stored now; of several streams, the fewest",
);
const COPIES_WANTED: MetricSpec = MetricSpec::gauge(
    "canopy_policy_store_copies_wanted",
    &[],
    "Bus servers that are to keep what is stored (auth.replicas)",
);

const AUDIT_RECORDS: MetricSpec = MetricSpec::counter(
    "canopy_policy_audit_records_total",
    &[],
    "Audit records stored, of all writers",
);
const AUDIT_FINDINGS: MetricSpec = MetricSpec::counter(
    "canopy_policy_audit_findings_total",
    &["finding"],
    "Audit records that did not follow from what is stored: gap, fork, begun_anew, cut, foreign, long, full, rolling",
);

/// Every metric of this service beside the runtime's own.
pub const METRICS: &[MetricSpec] = &[
    CONNECTS,
    CONNECT_SECONDS,
    ENDED,
    CUT,
    RULES,
    OPEN,
    CURRENT,
    DECIDED,
    CONFIGURATION,
    COPIES,
    COPIES_WANTED,
    AUDIT_RECORDS,
    AUDIT_FINDINGS,
];

/// The metrics, registered.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) connects: IntCounterVec,
    pub(crate) connect_seconds: HistogramVec,
    pub(crate) ended: IntCounterVec,
    cut: IntCounterVec,
    rules: IntGaugeVec,
    open: IntGaugeVec,
    current: IntGaugeVec,
    decided: IntCounterVec,
    pub(crate) configuration: IntGaugeVec,
    copies: IntGaugeVec,
    copies_wanted: IntGaugeVec,
    audit_records: IntCounterVec,
    audit_findings: IntCounterVec,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            connects: int_counter_vec(registry, &CONNECTS)?,
            connect_seconds: histogram_vec(registry, &CONNECT_SECONDS)?,
            ended: int_counter_vec(registry, &ENDED)?,
            cut: int_counter_vec(registry, &CUT)?,
            rules: int_gauge_vec(registry, &RULES)?,
            open: int_gauge_vec(registry, &OPEN)?,
            current: int_gauge_vec(registry, &CURRENT)?,
            decided: int_counter_vec(registry, &DECIDED)?,
            configuration: int_gauge_vec(registry, &CONFIGURATION)?,
            copies: int_gauge_vec(registry, &COPIES)?,
            copies_wanted: int_gauge_vec(registry, &COPIES_WANTED)?,
            audit_records: int_counter_vec(registry, &AUDIT_RECORDS)?,
            audit_findings: int_counter_vec(registry, &AUDIT_FINDINGS)?,
        };
        metrics.configured(true);
        Ok(metrics)
    }

    pub(crate) fn cut(&self, limit: &str, connections: u64) {
        self.cut.with_label_values(&[limit]).inc_by(connections);
    }

    pub(crate) fn rules(&self, count: usize, open: bool, current: bool) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.rules.with_label_values::<&str>(&[]).set(count);
        self.open.with_label_values::<&str>(&[]).set(i64::from(open));
        self.current.with_label_values::<&str>(&[]).set(i64::from(current));
    }

    /// How many bus servers keep what is stored, and how many are to.
    pub(crate) fn copies(&self, current: usize, wanted: usize) {
        for (gauge, count) in [(&self.copies, current), (&self.copies_wanted, wanted)] {
            gauge.with_label_values::<&str>(&[]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn audit_stored(&self) {
        self.audit_records.with_label_values::<&str>(&[]).inc();
    }

    pub(crate) fn audit_finding(&self, finding: &str) {
        self.audit_findings.with_label_values(&[finding]).inc();
    }

    pub(crate) fn decided(&self, decision: &str) {
        self.decided.with_label_values(&[decision]).inc();
    }

    /// Says whether the configuration file as it stands is in use.
    pub(crate) fn configured(&self, current: bool) {
        self.configuration.with_label_values::<&str>(&[]).set(i64::from(current));
    }
}
