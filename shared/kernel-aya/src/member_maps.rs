//! The maps of a generation: made, taken over from the running generation, or shared.
//!
//! What runs is never changed: a map that is kept and whose settings change is copied into a new one,
//! and a shared map is replaced only if every chain that uses it changes in the same step.

use crate::{
    chain_types::MapTypes,
    map_create::{ARRAY_OF_MAPS, HASH_OF_MAPS, create, differs, os, settle_size},
    map_settings::{Copied, MapSettings, can_be_copied, entry_error, place},
    member::{Loading, object_error, refused},
    meta::Meta,
    object::Object,
    object_maps::{MapDef, PROG_ARRAY},
    observe,
    pins::{self, Pins},
    shared_maps::{self, Share, User},
    sys,
};
use canopy_api::{ChainKey, Hook, ProgramName};
use canopy_kernel::{Carry, ChainBuild, KernelError, Member, ShareScope};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
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

/// What all members of the chain say of a map that they share.
#[derive(Debug, Default)]
struct Shared {
    settings: MapSettings,
    /// Who says something of it.
    by: Vec<(ProgramName, MapSettings)>,
    /// The map, once a member has it, and which.
    map: Option<(sys::Map, ProgramName)>,
}

/// A map by scope that is there.
struct Base {
    map: sys::Map,
    /// It is the member's own until now.
    own: bool,
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
    /// Maps whose contents were copied.
    pub(crate) copied: Vec<Copied>,
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
            copied: Vec::new(),
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

    /// Notes what a member's settings say of the maps it shares, and that nobody else says otherwise.
    fn gather(&mut self, member: &Member) -> Result<(), KernelError> {
        if member.map_entries.is_empty()
            && member.settings.old_entries.is_empty()
            && member.settings.moved_slots.is_empty()
            && (member.globals.is_empty() || member.shared_maps.is_empty())
        {
            return Ok(());
        }
        let object = object(member)?;
        for (number, def) in object.maps.iter().enumerate() {
            let Some(scope) = scope(member, &object, number) else { continue };
            let settings = settings(member, &object, number, def)?;
            if !settings.any() && !settings.claims().any() {
                continue;
            }
            let path = self.pins.shared_map(&self.build.key, scope, &def.name);
            let shared = self.shared.entry(path).or_default();
            let claims = settings.claims();
            if let Some((other, _)) = shared.by.iter().find(|(_, s)| !s.claims().agree(&claims)) {
                return Err(disagree(&member.name, &format!("\"{other}\""), &def.name));
            }
            shared.by.push((member.name.clone(), settings.clone()));
            shared.settings.merge(settings);
        }
        Ok(())
    }

