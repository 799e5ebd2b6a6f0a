//! `apply`: what a person waits for, from the request on the bus to the answer that the chain is
//! attached and was read back.
//!
//! The floor is the least that anybody could do: aya loads the same objects in one process that has
//! parsed the kernel's types already, and attaches. It verifies nothing else, fetches nothing,
//! remembers nothing and asks nobody. Whole processes of other tools are measured where they are on
//! the path.
//!
//! The loader's files are in memory, so that a disk's `fsync` is not measured with it; the same on
//! the disk of the temporary directory is a row of its own, and so is a loader that was just started
//! and has to fetch the package. Policy is asked before each; without rules, as the stack is made. What
//! that takes is in the whole, and told apart.

use crate::report::Report;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode, tc::TcAttachOptions},
};
use canopy_api::{
    Hook,
    endpoint::{Service, loader},
    subject::Target,
    wire::{Action, ApplyRequest},
};
use canopy_bus::{Bus, BusConfig, CallOptions};
use canopy_e2e::{HOST, INTERFACE, World};
use canopy_test_support::{compile_text, repository};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use xtask::stack::Stack;

/// Programs in a chain.
const LENGTHS: [usize; 2] = [1, 10];
const HOOKS: [Hook; 2] = [Hook::Xdp, Hook::TcIngress];
/// How often a cold loader is measured, and one on a disk.
const SLOW_RUNS: u32 = 7;

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Measurements of each row.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(3..))]
    pub runs: u32,
}

/// A way to get programs attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// aya in this process.
    Floor,
    /// A request to a loader that has the package; a new chain.
    Apply,
    /// Other settings of a chain that runs.
    Replace,
    /// As `apply`, the loader's files on a disk.
    OnDisk,
    /// As `apply`, the loader just started and its cache empty.
    Cold,
    /// `bpftool prog load` and `bpftool net attach`, two processes.
    Bpftool,
    /// `xdp-loader load`, one process.
    XdpLoader,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Apply => "apply",
            Self::Replace => "replace",
            Self::OnDisk => "on-disk",
            Self::Cold => "cold",
            Self::Bpftool => "bpftool",
            Self::XdpLoader => "xdp-loader",
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    hook: Hook,
    n: usize,
    way: Way,
}

/// A row of the result; milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `xdp` or `tc-ingress`.
    pub hook: Hook,
    /// Programs in the chain.
    pub n: usize,
    /// How they got there.
    pub way: Way,
    /// Lowest.
    pub min_ms: f64,
    /// Middle.
    pub median_ms: f64,
    /// Nine of ten are below it.
    pub p90_ms: f64,
    /// Of the middle, what the kernel took; only for `apply` and `replace`.
    pub kernel_ms: Option<f64>,
    /// Measurements.
    pub runs: usize,
}

/// What was measured of one case, milliseconds: all of it, and what of it was the kernel's and what the
/// asking of policy, where it is known.
#[derive(Clone, Debug, Default)]
struct Measured {
    total: Vec<f64>,
    kernel: Vec<f64>,
    admission: Vec<f64>,
}

/// Of one request.
#[derive(Clone, Copy, Debug)]
struct Took {
    total: Duration,
    kernel: f64,
    admission: f64,
}

type Everything = BTreeMap<Case, Measured>;

