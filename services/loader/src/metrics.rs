//! What Prometheus sees: read from the kernel when it asks, but for the metrics that packages declare.

use crate::engine::{Engine, Report};
use canopy_api::wire::{Action, ApplyReply, ChainState, MetricKind};
use canopy_kernel::Kernel;
use canopy_package::{manifest::MetricKind as Declared, metric::exported_name};
use canopy_runtime::{
    MetricKind as Kind, MetricSpec,
    metrics::{histogram_vec, int_counter_vec, int_gauge_vec},
};
use prometheus::{
    HistogramVec, IntCounterVec, IntGaugeVec, Registry,
    core::{Collector, Desc},
    proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

const PACKETS: MetricSpec = MetricSpec::counter(
    "canopy_loader_program_packets_total",
    &["netns", "interface", "hook", "program", "verdict"],
    "Packets a program has seen, by its verdict",
);
const RUNS: MetricSpec = MetricSpec::counter(
    "canopy_loader_program_runs_total",
    &["netns", "interface", "hook", "program"],
    "Packets a program has seen",
);
const EXITS: MetricSpec = MetricSpec::counter(
    "canopy_loader_program_exits_total",
    &["netns", "interface", "hook", "program", "verdict"],
    "Packets whose way through the chain ended at a program, by verdict",
);
const POSITION: MetricSpec = MetricSpec::gauge(
    "canopy_loader_program_position",
    &["netns", "interface", "hook", "program"],
    "Position of a program in its chain, from 0",
);
const LOADED: MetricSpec = MetricSpec::gauge(
    "canopy_loader_program_loaded_timestamp_seconds",
    &["netns", "interface", "hook", "program", "package", "version"],
    "Since when a program is in its chain with these bytes, seconds since the epoch",
);
const CHAIN: MetricSpec = MetricSpec::gauge(
    "canopy_loader_chain_active",
    &["netns", "interface", "hook"],
    "1 when what is attached is what is desired, else 0",
);
const CHAINS_DESIRED: MetricSpec = MetricSpec::gauge(
    "canopy_loader_chains_desired",
    &[],
    "Chains that are desired on this host, drained or not. When a loader is gone its last value stands for \
     what is missing: last_over_time",
);
const CHAINS_ACTIVE: MetricSpec = MetricSpec::gauge(
    "canopy_loader_chains_active",
    &[],
    "Chains of this host that are attached as desired; 0 while the kernel cannot be read",
);
const CHAIN_GENERATION: MetricSpec = MetricSpec::gauge(
    "canopy_loader_chain_generation",
    &["netns", "interface", "hook"],
    "Generation of the chain that is attached; 0 for none",
);
const BEFORE: MetricSpec = MetricSpec::gauge(
    "canopy_loader_chain_programs_before",
    &["netns", "interface", "hook"],
    "Programs of others that packets meet before an attached chain; each can end a packet's way",
);
const PINS_HIDDEN: MetricSpec = MetricSpec::gauge(
    "canopy_loader_chain_pins_hidden",
    &["netns", "interface", "hook"],
    "1 while a chain is attached and its pins are hidden, moved or removed, else 0",
);
const DEVICE_ERRORS: MetricSpec = MetricSpec::counter(
    "canopy_loader_chain_device_errors_total",
    &["netns", "interface", "hook", "counter"],
    "Packets that an XDP chain sent or redirected and the device dropped, by the device's counter, \
     since the chain was attached",
);
const RESTORED: MetricSpec = MetricSpec::counter(
    "canopy_loader_chain_restored_total",
    &["netns", "interface", "hook"],
    "Times a chain was restored after somebody removed or replaced it",
);
const GENERATION: MetricSpec = MetricSpec::gauge(
    "canopy_loader_host_generation",
    &[],
    "Generation of what is desired on this host",
);
const DRAINED: MetricSpec =
    MetricSpec::gauge("canopy_loader_host_drained", &[], "1 while the host is drained, else 0");
const OBSERVED: MetricSpec = MetricSpec::gauge(
    "canopy_loader_kernel_observed",
    &[],
    "1 when the kernel could be read for this answer, else 0",
);
const SAMPLE_AGE: MetricSpec = MetricSpec::gauge(
    "canopy_loader_sample_age_seconds",
    &[],
    "Time since the metrics of packages were read from their maps; absent before the first time, seconds",
);
const KERNEL_TIME: MetricSpec = MetricSpec::counter(
    "canopy_loader_kernel_seconds_total",
    &[],
    "Time spent inside the kernel for the chains: verifying, attaching, pinning, reading, waiting, seconds",
);

const REFUSED: MetricSpec = MetricSpec::counter(
    "canopy_loader_packages_refused_total",
    &["reason"],
    "Packages that were asked for and not believed, by reason",
);

const CACHED: MetricSpec = MetricSpec::gauge(
    "canopy_loader_package_cache_bytes",
    &[],
    "Package files kept on disk, bytes, as of the last change",
);
const EVICTED: MetricSpec = MetricSpec::counter(
    "canopy_loader_packages_evicted_total",
    &[],
    "Packages and downloads removed from the cache to make room",
);
const RESUMED: MetricSpec = MetricSpec::counter(
    "canopy_loader_downloads_resumed_total",
    &[],
    "Downloads that went on where an earlier one had broken off",
);

const ITEMS: MetricSpec = MetricSpec::counter(
    "canopy_loader_changes_total",
    &["result"],
    "Chains that changes were asked for, by what came of it: created, updated, removed, unchanged, failed",
);
const REQUIRED: MetricSpec = MetricSpec::gauge(
    "canopy_loader_admission_required",
    &[],
    "1 when policy is asked before every change, 0 when nobody is (admission: off)",
);
const ASKED: MetricSpec = MetricSpec::counter(
    "canopy_loader_admissions_total",
    &["result"],
    "Changes and rehearsals by what came of asking: allowed, denied, unavailable, off (nobody was asked)",
);
const ASKING: MetricSpec = MetricSpec::histogram(
    "canopy_loader_admission_duration_seconds",
    &[],
    "Time from asking policy to its decision, seconds",
);

/// Every metric of the loader. Beside these, each metric a package declares is
/// `canopy_loader_package_<package>_<metric>` with the labels of its manifest; the name of a counter ends in
/// `_total`.
pub const METRICS: &[MetricSpec] = &[
    PACKETS,
    RUNS,
    EXITS,
    POSITION,
    LOADED,
    CHAIN,
    CHAINS_DESIRED,
    CHAINS_ACTIVE,
    CHAIN_GENERATION,
    BEFORE,
    PINS_HIDDEN,
    DEVICE_ERRORS,
    RESTORED,
    GENERATION,
    DRAINED,
    OBSERVED,
    SAMPLE_AGE,
    KERNEL_TIME,
    REFUSED,
    CACHED,
    EVICTED,
    RESUMED,
    ITEMS,
    REQUIRED,
    ASKED,
    ASKING,
];

/// What the collector does not read from the engine.
const OWN: [&MetricSpec; 8] =
    [&REFUSED, &CACHED, &EVICTED, &RESUMED, &ITEMS, &REQUIRED, &ASKED, &ASKING];

/// What is counted of asking policy, registered.
#[derive(Clone, Debug)]
pub struct AdmissionMetrics {
    pub(crate) required: IntGaugeVec,
    pub(crate) asked: IntCounterVec,
    pub(crate) duration: HistogramVec,
}

impl AdmissionMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            required: int_gauge_vec(registry, &REQUIRED)?,
            asked: int_counter_vec(registry, &ASKED)?,
            duration: histogram_vec(registry, &ASKING)?,
        })
    }
}

