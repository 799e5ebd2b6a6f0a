//! The registry: where packages come from.
//!
//! **Promises:**
//!
//! 1. Nothing leaves it unverified: the signed index (version, expiry), the digest and length the
//!    index names, the package's signature over name, version and digest, the manifest against its
//!    objects. The loader verifies again for itself.
//! 2. What was published before a question is part of the answer.
//! 3. One repository's trouble is its own: the others answer, and what was verified before keeps
//!    being served while it is in memory and its index has not expired.
//! 4. A changed configuration is used without a restart; one with a mistake changes nothing.
//! 5. A damaged or tampered newest version is an error, never a silent step back to an older one.
//!
//! **Owns:** repositories, their indexes, verified package files in memory.
//!
//! **Must not know:** hosts, chains, what packages do; any secret key. It writes only to repositories that
//! are configured so (`writable`), and there only what their publishers signed, after verifying it as it
//! does when reading; else publishing is done by whoever may write to the place.
//!
//! The highest index versions seen are on disk (`state_dir`) before anything of the index is given out;
//! loaders remember them for themselves.

pub mod artifacts;
pub mod config;
pub mod core;
mod current;
pub mod error;
mod handlers;
pub mod index_state;
pub mod metrics;
pub mod registry;
pub mod repository;
mod service;

pub use config::Config;
pub use metrics::METRICS;
pub use registry::Registry;
pub use service::start;