/// Measures.
pub fn run(options: &Options) -> Result<Report<Row>> {
    let mut all = Everything::new();
    let mut ratios = BTreeMap::new();

    eprintln!("starting a stack in memory");
    let memory = Path::new("/dev/shm");
    let world = World::start_under(memory)?;
    world.inside(|stack| {
        let bench = Bench::new(stack)?;
        for run in 1..=options.runs {
            if run == 1 || run % 10 == 0 {
                eprintln!("run {run} of {}", options.runs);
            }
            for (hook, n) in cases() {
                bench.floor(hook, n, &mut all)?;
                bench.apply(hook, n, &mut all)?;
            }
            bench.other_tools(&mut all)?;
        }
        // Ten programs, and nothing to do.
        bench.call(&document(Hook::Xdp, 10, 0))?;
        let (rss, cpu) = bench.at_rest(Duration::from_secs(5))?;
        ratios.insert("rss_mb".to_owned(), rss);
        ratios.insert("idle_cpu_percent".to_owned(), cpu);
        bench.call(&nothing(Hook::Xdp))?;
        for run in 1..=SLOW_RUNS {
            eprintln!("cold loader {run} of {SLOW_RUNS}");
            bench.cold(&mut all)?;
        }
        Ok(())
    })?;
    world.end()?;

    eprintln!("starting a stack on the disk");
    let world = World::start()?;
    world.inside(|stack| {
        let bench = Bench::new(stack)?;
        // The first is cold.
        for run in 0..=SLOW_RUNS {
            for hook in HOOKS {
                let took = bench.timed(&document(hook, 1, 0), Action::Created)?;
                bench.call(&nothing(hook))?;
                if run > 0 {
                    note(&mut all, hook, 1, Way::OnDisk, took.total);
                }
            }
        }
        Ok(())
    })?;
    world.end()?;

    ratios.append(&mut summary(&all)?);
    Ok(Report {
        bench: "apply",
        kernel: crate::report::kernel()?,
        rows: all.iter().map(|(case, measured)| row(*case, measured)).collect(),
        table: table(&all),
        ratios,
    })
}

fn cases() -> impl Iterator<Item = (Hook, usize)> {
    HOOKS.into_iter().flat_map(|hook| LENGTHS.map(|n| (hook, n)))
}

fn note(all: &mut Everything, hook: Hook, n: usize, way: Way, took: Duration) {
    let measured = all.entry(Case { hook, n, way }).or_default();
    measured.total.push(took.as_secs_f64() * 1e3);
}

/// The same with where the time went.
fn note_parts(all: &mut Everything, hook: Hook, n: usize, way: Way, took: Took) {
    note(all, hook, n, way, took.total);
    let measured = all.entry(Case { hook, n, way }).or_default();
    measured.kernel.push(took.kernel);
    measured.admission.push(took.admission);
}

/// The package that is put on a hook.
fn package(hook: Hook) -> &'static str {
    if hook == Hook::Xdp { "ratelimit" } else { "flowmeter" }
}

/// A chain of `n` programs; another variant has another order, so that it has to be built anew.
fn document(hook: Hook, n: usize, variant: usize) -> Value {
    let programs: Vec<_> = (0..n)
        .map(|at| {
            json!({
                "name": format!("p{at}"),
                "package": format!("{}@^0.1", package(hook)),
                "priority": 100 + 10 * ((at + variant) % n) + variant % 2,
            })
        })
        .collect();
    json!({ "chains": [{ "interface": INTERFACE, "hook": hook, "programs": programs }] })
}

fn nothing(hook: Hook) -> Value {
    json!({ "chains": [{ "interface": INTERFACE, "hook": hook, "programs": [] }] })
}

/// A context of the command line.
#[derive(Deserialize)]
struct Person {
    name: String,
    #[serde(flatten)]
    bus: BusConfig,
    principal: canopy_api::Principal,
}

#[derive(Deserialize)]
struct Contexts {
    contexts: Vec<Person>,
}

/// A stack and what is needed to measure it. Everything in the stack's namespace.
struct Bench<'a> {
    stack: &'a Stack,
    runtime: Runtime,
    bus: Bus,
    btf: Btf,
    /// The object of each package: its file and its bytes.
    objects: BTreeMap<&'static str, (PathBuf, Vec<u8>)>,
}

