//! From a wanted chain to what the kernel port builds: bytes for settings, and which maps survive.

use super::state::{Wanted, WantedProgram};
use canopy_api::{ChainKey, Digest, Problems};
use canopy_kernel::{
    Carry, ChainBuild, MapContents, MapField, Member, MovedSlots, SettingsDetail, ShareScope,
    SharedMap,
};
use canopy_package::{
    Bindings, Manifest, Package, bind,
    bind::Entries,
    manifest::{ManifestMap, Select, Shared},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
/// from: it decides which maps are kept, and what in them are settings to be replaced. `packages` has
/// its packages too, as far as they are at hand.
pub fn build(
    key: &ChainKey,
    generation: u64,
    wanted: &Wanted,
    previous: Option<&Wanted>,
    packages: &Packages,
) -> Result<ChainBuild, BuildError> {
    let before = |program: &WantedProgram| {
        let programs = previous.into_iter().flat_map(|previous| &previous.programs);
        programs.into_iter().find(|p| p.name == program.name && p.package == program.package)
    };
    let members = wanted
        .programs
        .iter()
        .map(|program| member(program, before(program), packages))
        .collect::<Result<_, _>>()?;
    let stays = |old: &WantedProgram| {
        wanted.programs.iter().any(|new| new.name == old.name && new.package == old.package)
    };
    let left_entries = previous
        .into_iter()
        .flat_map(|previous| &previous.programs)
        .filter(|old| !stays(old))
        .filter_map(|old| old_bindings(old, packages))
        .flat_map(|bindings| contents(bindings.map_entries))
        .collect();
    Ok(ChainBuild {
        key: key.clone(),
        generation,
        xdp_mode: wanted.xdp_mode,
        tc_mode: wanted.tc_mode,
        members,
        together: Vec::new(),
        left_entries,
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
    let manifest = &package.manifest;
    let bindings = bind(manifest, &program.config, "config")
        .map_err(|problems| BuildError::Settings { program: program.name.to_string(), problems })?;
    let old = before.and_then(|before| old_bindings(before, packages));
    let moved = old.as_ref().map(|old| moved_slots(manifest, old, &bindings)).unwrap_or_default();
    let carry = match before {
        None => Carry::Nothing,
        // The same program from the same bytes: everything is kept.
        Some(before)
            if before.digest == program.digest
                && before.object == program.object
                && before.function == program.function =>
        {
            Carry::AllBut(moved.unknown)
        }
        // Another version, or another object of the same.
        Some(_) => other_version(manifest, &bindings, old.is_some(), &moved.unknown),
    };
    let settings = SettingsDetail {
        fields: fields(bindings.map_fields),
        moved_slots: moved.known,
        ..old.map_or_else(SettingsDetail::default, |old| SettingsDetail {
            old_globals: old.globals,
            old_entries: contents(old.map_entries),
            old_fields: fields(old.map_fields),
            ..SettingsDetail::default()
        })
    };
    let maps = &manifest.maps;
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
        map_entries: contents(bindings.map_entries),
        settings,
        carry,
        max_entries: maps
            .iter()
            .filter_map(|map| map.max_entries.map(|most| (map.name.clone(), most)))
            .collect(),
        shared_maps: shared_maps(manifest),
    })
}

/// The maps that a package shares by their names.
pub fn shared_maps(manifest: &Manifest) -> Vec<SharedMap> {
    let shared = |map: &ManifestMap| {
        let scope = match map.shared? {
            Shared::Interface => ShareScope::Interface,
            Shared::Host => ShareScope::Host,
        };
        Some(SharedMap { map: map.name.clone(), scope })
    };
    manifest.maps.iter().filter_map(shared).collect()
}

/// What the settings of a program that runs come to; `None` where its package is not at hand.
fn old_bindings(program: &WantedProgram, packages: &Packages) -> Option<Bindings> {
    let package = packages.get(&program.digest)?;
    bind(&package.manifest, &program.config, "config").ok()
}

fn contents(entries: Vec<(String, Entries)>) -> Vec<MapContents> {
    entries.into_iter().map(|(map, entries)| MapContents { map, entries }).collect()
}

fn fields(fields: Vec<(String, Vec<u8>, usize, usize)>) -> Vec<MapField> {
    fields.into_iter().map(|(map, key, offset, size)| MapField { map, key, offset, size }).collect()
}

/// Arrays whose slots belong to items of lists that changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moved {
    /// Those in which it is known what belongs where.
    known: Vec<MovedSlots>,
    /// The others, which start anew.
    unknown: Vec<String>,
}

