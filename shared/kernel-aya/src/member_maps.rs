//! The maps of a generation: made, taken over from the running generation, or shared.
//!
//! What runs is never changed: a map that is kept and whose settings change is copied into a new one,
//! and a shared map is replaced only if every chain that uses it changes in the same step.

mod filling;
mod frags;
mod read_back;
mod sharing;

pub(crate) use filling::fill;
pub(crate) use read_back::{running_shares, unmet_setting};

use crate::{
    chain_types::MapTypes,
    map_create::{create, differs, os, settle_size},
    map_settings::{Copied, Deferred, MapSettings, can_be_copied, entry_error, place},
    member::{Loading, object_error, refused},
    meta::Meta,
    object::Object,
    object_maps::{MapDef, PROG_ARRAY},
    observe,
    pins::{self, Pins},
    shared_maps::{self, Share},
    sys,
};
use canopy_api::ProgramName;
use canopy_kernel::{Carry, ChainBuild, KernelError, Member, ShareScope};
use sharing::Shared;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

/// A map of a generation.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) map: sys::Map,
    /// The contents of a read-only data section of the member's own.
    pub(crate) constant: Option<Arc<[u8]>>,
    /// Made now, to be filled; else it keeps what it holds.
    fresh: bool,
    /// The map of the generation before, from which references that the object does not fill are taken.
    before: Option<sys::Map>,
}

impl Made {
    fn kept(map: sys::Map) -> Self {
        Self { map, constant: None, fresh: false, before: None }
    }

    fn fresh(map: sys::Map) -> Self {
        Self { map, constant: None, fresh: true, before: None }
    }
}

/// One map to be made.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    member: &'a Member,
    object: &'a Object,
    number: usize,
    def: &'a MapDef,
    btf: Option<MapTypes<'a>>,
}

impl Wanted<'_> {
    fn name(&self) -> &ProgramName {
        &self.member.name
    }

    fn make(&self) -> Result<sys::Map, KernelError> {
        create(self.name(), self.def, self.btf)
    }
}

/// Makes the maps of one generation's members.
pub(crate) struct MapMaker<'a> {
    pins: &'a Pins,
    build: &'a ChainBuild,
    loading: Loading,
    /// The generation maps are taken over from, and what it was.
    old: Option<(u64, Option<Meta>)>,
    /// Whether anything is shared on this host.
    sharing: bool,
    /// By the pin of their scope.
    shared: BTreeMap<PathBuf, Shared>,
    /// Shared maps pinned by this preparation, to be unpinned should it fail.
    pub(crate) pinned: Vec<PathBuf>,
    /// What is done to maps only when the generation is attached.
    pub(crate) deferred: Deferred,
    /// What the members share.
    pub(crate) shares: Vec<Share>,
}

impl<'a> MapMaker<'a> {
    /// For one chain. Maps are taken over from the generation that runs, else (the link was
    /// destroyed) from the newest that is whole.
    pub(crate) fn new(
        pins: &'a Pins,
        build: &'a ChainBuild,
        loading: Loading,
    ) -> Result<Self, KernelError> {
        let key = &build.key;
        let mut old = observe::running(pins, key)?;
        if old.is_none() {
            for generation in pins.generations(key)?.into_iter().rev() {
                if pins::open(&pins.prog(key, generation))?.is_some() {
                    old = Some(generation);
                    break;
                }
            }
        }
        let old = old.map(|generation| (generation, Meta::read(&pins.meta(key, generation)).ok()));
        let mut maker = Self {
            pins,
            build,
            loading,
            old,
            sharing: pins.shared().exists(),
            shared: BTreeMap::new(),
            pinned: Vec::new(),
            deferred: Deferred::default(),
            shares: Vec::new(),
        };
        for member in &build.members {
            maker.gather(member)?;
        }
        Ok(maker)
    }

    /// How the chain's programs are loaded.
    pub(crate) fn loading(&self) -> Loading {
        self.loading
    }

