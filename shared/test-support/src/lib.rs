//! What tests share: a real nats-server, network namespaces, traffic, compiled objects.
//!
//! **Must not know:** any service. Everything made here is removed when its guard is dropped, also
//! by a test that fails.

pub mod bpffs;
mod compile;
pub mod memory;
pub mod nats;
pub mod netns;
pub mod node;
pub mod old_kernel;
pub mod packet;
pub mod pair;
pub mod process;
pub mod python;
pub mod service;
pub mod stores;
pub mod tracee;
pub mod traffic;
mod wait;

pub use compile::{compile, compile_text, compile_with, repository};
pub use wait::wait_for;
