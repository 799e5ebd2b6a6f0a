//! Canopy seen from outside: the real binaries, a real bus with TLS and permissions, real packets.
//!
//! A [`World`] is a whole stack in a network namespace of its own, with a peer namespace that sends
//! packets to it. Worlds do not see each other, so tests run in parallel; all of a world is gone
//! when it is dropped, also by a test that fails.
//!
//! **Must not know:** any service's insides. What is asserted comes from the command line's answers,
//! `bpftool`, packets, and the files a person could look at.

mod cluster;
mod machine;
mod world;

pub use cluster::{Cluster, StreamState};
pub use machine::{Machine, Who};
pub use world::{Answer, BLOCKED, Gap, HOST, INTERFACE, Repository, World};