/// Where the contents of slots go whose items have another place in their list: with the items. Those
/// of items that are gone are dropped, and those of new ones begin at zero.
fn moved_slots(manifest: &Manifest, old: &Bindings, now: &Bindings) -> Moved {
    let list = |bindings: &Bindings, config: &str| {
        bindings.effective.get(config).and_then(Value::as_array).cloned()
    };
    let mut lists = BTreeMap::<&str, BTreeSet<&str>>::new();
    for metric in &manifest.metrics {
        if let Select::Items { config, .. } = &metric.select {
            lists.entry(&metric.map).or_default().insert(config);
        }
    }
    let mut moved = Moved::default();
    for (map, configs) in lists {
        let changed = |config: &&str| old.effective.get(*config) != now.effective.get(*config);
        if !configs.iter().any(changed) {
            continue;
        }
        let only = configs.first().filter(|_| configs.len() == 1);
        let both = only.and_then(|config| Some((list(old, config)?, list(now, config)?)));
        let Some((before, after)) = both else {
            moved.unknown.push(map.to_owned());
            continue;
        };
        let places: BTreeMap<String, u32> =
            (0..).zip(&before).map(|(place, item)| (item.to_string(), place)).collect();
        let pairs = (0..)
            .zip(&after)
            .filter_map(|(to, item)| Some((*places.get(&item.to_string())?, to)))
            .collect();
        let slots = u32::try_from(before.len().max(after.len())).unwrap_or(u32::MAX);
        moved.known.push(MovedSlots { map: map.to_owned(), slots, moves: pairs });
    }
    moved
}

/// What a manifest says is kept of another version. A map that settings fill is kept only where it is
/// known (`known`) what the other version's settings put there.
fn other_version(manifest: &Manifest, now: &Bindings, known: bool, unknown: &[String]) -> Carry {
    let bound = |map: &str| now.map_entries.iter().any(|(name, _)| name == map);
    Carry::Only(
        manifest
            .maps
            .iter()
            .filter(|map| map.carry_over && (known || !bound(&map.name)))
            .filter(|map| !unknown.contains(&map.name))
            .map(|map| map.name.clone())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::document::{self, Format};
    use serde_json::json;

    const MANIFEST: &str = "
        name: p
        version: 1.0.0
        description: d
        license: GPL-2.0-only
        programs: [{ name: p, object: p.o, function: p, hooks: [xdp] }]
        config:
        - { name: ports, type: ports, description: d, default: [], bind: { keys: k } }
        - { name: others, type: ports, description: d, default: [], bind: { keys: o } }
        metrics:
        - { name: a, help: h, kind: counter, map: counts, select: { items: { label: port, config: ports } } }
        - { name: b, help: h, kind: counter, map: both, select: { items: { label: port, config: ports } } }
        - { name: c, help: h, kind: counter, map: both, select: { items: { label: port, config: others } } }
    ";

    fn moved(before: &Value, now: &Value) -> Moved {
        let manifest: Manifest = document::load(MANIFEST, Format::Yaml).unwrap();
        let bindings = |config: &Value| bind(&manifest, config.as_object().unwrap(), "").unwrap();
        moved_slots(&manifest, &bindings(before), &bindings(now))
    }

    #[test]
    fn slots_of_list_items_move_with_the_items() {
        let moved = moved(&json!({ "ports": [1, 2, 3] }), &json!({ "ports": [3, 4, 1] }));
        let known = MovedSlots { map: "counts".to_owned(), slots: 3, moves: vec![(2, 0), (0, 2)] };
        assert_eq!(moved.known, [known]);
        assert_eq!(moved.unknown, ["both"], "two lists have one map");
    }

    #[test]
    fn lists_that_stay_move_nothing() {
        assert_eq!(moved(&json!({ "ports": [1] }), &json!({ "ports": [1] })), Moved::default());
    }
}
