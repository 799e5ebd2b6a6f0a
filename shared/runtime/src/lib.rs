//! What every service needs around its own work: configuration, logs, traces, metrics, health,
//! signals, an orderly end.
//!
//! **Owns:** the command line of a service, the common block of its configuration, the admin
//! listener (`/metrics`, `/live`, `/ready`), the clock, the way a process starts and stops.
//!
//! **Must not know:** the bus, the kernel, any service.
//!
//! ```no_run
//! use canopy_api::endpoint::Service;
//! use canopy_runtime::{Context, RuntimeConfig, ServiceConfig};
//!
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     #[serde(default)]
//!     runtime: RuntimeConfig,
//! }
//!
//! impl ServiceConfig for Config {
//!     fn runtime(&self) -> &RuntimeConfig {
//!         &self.runtime
//!     }
//! }
//!
//! async fn start(_config: Config, cx: Context) -> anyhow::Result<()> {
//!     cx.shutdown.cancelled().await;
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     canopy_runtime::run(Service::Policy, &[], start)
//! }
//! ```

mod admin;
mod args;
pub mod clock;
mod config;
mod config_file;
mod context;
mod health;
mod log_lines;
pub mod metrics;
mod named_files;
mod run;
mod telemetry;

pub use config::{
    AdminConfig, AdminTls, LogConfig, LogFormat, OffLoopback, OtlpConfig, RuntimeConfig,
    ServiceConfig, load,
};
pub use config_file::ConfigFile;
pub use context::Context;
pub use health::{Latch, Readiness};
pub use metrics::{MetricKind, MetricSpec};
pub use named_files::NamedFiles;
pub use run::{run, usage};

/// Version of this build; the whole workspace has one.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