    /// Whether the chain can be loaded for multi-buffer packets, as its members could be. The first
    /// program that uses a program array decides that for all whose programs are in it; so an array that
    /// others have filled decides it for the chain.
    pub(crate) fn settle_frags(&mut self, notes: &mut Vec<String>) -> Result<(), KernelError> {
        let wanted = self.loading.frags;
        let Some((generation, Some(meta))) = &self.old else { return Ok(()) };
        let key = &self.build.key;
        if key.hook != Hook::Xdp || meta.frags == wanted {
            return Ok(());
        }
        for member in &self.build.members {
            let object = object(member)?;
            for (number, def) in object.maps.iter().enumerate() {
                if def.map_type != PROG_ARRAY || !def.values.is_empty() {
                    continue;
                }
                let path = match scope(member, &object, number) {
                    Some(scope) => self.pins.shared_map(key, scope, &def.name),
                    None if kept(&member.carry, def) => {
                        self.pins.map(key, *generation, &member.name, &def.name)
                    }
                    None => continue,
                };
                let Some(fd) = pins::open(&path)? else { continue };
                let failed = |error| os(&member.name, &def.name, "read", error);
                let map = sys::Map::new(fd).map_err(failed)?;
                let filled = references(&map).map_err(failed)?;
                let Some((_, program)) = filled.first() else { continue };
                if wanted {
                    notes.push(format!(
                        "the chain stays without multi-buffer packets (xdp.frags): map \"{}\" of \
                         \"{}\" holds {}, which was loaded without",
                        def.name,
                        member.name,
                        program_name(*program)
                    ));
                    self.loading.frags = false;
                    return Ok(());
                }
                let small = self.build.members.iter().find(|member| !member.frags);
                let small = small.map(|small| small.name.to_string()).unwrap_or_default();
                return Err(refused(
                    &member.name,
                    format!(
                        "its map \"{}\" holds {}, which was loaded for multi-buffer packets \
                         (xdp.frags) and can be called only by programs loaded for them; \
                         \"{small}\" does not handle such packets, so the chain cannot be",
                        def.name,
                        program_name(*program)
                    ),
                    format!(
                        "delete the entries of \"{}\", apply, and fill it with programs that were \
                         loaded without xdp.frags; or leave \"{small}\" out",
                        def.name
                    ),
                ));
            }
        }
        Ok(())
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
        self.copied.extend(Copied::new(from, to, settings));
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

    /// A map that others use too: theirs if it is there, else made and pinned for all.
    fn share(
        &mut self,
        wanted: Wanted<'_>,
        scope: ShareScope,
        maps: &[Option<Made>],
        notes: &mut Vec<String>,
    ) -> Result<Made, KernelError> {
        let Wanted { member, object, number, def, .. } = wanted;
        let name = &member.name;
        let path = self.pins.shared_map(&self.build.key, scope, &def.name);
        let claims = settings(member, object, number, def)?.claims();
        let share = Share { member: name.clone(), map: def.name.clone(), scope, claims };
        self.shares.push(share);
        if let Some(Shared { map: Some((map, first)), .. }) = self.shared.get(&path) {
            if let Some(difference) = differs(name, map, def) {
                return Err(refused(
                    name,
                    format!(
                        "the shared map \"{}\" is there with another {difference}: \"{first}\" \
                         declares it so",
                        def.name
                    ),
                    "use versions that agree on the map, or give the map another name in one of them",
                ));
            }
            let map = map.try_clone().map_err(|error| os(name, &def.name, "open", error))?;
            return Ok(Made::kept(map));
        }
        let shared = self.shared.entry(path.clone()).or_default();
        if shared.settings.has_list() {
            shared.settings.forget(&self.build.left_entries, &def.name);
        }
        let settings = shared.settings.clone();
        let made = match self.base(wanted, &path, notes)? {
            None => self.first(wanted, &settings, &path)?,
            Some(base) => self.next(wanted, &settings, base, maps, notes)?,
        };
        let map = made.map.try_clone().map_err(|error| os(name, &def.name, "open", error))?;
        self.shared.entry(path).or_default().map = Some((map, name.clone()));
        Ok(made)
    }

    /// The first of a shared map.
    fn first(
        &mut self,
        wanted: Wanted<'_>,
        settings: &MapSettings,
        path: &Path,
    ) -> Result<Made, KernelError> {
        let map = wanted.make()?;
        fill_new(wanted, settings, &map)?;
        if let Some(dir) = path.parent() {
            pins::make_dir(dir)?;
        }
        self.pinned.push(path.to_path_buf());
        pins::pin(&map, path)?;
        Ok(Made::fresh(map))
    }

    /// The map of a scope: that of a chain which changes in the same step, else what is pinned for all;
    /// else the member's own until now.
    fn base(
        &self,
        wanted: Wanted<'_>,
        path: &Path,
        notes: &mut Vec<String>,
    ) -> Result<Option<Base>, KernelError> {
        let shared = match shared_maps::prepared(self.pins, &self.build.together, path)? {
            Some(fd) => Some(fd),
            None => pins::open(path)?,
        };
        if let Some(fd) = shared {
            let map = sys::Map::new(fd)
                .map_err(|error| os(wanted.name(), &wanted.def.name, "open", error))?;
            if wanted.def.own_types && !wanted.btf.is_some_and(|btf| btf.made(&map)) {
                return Err(refused(
                    wanted.name(),
                    format!(
                        "the shared map \"{}\" holds objects of another chain's types, which the \
                         kernel lets no other use",
                        wanted.def.name
                    ),
                    "share maps of plain values only, or use the map in one chain whose members do \
                     not change",
                ));
            }
            return Ok(Some(Base { map, own: false }));
        }
        let own = self.before(wanted, notes)?;
        Ok(own.map(|map| Base { map, own: true }))
    }

    /// A shared map that is there: itself if it is as it is to be, else its successor, if all that use
    /// it change now.
    fn next(
        &mut self,
        wanted: Wanted<'_>,
        settings: &MapSettings,
        base: Base,
        maps: &[Option<Made>],
        notes: &mut Vec<String>,
    ) -> Result<Made, KernelError> {
        let Wanted { member, object, number, def, .. } = wanted;
        let name = &member.name;
        let Base { map: old, own } = base;
        let id = old.info().id;
        let room = old.info().max_entries;
        let failed = |error| entry_error(name, &def.name, room, error);
        // The layout is known of what this member had before; of others' the shape has to do.
        let mine = self
            .old
            .as_ref()
            .map(|(generation, _)| self.pins.map(&self.build.key, *generation, name, &def.name));
        let mine = mine.map(|path| shared_maps::id(&path)).transpose()?.flatten() == Some(id);
        let mut difference = if mine && !own {
            self.difference(&old, object, number, def, name)
        } else {
            differs(name, &old, def)
        };
        let mut users: Option<Vec<User>> = own.then(Vec::new);
        if def.map_type == PROG_ARRAY && difference.is_none() {
            difference = self.other_owner(wanted, id, mine, &mut users)?;
        }
        let holds = difference.is_none()
            && settings.hold(&old).map_err(failed)?
            && nested_as_declared(object, def, &old, maps).map_err(failed)?;
        if holds {
            return Ok(Made::kept(old));
        }
        let users = match users {
            Some(users) => users,
            None => self.users(&def.name, id)?,
        };
        let claims = settings.claims();
        let agrees = |user: &User| user.claims.as_ref().is_none_or(|theirs| theirs.agree(&claims));
        if let Some(user) = users.iter().find(|user| !agrees(user)) {
            let other = format!("\"{}\" of {}", user.member, user.key);
            return Err(KernelError::SharedMap {
                member: name.clone(),
                reason: disagreement(&other, &def.name),
                remedy: "give all that share the map the same settings, in one document".to_owned(),
                users: keys(&users),
            });
        }
        if !users.is_empty() {
            // All say the same: something took an entry away. It is put back where it was.
            let same = |user: &User| user.claims.as_ref().is_some_and(|theirs| *theirs == claims);
            if difference.is_none() && def.values.is_empty() && users.iter().any(same) {
                settings.restore(&old).map_err(failed)?;
                return Ok(Made::kept(old));
            }
            return Err(in_use(name, &def.name, difference.as_deref(), &users));
        }
        let map = wanted.make()?;
        match difference {
            None if can_be_copied(def.map_type) => self.copy(wanted, settings, old, &map, notes)?,
            None => return Ok(Made { before: Some(old), ..Made::fresh(map) }),
            Some(difference) => {
                fill_new(wanted, settings, &map)?;
                notes.push(format!(
                    "\"{name}\": the shared map \"{}\" starts empty: it has another {difference} now",
                    def.name
                ));
            }
        }
        Ok(Made::fresh(map))
    }

    fn users(&self, map: &str, id: u32) -> Result<Vec<User>, KernelError> {
        shared_maps::users(self.pins, &self.build.key, &self.build.together, map, id)
    }

    /// Why the programs of this chain cannot use a program array: the first program that used it decides
    /// of which type, and whether for multi-buffer packets, all others are.
    fn other_owner(
        &self,
        wanted: Wanted<'_>,
        id: u32,
        mine: bool,
        users: &mut Option<Vec<User>>,
    ) -> Result<Option<String>, KernelError> {
        let frags = self.loading.frags;
        let xdp = self.build.key.hook == Hook::Xdp;
        let before = self.old.as_ref().and_then(|(_, meta)| meta.as_ref()).filter(|_| mine);
        if before.is_some_and(|meta| meta.frags == frags) {
            return Ok(None);
        }
        if users.is_none() {
            *users = Some(self.users(&wanted.def.name, id)?);
        }
        let other = |meta: &Meta| (meta.hook == Hook::Xdp) != xdp || xdp && meta.frags != frags;
        let metas = users.iter().flatten().filter_map(|user| user.meta.as_ref()).chain(before);
        let differs = metas.into_iter().any(other);
        Ok(differs.then(|| "kind of programs that use it (hook, xdp.frags)".to_owned()))
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
    if def.data.is_some() {
        MapSettings::of_section(member, object, number, def)
    } else {
        Ok(MapSettings::of_map(member, &def.name))
    }
}

/// Puts into a new shared map what it holds from the start.
fn fill_new(wanted: Wanted<'_>, settings: &MapSettings, map: &sys::Map) -> Result<(), KernelError> {
    let (name, def) = (wanted.name(), wanted.def);
    let failed = |error| entry_error(name, &def.name, map.info().max_entries, error);
    // Nobody's settings may name a variable of a section, which has its initial contents all the same.
    if let Some(section) = &def.data {
        map.update(&[0; 4], &section.contents, 0).map_err(failed)?;
        return settings.restore(map).map_err(failed);
    }
    settings.write(map).map_err(failed)
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

/// Whether a map of maps holds what its object fills it with.
fn nested_as_declared(
    object: &Object,
    def: &MapDef,
    map: &sys::Map,
    maps: &[Option<Made>],
) -> std::io::Result<bool> {
    for (index, symbol) in &def.values {
        let inner = map_of(object, *symbol).and_then(|inner| maps.get(inner)?.as_ref());
        let Some(inner) = inner else { continue };
        let held = map.lookup(&index.to_ne_bytes())?;
        if held.as_deref() != Some(inner.map.info().id.to_ne_bytes().as_slice()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What an array or hash of programs or maps holds: key and the kernel's id.
fn references(map: &sys::Map) -> std::io::Result<Vec<(Vec<u8>, u32)>> {
    let mut found = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    let steps = (map.info().max_entries as usize).saturating_mul(2).saturating_add(16);
    for _ in 0..steps {
        let Some(key) = map.next_key(last.as_deref())? else { break };
        let id = map.lookup(&key)?;
        if let Some(id) = id.and_then(|id| id.as_slice().try_into().ok()).map(u32::from_ne_bytes) {
            found.push((key.clone(), id));
        }
        last = Some(key);
    }
    Ok(found)
}

/// A program by number and name.
fn program_name(id: u32) -> String {
    let info = sys::fd_by_id(sys::Kind::Prog, id).and_then(|program| sys::prog_info(&program));
    match info {
        Ok(info) => format!("program {id} (\"{}\")", info.name),
        Err(_) => format!("program {id}"),
    }
}

/// Puts the object's initial values into arrays of programs and of maps, and what others put there.
pub(crate) fn fill(
    name: &ProgramName,
    object: &Object,
    maps: &[Option<Made>],
    programs: &[(&str, BorrowedFd<'_>)],
    notes: &mut Vec<String>,
) -> Result<(), KernelError> {
    for (def, made) in object.maps.iter().zip(maps) {
        let Some(made) = made.as_ref().filter(|made| made.fresh) else { continue };
        let failed = |error| os(name, &def.name, "fill", error);
        for (index, symbol) in &def.values {
            let value = if def.map_type == PROG_ARRAY {
                let function = object.symbol(*symbol);
                programs
                    .iter()
                    .find(|(name, _)| Some(*name) == function)
                    .map(|(_, fd)| fd.as_raw_fd())
            } else {
                map_of(object, *symbol)
                    .and_then(|map| maps.get(map)?.as_ref())
                    .map(|inner| inner.map.as_fd().as_raw_fd())
            };
            let Some(value) = value else { continue };
            made.map.update(&index.to_ne_bytes(), &value.to_ne_bytes(), 0).map_err(failed)?;
        }
        let Some(before) = &made.before else { continue };
        let kind = match def.map_type {
            PROG_ARRAY => sys::Kind::Prog,
            ARRAY_OF_MAPS | HASH_OF_MAPS => sys::Kind::Map,
            _ => continue,
        };
        let mut lost = 0;
        for (key, id) in references(before).map_err(failed)? {
            let index = <[u8; 4]>::try_from(key.as_slice()).map(u32::from_ne_bytes);
            if index.is_ok_and(|index| def.values.iter().any(|(filled, _)| *filled == index)) {
                continue;
            }
            let copied = sys::fd_by_id(kind, id)
                .and_then(|fd| made.map.update(&key, &fd.as_raw_fd().to_ne_bytes(), 0));
            lost += usize::from(copied.is_err());
        }
        if lost > 0 {
            notes.push(format!(
                "\"{name}\": {lost} entries that others put into map \"{}\" are not kept: the kernel \
                 does not take them into the new one",
                def.name
            ));
        }
    }
    Ok(())
}

/// The shared maps of a generation that others run with already.
pub(crate) fn running_shares(pins: &Pins, build: &ChainBuild) -> Result<Vec<Share>, KernelError> {
    let (key, generation) = (&build.key, build.generation);
    let mut running = Vec::new();
    for share in shared_maps::read(pins, key, generation)?.into_iter().flatten() {
        let own = pins.map(key, generation, &share.member, &share.map);
        let index = pins.shared_map(key, share.scope, &share.map);
        if shared_maps::id(&own)? == shared_maps::id(&index)? {
            running.push(share);
        }
    }
    Ok(running)
}

/// A setting that a pinned generation does not have in its maps, but for these shared ones; see
/// [`canopy_kernel::Kernel::unmet_setting`].
pub(crate) fn unmet_setting(
    pins: &Pins,
    build: &ChainBuild,
    known: &[Share],
) -> Result<Option<String>, KernelError> {
    let (key, generation) = (&build.key, build.generation);
    for member in &build.members {
        if member.globals.is_empty() && member.map_entries.is_empty() {
            continue;
        }
        let object = object(member)?;
        for (number, def) in object.maps.iter().enumerate() {
            let settings = settings(member, &object, number, def)?;
            // What others share, and runs already, was read when it was taken over.
            let runs = |share: &Share| share.member == member.name && share.map == def.name;
            if !settings.any() || known.iter().any(runs) {
                continue;
            }
            let path = pins.map(key, generation, &member.name, &def.name);
            let failed = |error| pins::os(format!("read {}", path.display()), error);
            let Some(fd) = pins::open(&path)? else { continue };
            let map = sys::Map::new(fd).map_err(failed)?;
            if let Some(key) = settings.missing(&map).map_err(failed)? {
                let what = if def.data.is_some() {
                    format!("the variables in {} of \"{}\"", def.name, member.name)
                } else {
                    format!("map \"{}\" of \"{}\" under key {key:02x?}", def.name, member.name)
                };
                return Ok(Some(what));
            }
        }
    }
    Ok(None)
}

fn no_map(name: &ProgramName, object: &Object, map: &str) -> KernelError {
    let have: Vec<&str> = object.maps.iter().map(|map| map.name.as_str()).collect();
    refused(
        name,
        format!("the object has no map \"{map}\"; it has {}", have.join(", ")),
        "name a map of the object in the package's manifest",
    )
}

/// Two programs want different things of one map.
fn disagree(name: &ProgramName, other: &str, map: &str) -> KernelError {
    refused(
        name,
        disagreement(other, map),
        "give both the same settings, or use packages that do not share the map",
    )
}

fn disagreement(other: &str, map: &str) -> String {
    format!("it and {other} share map \"{map}\" and have different settings for it")
}

/// The chains of users, each once.
fn keys(users: &[User]) -> Vec<ChainKey> {
    let keys: BTreeSet<&ChainKey> = users.iter().map(|user| &user.key).collect();
    keys.into_iter().cloned().collect()
}

/// A shared map that cannot be replaced, for who else uses it.
fn in_use(name: &ProgramName, map: &str, difference: Option<&str>, users: &[User]) -> KernelError {
    let named: Vec<String> =
        users.iter().map(|user| format!("\"{}\" of {}", user.member, user.key)).collect();
    let why = match difference {
        Some(difference) => format!("is there with another {difference}"),
        None => "has to be replaced for the changed settings".to_owned(),
    };
    KernelError::SharedMap {
        member: name.clone(),
        reason: format!("the shared map \"{map}\" {why}, and is used by {}", named.join(", ")),
        remedy: "change all chains that use the map in one document, applied with --atomic"
            .to_owned(),
        users: keys(users),
    }
}
