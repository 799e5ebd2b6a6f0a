//! Benchmarks of Canopy, each against what else one could do, measured side by side in one run.
//!
//! **Owns:** what is measured and how it is reported. **Must not know:** how a service
//! is run: those measured are called as libraries.
//!
//! Figures are ratios first: they hold on another machine where nanoseconds do not.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

pub mod apply;
pub mod attack;
pub mod attack_bus;
pub mod bus;
pub mod chain;
pub mod hop;
pub mod load_order;
pub mod packages;
pub mod registry;
pub mod report;
