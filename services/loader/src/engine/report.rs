//! What is desired, what is observed, what was counted.

use super::{Engine, Inner, journal::find, series::HOST_SERIES, tell::planned};
use crate::core::state::{Chain, Rule, Wanted, WantedProgram};
use canopy_api::{
    ChainKey, Target, TcMode, XdpMode,
    wire::{
        ChainState, ChainStatus, Fact, FactsReply, GetReply, GetRequest, HostAlive, MetricKind,
        MetricValue, ObservedChain, Offset, ProgramStatus, SelectorStatus, json_length,
    },
};
use canopy_kernel::{Away, Kernel, KernelError, LinkState, MemberCells, Observed};
use canopy_package::{bind, manifest, metric};
use canopy_runtime::clock;
use serde_json::Map;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

/// Entries of a map that are read for metrics, at most.
const MAP_ENTRIES: usize = 65_536;

/// A chain with what only metrics tell.
pub struct Report {
    /// As `get` tells it.
    pub status: ChainStatus,
    /// Since when each program is in the chain, seconds since the epoch, in chain order.
    pub since: Vec<u64>,
}

/// Reports, and for each the programs and the generation whose maps hold their metrics.
type Statuses = (Vec<Report>, Vec<(Vec<WantedProgram>, u64)>);

impl<K: Kernel> Engine<K> {
    /// State of the host, however long it is; [`Self::get_page`] is what a message of the bus carries.
    pub fn get(&self, request: &GetRequest) -> Result<GetReply, canopy_kernel::KernelError> {
        let reports = self.report(request)?;
        let chains = reports.into_iter().map(|report| report.status).collect();
        Ok(GetReply { chains, ..self.host_state(request) })
    }

    /// State of the host without its chains.
    pub(super) fn host_state(&self, request: &GetRequest) -> GetReply {
        let mut inner = self.lock();
        let selectors = inner
            .state
            .rules
            .iter()
            .filter(|(target, _)| {
                request.interface.is_none()
                    && request
                        .netns
                        .as_ref()
                        .is_none_or(|netns| Some(netns) == target.netns.as_ref())
                    && request.hook.is_none_or(|hook| hook == target.hook)
            })
            .map(|(target, rule)| selector(&inner, target, rule))
            .collect();
        let everything = GetRequest { cursor: request.cursor.clone(), ..GetRequest::default() };
        let stray_pins = if *request == everything {
            drop(inner);
            let strays = self.stray_pins();
            inner = self.lock();
            strays
        } else {
            Vec::new()
        };
        GetReply {
            host: self.parts.host.clone(),
            generation: inner.state.generation,
            drained: inner.state.drained,
            kernel: self.parts.kernel.release(),
            version: self.parts.version.clone(),
            started: clock::rfc3339(self.started),
            chains: Vec::new(),
            selectors,
            stray_pins: stray_pins.iter().map(|path| path.display().to_string()).collect(),
            next: None,
        }
    }

    /// What lies among the pins and is nothing of ours; each is logged once.
    pub(super) fn stray_pins(&self) -> Vec<PathBuf> {
        let strays = self.parts.kernel.stray_pins().unwrap_or_else(|error| {
            tracing::debug!(%error, "nobody looked for what is not ours");
            Vec::new()
        });
        let mut inner = self.lock();
        for path in strays.iter().filter(|path| !inner.strays.contains(*path)) {
            tracing::warn!(path = %path.display(), "nothing of ours among the pins; left alone");
        }
        inner.strays = strays.iter().cloned().collect();
        strays
    }

    /// Where attached chains stand among programs of others. Asks the kernel: for whoever wants to know.
    pub(super) fn place(&self, reports: &mut [Report]) {
        for status in reports.iter_mut().map(|report| &mut report.status) {
            let Some(observed) = &status.observed else { continue };
            match self.parts.kernel.placement(&status.key(), observed) {
                Ok(placement) => status.placement = placement,
                Err(error) => {
                    tracing::debug!(key = %status.key(), %error, "its place is not known");
                }
            }
        }
    }

    /// Every chain that is desired or observed, those that the request names.
    pub fn report(&self, request: &GetRequest) -> Result<Vec<Report>, canopy_kernel::KernelError> {
        let (mut reports, running) = self.statuses(request)?;
        // Chains that come from selectors are as many as interfaces are plugged in.
        let mut room = usize::try_from(HOST_SERIES).unwrap_or(usize::MAX);
        for (report, (wanted, generation)) in reports.iter_mut().zip(running) {
            self.complete(report, &wanted, generation);
            let key = report.status.key();
            for told in &mut report.status.programs {
                if told.metrics.len() > room {
                    tracing::warn!(
                        %key, program = %told.name, most = HOST_SERIES,
                        "metrics are left out: the packages of this host have too many time series"
                    );
                    told.metrics.truncate(room);
                }
                room -= told.metrics.len();
            }
        }
        self.place(&mut reports);
        reports.sort_by_key(|report| report.status.key());
        Ok(reports)
    }