impl<'a> Bench<'a> {
    fn new(stack: &'a Stack) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let text = fs::read_to_string(stack.layout().contexts())?;
        let contexts: Contexts = serde_json::from_str(&text)?;
        let person = contexts.contexts.into_iter().find(|person| person.name == "operator");
        let person = person.context("no operator")?;
        let bus = runtime.block_on(Bus::connect(&person.bus, person.principal))?;
        runtime.block_on(bus.wait_ready(Duration::from_secs(10)))?;
        let mut objects = BTreeMap::new();
        let sources = repository().join("ebpf/packages");
        for name in HOOKS.map(package) {
            // aya knows the section of TC programs by its older name only.
            let source = sources.join(name).join(format!("{name}.bpf.c"));
            let text = fs::read_to_string(&source)
                .with_context(|| format!("read {}", source.display()))?
                .replace("SEC(\"tc\")", "SEC(\"classifier\")");
            let object = stack.layout().dir.join(format!("{name}.bpf.o"));
            let bytes = compile_text(&text)?;
            fs::write(&object, &bytes)?;
            objects.insert(name, (object, bytes));
        }
        let btf = Btf::from_sys_fs()?;
        Ok(Self { stack, runtime, bus, btf, objects })
    }

    fn object(&self, hook: Hook) -> Result<&(PathBuf, Vec<u8>)> {
        self.objects.get(package(hook)).with_context(|| format!("{} is not there", package(hook)))
    }

    /// Applies a document; the reply's action for its only chain.
    fn call(&self, document: &Value) -> Result<Action> {
        let target = Target::Host(HOST.parse()?);
        let request = ApplyRequest {
            document: document.clone(),
            expected_generation: None,
            dry_run: false,
            allow_downgrade: Vec::new(),
            atomic: false,
        };
        let call = self.bus.call_with::<loader::Apply>(&target, &request, CallOptions::default());
        let reply = self.runtime.block_on(call).map_err(|error| anyhow!("{error}"))?;
        let chain = reply.chains.first().context("a reply without a chain")?;
        Ok(chain.action)
    }

    /// The same on the clock.
    fn timed(&self, document: &Value, expected: Action) -> Result<Took> {
        // Reading the metrics costs kernel time too: it is known from a reading before.
        let (first, _) = self.spent_ms()?;
        let (before, asked_before) = self.spent_ms()?;
        let begun = Instant::now();
        let action = self.call(document)?;
        let total = begun.elapsed();
        let (after, asked) = self.spent_ms()?;
        let kernel = (after - before) - (before - first);
        ensure!(action == expected, "{action:?}, not {expected:?}");
        Ok(Took { total, kernel: kernel.max(0.0), admission: asked - asked_before })
    }

