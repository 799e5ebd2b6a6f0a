//! What decisions are measured by: keys, patterns, tolerance. Replaced as a whole when the
//! configuration changes.

use crate::config::AuthConfig;
use canopy_api::san::SanPatterns;
use canopy_identity::{SigningKey, VerifyingKeys};
use std::time::Duration;

/// Keys, patterns, tolerance.
#[derive(Debug)]
pub(crate) struct Trust {
    /// The key that signs.
    pub(crate) signing: SigningKey,
    /// The keys that are believed.
    pub(crate) keys: VerifyingKeys,
    /// Certificates of people.
    pub(crate) people: SanPatterns,
    /// By how much clocks may differ.
    pub(crate) skew: Duration,
}

impl Trust {
    /// Reads the keys.
    ///
    /// # Errors
    /// Which key cannot be used, why, and what to do.
    pub(crate) fn read(config: &AuthConfig) -> anyhow::Result<Self> {
        let mut keys = Vec::new();
        for (i, reference) in config.signing_keys.iter().enumerate() {
            let at = format!("auth.signing_keys[{i}]");
            let pem = reference
                .read()
                .map_err(|error| anyhow::anyhow!("{at}: {error}; {}", error.remedy))?;
            let key = SigningKey::from_pem(&pem)
                .map_err(|error| anyhow::anyhow!("{at}: {reference}: {error}"))?;
            keys.push(key);
        }
        let verifying = VerifyingKeys::of(&keys);
        let Some(signing) = keys.into_iter().next() else {
            anyhow::bail!("auth.signing_keys: there is none");
        };
        Ok(Self {
            signing,
            keys: verifying,
            people: config.people.clone(),
            skew: Duration::from_secs(config.clock_skew_seconds),
        })
    }
}
