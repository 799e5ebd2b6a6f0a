//! The loader: on every host, owns what hangs on the interfaces.
//!
//! **Promises** (each has a test named for it):
//!
//! 1. A change is atomic: after a failure, a crash or a power cut every chain is the old one or the
//!    new one, and the intent says which.
//! 2. Removing the last program removes it from the kernel before the reply.
//! 3. A reply comes after the kernel was read back and agrees.
//! 4. Ending the process, however, changes nothing in the kernel; a start takes over what is there.
//! 5. Applying the same document twice changes nothing in the kernel.
//! 6. A chain that somebody removes or replaces is back within 1.5 s, without bus or registry.
//! 7. Nothing is changed that policy has not admitted; what was admitted is restored and taken over
//!    without asking.
//! 8. Counts never go back, over changes and restarts.
//!
//! **Owns:** the host's desired state, its files under `state_dir`, its pins.
//!
//! **Must not know:** how packages are stored (the registry), who may ask (the bus's permissions),
//! how chains are composed (the kernel port).
//!
//! Every mistake of a document is told at once, each with its place:
//!
//! ```
//! use canopy_loader::core::resolve;
//! use serde_json::json;
//!
//! let chain = json!({ "interface": "eth0", "hook": "xdp", "programs": [
//!     { "name": "a", "package": "firewall", "proceed_on": ["okay"] },
//!     { "name": "a", "package": "ratelimit@^0.1" },
//! ]});
//! let problems = resolve::check(json!({ "chains": [chain] })).unwrap_err().0;
//! assert_eq!(problems[0].path, "document.chains[0].programs[0].proceed_on[0]");
//! assert_eq!(problems[1].path, "document.chains[0].programs[1].name");
//! ```

pub mod admission;
mod audit;
pub mod cache;
pub mod config;
pub mod core;
pub mod engine;
pub mod error;
mod facts;
pub mod fake;
pub mod fetch;
pub mod follow;
pub mod handlers;
pub mod metrics;
mod service;
pub mod store;

pub use config::Config;
pub use metrics::METRICS;
pub use service::start;