    /// What the loader has spent so far in the kernel and in asking policy, milliseconds.
    fn spent_ms(&self) -> Result<(f64, f64)> {
        let text = self.stack.metrics(Service::Loader)?;
        let value = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value = line.with_context(|| format!("the loader does not tell {name}"))?;
            Ok(value.parse::<f64>()? * 1e3)
        };
        Ok((
            value("canopy_loader_kernel_seconds_total")?,
            // Told once there was one.
            value("canopy_loader_admission_duration_seconds_sum").unwrap_or(0.0),
        ))
    }

    fn apply(&self, hook: Hook, n: usize, all: &mut Everything) -> Result<()> {
        let took = self.timed(&document(hook, n, 0), Action::Created)?;
        note_parts(all, hook, n, Way::Apply, took);
        let took = self.timed(&document(hook, n, 1), Action::Updated)?;
        note_parts(all, hook, n, Way::Replace, took);
        let removed = self.call(&nothing(hook))?;
        ensure!(removed == Action::Removed, "{removed:?}, not removed");
        Ok(())
    }

    fn floor(&self, hook: Hook, n: usize, all: &mut Everything) -> Result<()> {
        let (_, object) = self.object(hook)?;
        let begun = Instant::now();
        let mut loaded: Vec<Ebpf> = Vec::with_capacity(n);
        for at in 0..n {
            let mut ebpf = EbpfLoader::new().btf(Some(&self.btf)).load(object)?;
            let program = ebpf.program_mut(package(hook)).context("no program of that name")?;
            if hook == Hook::Xdp {
                let program: &mut Xdp = program.try_into()?;
                program.load()?;
                // The interface takes one; the others would be called by it.
                if at == 0 {
                    program.attach(INTERFACE, XdpMode::default())?;
                }
            } else {
                let program: &mut SchedClassifier = program.try_into()?;
                program.load()?;
                let order = TcAttachOptions::TcxOrder(LinkOrder::last());
                program.attach_with_options(INTERFACE, TcAttachType::Ingress, order)?;
            }
            loaded.push(ebpf);
        }
        note(all, hook, n, Way::Floor, begun.elapsed());
        Ok(())
    }

    /// Whole processes of other tools, where they are there.
    fn other_tools(&self, all: &mut Everything) -> Result<()> {
        let (object, _) = self.object(Hook::Xdp)?;
        let object = object.to_str().context("a path that is not text")?;
        if found("bpftool") {
            let pin = format!("/sys/fs/bpf/canopy-bench-{}", std::process::id());
            let begun = Instant::now();
            command("bpftool", &["prog", "load", object, &pin])?;
            command("bpftool", &["net", "attach", "xdpdrv", "pinned", &pin, "dev", INTERFACE])?;
            note(all, Hook::Xdp, 1, Way::Bpftool, begun.elapsed());
            command("bpftool", &["net", "detach", "xdpdrv", "dev", INTERFACE])?;
            fs::remove_file(&pin)?;
        }
        if found("xdp-loader") {
            let begun = Instant::now();
            command("xdp-loader", &["load", "-m", "native", INTERFACE, object])?;
            note(all, Hook::Xdp, 1, Way::XdpLoader, begun.elapsed());
            command("xdp-loader", &["unload", "-a", INTERFACE])?;
        }
        Ok(())
    }

    /// A loader that knows nothing: just started, nothing in its cache.
    fn cold(&self, all: &mut Everything) -> Result<()> {
        let loader = self.stack.process(Service::Loader);
        loader.stop()?;
        let cache = self.stack.layout().state_dir().join("loader/cache");
        ensure!(cache.is_dir(), "no cache at {}", cache.display());
        fs::remove_dir_all(&cache)?;
        self.stack.start_service(Service::Loader)?;
        self.stack.wait_ready(Service::Loader)?;
        let begun = Instant::now();
        self.call(&document(Hook::TcIngress, 1, 0))?;
        note(all, Hook::TcIngress, 1, Way::Cold, begun.elapsed());
        self.call(&nothing(Hook::TcIngress))?;
        Ok(())
    }

    /// The loader's resident memory, MB (10⁶ bytes), and the share of one processor it uses while
    /// nobody asks it anything, percent.
    fn at_rest(&self, time: Duration) -> Result<(f64, f64)> {
        let pid = self.stack.process(Service::Loader).pid().context("no loader")?;
        let cpu = || -> Result<f64> {
            // The first number: nanoseconds on a processor (Documentation/scheduler/sched-stats).
            let mut nanoseconds = 0.0;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                let first = text.split_whitespace().next().unwrap_or_default();
                nanoseconds += first.parse::<f64>()?;
            }
            Ok(nanoseconds / 1e9)
        };
        let before = cpu()?;
        std::thread::sleep(time);
        let used = cpu()? - before;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rest| rest.split_whitespace().next()).context("no VmRSS")?;
        Ok((rss.parse::<f64>()? * 1024.0 / 1e6, used / time.as_secs_f64() * 100.0))
    }
}

fn found(tool: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join(tool).is_file())
}

fn command(tool: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(tool).args(arguments).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{tool} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}

/// The value below which this share of the measurements is.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a list of some dozens"
)]
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().checked_sub(1)?)).copied()
}

fn median(all: &Everything, hook: Hook, n: usize, way: Way) -> Result<f64> {
    let measured = all.get(&Case { hook, n, way }).map(|measured| measured.total.as_slice());
    measured
        .and_then(|values| quantile(values, 0.5))
        .with_context(|| format!("{hook}, {n}, {} was not measured", way.name()))
}

