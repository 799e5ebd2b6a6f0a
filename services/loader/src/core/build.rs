//! From a wanted chain to what the kernel port builds: bytes for settings, and which maps survive.

use super::state::{Wanted, WantedProgram};
use canopy_api::{ChainKey, Digest, Problems};
use canopy_kernel::{Carry, ChainBuild, MapContents, Member, ShareScope, SharedMap};
use canopy_package::{
    Bindings, Manifest, Package, bind,
    manifest::{Select, Shared},
};
use std::{collections::BTreeMap, sync::Arc};

/// Packages by digest.
pub type Packages = BTreeMap<Digest, Arc<Package>>;

/// Why a chain that was resolved cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A package is not at hand.
    #[error("package {package} ({digest}) is not in the cache of this host")]
    NoPackage {
        /// Its name.
        package: String,
        /// Its bytes.
        digest: Digest,
    },
    /// A package lost what its manifest promised.
    #[error("package {package} has no object \"{object}\"")]
    NoObject {
        /// Its name.
        package: String,
        /// The file.
        object: String,
    },
    /// Settings that were fine are not.
    #[error("the settings of \"{program}\" are wrong")]
    Settings {
        /// The program.
        program: String,
        /// Each mistake.
        #[source]
        problems: Problems,
    },
}

/// Lays out generation `generation` of a chain. `previous` is what the running generation was built
/// from: it decides which maps are kept.
pub fn build(
    key: &ChainKey,
    generation: u64,
    wanted: &Wanted,
    previous: Option<&Wanted>,
    packages: &Packages,
) -> Result<ChainBuild, BuildError> {
    let members = wanted
        .programs
        .iter()
        .map(|program| {
            let before = previous
                .and_then(|previous| previous.programs.iter().find(|p| p.name == program.name));
            member(program, before, packages)
        })
        .collect::<Result<_, _>>()?;
    Ok(ChainBuild {
        key: key.clone(),
        generation,
        xdp_mode: wanted.xdp_mode,
        tc_mode: wanted.tc_mode,
        members,
    })
}

fn member(
    program: &WantedProgram,
    before: Option<&WantedProgram>,
    packages: &Packages,
) -> Result<Member, BuildError> {
    let package = packages.get(&program.digest).ok_or_else(|| BuildError::NoPackage {
        package: format!("{} {}", program.package, program.version),
        digest: program.digest.clone(),
    })?;
    let object = package.objects.get(&program.object).ok_or_else(|| BuildError::NoObject {
        package: format!("{} {}", program.package, program.version),
        object: program.object.clone(),
    })?;
    let settings = |of: &WantedProgram| {
        bind(&package.manifest, &of.config, "config")
            .map_err(|problems| BuildError::Settings { program: of.name.to_string(), problems })
    };
    let bindings = settings(program)?;
    let carry = match before {
        Some(before)
            if before.digest == program.digest
                && before.object == program.object
                && before.function == program.function =>
        {
            same_bytes(&package.manifest, &settings(before)?, &bindings)
        }
        Some(before) if before.package == program.package => {
            other_version(&package.manifest, &bindings)
        }
        Some(_) | None => Carry::Nothing,
    };
    let maps = &package.manifest.maps;
    Ok(Member {
        name: program.name.clone(),
        object: Arc::from(object.as_slice()),
        function: program.function.clone(),
        frags: program.frags,
        tail_calls: package
            .manifest
            .programs
            .iter()
            .find(|known| known.name == program.program)
            .and_then(|known| known.tail_calls),
        proceed_on: program.proceed_on,
        globals: bindings.globals,
        map_entries: bindings
            .map_entries
            .into_iter()
            .map(|(map, entries)| MapContents { map, entries })
            .collect(),
        carry,
        max_entries: maps
            .iter()
            .filter_map(|map| map.max_entries.map(|most| (map.name.clone(), most)))
            .collect(),
        shared_maps: maps
            .iter()
            .filter_map(|map| {
                let scope = match map.shared? {
                    Shared::Interface => ShareScope::Interface,
                    Shared::Host => ShareScope::Host,
                };
                Some(SharedMap { map: map.name.clone(), scope })
            })
            .collect(),
    })
}

/// The same program from the same bytes: everything is kept, but what settings fill, and counters
/// whose slots belong to items of a list that changed.
fn same_bytes(manifest: &Manifest, before: &Bindings, now: &Bindings) -> Carry {
    let mut fresh: Vec<String> = now.map_entries.iter().map(|(map, _)| map.clone()).collect();
    fresh.push(".rodata".to_owned());
    if before.globals != now.globals {
        fresh.push(".data".to_owned());
    }
    for metric in &manifest.metrics {
        if let Select::Items { config, .. } = &metric.select
            && before.effective.get(config) != now.effective.get(config)
        {
            fresh.push(metric.map.clone());
        }
    }
    fresh.sort();
    fresh.dedup();
    Carry::AllBut(fresh)
}

/// Another version, or another object of the same: what its manifest says is kept.
fn other_version(manifest: &Manifest, now: &Bindings) -> Carry {
    let bound = |map: &str| now.map_entries.iter().any(|(name, _)| name == map);
    Carry::Only(
        manifest
            .maps
            .iter()
            .filter(|map| map.carry_over && !bound(&map.name))
            .map(|map| map.name.clone())
            .collect(),
    )
}
