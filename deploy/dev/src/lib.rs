//! Building, running and testing Canopy on one machine.
//!
//! **Owns:** what `cargo xtask` does: installing what is missing, the development stack (keys,
//! certificates, configuration, processes), the demonstration, the test tiers, the checks, the
//! generated documents. The end-to-end tests bring up their stacks with [`stack`] too.
//!
//! **Must not know:** the bus, the kernel, any service's insides: it runs the programs people run.
#![allow(clippy::print_stdout, reason = "talking to the person at the terminal is its work")]

pub mod bench;
pub mod check;
pub mod compile;
pub mod config;
pub mod demo;
pub mod dev;
pub mod docs;
pub mod network;
pub mod outside;
pub mod paths;
pub mod pki;
pub mod process;
pub mod progress;
pub mod rules;
pub mod running;
pub mod schema_page;
pub mod shell;
pub mod stack;
pub mod tier;
pub mod tools;
pub mod traffic;
