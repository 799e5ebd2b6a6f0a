//! What was attached last, by the kernel's ids: how a chain is recognised whose pins are hidden. It is no
//! part of the state: without it a chain is recognised by whoever may ask for a program's name.

use super::state::pairs;
use canopy_api::{ChainKey, wire::ObservedChain};
use canopy_kernel::KnownProgram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Programs by chain. Ids mean something only during one start of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// That start.
    pub boot_id: String,
    /// Generation and kernel id of the program that runs.
    #[serde(with = "pairs")]
    programs: BTreeMap<ChainKey, (u64, u32)>,
}

impl Attached {
    /// What is known after a start; of another start of the machine nothing is.
    #[must_use]
    pub fn of_boot(self, boot_id: &str) -> Self {
        if self.boot_id == boot_id && !boot_id.is_empty() {
            return self;
        }
        Self { boot_id: boot_id.to_owned(), programs: BTreeMap::new() }
    }

    /// What ran for a chain.
    pub fn known(&self, key: &ChainKey) -> Option<KnownProgram> {
        let (generation, program_id) = *self.programs.get(key)?;
        Some(KnownProgram { program_id, generation })
    }

    /// Notes what a chain has attached now; whether that is news.
    pub fn note(&mut self, key: &ChainKey, chain: &ObservedChain) -> bool {
        let now = (chain.generation, chain.program_id);
        !self.boot_id.is_empty() && self.programs.insert(key.clone(), now) != Some(now)
    }

    /// Forgets a chain; whether it was known.
    pub fn forget(&mut self, key: &ChainKey) -> bool {
        self.programs.remove(key).is_some()
    }
}
