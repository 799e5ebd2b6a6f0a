//! `chain`: what a packet pays for a chain of n programs.
//!
//! Four ways to run the same programs: alone (`bare`, n = 1 only), fused through the loader's own
//! path with its accounting (`fused`), by tail calls of generated wrappers around programs that know
//! nothing of chains (`wrapper`), and by tail calls that the programs make themselves (`inbody`).
//! The last two count like the first: one per-CPU increment a packet, where its way ends.
//!
//! Time is the kernel's own mean over many runs of `BPF_PROG_TEST_RUN`. The ways take turns, so that
//! a disturbance meets all of them; everything is loaded several times, because where the JIT puts a
//! program moves its time by a tenth.

use crate::{
    hop::{CELLS, Form, Objects, TailCalls, Work, load_plain},
    report::{Report, Summary},
};
use anyhow::{Context, Result, anyhow, ensure};
use canopy_api::{ChainKey, Hook, TcMode, VerdictSet, XdpMode};
use canopy_kernel::{Carry, ChainBuild, Kernel as _, KernelError, Member, SettingsDetail};
use canopy_kernel_aya::{
    AyaKernel,
    sys::{self, TestRun},
};
use canopy_test_support::bpffs::BpffsDir;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;
use std::{collections::BTreeMap, os::fd::OwnedFd};

/// Programs in a chain.
const LENGTHS: [u32; 6] = [1, 2, 5, 10, 20, 32];
const HOOKS: [Hook; 2] = [Hook::Xdp, Hook::TcIngress];
const WORKS: [Work; 2] = [Work::Empty, Work::Parsing];
/// Nanoseconds a measurement takes, about.
const MEASUREMENT: u32 = 2_000_000;

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Measurements of each row in each of the loads.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// How often everything is loaded afresh.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub loads: u32,
}

/// A way to run programs one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// One program alone, nothing counted.
    Bare,
    /// Canopy's chain.
    Fused,
    /// Tail calls by wrappers.
    Wrapper,
    /// Tail calls by the programs.
    Inbody,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    hook: Hook,
    work: Work,
    n: u32,
    way: Way,
}

/// A row of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `xdp` or `tc`.
    pub hook: &'static str,
    /// `empty` or `parsing`.
    pub program: &'static str,
    /// Programs in the chain.
    pub n: u32,
    /// How they are run.
    pub way: Way,
    /// Lowest, nanoseconds a packet.
    pub min_ns: u32,
    /// Middle, nanoseconds a packet.
    pub median_ns: u32,
    /// Measurements.
    pub runs: usize,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report<Row>> {
    stay_on_one_cpu()?;
    let mut objects = Objects::default();
    let mut measured: BTreeMap<Case, Vec<u32>> = BTreeMap::new();
    for load in 1..=options.loads {
        eprintln!("load {load} of {}: building", options.loads);
        let subjects = build(&mut objects)?;
        for run in 1..=options.runs {
            if run == 1 || run % 4 == 0 {
                eprintln!("load {load} of {}: run {run} of {}", options.loads, options.runs);
            }
            for subject in &subjects {
                measured.entry(subject.case).or_default().push(subject.measure()?);
            }
        }
    }
    let summaries: BTreeMap<Case, (Summary, usize)> = measured
        .iter()
        .filter_map(|(case, runs)| Some((*case, (Summary::of(runs)?, runs.len()))))
        .collect();
    Ok(Report {
        bench: "chain",
        kernel: crate::report::kernel()?,
        rows: summaries.iter().map(|(case, (summary, runs))| row(*case, *summary, *runs)).collect(),
        ratios: ratios(&summaries),
        table: table(&summaries),
    })
}

/// Another CPU has another clock rate and other neighbours.
pub(crate) fn stay_on_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU is allowed")?)?;
    sched_setaffinity(this, &one).context("stay on one CPU")
}

fn hook_name(hook: Hook) -> &'static str {
    if hook == Hook::Xdp { "xdp" } else { "tc" }
}

fn row(case: Case, summary: Summary, runs: usize) -> Row {
    Row {
        hook: hook_name(case.hook),
        program: case.work.name(),
        n: case.n,
        way: case.way,
        min_ns: summary.min,
        median_ns: summary.median,
        runs,
    }
}

