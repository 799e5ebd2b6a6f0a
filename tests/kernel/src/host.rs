//! A loader without a bus: its directories, the packages it may need, one change. The test's own
//! process and one that is killed in the middle do the same with it.

use anyhow::{Context as _, Result, anyhow};
use canopy_api::{
    Digest, Hook, Principal,
    wire::{ApplyReply, Fact, GetReply, GetRequest, ProfileRequest},
};
use canopy_kernel::Kernel as _;
use canopy_kernel_aya::{AyaKernel, sys};
use canopy_loader::{
    cache::Cache,
    core::resolve::{self, Located},
    engine::{Engine, Options, Parts, Stage},
    error::LoaderError,
    store::Store,
};
use canopy_package::{Limits, Package};
use canopy_test_support::{
    pair::{HOST_LINK, Pair},
    tracee,
};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// The loader's directories, and the files of packages by what a document calls them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Its `state_dir`.
    pub state: PathBuf,
    /// Its directory on bpffs.
    pub bpffs: PathBuf,
    /// What a registry would answer: for `firewall@*` the file of a package.
    pub packages: BTreeMap<String, PathBuf>,
}

/// A change that another process is to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Where.
    pub site: Site,
    /// The desired state.
    pub document: Value,
    /// Whether to probe the kernel afterwards, remove all pins, and let the loader's check find that.
    #[serde(default)]
    pub more: bool,
    /// Whether to have run times taken afterwards.
    #[serde(default)]
    pub profile: bool,
}

/// A loader at a site.
pub struct Loader {
    /// The loader.
    pub engine: Engine<AyaKernel>,
    cache: Arc<Cache>,
    site: Site,
}

/// Seconds that the loaders of this process are ahead of the clock.
static AHEAD: AtomicU64 = AtomicU64::new(0);

/// Lets time go by for the loaders of this process: what they wait for is due.
pub fn wait(seconds: u64) {
    AHEAD.fetch_add(seconds, Ordering::Relaxed);
}

fn now() -> SystemTime {
    SystemTime::now() + Duration::from_secs(AHEAD.load(Ordering::Relaxed))
}

impl Loader {
    /// Starts one: what a crash left open is settled when this returns.
    pub fn start(site: &Site, on_stage: fn(Stage)) -> Result<Self> {
        let store = Store::open(&site.state)?;
        let cache = Arc::new(Cache::new(&site.state.join("cache"), Limits::default())?);
        let engine = Engine::start(Parts {
            host: "web1".parse()?,
            version: "0".to_owned(),
            kernel: Arc::new(AyaKernel::new(&site.bpffs)?),
            store,
            packages: Arc::clone(&cache) as _,
            now,
            on_stage,
        })?;
        Ok(Self { engine, cache, site: site.clone() })
    }

    /// Fetches what is not in the cache, as from a registry, and applies a document.
    pub fn apply(&self, document: &Value) -> Result<ApplyReply, LoaderError> {
        self.apply_with(document, &options())
    }

    /// The same, all or nothing.
    pub fn apply_whole(&self, document: &Value) -> Result<ApplyReply, LoaderError> {
        self.apply_with(document, &Options { atomic: true, ..options() })
    }

    fn apply_with(&self, document: &Value, options: &Options) -> Result<ApplyReply, LoaderError> {
        let located = self.fetch().map_err(|source| LoaderError::Fetch {
            path: "document".to_owned(),
            source: Box::new(canopy_loader::fetch::FetchError::Cache(std::io::Error::other(
                format!("{source:#}"),
            ))),
        })?;
        let document = resolve::check(document.clone())?;
        let asked = resolve::resolve(&document, &located, &BTreeMap::new())?;
        self.engine.apply(asked, options)
    }

    fn fetch(&self) -> Result<BTreeMap<String, Located>> {
        let mut located = BTreeMap::new();
        for (reference, path) in &self.site.packages {
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let digest = Digest::of(&bytes);
            if self.cache.bytes(&digest).is_none() {
                self.cache.keep(&digest, &bytes, None)?;
            }
            let package = Package::open(&bytes, &Limits::default())?;
            located.insert(
                reference.clone(),
                Located { digest, package: Arc::new(package), signed_by: None },
            );
        }
        Ok(located)
    }
}

/// A change by somebody.
pub fn options() -> Options {
    Options { expected_generation: None, dry_run: false, atomic: false, by: by(), until: None }
}

/// Who changes things.
pub fn by() -> Principal {
    "u-test".parse().unwrap()
}

/// The programs attached to the host end of a pair, by the kernel; called in its namespace. (Debian
/// 12's bpftool does not know TCX.)
pub fn attached(pair: &Pair) -> BTreeMap<Hook, u32> {
    let mut attached = BTreeMap::new();
    let seen = pair.host.exec(&["ip", "-j", "link", "show", HOST_LINK]).unwrap();
    let links: Value = serde_json::from_str(&seen).unwrap();
    if let Some(id) = links[0]["xdp"]["prog"]["id"].as_u64() {
        attached.insert(Hook::Xdp, u32::try_from(id).unwrap());
    }
    let index = if_nametoindex(HOST_LINK).unwrap();
    for (hook, egress) in [(Hook::TcIngress, false), (Hook::TcEgress, true)] {
        let programs = sys::tcx_query(index, egress).unwrap();
        attached.extend(programs.into_iter().map(|program| (hook, program.prog_id)));
    }
    attached
}

/// Where a site keeps a package file.
pub fn cached(site: &Site, package: &Path) -> Result<PathBuf> {
    let digest = Digest::of(&fs::read(package)?);
    Ok(site.state.join("cache").join(format!("{}.cpkg", digest.hex())))
}

/// What became of a [`Task`].
pub struct Performed {
    /// How the host is afterwards, where the kernel says, and the facts if more was asked for.
    pub host: (Option<GetReply>, Vec<Fact>),
    /// The interfaces that could not be changed; each with why.
    pub failed: Vec<String>,
}

fn told(error: LoaderError) -> anyhow::Error {
    let api = error.into_api();
    anyhow!("{api}; {}", api.remedy.as_deref().unwrap_or_default())
}

/// What the process of a [`Task`] does: it marks the start of the change and each stage of it, and
/// fails as the change does, and only then.
pub fn perform(task: &str) -> Result<Performed> {
    let task: Task = serde_json::from_str(task).context("read the task")?;
    let loader = Loader::start(&task.site, |_| tracee::mark())?;
    tracee::mark();
    let reply = loader.apply(&task.document).map_err(told)?;
    let failed = reply.failed().map(|(chain, error)| format!("{}: {error}", chain.interface));
    let failed = failed.collect();
    if task.profile {
        loader.engine.profile(&ProfileRequest { seconds: 5 }).map_err(told)?;
    }
    let mut facts = Vec::new();
    if task.more {
        facts = loader.engine.kernel().facts();
        for entry in fs::read_dir(&task.site.bpffs)? {
            fs::remove_dir_all(entry?.path())?;
        }
        loader.engine.tick();
    }
    Ok(Performed { host: (loader.engine.get(&GetRequest::default()).ok(), facts), failed })
}
