//! The loader without its bus: state, kernel and packages brought together. All of it blocks;
//! callers on the async runtime use [`canopy_bus::blocking`].
//!
//! The order in a change is the promise it keeps: *plan*, *prepare* (nothing attached), *journal*
//! (the intent is on disk), *switch*, *read back*, *commit*. See [`Stage`]. From the journal on, a request
//! goes interface by interface, unless it is to be atomic.

mod admission;
mod change;
mod drain;
mod indexes;
mod items;
mod journal;
mod maps;
mod mend;
mod pages;
mod preparing;
mod profile;
mod recovery;
mod report;
mod rings;
mod samples;
mod selectors;
mod series;
mod sweep;
mod tell;
#[cfg(test)]
mod tests;
mod variants;

pub use admission::Proposal;
pub use report::Report;
pub use rings::{Source, Watch};

use crate::{
    cache::PackageSource,
    core::{
        attached::Attached,
        build::Packages,
        resolve::{self, Located},
        state::{Chain, State, Wanted},
        variant::Host,
    },
    error::LoaderError,
    store::{Loaded, Store, StoreError},
};
use canopy_api::{
    ApiError, ChainKey, DesiredState, Digest, HostId, PackageRef, Principal, Target,
    wire::{ChainRestored, ProgramVersion},
};
use canopy_kernel::{Kernel, MemberCells};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What is to be done is known.
    Planned,
    /// The new generations are loaded and pinned, none is attached.
    Prepared,
    /// The intent is on disk.
    Journalled,
    /// The kernel runs the new generations and says so.
    Switched,
    /// The new state is on disk.
    Committed,
    /// The old generations are gone.
    Swept,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Planned,
        Self::Prepared,
        Self::Journalled,
        Self::Switched,
        Self::Committed,
        Self::Swept,
    ];
}

/// What the engine needs of the world outside.
pub struct Parts<K> {
    /// The host's name.
    pub host: HostId,
    /// Version of the loader.
    pub version: String,
    /// The kernel.
    pub kernel: Arc<K>,
    /// The state on disk, locked.
    pub store: Store,
    /// Packages by digest.
    pub packages: Arc<dyn PackageSource>,
    /// The time.
    pub now: fn() -> SystemTime,
    /// Called at every [`Stage`]; tests end the process there.
    pub on_stage: fn(Stage),
}

/// How a change is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only if the host is at this generation.
    pub expected_generation: Option<u64>,
    /// Only say what would change.
    pub dry_run: bool,
    /// All or nothing, instead of each interface for itself.
    pub atomic: bool,
    /// Who asks.
    pub by: Principal,
    /// When they stop waiting: what is not in the journal by then is not done.
    pub until: Option<Instant>,
}

/// What is described for each interface and selector, by program.
pub type Programs = BTreeMap<Target, Vec<ProgramVersion>>;

/// To be asked at the last moment before something changes.
fn in_time(until: Option<Instant>) -> Result<(), LoaderError> {
    match until {
        Some(until) if Instant::now() >= until => Err(LoaderError::Late),
        Some(_) | None => Ok(()),
    }
}

/// The loader without its bus.
pub struct Engine<K> {
    parts: Parts<K>,
    started: SystemTime,
    /// Held for the whole of a change.
    writer: Mutex<()>,
    /// Held while anything is attached or detached, not while programs are verified.
    inner: Mutex<Inner>,
    /// Readers of ring buffers.
    watches: Mutex<Vec<Weak<Watch>>>,
    /// Metrics of packages, as read last.
    samples: samples::Samples,
    /// Run times that are taken.
    profile: profile::Profile,
    /// The maps that packages share, which their objects say.
    shared: admission::SharedMaps,
}

/// What changes.
pub(crate) struct Inner {
    pub(crate) state: State,
    /// Generations being prepared: pinned, needed, and not in the state yet.
    preparing: BTreeSet<(ChainKey, u64)>,
    /// Chains that a selector gives to an interface and that were not built yet.
    wanting: BTreeMap<ChainKey, Chain>,
    /// Why a chain is not as desired, and when to try again.
    trouble: BTreeMap<ChainKey, Trouble>,
    /// What was last counted, for the day the pins are gone.
    last_cells: BTreeMap<(ChainKey, u64), Vec<MemberCells>>,
    /// How often in a row the counts of a generation could not be read.
    blind: BTreeMap<(ChainKey, u64), u32>,
    /// What was attached last, by the kernel's ids.
    attached: Attached,
    /// What lies among the pins and is nothing of ours, as far as it was logged.
    strays: BTreeSet<PathBuf>,
    /// Set when the state was lost: then nothing is removed that is not understood.
    lost: Option<String>,
}

/// Why a chain is not as desired.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    reason: String,
    /// Whether its interface was missing.
    interface_missing: bool,
    /// Whether it is attached, and its pins cannot be reached.
    pins_hidden: bool,
    not_before: SystemTime,
    delay: Duration,
}

/// What happened by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A chain was restored.
    Restored(ChainRestored),
}