/// Something loaded, to be measured.
struct Subject {
    case: Case,
    packet: Vec<u8>,
    repeat: u32,
    program: Program,
}

enum Program {
    Bare(OwnedFd),
    /// With the pins that keep it.
    Fused(OwnedFd, #[expect(dead_code, reason = "removes the pins when dropped")] BpffsDir),
    TailCalls(TailCalls),
}

impl Program {
    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Bare(fd) | Self::Fused(fd, _) => fd,
            Self::TailCalls(chain) => &chain.first,
        }
    }
}

impl Subject {
    /// Runs the packet `repeat` times; the verdict and the mean time, nanoseconds.
    fn run(&self, repeat: u32) -> Result<(i32, u32)> {
        let run = TestRun { data: &self.packet, repeat, ..TestRun::default() };
        loop {
            match sys::prog_test_run(self.program.fd(), &run) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => {
                    let output = result.context("run a program on a packet")?;
                    return Ok((output.retval.cast_signed(), output.duration));
                }
            }
        }
    }

    fn measure(&self) -> Result<u32> {
        Ok(self.run(self.repeat)?.1)
    }
}

/// Loads everything, checks that it does what it should, and finds how often to repeat it.
fn build(objects: &mut Objects) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for hook in HOOKS {
        for work in WORKS {
            let bare = Case { hook, work, n: 1, way: Way::Bare };
            subjects.push(subject(bare, Program::Bare(load_plain(objects, hook, work)?))?);
            for n in LENGTHS {
                let case = |way| Case { hook, work, n, way };
                let (program, kernel) = fused(objects, hook, work, n)?;
                let fused = subject(case(Way::Fused), program)?;
                check_fused(&fused, &kernel)?;
                subjects.push(fused);
                for (way, form) in [(Way::Wrapper, Form::Wrapper), (Way::Inbody, Form::Cooperative)]
                {
                    let chain = TailCalls::new(objects, hook, work, form, n)?;
                    let tail_calls = subject(case(way), Program::TailCalls(chain))?;
                    check_tail_calls(&tail_calls)?;
                    subjects.push(tail_calls);
                }
            }
        }
    }
    Ok(subjects)
}

fn subject(case: Case, program: Program) -> Result<Subject> {
    let mut subject = Subject { case, packet: packet(), repeat: 10_000, program };
    let (verdict, duration) = subject.run(subject.repeat)?;
    let tc_passes = if case.way == Way::Fused { -1 } else { 0 };
    let expected = if case.hook == Hook::Xdp { 2 } else { tc_passes };
    ensure!(verdict == expected, "{case:?} returned {verdict}, not {expected}");
    subject.repeat = (MEASUREMENT / duration.max(1)).max(1000);
    Ok(subject)
}

/// UDP over IPv4 to a port that no hop drops.
fn packet() -> Vec<u8> {
    canopy_test_support::packet::Udp4::to_port(53).frame()
}

/// Every packet so far went through all hops and ended at the last.
fn check_fused(subject: &Subject, kernel: &AyaKernel) -> Result<()> {
    let cells = kernel.cells(&key(subject.case.hook), GENERATION).map_err(explain)?;
    for member in &cells {
        ensure!(
            member.runs() == 10_000,
            "{} of {:?} counted {} runs of 10000",
            member.name,
            subject.case,
            member.runs()
        );
    }
    Ok(())
}

fn check_tail_calls(subject: &Subject) -> Result<()> {
    let Program::TailCalls(chain) = &subject.program else { return Ok(()) };
    let pass = if subject.case.hook == Hook::Xdp { 2 } else { 1 };
    for hop in 0..subject.case.n {
        let cell = (hop * CELLS + pass).to_ne_bytes();
        let value = chain.cells.lookup(&cell)?.context("the cells have room for every hop")?;
        let count: u64 = chain
            .cells
            .split(&value)
            .iter()
            .filter_map(|part| Some(u64::from_ne_bytes(part.as_slice().try_into().ok()?)))
            .sum();
        let expected = if hop + 1 == subject.case.n { 10_000 } else { 0 };
        ensure!(
            count == expected,
            "hop {hop} of {:?} counted {count} exits, not {expected}",
            subject.case
        );
    }
    Ok(())
}

const GENERATION: u64 = 1;

