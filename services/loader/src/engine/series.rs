//! How many time series the metrics of packages are: each list item and each top entry is one, on every
//! chain of the host, and somebody gathers, sends and stores them all.

use super::{Engine, Inner};
use crate::{
    core::{
        plan::Asked,
        state::{Wanted, WantedProgram},
    },
    error::LoaderError,
};
use canopy_api::{ApiError, ChainKey, Code, Digest};
use canopy_kernel::Kernel;
use canopy_package::Package;
use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

/// Time series of packages that a host tells at most.
pub(super) const HOST_SERIES: u64 = 50_000;

impl<K: Kernel> Engine<K> {
    /// Refuses what would bring the host's packages to more time series than it tells. What is there
    /// already is no reason to refuse a change that adds none.
    pub(super) fn check_series(&self, inner: &Inner, asked: &[Asked]) -> Result<(), LoaderError> {
        let mut packages = BTreeMap::new();
        let chains = &inner.state.chains;
        let mut changed: Vec<(u64, &Asked)> = Vec::new();
        let (mut before, mut after) = (0, 0);
        for asked in asked {
            let old =
                chains.get(&asked.key).map_or(0, |old| self.series(&old.wanted, &mut packages));
            let new = asked.wanted.as_ref().map_or(0, |new| self.series(new, &mut packages));
            (before, after) = (before + old, after + new);
            changed.push((new, asked));
        }
        if after <= before {
            return Ok(());
        }
        let is_asked = |key: &ChainKey| asked.iter().any(|asked| asked.key == *key);
        let others = chains.iter().filter(|(key, _)| !is_asked(key));
        after += others.map(|(_, chain)| self.series(&chain.wanted, &mut packages)).sum::<u64>();
        if after <= HOST_SERIES {
            return Ok(());
        }
        changed.sort_by_key(|(series, _)| Reverse(*series));
        let Some((series, Asked { key, path, wanted: Some(wanted), program_paths, .. })) =
            changed.first()
        else {
            return Ok(());
        };
        let programs = wanted.programs.iter();
        let most = programs.max_by_key(|program| self.of_program(program, &mut packages));
        let named = most.map_or(String::new(), |program| {
            format!(
                ", most of program \"{}\" of {} {}",
                program.name, program.package, program.version
            )
        });
        let at = most.and_then(|program| program_paths.get(&program.name)).unwrap_or(path);
        let error = ApiError::new(
            Code::Invalid,
            format!(
                "the metrics of this host's packages would be {after} time series, {series} of them on \
                 {key}{named}; a host has at most {HOST_SERIES}"
            ),
        );
        Err(LoaderError::Host(Box::new(error.at(at.clone()).remedy(
            "shorten the lists whose items are counted one by one, or describe fewer interfaces",
        ))))
    }

    fn series(&self, wanted: &Wanted, packages: &mut Opened) -> u64 {
        wanted.programs.iter().map(|program| self.of_program(program, packages)).sum()
    }

    fn of_program(&self, program: &WantedProgram, packages: &mut Opened) -> u64 {
        let opened = packages
            .entry(program.digest.clone())
            .or_insert_with(|| self.parts.packages.package(&program.digest).ok());
        // Of what is not at hand nothing is told either.
        opened.as_ref().map_or(0, |package| package.manifest.series(&program.config))
    }
}

/// Packages by digest; `None` for one that is not at hand.
type Opened = BTreeMap<Digest, Option<Arc<Package>>>;
