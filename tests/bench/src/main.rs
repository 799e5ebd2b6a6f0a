//! `canopy-bench`: what `cargo xtask bench` runs.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Benchmarks of Canopy. Needs root, a bpffs at /sys/fs/bpf and clang.
#[derive(Parser)]
#[command(name = "canopy-bench", version)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// A fused chain against tail calls and against a bare program, nanoseconds a packet.
    Chain {
        /// Write the result as JSON too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        #[command(flatten)]
        options: canopy_bench::chain::Options,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().bench {
        Bench::Chain { json, options } => {
            let report = canopy_bench::chain::run(&options)?;
            report.print();
            if let Some(path) = json {
                report.write(&path)?;
            }
        }
    }
    Ok(())
}
