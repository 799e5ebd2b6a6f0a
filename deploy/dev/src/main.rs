//! `cargo xtask`: everything a developer runs, in one word each.
#![allow(clippy::print_stdout, reason = "talking to the person at the terminal is its work")]

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use xtask::{
    bench, check, compile, demo, dev, dev::Build, docs, paths, tier, tier::Tier, tools, traffic,
};

/// Builds, runs and tests Canopy on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
    /// Start what was built before, and build nothing.
    #[arg(long, global = true, hide = true)]
    built: bool,
    /// The work tree, where it is another one than this program was compiled in.
    #[arg(long, global = true, hide = true, value_name = "DIR")]
    work_tree: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Task {
    /// Bring everything up on this machine, filter real packets, tamper, and leave it up.
    Demo,
    /// Bring the development stack up.
    Up,
    /// Stop it and remove every trace but keys, certificates and logs.
    Down,
    /// Make keys, certificates, configuration and packages, and start nothing.
    Config,
    /// Give the people of a stack that runs in another way their tokens.
    Tokens,
    /// Run every test, or those of some tiers.
    Test {
        /// Only these tiers.
        tiers: Vec<Tier>,
        /// The long variants too.
        #[arg(long)]
        full: bool,
    },
    /// Format, lints, dependency rules, generated documents.
    Check,
    /// Install what building, running and testing need, where it is missing.
    Tools,
    /// Compile the packages under `ebpf/packages`.
    Ebpf,
    /// Write the generated documents.
    GenDocs,
    /// Measure, in an optimised build.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// The demonstration's sender; runs in its namespace.
    #[command(hide = true)]
    Send {
        /// Source address.
        #[arg(long)]
        from: String,
        /// Destination.
        #[arg(long)]
        to: SocketAddr,
        /// Datagrams.
        #[arg(long)]
        count: u64,
        /// Datagrams a second.
        #[arg(long)]
        per_second: u64,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// A request until the chain is attached, against loading and attaching alone: milliseconds.
    Apply {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often each variant is measured.
        #[arg(long, default_value_t = 40)]
        runs: u32,
    },
    /// What an operator feels while somebody with a valid certificate floods the stack: changes that are
    /// made, and milliseconds.
    Attack {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Short floods, to see that it runs.
        #[arg(long)]
        smoke: bool,
    },
    /// Requests, connects and the end of connections with full security, against a plain server.
    Bus {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// A very small run, to see that it runs.
        #[arg(long)]
        smoke: bool,
    },
    /// A fused chain against tail calls and a bare program: nanoseconds a packet.
    Chain {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often each variant is loaded anew.
        #[arg(long, default_value_t = 3)]
        loads: u32,
        /// How often each load is measured.
        #[arg(long, default_value_t = 12)]
        runs: u32,
    },
    /// Each shipped package against what else does its work: nanoseconds a packet.
    Packages {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often each variant is loaded anew.
        #[arg(long, default_value_t = 3)]
        loads: u32,
        /// How often each load is measured.
        #[arg(long, default_value_t = 12)]
        runs: u32,
    },
    /// One chain in many orders of its members: milliseconds to load it.
    LoadOrder {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often each order is loaded.
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
    /// A repository of 100 packages with 1,000 versions each, and 100 hosts that fetch 5 MB.
    Registry {
        /// Write the figures to this file too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// A very small run, to see that it runs.
        #[arg(long)]
        smoke: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(root) = arguments.work_tree {
        paths::use_work_tree(root);
    }
    let build = if arguments.built { Build::Nothing } else { Build::Changes };
    match run(arguments.command, build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, build: Build) -> Result<()> {
    let _alone = match &task {
        Task::Demo | Task::Up | Task::Down | Task::Config | Task::Tokens => Some(dev::lock()?),
        _ => None,
    };
    match task {
        Task::Demo => demo::run(build),
        Task::Up => {
            dev::up(build)?;
            dev::hints()
        }
        Task::Down => dev::down(),
        Task::Tokens => dev::tokens(),
        Task::Config => dev::configure(build),
        Task::Test { tiers, full } => tier::run(&tiers, full),
        Task::Check => check::run(),
        Task::Tools => {
            use tools::Need;
            tools::ensure(&[Need::Compile, Need::Network, Need::Tests])?;
            println!("{}", tools::nats_server()?.display());
            Ok(())
        }
        Task::Ebpf => {
            tools::ensure(&[tools::Need::Compile])?;
            for dir in compile::packages()? {
                println!("{}", dir.display());
            }
            Ok(())
        }
        Task::GenDocs => {
            compile::binaries()?;
            docs::generate()
        }
        Task::Bench { what: Bench::Apply { json, runs } } => bench::apply(json.as_deref(), runs),
        Task::Bench { what: Bench::Chain { json, loads, runs } } => {
            bench::chain(json.as_deref(), loads, runs)
        }
        Task::Bench { what: Bench::LoadOrder { json, runs } } => {
            bench::load_order(json.as_deref(), runs)
        }
        Task::Bench { what: Bench::Attack { json, smoke } } => {
            bench::attack(json.as_deref(), smoke)
        }
        Task::Bench { what: Bench::Bus { json, smoke } } => bench::bus(json.as_deref(), smoke),
        Task::Bench { what: Bench::Packages { json, loads, runs } } => {
            bench::packages(json.as_deref(), loads, runs)
        }
        Task::Bench { what: Bench::Registry { json, smoke } } => {
            bench::registry(json.as_deref(), smoke)
        }
        Task::Send { from, to, count, per_second } => {
            let sent = traffic::send_here(&from, to, count, per_second)?;
            println!("{}", serde_json::to_string(&sent)?);
            Ok(())
        }
    }
}