    /// Adds the packages' metrics and the device's counters. Reading maps takes its time: nobody waits for
    /// it who mends or changes a chain.
    pub(super) fn complete(&self, report: &mut Report, wanted: &[WantedProgram], generation: u64) {
        self.complete_part(report, (wanted, generation), Offset::default(), usize::MAX);
    }

    /// The same of a part of a chain: of the programs from `from` on, as far as `room` bytes of JSON go.
    pub(super) fn complete_part(
        &self,
        report: &mut Report,
        (wanted, generation): (&[WantedProgram], u64),
        from: Offset,
        room: usize,
    ) {
        let key = report.status.key();
        let programs = report.status.programs.iter_mut().zip(wanted).enumerate();
        let mut used = 0_usize;
        for (index, (told, program)) in programs.skip(from.program) {
            told.metrics = self.metrics(&key, generation, program);
            // How much of the first one was shown before does not matter: the others are shown from their
            // beginning.
            if room < usize::MAX && (index > from.program || from == Offset::default()) {
                used = used.saturating_add(json_length(told));
            }
            if used > room {
                break;
            }
        }
        if report.status.observed.is_some() {
            report.status.device_errors =
                self.parts.kernel.device_errors(&key).unwrap_or_else(|error| {
                    tracing::debug!(%key, %error, "the device's counters are not read");
                    BTreeMap::new()
                });
        }
    }

    /// Everything but the packages' metrics; beside it, for each, the programs and the generation
    /// to read those from.
    pub(super) fn statuses(
        &self,
        request: &GetRequest,
    ) -> Result<Statuses, canopy_kernel::KernelError> {
        let inner = self.lock();
        let seen = self.parts.kernel.observe()?;
        let asked = |key: &ChainKey| {
            request.netns.as_ref().is_none_or(|netns| Some(netns) == key.netns.as_ref())
                && request.interface.as_ref().is_none_or(|interface| *interface == key.interface)
                && request.hook.is_none_or(|hook| hook == key.hook)
        };
        let mut reports = Vec::new();
        let mut running = Vec::new();
        for (key, chain) in inner.state.chains.iter().filter(|(key, _)| asked(key)) {
            reports.push(self.desired(&inner, key, chain, find(&seen, key)));
            running.push((chain.wanted.programs.clone(), chain.running));
        }
        let wanting = inner.wanting.iter();
        for (key, chain) in
            wanting.filter(|(key, _)| asked(key) && !inner.state.chains.contains_key(*key))
        {
            reports.push(self.desired(&inner, key, chain, None));
            running.push((Vec::new(), 0));
        }
        for seen in &seen {
            if let (true, false, LinkState::Attached(chain)) =
                (asked(&seen.key), inner.state.chains.contains_key(&seen.key), &seen.state)
            {
                reports.push(unknown(&seen.key, chain));
                running.push((Vec::new(), 0));
            }
        }
        Ok((reports, running))
    }

    fn desired(
        &self,
        inner: &Inner,
        key: &ChainKey,
        chain: &Chain,
        seen: Option<&Observed>,
    ) -> Report {
        let (state, reason, observed) = judge(inner, key, chain, seen);
        let live = self.live(inner, key, chain.running);
        let programs = (0_u32..)
            .zip(&chain.wanted.programs)
            .map(|(position, program)| {
                let mut total = inner.state.totals.get(key, &program.name);
                for cells in live.iter().filter(|cells| cells.name == program.name) {
                    total.add(cells);
                }
                ProgramStatus {
                    name: program.name.clone(),
                    position,
                    package: program.package.clone(),
                    version: program.version.to_string(),
                    digest: program.digest.clone(),
                    program: program.program.clone(),
                    function: program.function.clone(),
                    variant: program.variant(),
                    priority: program.priority,
                    proceed_on: program.proceed_on.names(key.hook),
                    config: program.config.clone(),
                    runs: total.runs(),
                    verdicts: total.verdicts(key.hook),
                    exits: total.exits(key.hook),
                    metrics: Vec::new(),
                }
            })
            .collect();
        let status = ChainStatus {
            netns: key.netns.clone(),
            interface: key.interface.clone(),
            hook: key.hook,
            selector: chain.rule.clone(),
            xdp_mode: chosen_xdp(&chain.wanted),
            tc_mode: chosen_tc(&chain.wanted),
            state,
            reason,
            restored: chain.restored,
            changed: Some(clock::rfc3339(UNIX_EPOCH + Duration::from_secs(chain.changed))),
            changed_by: Some(chain.changed_by.to_string()),
            programs,
            pin_problem: pin_problem(inner, key, seen),
            placement: None,
            device_errors: BTreeMap::new(),
            observed,
            continues: false,
        };
        let since = chain
            .wanted
            .programs
            .iter()
            .map(|program| chain.since.get(&program.name).copied().unwrap_or(chain.changed))
            .collect();
        Report { status, since }
    }