fn summary(all: &Everything) -> Result<BTreeMap<String, f64>> {
    let mut ratios = BTreeMap::new();
    for n in LENGTHS {
        let mut worst = 0.0_f64;
        for hook in HOOKS {
            let floor = median(all, hook, n, Way::Floor)?;
            let ratio = median(all, hook, n, Way::Apply)? / floor;
            worst = worst.max(ratio);
            ratios.insert(format!("{hook}_apply_vs_floor_{n}"), ratio);
            ratios.insert(
                format!("{hook}_replace_vs_floor_{n}"),
                median(all, hook, n, Way::Replace)? / floor,
            );
        }
        ratios.insert(format!("apply_vs_floor_{n}"), worst);
    }
    for way in [Way::Bpftool, Way::XdpLoader] {
        if let Ok(other) = median(all, Hook::Xdp, 1, way) {
            let ours = median(all, Hook::Xdp, 1, Way::Apply)?;
            ratios.insert(format!("xdp_apply_vs_{}_1", way.name()), ours / other);
        }
    }
    let (mut own, mut asked) = (Vec::new(), Vec::new());
    for hook in HOOKS {
        let measured =
            all.get(&Case { hook, n: 1, way: Way::Apply }).context("nothing measured")?;
        let others =
            measured.kernel.iter().zip(&measured.admission).map(|(one, other)| one + other);
        own.extend(measured.total.iter().zip(others).map(|(all, others)| all - others));
        asked.extend(&measured.admission);
        let on_disk = median(all, hook, 1, Way::OnDisk)? - median(all, hook, 1, Way::Apply)?;
        ratios.insert(format!("{hook}_disk_ms"), on_disk);
    }
    for (name, values) in [("own_ms_p50", &own), ("admission_ms_p50", &asked)] {
        ratios.insert(name.to_owned(), quantile(values, 0.5).context("nothing measured")?);
    }
    Ok(ratios)
}

fn row(case: Case, measured: &Measured) -> Row {
    let of = |values: &[f64], share| quantile(values, share).unwrap_or_default();
    Row {
        hook: case.hook,
        n: case.n,
        way: case.way,
        min_ms: of(&measured.total, 0.0),
        median_ms: of(&measured.total, 0.5),
        p90_ms: of(&measured.total, 0.9),
        kernel_ms: quantile(&measured.kernel, 0.5),
        runs: measured.total.len(),
    }
}

fn table(all: &Everything) -> Vec<String> {
    let mut lines = vec![
        "milliseconds; kernel: of the middle, what was spent inside the kernel".to_owned(),
        format!(
            "{:<12}{:>4}  {:<11}{:>9}{:>9}{:>9}{:>9}{:>6}",
            "hook", "n", "way", "min", "median", "p90", "kernel", "runs"
        ),
    ];
    for (case, measured) in all {
        let Row { hook, n, way, min_ms, median_ms, p90_ms, kernel_ms, runs } = row(*case, measured);
        let kernel = kernel_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
        lines.push(format!(
            "{:<12}{n:>4}  {:<11}{min_ms:>9.2}{median_ms:>9.2}{p90_ms:>9.2}{kernel:>9}{runs:>6}",
            hook.as_str(),
            way.name()
        ));
    }
    lines.push(String::new());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "values are picked, not computed")]
    fn a_quantile_is_one_of_the_values() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.9), Some(3.0));
        assert_eq!(quantile(&[5.0, 1.0, 3.0], 0.5), Some(3.0));
        let ten: Vec<f64> = (1..=10_u8).map(f64::from).collect();
        assert_eq!((quantile(&ten, 0.0), quantile(&ten, 0.9)), (Some(1.0), Some(10.0)));
    }

    #[test]
    fn another_variant_is_another_chain() {
        for n in LENGTHS {
            assert_ne!(document(Hook::Xdp, n, 0), document(Hook::Xdp, n, 1));
        }
    }
}
