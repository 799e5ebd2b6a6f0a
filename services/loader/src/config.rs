//! The loader's configuration file.

use crate::{admission::AdmissionMode, cache::DEFAULT_BYTES, core::trust::Trust};
use canopy_api::{HostId, Problem, Problems};
use canopy_bus::BusConfig;
use canopy_runtime::{NamedFiles, RuntimeConfig, ServiceConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The loader of one host. The file belongs to root: whoever may write it decides whose code runs
/// in the kernel.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's enrolled id.
    pub host: HostId,
    /// How to reach the bus.
    pub bus: BusConfig,
    /// Logs, metrics, traces.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// Where the state and the package cache are kept. Default `/var/lib/canopy/loader`.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Package files kept on disk, bytes, so that going back to one needs no registry; those used
    /// longest ago go first. What chains need stays even beyond it. Default 512 MiB.
    #[serde(default = "default_cache")]
    pub cache_bytes: u64,
    /// How often the metrics that packages declare are read from their maps, seconds, from 1 to 3600; a
    /// chain that changed is read within a second. Scrapes get what was read last. Default 15.
    #[serde(default = "default_metrics_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub metrics_seconds: u64,
    /// Where programs, links and maps are pinned: a directory of a mounted bpffs. Default
    /// `/sys/fs/bpf/canopy`.
    #[serde(default = "default_bpffs")]
    pub bpffs: PathBuf,
    /// Whose packages may run here. For each package the first rule that names it counts; a
    /// package that no rule names is refused. Default: none.
    #[serde(default)]
    pub trust: Vec<Trust>,
    /// Whether policy is asked before a change. Default `required`.
    #[serde(default)]
    pub admission: AdmissionMode,
    /// The audit trail kept in `state_dir`, bytes; the oldest records go first. At least 65536; default
    /// 64 MiB.
    #[serde(default = "default_audit")]
    #[schemars(range(min = 65536))]
    pub audit_bytes: u64,
}

fn default_audit() -> u64 {
    64 << 20
}

fn default_state_dir() -> PathBuf {
    "/var/lib/canopy/loader".into()
}

fn default_cache() -> u64 {
    DEFAULT_BYTES
}

fn default_metrics_seconds() -> u64 {
    15
}

fn default_bpffs() -> PathBuf {
    "/sys/fs/bpf/canopy".into()
}

impl ServiceConfig for Config {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn check_files(&self, files: &mut NamedFiles) {
        files.bus(&self.bus.ca, &self.bus.cert, &self.bus.key);
        files.directory("state_dir", &self.state_dir);
        files.directory("bpffs", &self.bpffs);
    }

    fn own_key(&self) -> Option<&Path> {
        Some(&self.bus.key)
    }

    fn check(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        for (field, path) in [("state_dir", &self.state_dir), ("bpffs", &self.bpffs)] {
            if !path.is_absolute() {
                problems.push(
                    Problem::new(field, format!("{} is not an absolute path", path.display()))
                        .remedy("write it from /"),
                );
            }
        }
        if !(1..=3600).contains(&self.metrics_seconds) {
            let said = format!("{} is not from 1 to 3600", self.metrics_seconds);
            problems.push(Problem::new("metrics_seconds", said).remedy("15 suits most"));
        }
        for (i, rule) in self.trust.iter().enumerate() {
            if let Err(found) = rule.check(&format!("trust[{i}]")) {
                problems.0.extend(found.0);
            }
        }
        problems.into_result()
    }
}