    /// What generations count that are not in the totals yet.
    fn live(&self, inner: &Inner, key: &ChainKey, running: u64) -> Vec<MemberCells> {
        let retired = inner.state.retired.iter().filter(|(of, _)| of == key).map(|(_, g)| *g);
        retired
            .chain([running])
            .flat_map(|generation| {
                self.parts.kernel.cells(key, generation).unwrap_or_else(|_| {
                    inner.last_cells.get(&(key.clone(), generation)).cloned().unwrap_or_default()
                })
            })
            .collect()
    }

    /// The metrics a package declares, read from its maps; those that cannot be read are left out.
    fn metrics(
        &self,
        key: &ChainKey,
        generation: u64,
        program: &WantedProgram,
    ) -> Vec<MetricValue> {
        let Ok(package) = self.parts.packages.package(&program.digest) else { return Vec::new() };
        let manifest = &package.manifest;
        let effective = bind(manifest, &program.config, "config")
            .map_or_else(|_| Map::new(), |bindings| bindings.effective);
        let mut maps = BTreeMap::new();
        let mut values = Vec::new();
        for declared in &manifest.metrics {
            let entries = maps.entry(declared.map.as_str()).or_insert_with(|| {
                self.parts
                    .kernel
                    .map_entries(key, generation, &program.name, &declared.map, MAP_ENTRIES)
                    .map_err(|error| tracing::debug!(%key, map = declared.map, %error, "not read"))
            });
            let Ok(entries) = entries else { continue };
            for sample in metric::samples(declared, &effective, entries) {
                values.push(MetricValue {
                    name: declared.name.clone(),
                    help: declared.help.clone(),
                    kind: match declared.kind {
                        manifest::MetricKind::Counter => MetricKind::Counter,
                        manifest::MetricKind::Gauge => MetricKind::Gauge,
                    },
                    labels: sample.labels,
                    value: sample.value,
                });
            }
        }
        values
    }

    /// Probes what this host can do.
    pub fn probe(&self) -> Vec<Fact> {
        self.parts.kernel.facts()
    }

    /// What this host can do, as it was probed.
    pub fn facts(&self, facts: Vec<Fact>) -> FactsReply {
        FactsReply {
            host: self.parts.host.clone(),
            kernel: self.parts.kernel.release(),
            arch: std::env::consts::ARCH.to_owned(),
            time: clock::rfc3339((self.parts.now)()),
            facts,
        }
    }

    /// The sign of life.
    pub fn alive(&self) -> HostAlive {
        let inner = self.lock();
        let seen = self.parts.kernel.observe().unwrap_or_default();
        let mut chains = BTreeMap::new();
        let wanting =
            inner.wanting.iter().filter(|(key, _)| !inner.state.chains.contains_key(*key));
        for (key, chain) in inner.state.chains.iter().chain(wanting) {
            let (state, _, _) = judge(&inner, key, chain, find(&seen, key));
            let name = match state {
                ChainState::Active => "active",
                ChainState::Pending => "pending",
                ChainState::Diverged => "diverged",
                ChainState::Drained => "drained",
            };
            *chains.entry(name.to_owned()).or_insert(0) += 1;
        }
        HostAlive {
            host: self.parts.host.clone(),
            kernel: self.parts.kernel.release(),
            version: self.parts.version.clone(),
            generation: inner.state.generation,
            chains,
            time: clock::rfc3339((self.parts.now)()),
        }
    }

    /// Generation of the desired state, and whether the host is drained.
    pub fn generation(&self) -> (u64, bool) {
        let inner = self.lock();
        (inner.state.generation, inner.state.drained)
    }

    /// How many chains are desired, whatever the kernel says: those of the state, and those that a selector
    /// gives to an interface and that are not built yet.
    pub fn desired_chains(&self) -> usize {
        let inner = self.lock();
        let known = &inner.state.chains;
        known.len() + inner.wanting.keys().filter(|key| !known.contains_key(*key)).count()
    }
}

