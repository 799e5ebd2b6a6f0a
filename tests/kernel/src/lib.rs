//! What the kernel tests share: chains of test programs without an interface, starter packages as
//! the loader would load them, hand-made packets.
//!
//! All of it needs root and a bpffs at `/sys/fs/bpf`; every test pins below a directory of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "test code: a failure is a panic"
)]

pub mod chain;
pub mod engine;
pub mod files;
pub mod frames;
pub mod host;
pub mod live;
pub mod package;
pub mod packages;
pub mod packet;
pub mod reference;