/// What is counted of packages and of changes, registered.
#[derive(Clone, Debug)]
pub struct PackageMetrics {
    pub(crate) refused: IntCounterVec,
    pub(crate) cached: IntGaugeVec,
    pub(crate) evicted: IntCounterVec,
    pub(crate) resumed: IntCounterVec,
    changes: IntCounterVec,
}

impl PackageMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            refused: int_counter_vec(registry, &REFUSED)?,
            cached: int_gauge_vec(registry, &CACHED)?,
            evicted: int_counter_vec(registry, &EVICTED)?,
            resumed: int_counter_vec(registry, &RESUMED)?,
            changes: int_counter_vec(registry, &ITEMS)?,
        })
    }

    /// Counts what came of a change, chain by chain.
    pub fn changed(&self, reply: &ApplyReply) {
        for chain in reply.chains.iter().filter(|_| !reply.dry_run) {
            let result = match chain.action {
                Action::Created => "created",
                Action::Updated => "updated",
                Action::Removed => "removed",
                Action::Unchanged => "unchanged",
                Action::Failed => "failed",
            };
            self.changes.with_label_values(&[result]).inc();
        }
    }
}

/// Reads the engine when the registry gathers. Blocks; the admin listener gathers on a thread
/// that may.
pub struct LoaderCollector<K> {
    engine: Arc<Engine<K>>,
    descriptions: Vec<Desc>,
}

impl<K: Kernel> LoaderCollector<K> {
    /// A collector over an engine.
    pub fn new(engine: Arc<Engine<K>>) -> Result<Self, prometheus::Error> {
        let descriptions = METRICS
            .iter()
            .filter(|spec| !OWN.iter().any(|own| own.name == spec.name))
            .map(|spec| {
                let labels = spec.labels.iter().map(|label| (*label).to_owned()).collect();
                Desc::new(spec.name.to_owned(), spec.help.to_owned(), labels, HashMap::new())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { engine, descriptions })
    }
}

impl<K: Kernel> Collector for LoaderCollector<K> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Families::default();
        let (generation, drained) = self.engine.generation();
        families.add(&GENERATION, &[], float(generation));
        families.add(&DRAINED, &[], f64::from(u8::from(drained)));
        families.add(&CHAINS_DESIRED, &[], count(self.engine.desired_chains()));
        families.add(&KERNEL_TIME, &[], self.engine.kernel().spent().as_secs_f64());
        match self.engine.sampled() {
            Ok((reports, age)) => {
                families.add(&OBSERVED, &[], 1.0);
                if let Some(age) = age {
                    families.add(&SAMPLE_AGE, &[], age.as_secs_f64());
                }
                let active =
                    reports.iter().filter(|report| report.status.state == ChainState::Active);
                families.add(&CHAINS_ACTIVE, &[], count(active.count()));
                for report in reports {
                    chain(&mut families, &report);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel cannot be read for metrics");
                families.add(&OBSERVED, &[], 0.0);
                families.add(&CHAINS_ACTIVE, &[], 0.0);
            }
        }
        families.0.into_values().collect()
    }
}

