//! `canopy-bench`: what `cargo xtask bench` runs.

use canopy_bench::report::Report;
use clap::{Parser, Subcommand};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Benchmarks of Canopy. Need clang; those of chains root and a bpffs at /sys/fs/bpf too.
#[derive(Parser)]
#[command(name = "canopy-bench", version)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// A request over the bus until the chain is attached, read back and answered, against loading
    /// and attaching the same objects in one process; milliseconds.
    Apply {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::apply::Options,
    },
    /// What an operator feels while somebody with a valid certificate floods the stack; milliseconds.
    Attack {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::attack::Options,
    },
    /// Requests, connects and the end of connections with full security, against a plain server.
    /// Needs no root.
    Bus {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::bus::Options,
    },
    /// A fused chain against tail calls and against a bare program, nanoseconds a packet.
    Chain {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::chain::Options,
    },
    /// Each shipped package against what else does its work, nanoseconds a packet.
    Packages {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::packages::Options,
    },
    /// One chain in many orders of its members: how long it takes to load, milliseconds.
    LoadOrder {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::load_order::Options,
    },
    /// A large repository, and many hosts that fetch one package. Needs no root.
    Registry {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::registry::Options,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().bench {
        Bench::Apply { json, options } => {
            finish(&canopy_bench::apply::run(&options)?, json.as_deref())
        }
        Bench::Attack { json, options } => {
            finish(&canopy_bench::attack::run(&options)?, json.as_deref())
        }
        Bench::Bus { json, options } => finish(&canopy_bench::bus::run(&options)?, json.as_deref()),
        Bench::Chain { json, options } => {
            finish(&canopy_bench::chain::run(&options)?, json.as_deref())
        }
        Bench::Packages { json, options } => {
            finish(&canopy_bench::packages::run(&options)?, json.as_deref())
        }
        Bench::LoadOrder { json, options } => {
            finish(&canopy_bench::load_order::run(&options)?, json.as_deref())
        }
        Bench::Registry { json, options } => {
            finish(&canopy_bench::registry::run(&options)?, json.as_deref())
        }
    }
}

fn finish<R: Serialize>(report: &Report<R>, json: Option<&Path>) -> anyhow::Result<()> {
    report.print();
    json.map_or(Ok(()), |path| report.write(path))
}