fn judge(
    inner: &Inner,
    key: &ChainKey,
    chain: &Chain,
    seen: Option<&Observed>,
) -> (ChainState, Option<String>, Option<ObservedChain>) {
    let trouble = inner.trouble.get(key).map(|trouble| trouble.reason.clone());
    if inner.state.drained {
        return (ChainState::Drained, None, None);
    }
    let pending = |why: &str| {
        (ChainState::Pending, Some(trouble.clone().unwrap_or_else(|| why.to_owned())), None)
    };
    let other = inner.wanting.get(key).filter(|wanted| wanted.wanted != chain.wanted);
    match seen.map(|seen| &seen.state) {
        Some(LinkState::Attached(now)) if now.generation == chain.running => {
            if let (Some(selector), Some(trouble)) = (other.and_then(|o| o.rule.as_ref()), &trouble)
            {
                let why = format!("{selector} asks for another chain: {trouble}");
                return (ChainState::Diverged, Some(why), Some(now.clone()));
            }
            (ChainState::Active, None, Some(now.clone()))
        }
        Some(LinkState::Attached(now)) => {
            let why =
                format!("generation {} is attached, {} is desired", now.generation, chain.running);
            (ChainState::Diverged, Some(why), Some(now.clone()))
        }
        Some(LinkState::Replaced { program_id }) => {
            let why = format!("program {program_id} was put in its place");
            (ChainState::Diverged, Some(why), None)
        }
        Some(LinkState::InterfaceMissing) => {
            let missing = KernelError::no_interface(key).to_string();
            let why = match seen.and_then(|seen| seen.away.as_ref()) {
                None => missing,
                Some(Away::Renamed(to)) => format!(
                    "{missing}; the one that has the chain is \"{to}\" now: rename it back, or \
                     apply the chain to {to}, which takes it over, and delete this one"
                ),
                Some(Away::OtherNamespace) => format!(
                    "{missing} now; the one that has the chain is in another network namespace"
                ),
            };
            (ChainState::Pending, Some(why), None)
        }
        Some(LinkState::NetnsMissing) => {
            let netns = key.netns.as_ref().map(ToString::to_string).unwrap_or_default();
            let why = format!("there is no network namespace {netns}: the chain waits for it");
            (ChainState::Pending, Some(why), None)
        }
        Some(LinkState::Unseen { why }) => (ChainState::Diverged, Some(why.clone()), None),
        None | Some(LinkState::Detached)
            if inner.trouble.get(key).is_some_and(|trouble| trouble.pins_hidden) =>
        {
            (ChainState::Diverged, trouble, None)
        }
        Some(LinkState::Detached) => pending("the link is detached; it is being restored"),
        None => pending("nothing is attached; it is being built again"),
    }
}

/// Why a chain that is attached has no pins.
fn pin_problem(inner: &Inner, key: &ChainKey, seen: Option<&Observed>) -> Option<String> {
    let hidden = inner.trouble.get(key).filter(|trouble| trouble.pins_hidden);
    hidden
        .map(|trouble| trouble.reason.clone())
        .or_else(|| seen.and_then(|seen| seen.pin_problem.clone()))
}

fn selector(inner: &Inner, target: &Target, rule: &Rule) -> SelectorStatus {
    let mine = |(key, chain): (&ChainKey, &Chain)| {
        ((key.hook, &key.netns) == (target.hook, &target.netns)
            && chain.rule.as_ref() == Some(&target.interface))
        .then(|| key.interface.clone())
    };
    SelectorStatus {
        netns: target.netns.clone(),
        interface: target.interface.clone(),
        hook: target.hook,
        xdp_mode: chosen_xdp(&rule.wanted),
        tc_mode: chosen_tc(&rule.wanted),
        interfaces: inner.state.chains.iter().filter_map(mine).collect(),
        changed: clock::rfc3339(UNIX_EPOCH + Duration::from_secs(rule.changed)),
        changed_by: rule.changed_by.to_string(),
        programs: planned(&rule.wanted, target.hook),
        continues: false,
    }
}

fn chosen_xdp(wanted: &Wanted) -> Option<XdpMode> {
    (wanted.xdp_mode != XdpMode::Best).then_some(wanted.xdp_mode)
}

fn chosen_tc(wanted: &Wanted) -> Option<TcMode> {
    (!wanted.tc_mode.is_best()).then_some(wanted.tc_mode)
}

/// A chain of ours that the state does not know.
fn unknown(key: &ChainKey, chain: &ObservedChain) -> Report {
    let status = ChainStatus {
        netns: key.netns.clone(),
        interface: key.interface.clone(),
        hook: key.hook,
        selector: None,
        xdp_mode: None,
        tc_mode: None,
        state: ChainState::Diverged,
        reason: Some("attached, and not in the state of this host; delete it or apply it".into()),
        restored: 0,
        changed: None,
        changed_by: None,
        programs: Vec::new(),
        observed: Some(chain.clone()),
        placement: None,
        pin_problem: None,
        device_errors: BTreeMap::new(),
        continues: false,
    };
    Report { status, since: Vec::new() }
}
