//! `load-order`: how much the order of a chain's members decides how long the chain takes to load.
//!
//! The members are programs of the shapes that other projects write (`tests/kernel/corpus/
//! load_order.bpf.c`): small ones, loops with many ways out, several that take the verifier 150,000
//! instructions each. Each order is prepared as the loader does it, with nothing known from before: the
//! objects are other bytes each time. The orders take turns, so that a disturbance meets all of them.

use crate::report::{Report, Summary};
use anyhow::{Context as _, Result, anyhow};
use canopy_api::{ChainKey, Hook, TcMode, VerdictSet, XdpMode};
use canopy_kernel::{Carry, ChainBuild, Kernel as _, KernelError, Member};
use canopy_kernel_aya::AyaKernel;
use canopy_test_support::{bpffs::BpffsDir, compile_with, repository};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde::Serialize;
use std::{collections::BTreeMap, fs, time::Instant};

/// Functions of the source, in rising order of what the verifier walks.
const FUNCTIONS: [&str; 10] = [
    "small",
    "long_list",
    "headers",
    "lookups",
    "checksum",
    "find_byte",
    "match_text",
    "tcp_options",
    "gather_flags",
    "nested",
];
/// Heavy members behind them.
const HEAVY: usize = 3;

/// How much to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Orders, beside rising and falling weight.
    #[arg(long, default_value_t = 18)]
    pub orders: u32,
    /// How often each is loaded.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Where the orders come from: the same number gives the same orders.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A row of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The members, first to last.
    pub order: Vec<String>,
    /// Instructions the verifier walked for the chain.
    pub verified_instructions: u32,
    /// Lowest, microseconds.
    pub min_us: u32,
    /// Middle, microseconds.
    pub median_us: u32,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report<Row>> {
    let members = members()?;
    let mut orders: Vec<Vec<usize>> = vec![(0..members.len()).collect()];
    orders.push((0..members.len()).rev().collect());
    let mut random = StdRng::seed_from_u64(options.seed);
    for _ in 0..options.orders {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.shuffle(&mut random);
        orders.push(order);
    }
    let mut measured: BTreeMap<usize, (Vec<u32>, u32)> = BTreeMap::new();
    let mut load = 0u64;
    for run in 1..=options.runs {
        eprintln!("run {run} of {}", options.runs);
        for (number, order) in orders.iter().enumerate() {
            load += 1;
            let chain: Vec<&Heavy> = order.iter().filter_map(|at| members.get(*at)).collect();
            let (took, verified) = prepare(&chain, load)?;
            let (times, walked) = measured.entry(number).or_default();
            times.push(took);
            *walked = verified;
        }
    }
    let rows: Vec<Row> = orders
        .iter()
        .enumerate()
        .filter_map(|(number, order)| {
            let (times, verified_instructions) = measured.get(&number)?;
            let summary = Summary::of(times)?;
            let names = order.iter().filter_map(|at| members.get(*at));
            Some(Row {
                order: names.map(|member| member.name.clone()).collect(),
                verified_instructions: *verified_instructions,
                min_us: summary.min,
                median_us: summary.median,
            })
        })
        .collect();
    let ratio = |of: fn(&Row) -> u32| -> Option<f64> {
        let (best, worst) = (rows.iter().map(of).min()?, rows.iter().map(of).max()?);
        Some((f64::from(worst) / f64::from(best) * 1000.0).round() / 1000.0)
    };
    let ratios = [
        ("worst_vs_best_order", ratio(|row| row.min_us)),
        ("worst_vs_best_order_verified", ratio(|row| row.verified_instructions)),
    ];
    Ok(Report {
        bench: "load-order",
        kernel: crate::report::kernel()?,
        ratios: ratios
            .into_iter()
            .filter_map(|(name, ratio)| Some((name.to_owned(), ratio?)))
            .collect(),
        table: table(&rows),
        rows,
    })
}

/// A member to be, with its object.
struct Heavy {
    name: String,
    function: &'static str,
    object: Vec<u8>,
}

fn members() -> Result<Vec<Heavy>> {
    let (plain, heavy) = (compile(&[])?, compile(&["-DOPTIONS=8"])?);
    let of = |object: &Vec<u8>, name: String, function| Heavy {
        name: name.replace('_', "-"),
        function,
        object: object.clone(),
    };
    let light = FUNCTIONS.iter().map(|function| of(&plain, (*function).to_owned(), *function));
    let heavy = (1..=HEAVY).map(|number| of(&heavy, format!("heavy-{number}"), "tcp_options"));
    Ok(light.chain(heavy).collect())
}

fn compile(options: &[&str]) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("members.o");
    let source = repository().join("tests/kernel/corpus/load_order.bpf.c");
    compile_with(&source, &out, options)?;
    fs::read(&out).context("read the object")
}

/// Loads a chain of these members; microseconds, and the instructions walked for it.
fn prepare(members: &[&Heavy], load: u64) -> Result<(u32, u32)> {
    let bpffs = BpffsDir::new()?;
    let kernel = AyaKernel::new(bpffs.path())?;
    let members = members
        .iter()
        .map(|member| {
            let mut object = member.object.clone();
            // Behind everything that the ELF header speaks of.
            object.extend_from_slice(&load.to_ne_bytes());
            Ok(Member {
                name: member.name.parse()?,
                object: object.into(),
                function: member.function.to_owned(),
                frags: false,
                tail_calls: None,
                proceed_on: VerdictSet::default_for(Hook::Xdp),
                globals: Vec::new(),
                map_entries: Vec::new(),
                carry: Carry::Nothing,
                max_entries: Vec::new(),
                shared_maps: Vec::new(),
                settings: canopy_kernel::SettingsDetail::default(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let build = ChainBuild {
        key: ChainKey { netns: None, interface: "lo".parse()?, hook: Hook::Xdp },
        generation: 1,
        xdp_mode: XdpMode::Best,
        tc_mode: TcMode::Best,
        members,
        together: Vec::new(),
        left_entries: Vec::new(),
    };
    let begun = Instant::now();
    let prepared = kernel.prepare(&build).map_err(explain)?;
    let took = u32::try_from(begun.elapsed().as_micros())?;
    Ok((took, prepared.verified_instructions))
}

fn explain(error: KernelError) -> anyhow::Error {
    let log = match &error {
        KernelError::Refused { log: Some(log), .. } => format!("\n{log}"),
        _ => String::new(),
    };
    anyhow!("{:#}{log}", anyhow::Error::new(error))
}

/// Milliseconds a load.
fn table(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!("{:>10} {:>10} {:>10}  order", "min ms", "median ms", "verified")];
    for row in rows {
        lines.push(format!(
            "{:>10.1} {:>10.1} {:>10}  {}",
            f64::from(row.min_us) / 1000.0,
            f64::from(row.median_us) / 1000.0,
            row.verified_instructions,
            row.order.join(" ")
        ));
    }
    lines.push(String::new());
    lines
}
