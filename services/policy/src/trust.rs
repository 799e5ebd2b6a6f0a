//! What decisions are measured by: keys, patterns, tolerance. Replaced as a whole when the
//! configuration changes.

use crate::{
    config::{AuthConfig, CaConfig, HostsRule},
    limits::LimitsConfig,
};
use canopy_api::san::SanPatterns;
use canopy_identity::{Authority, SigningKey, VerifyingKeys};
use ring::digest::{Context, SHA256};
use std::time::Duration;

/// Longest file of a certificate, bytes.
const LONGEST: u64 = 1 << 20;

/// Keys, patterns, tolerance.
#[derive(Debug)]
pub(crate) struct Trust {
    /// The key that signs.
    pub(crate) signing: SigningKey,
    /// The keys that are believed.
    pub(crate) keys: VerifyingKeys,
    /// Certificates of people.
    pub(crate) people: SanPatterns,
    /// Which daemons of hosts may connect.
    pub(crate) hosts: HostsRule,
    /// Who signs their certificates.
    pub(crate) authority: Option<HostAuthority>,
    /// By how much clocks may differ.
    pub(crate) skew: Duration,
    /// How much of the bus each principal may use.
    pub(crate) limits: LimitsConfig,
    /// Tells whether what was read is what was read before.
    digest: Vec<u8>,
}

/// Who signs hosts' certificates.
#[derive(Debug)]
pub(crate) struct HostAuthority {
    /// The authority.
    pub(crate) authority: Authority,
    /// How long what it signs is valid, seconds.
    pub(crate) life: u64,
}

impl HostAuthority {
    fn read(config: &CaConfig, seen: &mut Context) -> anyhow::Result<Self> {
        canopy_files::check_protected(&config.cert)
            .map_err(|open| anyhow::anyhow!("auth.ca.cert: {open}; {}", open.remedy))?;
        let certificate = canopy_files::read_text(&config.cert, LONGEST).map_err(|error| {
            anyhow::anyhow!("auth.ca.cert: cannot read {}: {error}", config.cert.display())
        })?;
        let key = config
            .key
            .read()
            .map_err(|error| anyhow::anyhow!("auth.ca.key: {error}; {}", error.remedy))?;
        seen.update(certificate.as_bytes());
        seen.update(key.as_bytes());
        let authority = Authority::new(&certificate, &key)
            .map_err(|error| anyhow::anyhow!("auth.ca: {error}"))?;
        Ok(Self { authority, life: u64::from(config.days) * 86_400 })
    }
}

impl Trust {
    /// Says what is in use, and what is dangerous about it.
    pub(crate) fn say(&self) {
        tracing::info!(signs = self.signing.id(), believes = ?self.keys, "keys in force");
        if self.hosts == HostsRule::Any {
            tracing::warn!(
                "auth.hosts is `any`: whoever has a certificate of the authority with a host's name is \
                 that host; this is for development"
            );
        }
    }

    /// Whether the same keys were read.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// Which key cannot be used, why, and what to do.
    pub(crate) fn read(config: &AuthConfig) -> anyhow::Result<Self> {
        let mut keys = Vec::new();
        let mut seen = Context::new(&SHA256);
        for (i, reference) in config.signing_keys.iter().enumerate() {
            let at = format!("auth.signing_keys[{i}]");
            let pem = reference
                .read()
                .map_err(|error| anyhow::anyhow!("{at}: {error}; {}", error.remedy))?;
            seen.update(pem.as_bytes());
            let key = SigningKey::from_pem(&pem)
                .map_err(|error| anyhow::anyhow!("{at}: {reference}: {error}"))?;
            keys.push(key);
        }
        let verifying = VerifyingKeys::of(&keys);
        let Some(signing) = keys.into_iter().next() else {
            anyhow::bail!("auth.signing_keys: there is none");
        };
        let authority =
            config.ca.as_ref().map(|ca| HostAuthority::read(ca, &mut seen)).transpose()?;
        Ok(Self {
            digest: seen.finish().as_ref().to_vec(),
            signing,
            keys: verifying,
            people: config.people.clone(),
            hosts: config.hosts,
            authority,
            skew: Duration::from_secs(config.clock_skew_seconds),
            limits: config.limits.clone(),
        })
    }
}