fn key(hook: Hook) -> ChainKey {
    #[expect(clippy::expect_used, reason = "a constant name that is well formed")]
    let interface = "lo".parse().expect("an interface's name");
    ChainKey { netns: None, interface, hook }
}

/// A chain as the loader makes it.
fn fused(objects: &mut Objects, hook: Hook, work: Work, n: u32) -> Result<(Program, AyaKernel)> {
    let bpffs = BpffsDir::new()?;
    let kernel = AyaKernel::new(bpffs.path())?;
    let members = (0..n)
        .map(|position| {
            Ok(Member {
                name: format!("hop-{position}").parse()?,
                object: objects.hop(hook, work, Form::Plain, position)?.into(),
                function: "hop".to_owned(),
                frags: false,
                tail_calls: None,
                proceed_on: VerdictSet::default_for(hook),
                globals: Vec::new(),
                map_entries: Vec::new(),
                settings: SettingsDetail::default(),
                carry: Carry::Nothing,
                max_entries: Vec::new(),
                shared_maps: Vec::new(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let key = key(hook);
    kernel
        .prepare(&ChainBuild {
            key: key.clone(),
            generation: GENERATION,
            xdp_mode: XdpMode::Best,
            tc_mode: TcMode::Best,
            members,
            together: Vec::new(),
            left_entries: Vec::new(),
        })
        .map_err(explain)?;
    let program = sys::obj_get(&kernel.pins().prog(&key, GENERATION))?;
    Ok((Program::Fused(program, bpffs), kernel))
}

fn explain(error: KernelError) -> anyhow::Error {
    let log = match &error {
        KernelError::Refused { log: Some(log), .. } => format!("\n{log}"),
        _ => String::new(),
    };
    anyhow!("{:#}{log}", anyhow::Error::new(error))
}

type Summaries = BTreeMap<Case, (Summary, usize)>;

/// Fused against the others, by the lowest of each. Those of the empty programs carry the hook's
/// name alone: there the chain's own cost is all there is.
fn ratios(summaries: &Summaries) -> BTreeMap<String, f64> {
    let mut ratios = BTreeMap::new();
    for hook in HOOKS {
        for work in WORKS {
            let min = |n, way| Some(f64::from(summaries.get(&Case { hook, work, n, way })?.0.min));
            let mut add = |n: u32, way: Way, name: &str| {
                if let (Some(fused), Some(other)) = (min(n, Way::Fused), min(n, way)) {
                    let hook = hook_name(hook);
                    let work = if work == Work::Empty { "" } else { "_parsing" };
                    let ratio = (fused / other * 1000.0).round() / 1000.0;
                    ratios.insert(format!("{hook}{work}_fused_vs_{name}_n{n}"), ratio);
                }
            };
            add(1, Way::Bare, "bare");
            for n in [10, 32] {
                add(n, Way::Wrapper, "wrapper");
                add(n, Way::Inbody, "inbody");
            }
        }
    }
    ratios
}

/// Nanoseconds a packet, lowest / middle.
fn table(summaries: &Summaries) -> Vec<String> {
    let mut lines = Vec::new();
    for hook in HOOKS {
        for work in WORKS {
            lines.push(format!("{} {}, ns a packet, min / median", hook_name(hook), work.name()));
            lines.push(format!(
                "{:>4} {:>13} {:>13} {:>13} {:>13} {:>14}",
                "n", "bare", "fused", "wrapper", "in body", "fused/wrapper"
            ));
            for n in LENGTHS {
                let get =
                    |way| summaries.get(&Case { hook, work, n, way }).map(|(summary, _)| *summary);
                let cell = |way| {
                    get(way).map_or(String::new(), |summary: Summary| {
                        format!("{} / {}", summary.min, summary.median)
                    })
                };
                let ratio = match (get(Way::Fused), get(Way::Wrapper)) {
                    (Some(fused), Some(wrapper)) => {
                        format!("{:.2}", f64::from(fused.min) / f64::from(wrapper.min))
                    }
                    _ => String::new(),
                };
                lines.push(format!(
                    "{n:>4} {:>13} {:>13} {:>13} {:>13} {ratio:>14}",
                    cell(Way::Bare),
                    cell(Way::Fused),
                    cell(Way::Wrapper),
                    cell(Way::Inbody)
                ));
            }
            lines.push(String::new());
        }
    }
    lines
}