impl<K: Kernel> Engine<K> {
    /// Reads the state, settles what a crash left open, and brings every chain to what is desired.
    pub fn start(parts: Parts<K>) -> Result<Self, StoreError> {
        let mut lost = None;
        let state = match parts.store.load(&parts.host)? {
            Loaded::Fresh => State::new(parts.host.clone()),
            Loaded::Current(state) => state,
            Loaded::Previous { state, damage } => {
                tracing::error!(%damage, "state damaged; the one before it is used");
                state
            }
            Loaded::Lost { damage } => {
                tracing::error!(
                    %damage,
                    "state lost; what is attached stays, nothing is removed; apply again"
                );
                lost = Some(damage);
                State::new(parts.host.clone())
            }
        };
        let started = (parts.now)();
        let attached = parts.store.attached().of_boot(&parts.kernel.boot_id());
        let engine = Self {
            parts,
            started,
            writer: Mutex::new(()),
            inner: Mutex::new(Inner {
                state,
                preparing: BTreeSet::new(),
                wanting: BTreeMap::new(),
                trouble: BTreeMap::new(),
                last_cells: BTreeMap::new(),
                blind: BTreeMap::new(),
                attached,
                strays: BTreeSet::new(),
                lost,
            }),
            watches: Mutex::default(),
            samples: samples::Samples::default(),
            profile: profile::Profile::default(),
            shared: admission::SharedMaps::default(),
        };
        {
            let inner = engine.lock();
            if inner.lost.is_none() {
                engine.parts.packages.retain(&change::digests(&inner));
            }
        }
        engine.reconcile(mend::Occasion::Start);
        engine.stray_pins();
        Ok(engine)
    }

    /// The host.
    pub fn host(&self) -> &HostId {
        &self.parts.host
    }

    /// The kernel.
    pub fn kernel(&self) -> &Arc<K> {
        &self.parts.kernel
    }

    /// Whether the state was lost, and how.
    pub fn lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    /// The programs of each chain and of each selector.
    pub fn programs(&self) -> Programs {
        let inner = self.lock();
        let chains = inner.state.chains.iter();
        let chains = chains.map(|(key, chain)| (Target::from(key.clone()), &chain.wanted));
        let rules = inner.state.rules.iter().map(|(target, rule)| (target.clone(), &rule.wanted));
        let versions = |wanted: &Wanted| {
            let versions = wanted.programs.iter().map(|program| ProgramVersion {
                name: program.name.clone(),
                package: program.package.clone(),
                version: program.version.to_string(),
            });
            versions.collect()
        };
        chains.chain(rules).map(|(target, wanted)| (target, versions(wanted))).collect()
    }

    /// The exact version of a package that a chain of this host has, if it will do; the highest of
    /// several. Who signed it is for whoever verifies it again.
    pub fn locked(&self, reference: &PackageRef) -> Option<Located> {
        let found = {
            let inner = self.lock();
            inner
                .state
                .programs()
                .filter(|p| {
                    p.package == reference.name && reference.requirement.matches(&p.version)
                })
                .max_by(|a, b| a.version.cmp(&b.version))
                .map(|program| program.digest.clone())?
        };
        let package = self.parts.packages.package(&found).ok()?;
        Some(Located { digest: found, package, signed_by: None })
    }

    /// Whether this host has what every package of a document asks for.
    pub fn check_host(
        &self,
        document: &DesiredState,
        located: &BTreeMap<String, Located>,
    ) -> Result<(), ApiError> {
        let asks = |located: &Located| {
            let requires = &located.package.manifest.requires;
            !requires.features.is_empty() || !requires.arch.is_empty() || requires.kernel.is_some()
        };
        if !located.values().any(asks) {
            return Ok(());
        }
        // Probing is not free: only when somebody asks for a feature.
        let features = located.values().any(|l| !l.package.manifest.requires.features.is_empty());
        let facts = if features { self.parts.kernel.facts() } else { Vec::new() };
        let kernel = self.parts.kernel.release();
        let host = Host { kernel: &kernel, arch: std::env::consts::ARCH, facts: &facts };
        for (text, (_, path)) in resolve::references(document) {
            let Some(found) = located.get(&text) else { continue };
            let manifest = &found.package.manifest;
            resolve::check_host(manifest, &host).map_err(|error| error.at(path))?;
        }
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state in memory is replaced only by one that is on disk: a panic leaves no half.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stage(&self, stage: Stage) {
        (self.parts.on_stage)(stage);
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        (self.parts.now)()
    }

    /// Seconds since the epoch.
    pub fn seconds(&self) -> u64 {
        (self.parts.now)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// The packages of these digests; those not at hand are left out and named by `build`.
    fn packages(&self, digests: impl IntoIterator<Item = Digest>) -> Packages {
        let mut packages = Packages::new();
        for digest in digests {
            match self.parts.packages.package(&digest) {
                Ok(package) => {
                    packages.insert(digest, package);
                }
                Err(reason) => tracing::warn!(%digest, reason, "package not in the cache"),
            }
        }
        packages
    }
}