    /// Makes the maps of one member: those its code uses, those they hold, and those its settings
    /// fill. By the object's map number.
    pub(crate) fn make(
        &mut self,
        member: &Member,
        object: &Object,
        used: &BTreeSet<usize>,
        btf: Option<MapTypes<'_>>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Option<Made>>, KernelError> {
        let name = &member.name;
        let wanted = wanted_maps(member, object, used)?;
        let mut kept = Vec::new();
        let mut maps: Vec<Option<Made>> = object.maps.iter().map(|_| None).collect();
        // Maps of maps last: what they hold is there then.
        let nested =
            |number: &usize| object.maps.get(*number).is_some_and(|def| !def.values.is_empty());
        let (last, first): (Vec<_>, Vec<_>) = wanted.into_iter().partition(nested);
        for number in first.into_iter().chain(last) {
            let Some(def) = object.maps.get(number) else { continue };
            let mut def = def.clone();
            if let Some((_, entries)) = member.max_entries.iter().find(|(map, _)| *map == def.name)
            {
                def.max_entries = *entries;
            }
            settle_size(name, &mut def)?;
            let wanted = Wanted { member, object, number, def: &def, btf };
            let made = if let Some(scope) = scope(member, object, number) {
                self.share(wanted, scope, &maps, notes)?
            } else {
                if share_scope(member, &def).is_some() && !def.values.is_empty() {
                    notes.push(format!(
                        "\"{name}\": map \"{}\" is its own: it is filled with the object's functions",
                        def.name
                    ));
                }
                self.own(wanted, notes)?
            };
            if !made.fresh {
                kept.push((number, def.name.clone()));
            }
            if let Some(slot) = maps.get_mut(number) {
                *slot = Some(made);
            }
        }
        kept.retain(|(number, _)| scope(member, object, *number).is_none());
        if !kept.is_empty() {
            kept.sort();
            let kept: Vec<_> = kept.into_iter().map(|(_, name)| name).collect();
            notes.push(format!("\"{name}\" keeps the contents of {}", kept.join(", ")));
        }
        Ok(maps)
    }

    /// A map of the member's own: that of the generation before, a copy of it with other settings, or
    /// a new one.
    fn own(&mut self, wanted: Wanted<'_>, notes: &mut Vec<String>) -> Result<Made, KernelError> {
        let Wanted { member, object, number, def, .. } = wanted;
        let name = &member.name;
        let settings = settings(member, object, number, def)?;
        let error = |map: &sys::Map| {
            let room = map.info().max_entries;
            move |error| entry_error(name, &def.name, room, error)
        };
        // Constants are the version's own.
        let constant = def.data.as_ref().is_some_and(|data| data.read_only);
        let before = if constant { None } else { self.before(wanted, notes)? };
        if let Some(old) = before {
            if !def.values.is_empty() {
                // What the object fills are its own programs and maps. The rest somebody else put there.
                let same = matches!(member.carry, Carry::AllBut(_));
                let before = Some(old).filter(|_| same);
                return Ok(Made { before, ..Made::fresh(wanted.make()?) });
            }
            let shared = self.is_shared(&old, &def.name)?;
            if !shared && !settings.changes() && settings.hold(&old).map_err(error(&old))? {
                return Ok(Made::kept(old));
            }
            // The kernel copies no lists and pointers: the copy would be without them.
            if can_be_copied(def.map_type) && !def.own_types {
                let map = wanted.make()?;
                self.copy(wanted, &settings, old, &map, notes)?;
                return Ok(Made::fresh(map));
            }
            let why = if shared { "others share the previous one" } else { "its settings changed" };
            notes.push(format!(
                "\"{name}\": map \"{}\" starts empty: {why}, and its contents cannot be copied",
                def.name
            ));
        }
        let map = wanted.make()?;
        settings.write(&map).map_err(error(&map))?;
        let mut made = Made::fresh(map);
        if constant {
            made.map.freeze().map_err(|error| os(name, &def.name, "freeze", error))?;
            made.constant = settings.contents().map(Arc::from);
        }
        Ok(made)
    }

