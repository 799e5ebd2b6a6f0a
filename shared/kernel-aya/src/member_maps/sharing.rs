//! Maps that several members or chains use together: found by their scope, compared with what their
//! users say of them, and replaced only where every user changes in the same step.

use super::{Made, MapMaker, Wanted, map_of, object, scope, settings};
use crate::{
    map_create::{differs, os},
    map_settings::{MapSettings, Restore, can_be_copied, entry_error},
    member::refused,
    meta::Meta,
    object::Object,
    object_maps::{MapDef, PROG_ARRAY},
    pins,
    shared_maps::{self, Share, User},
    sys,
};
use canopy_api::{ChainKey, Hook, ProgramName};
use canopy_kernel::{KernelError, Member, ShareScope};
use std::{collections::BTreeSet, path::Path};

/// What all members of the chain say of a map that they share.
#[derive(Debug, Default)]
pub(super) struct Shared {
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

impl MapMaker<'_> {
    /// Notes what a member's settings say of the maps it shares, and that nobody else says otherwise.
    pub(super) fn gather(&mut self, member: &Member) -> Result<(), KernelError> {
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

    /// A map that others use too: theirs if it is there, else made and pinned for all.
    pub(super) fn share(
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
            // All say the same: something took an entry away. It is put back where it was, and not
            // before this generation is attached: until then nothing is changed.
            let same = |user: &User| user.claims.as_ref().is_some_and(|theirs| *theirs == claims);
            if difference.is_none() && def.values.is_empty() && users.iter().any(same) {
                notes.push(format!(
                    "\"{name}\": the shared map \"{}\" lacks settings, which are put back once the \
                     chain is attached",
                    def.name
                ));
                let map = old.try_clone().map_err(|error| os(name, &def.name, "open", error))?;
                self.deferred.restores.push(Restore::new(name, &def.name, map, settings));
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

/// Puts into a new shared map what it holds from the start.
fn fill_new(wanted: Wanted<'_>, settings: &MapSettings, map: &sys::Map) -> Result<(), KernelError> {
    let (name, def) = (wanted.name(), wanted.def);
    let failed = |error| entry_error(name, &def.name, map.info().max_entries, error);
    // Nobody's settings may name a variable of a section, which has its initial contents all the same.
    if let Some(section) = &def.data {
        map.update(&[0; 4], &section.contents, 0).map_err(failed)?;
        return settings.in_full().restore(map, |_, _| ()).map_err(failed);
    }
    settings.write(map).map_err(failed)
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
