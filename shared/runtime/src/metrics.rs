//! Metrics, declared as values so that the reference page and the registry say the same.
//!
//! Names are `canopy_<service>_<noun>_<unit>`; labels come from closed sets.

use canopy_api::endpoint::Service;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use serde::Serialize;
use std::time::Duration;

/// What a metric measures with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// A metric a service exposes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MetricSpec {
    /// Full name.
    pub name: &'static str,
    /// What it measures with.
    pub kind: MetricKind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it measures, in one line.
    pub help: &'static str,
}

impl MetricSpec {
    /// A counter; its name ends in `_total`.
    pub const fn counter(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: MetricKind::Counter, labels, help }
    }

    /// A gauge.
    pub const fn gauge(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: MetricKind::Gauge, labels, help }
    }

    /// A histogram, of seconds unless its name says otherwise.
    pub const fn histogram(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: MetricKind::Histogram, labels, help }
    }
}

/// Makes and registers a counter of whole numbers.
pub fn int_counter_vec(
    registry: &Registry,
    spec: &MetricSpec,
) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(Opts::new(spec.name, spec.help), spec.labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Makes and registers a gauge of whole numbers.
pub fn int_gauge_vec(
    registry: &Registry,
    spec: &MetricSpec,
) -> Result<IntGaugeVec, prometheus::Error> {
    let metric = IntGaugeVec::new(Opts::new(spec.name, spec.help), spec.labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Makes and registers a gauge.
pub fn gauge_vec(registry: &Registry, spec: &MetricSpec) -> Result<GaugeVec, prometheus::Error> {
    let metric = GaugeVec::new(Opts::new(spec.name, spec.help), spec.labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Makes and registers a histogram of seconds, from 100 µs to 30 s.
pub fn histogram_vec(
    registry: &Registry,
    spec: &MetricSpec,
) -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new(spec.name, spec.help)
        .buckets(vec![0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
    let metric = HistogramVec::new(options, spec.labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// What every service counts, under `canopy_<service>_`.
pub(crate) fn common() -> [(&'static str, MetricKind, &'static [&'static str], &'static str); 5] {
    [
        (
            "build_info",
            MetricKind::Gauge,
            &["version"],
            "Always 1; the label is the version of the build",
        ),
        ("uptime_seconds", MetricKind::Gauge, &[], "Time since the service started, seconds"),
        (
            "requests_total",
            MetricKind::Counter,
            &["verb", "code"],
            "Requests answered over the bus; code is ok or that of the error reply",
        ),
        (
            "request_duration_seconds",
            MetricKind::Histogram,
            &["verb"],
            "Time from receiving a request to answering it, seconds",
        ),
        (
            "bus_events_total",
            MetricKind::Counter,
            &["event"],
            "What happened on the bus connection: connected, disconnected, dropped (a message not read in time), refused (by the server)",
        ),
    ]
}

/// `canopy_<service>_<rest>`, with `_` for the service's `-`.
pub(crate) fn name(service: Service, rest: &str) -> String {
    format!("canopy_{}_{rest}", service.as_str().replace('-', "_"))
}

/// The runtime's own metrics of a service.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    uptime: prometheus::Gauge,
    requests: IntCounterVec,
    durations: HistogramVec,
    bus_events: IntCounterVec,
}

impl Common {
    pub(crate) fn register(
        service: Service,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let [build, uptime, requests, durations, bus_events] = common();
        let build_info = IntGaugeVec::new(Opts::new(name(service, build.0), build.3), build.2)?;
        build_info.with_label_values(&[crate::VERSION]).set(1);
        registry.register(Box::new(build_info))?;
        let uptime = prometheus::Gauge::new(name(service, uptime.0), uptime.3)?;
        registry.register(Box::new(uptime.clone()))?;
        let requests =
            IntCounterVec::new(Opts::new(name(service, requests.0), requests.3), requests.2)?;
        registry.register(Box::new(requests.clone()))?;
        let durations = HistogramVec::new(
            HistogramOpts::new(name(service, durations.0), durations.3).buckets(vec![
                0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0,
            ]),
            durations.2,
        )?;
        registry.register(Box::new(durations.clone()))?;
        let bus_events =
            IntCounterVec::new(Opts::new(name(service, bus_events.0), bus_events.3), bus_events.2)?;
        registry.register(Box::new(bus_events.clone()))?;
        Ok(Self { uptime, requests, durations, bus_events })
    }

    pub(crate) fn set_uptime(&self, seconds: f64) {
        self.uptime.set(seconds);
    }

    pub(crate) fn bus_event(&self, event: &str) {
        self.bus_events.with_label_values(&[event]).inc();
    }

    pub(crate) fn served(&self, verb: &str, code: &str, took: Duration) {
        self.requests.with_label_values(&[verb, code]).inc();
        self.durations.with_label_values(&[verb]).observe(took.as_secs_f64());
    }
}
