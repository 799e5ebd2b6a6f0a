//! Configuration of the audit trail.

use canopy_api::{Problem, Problems};
use canopy_store::SecretSource;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Where audit records are kept: this service's own, and what all writers have it store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// A directory of this instance's own, for the records of what it did itself:
    /// `/var/lib/canopy/policy/audit`. What cannot be recorded there is not done.
    pub dir: PathBuf,
    /// Bytes kept in `dir` of each of its two trails, changes and connections; the oldest records go
    /// first. At least 65536; default 64 MiB.
    #[serde(default = "bytes")]
    #[schemars(range(min = 65536))]
    pub bytes: u64,
    /// Key that signs how far the stored chains go, Ed25519 in PEM; `canopy-policy audit-key` makes one.
    /// The same for all instances.
    pub signing_key: SecretSource,
    /// Days for which records are stored, 1 to 3650. Default 400.
    #[serde(default = "keep_days")]
    #[schemars(range(min = 1, max = 3650))]
    pub keep_days: u32,
    /// Bytes that are stored of all writers; the oldest records go first. At least 1 MiB; default 1 GiB.
    #[serde(default = "store_bytes")]
    #[schemars(range(min = 1_048_576))]
    pub store_bytes: u64,
    /// Bytes that are stored of each writer, so that none pushes out what others wrote; what is more stays
    /// with the writer and is told as a finding. At least 64 KiB; at most, and by default, an eighth of
    /// `store_bytes`.
    #[serde(default)]
    #[schemars(range(min = 65536))]
    pub writer_bytes: Option<u64>,
    /// Records that are stored of each chain; the oldest go first, which is told as a finding. At least 100;
    /// default 100000.
    #[serde(default = "records_of_chain")]
    #[schemars(range(min = 100))]
    pub records_of_chain: u64,
    /// Seconds between checkpoints of chains that have grown, 1 to 3600. Default 60.
    #[serde(default = "checkpoint_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub checkpoint_seconds: u64,
}

fn bytes() -> u64 {
    64 << 20
}

fn keep_days() -> u32 {
    400
}

fn store_bytes() -> u64 {
    1 << 30
}

fn records_of_chain() -> u64 {
    100_000
}

fn checkpoint_seconds() -> u64 {
    60
}

impl AuditConfig {
    /// Bytes that are stored of each writer.
    pub(super) fn room_of_writer(&self) -> u64 {
        let most = self.store_bytes / 8;
        self.writer_bytes.map_or(most, |bytes| bytes.min(most))
    }

    pub(crate) fn check(&self, problems: &mut Problems) {
        let mut bounds = |name: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                let said = if most == u64::MAX {
                    format!("{value} is less than {least}")
                } else {
                    format!("{value} is not {least} to {most}")
                };
                problems.push(
                    Problem::new(format!("audit.{name}"), said)
                        .remedy("leave it out for the default"),
                );
            }
        };
        bounds("bytes", self.bytes, 65_536, u64::MAX);
        bounds("keep_days", u64::from(self.keep_days), 1, 3650);
        bounds("store_bytes", self.store_bytes, 1 << 20, u64::MAX);
        if let Some(bytes) = self.writer_bytes {
            bounds("writer_bytes", bytes, 65_536, self.store_bytes / 8);
        }
        bounds("records_of_chain", self.records_of_chain, 100, u64::MAX);
        bounds("checkpoint_seconds", self.checkpoint_seconds, 1, 3600);
        self.signing_key.check("audit.signing_key", problems);
    }
}