    /// Whether a map that was found at the member is that of a scope, which others may use.
    fn is_shared(&self, map: &sys::Map, name: &str) -> Result<bool, KernelError> {
        if !self.sharing {
            return Ok(false);
        }
        for scope in [ShareScope::Interface, ShareScope::Host] {
            let index = self.pins.shared_map(&self.build.key, scope, name);
            if shared_maps::id(&index)? == Some(map.info().id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies a map that runs into its successor.
    fn copy(
        &mut self,
        wanted: Wanted<'_>,
        settings: &MapSettings,
        from: sys::Map,
        to: &sys::Map,
        notes: &mut Vec<String>,
    ) -> Result<(), KernelError> {
        let (name, map) = (wanted.name(), &wanted.def.name);
        let room = to.info().max_entries;
        let lost =
            settings.carry(&from, to).map_err(|error| entry_error(name, map, room, error))?;
        if lost > 0 {
            notes.push(format!(
                "\"{name}\": {lost} entries of map \"{map}\" are not kept: its settings take their room"
            ));
        }
        let fields = &wanted.def.kernel_fields;
        if !fields.is_empty() {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("\"{}\" ({})", field.name, field.kind)).collect();
            notes.push(format!(
                "\"{name}\": map \"{map}\" is copied; what is the kernel's own in it is not, and starts \
                 anew: {}",
                fields.join(", ")
            ));
        }
        self.deferred.copies.extend(Copied::new(from, to, settings));
        Ok(())
    }

    /// The same map of the old generation, if it is to be kept and is the same.
    fn before(
        &self,
        wanted: Wanted<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Option<sys::Map>, KernelError> {
        let Wanted { member, object, number, def, btf } = wanted;
        let name = &member.name;
        let Some((generation, meta)) = &self.old else { return Ok(None) };
        if !kept(&member.carry, def) {
            return Ok(None);
        }
        let path = self.pins.map(&self.build.key, *generation, name, &def.name);
        let Some(fd) = pins::open(&path)? else { return Ok(None) };
        let map = sys::Map::new(fd).map_err(|error| os(name, &def.name, "open", error))?;
        if def.own_types && !btf.is_some_and(|btf| btf.made(&map)) {
            notes.push(format!(
                "\"{name}\": map \"{}\" starts empty: the objects in it are of types of the chain as \
                 it was, and the chain is another now",
                def.name
            ));
            return Ok(None);
        }
        // It belongs to programs that are loaded otherwise; there is nothing in it, or the chain would
        // be loaded as before.
        let frags = meta.as_ref().is_none_or(|meta| meta.frags == self.loading.frags);
        if def.map_type == PROG_ARRAY && !frags {
            return Ok(None);
        }
        match self.difference(&map, object, number, def, name) {
            None => Ok(Some(map)),
            Some(difference) => {
                notes.push(format!(
                    "\"{name}\": map \"{}\" starts empty: the new version has another {difference}",
                    def.name
                ));
                Ok(None)
            }
        }
    }

    /// What a map that the member has in the old generation is not, that it is to be.
    fn difference(
        &self,
        map: &sys::Map,
        object: &Object,
        number: usize,
        def: &MapDef,
        name: &ProgramName,
    ) -> Option<String> {
        let difference = differs(name, map, def);
        let layout = object.layout(number);
        let meta = self.old.as_ref().and_then(|(_, meta)| meta.as_ref());
        let was = meta.and_then(|meta| meta.layout(name, &def.name));
        let same = layout.is_some() && was == layout;
        difference.or_else(|| (!same).then(|| "layout of its contents".to_owned()))
    }
}

/// The maps that a member needs, and that what its settings name is there.
fn wanted_maps(
    member: &Member,
    object: &Object,
    used: &BTreeSet<usize>,
) -> Result<BTreeSet<usize>, KernelError> {
    let name = &member.name;
    let number = |map: &str| object.maps.iter().position(|known| known.name == *map);
    let mut wanted = used.clone();
    for map in used.iter().filter_map(|map| object.maps.get(*map)) {
        for (_, symbol) in &map.values {
            wanted.extend(map_of(object, *symbol));
        }
    }
    for contents in &member.map_entries {
        let map = number(&contents.map);
        wanted.insert(map.ok_or_else(|| no_map(name, object, &contents.map))?);
    }
    let named = member.max_entries.iter().map(|(map, _)| map);
    let named = named.chain(member.shared_maps.iter().map(|shared| &shared.map));
    if let Some(missing) = named.into_iter().find(|map| number(map).is_none()) {
        return Err(no_map(name, object, missing));
    }
    for (global, _) in &member.globals {
        wanted.insert(place(member, object, global)?.0);
    }
    Ok(wanted)
}

/// A member's object, which is parsed already or will be needed next.
fn object(member: &Member) -> Result<Arc<Object>, KernelError> {
    Object::get(&member.object).map_err(|error| object_error(&member.name, &error))
}

/// What a member's settings say of one of its object's maps.
fn settings(
    member: &Member,
    object: &Object,
    number: usize,
    def: &MapDef,
) -> Result<MapSettings, KernelError> {
    let mut settings = if def.data.is_some() {
        MapSettings::of_section(member, object, number, def)?
    } else {
        MapSettings::of_map(member, &def.name)
    };
    settings.leave_written(member, object, number);
    Ok(settings)
}

/// Whether a map is to be kept.
fn kept(carry: &Carry, def: &MapDef) -> bool {
    let among = |names: &[String]| {
        names.iter().any(|name| {
            *name == def.name
                // `.data` stands for `.data.counters` too.
                || def.data.is_some()
                    && def.name.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with('.'))
        })
    };
    match carry {
        Carry::Nothing => false,
        Carry::AllBut(names) => !among(names),
        Carry::Only(names) => among(names),
    }
}

/// Who shares a map: as the settings say; else one that asks to be pinned by name is the
/// interface's.
fn share_scope(member: &Member, def: &MapDef) -> Option<ShareScope> {
    let said = member.shared_maps.iter().find(|shared| shared.map == def.name);
    said.map(|shared| shared.scope).or(def.pinned.then_some(ShareScope::Interface))
}

/// Who shares a map in fact. Constants are each version's own, and so are arrays that the object fills
/// with its functions: others would run them. What a shared map of maps holds is shared with it.
pub(crate) fn scope(member: &Member, object: &Object, number: usize) -> Option<ShareScope> {
    let def = object.maps.get(number)?;
    let own = def.data.as_ref().is_some_and(|data| data.read_only)
        || def.map_type == PROG_ARRAY && !def.values.is_empty();
    if own {
        return None;
    }
    share_scope(member, def).or_else(|| {
        let holds = |outer: &&MapDef| {
            outer.map_type != PROG_ARRAY
                && outer.values.iter().any(|(_, symbol)| map_of(object, *symbol) == Some(number))
        };
        object.maps.iter().filter(holds).find_map(|outer| share_scope(member, outer))
    })
}

/// The map a symbol stands for.
fn map_of(object: &Object, symbol: usize) -> Option<usize> {
    let name = object.symbol(symbol)?;
    object.maps.iter().position(|map| map.data.is_none() && map.name == name)
}

fn no_map(name: &ProgramName, object: &Object, map: &str) -> KernelError {
    let have: Vec<&str> = object.maps.iter().map(|map| map.name.as_str()).collect();
    refused(
        name,
        format!("the object has no map \"{map}\"; it has {}", have.join(", ")),
        "name a map of the object in the package's manifest",
    )
}