fn chain(families: &mut Families, report: &Report) {
    let status = &report.status;
    let netns = status.netns.as_ref().map(ToString::to_string).unwrap_or_default();
    let (netns, interface, hook) =
        (netns.as_str(), status.interface.as_str(), status.hook.as_str());
    let active = status.state == ChainState::Active;
    families.add(&CHAIN, &[netns, interface, hook], f64::from(u8::from(active)));
    let generation = status.observed.as_ref().map_or(0, |observed| observed.generation);
    families.add(&CHAIN_GENERATION, &[netns, interface, hook], float(generation));
    families.add(&RESTORED, &[netns, interface, hook], float(status.restored));
    let hidden = f64::from(u8::from(status.pin_problem.is_some()));
    families.add(&PINS_HIDDEN, &[netns, interface, hook], hidden);
    if let Some(placement) = &status.placement {
        let before = u32::try_from(placement.before.len()).unwrap_or(u32::MAX);
        families.add(&BEFORE, &[netns, interface, hook], f64::from(before));
    }
    for (counter, count) in &status.device_errors {
        families.add(&DEVICE_ERRORS, &[netns, interface, hook, counter], float(*count));
    }
    for (program, since) in status.programs.iter().zip(&report.since) {
        let name = program.name.as_str();
        families.add(&RUNS, &[netns, interface, hook, name], float(program.runs));
        families.add(&POSITION, &[netns, interface, hook, name], f64::from(program.position));
        let package = program.package.as_str();
        families.add(
            &LOADED,
            &[netns, interface, hook, name, package, &program.version],
            float(*since),
        );
        for (verdict, count) in &program.verdicts {
            families.add(&PACKETS, &[netns, interface, hook, name, verdict], float(*count));
        }
        for (verdict, count) in &program.exits {
            families.add(&EXITS, &[netns, interface, hook, name, verdict], float(*count));
        }
        for metric in &program.metrics {
            let counts = metric.kind == MetricKind::Counter;
            let kind = if counts { Declared::Counter } else { Declared::Gauge };
            let family = exported_name(package, &metric.name, kind);
            let own =
                [("netns", netns), ("interface", interface), ("hook", hook), ("program", name)];
            let declared = metric.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            let labels = own.into_iter().chain(declared);
            families.put((&family, &metric.help, counts), labels, metric.value);
        }
    }
}

fn count(value: usize) -> f64 {
    float(u64::try_from(value).unwrap_or(u64::MAX))
}

/// Prometheus has no wider number than a double.
#[allow(clippy::cast_precision_loss, reason = "the exposition format has no wider number")]
fn float(value: u64) -> f64 {
    value as f64
}

#[derive(Default)]
struct Families(BTreeMap<String, MetricFamily>);

impl Families {
    fn add(&mut self, spec: &MetricSpec, labels: &[&str], value: f64) {
        self.put(
            (spec.name, spec.help, spec.kind == Kind::Counter),
            spec.labels.iter().copied().zip(labels.iter().copied()),
            value,
        );
    }

    fn put<'a>(
        &mut self,
        (name, help, counts): (&str, &str, bool),
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: f64,
    ) {
        let family = self.0.entry(name.to_owned()).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(if counts { MetricType::COUNTER } else { MetricType::GAUGE });
            family
        });
        let mut pairs: Vec<_> = labels
            // To Prometheus an empty label is none; most hosts have nothing in other namespaces.
            .filter(|(name, value)| *name != "netns" || !value.is_empty())
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(value.to_owned());
                pair
            })
            .collect();
        // Of one name there is one type: the first that came with it.
        let counts = family.get_field_type() == MetricType::COUNTER;
        // As the library orders those of its own metrics.
        pairs.sort_by(|a, b| a.name().cmp(b.name()));
        let mut metric = Metric::default();
        metric.set_label(pairs);
        if counts {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        family.mut_metric().push(metric);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_package::metric::LOADER_METRICS;

    #[test]
    fn packages_may_not_take_names_of_the_loaders_metrics() {
        let own: Vec<&str> = METRICS
            .iter()
            .map(|spec| spec.name)
            .filter(|name| name.starts_with("canopy_loader_package_"))
            .collect();
        assert_eq!(own, LOADER_METRICS);
    }
}
