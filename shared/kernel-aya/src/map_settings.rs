//! Settings in maps: which bytes of a map's contents they are, whether a map has them, and how a map
//! that has them is made of one that has others.
//!
//! A running map is never changed for a setting (ADR 0015): its contents are copied into a new one,
//! with the settings laid over them.

mod deferred;

pub(crate) use deferred::{Copied, Deferred, Restore};

use crate::{
    elf::ObjectError,
    map_create::os,
    member::{object_error, refused},
    object::Object,
    object_maps::MapDef,
    sys::Map,
};
use canopy_api::ProgramName;
use canopy_kernel::{KernelError, MapContents, MapField, Member, MovedSlots};
use std::{
    collections::{BTreeMap, BTreeSet},
    io, iter,
    ops::Range,
};

// enum bpf_map_type
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LRU_PERCPU_HASH: u32 = 10;
const LPM_TRIE: u32 = 11;

/// Entries that are read in one call.
const BATCH: usize = 1024;
/// Settings from which on a map is read whole instead of entry by entry.
const MANY: usize = 32;

/// One entry that settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    /// The bytes of the value that are settings; `None` for all of it.
    fields: Option<Vec<Range<usize>>>,
    /// Bytes that are as the running programs left them: these write them themselves, and the setting is
    /// what it was.
    left: Vec<Range<usize>>,
    /// Whether they may have removed it as well.
    may_be_gone: bool,
}

impl Entry {
    fn new(key: Vec<u8>, value: Vec<u8>, fields: Option<Vec<Range<usize>>>) -> Self {
        Self { key, value, fields, left: Vec::new(), may_be_gone: false }
    }

    /// The bytes that are settings.
    fn set(&self) -> Vec<Range<usize>> {
        self.fields.clone().unwrap_or_else(|| iter::once(0..self.value.len()).collect())
    }

    /// Those of them that a running map has to have.
    fn required(&self) -> Vec<Range<usize>> {
        if self.left.is_empty() { self.set() } else { without(&self.set(), &self.left) }
    }

    /// Puts bytes that are settings over what is there.
    fn lay_over(&self, value: &mut [u8], fields: &[Range<usize>]) {
        if self.fields.is_none() && value.len() != self.value.len() {
            return;
        }
        for field in fields {
            if let (Some(to), Some(from)) =
                (value.get_mut(field.clone()), self.value.get(field.clone()))
            {
                to.copy_from_slice(from);
            }
        }
    }

    /// Whether a value has the bytes that it has to have.
    fn is_in(&self, value: &[u8]) -> bool {
        let same_size = self.fields.is_some() || value.len() == self.value.len();
        same_size
            && self.required().iter().all(|field| {
                let wanted = self.value.get(field.clone());
                wanted.is_some() && value.get(field.clone()) == wanted
            })
    }

    /// Leaves as they are the bytes that the programs write themselves, as far as the setting is what it
    /// was: `before` are the bytes that were settings of the running generation, and their values.
    fn leave(&mut self, written: &[Range<usize>], before: &[(Range<usize>, &[u8])]) {
        let is_as_before = |at: usize| {
            let was = before.iter().find(|(bytes, _)| bytes.contains(&at));
            let was = was.and_then(|(bytes, value)| value.get(at - bytes.start));
            was.is_some() && was == self.value.get(at)
        };
        // A setting changes as a whole: a number of which one byte is another is another number.
        let unchanged = self.set().into_iter().filter(|field| field.clone().all(&is_as_before));
        let left = unchanged.flatten().filter(|at| written.iter().any(|bytes| bytes.contains(at)));
        self.left = left.map(|at| at..at + 1).collect();
    }
}

/// What settings say of one map.
#[derive(Clone, Debug, Default)]
pub(crate) struct MapSettings {
    /// What they say.
    entries: Vec<Entry>,
    /// Bytes that were settings and are none any more, as the object has them.
    reset: Vec<Entry>,
    /// Keys that a list had and has no more.
    stale: BTreeSet<Vec<u8>>,
    /// Whether a list fills it.
    list: bool,
    moved: Option<MovedSlots>,
}

/// What settings of one program say of a map that others use too, to be compared with theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// A number for the entries of a list, where one fills the map.
    pub(crate) list: Option<u64>,
    /// Key, offset and bytes of each other setting.
    pub(crate) fields: Vec<(Vec<u8>, usize, Vec<u8>)>,
}

impl Claims {
    /// Whether both can be had.
    pub(crate) fn agree(&self, other: &Self) -> bool {
        let lists = match (self.list, other.list) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        lists
            && self.fields.iter().all(|(key, at, bytes)| {
                other
                    .fields
                    .iter()
                    .filter(|(other, ..)| other == key)
                    .all(|(_, there, others)| same_where_both(*at, bytes, *there, others))
            })
    }

    /// Whether it says anything.
    pub(crate) fn any(&self) -> bool {
        self.list.is_some() || !self.fields.is_empty()
    }
}

/// Whether two pieces of a value have the same bytes where they overlap.
fn same_where_both(at: usize, bytes: &[u8], there: usize, others: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(i, byte)| {
        let place = (at + i).checked_sub(there).and_then(|place| others.get(place));
        place.is_none_or(|other| other == byte)
    })
}

fn fields_of(fields: &[MapField], map: &str, key: &[u8]) -> Vec<Range<usize>> {
    let mine = fields.iter().filter(|field| field.map == map && field.key == key);
    mine.map(|field| field.offset..field.offset.saturating_add(field.size)).collect()
}

fn entries_of<'a>(contents: &'a [MapContents], map: &str) -> Option<&'a MapContents> {
    contents.iter().find(|contents| contents.map == map)
}

/// Ranges less what others of them cover, byte by byte.
fn without(ranges: &[Range<usize>], others: &[Range<usize>]) -> Vec<Range<usize>> {
    ranges
        .iter()
        .flat_map(Clone::clone)
        .filter(|byte| !others.iter().any(|other| other.contains(byte)))
        .map(|byte| byte..byte + 1)
        .collect()
}

impl MapSettings {
    /// Those of a member for a map that is not a data section.
    pub(crate) fn of_map(member: &Member, map: &str) -> Self {
        let detail = &member.settings;
        let mut settings = Self::default();
        if let Some(contents) = entries_of(&member.map_entries, map) {
            settings.list = contents.entries.is_empty();
            for (key, value) in &contents.entries {
                let fields = fields_of(&detail.fields, map, key);
                settings.list |= fields.is_empty();
                let fields = Some(fields).filter(|fields| !fields.is_empty());
                settings.entries.push(Entry::new(key.clone(), value.clone(), fields));
            }
        }
        if let Some(old) = entries_of(&detail.old_entries, map) {
            let now: BTreeMap<&[u8], &Entry> =
                settings.entries.iter().map(|entry| (entry.key.as_slice(), entry)).collect();
            for (key, value) in &old.entries {
                let fields = fields_of(&detail.old_fields, map, key);
                let now = now.get(key.as_slice());
                if fields.is_empty() {
                    if now.is_none() {
                        settings.stale.insert(key.clone());
                    }
                    continue;
                }
                let gone = match now {
                    None => fields,
                    Some(Entry { fields: Some(still), .. }) => without(&fields, still),
                    Some(Entry { fields: None, .. }) => Vec::new(),
                };
                if !gone.is_empty() {
                    let value = vec![0; value.len()];
                    settings.reset.push(Entry::new(key.clone(), value, Some(gone)));
                }
            }
        }
        settings.moved = detail.moved_slots.iter().find(|moved| moved.map == map).cloned();
        settings
    }

    /// Those of a member for a data section of its object: the section's number and contents.
    pub(crate) fn of_section(
        member: &Member,
        object: &Object,
        number: usize,
        def: &MapDef,
    ) -> Result<Self, KernelError> {
        let name = &member.name;
        let Some(section) = &def.data else { return Ok(Self::default()) };
        let mut contents = section.contents.clone();
        let mut fields = Vec::new();
        for (global, value) in &member.globals {
            let (map, offset, size) = place(member, object, global)?;
            if map != number {
                continue;
            }
            if value.len() != size {
                return Err(refused(
                    name,
                    format!("global \"{global}\" takes {size} bytes, and is given {}", value.len()),
                    "give the parameter the type of the variable in the package's manifest",
                ));
            }
            let place = offset.checked_add(size).and_then(|end| contents.get_mut(offset..end));
            let place = place.ok_or_else(|| {
                let what = format!("variable \"{global}\" lies outside its section");
                object_error(name, &ObjectError::Malformed(what))
            })?;
            place.copy_from_slice(value);
            fields.push(offset..offset + size);
        }
        let key = vec![0; 4];
        let mut settings = Self::default();
        // What is set no more is as the object says again.
        let gone: Vec<_> = member
            .settings
            .old_globals
            .iter()
            .filter_map(|(global, _)| object.global(global))
            .filter(|(map, ..)| *map == number)
            .map(|(_, offset, size)| offset..offset.saturating_add(size))
            .collect();
        let gone = without(&gone, &fields);
        if !gone.is_empty() {
            let (key, value) = (key.clone(), contents.clone());
            settings.reset.push(Entry::new(key, value, Some(gone)));
        }
        settings.entries.push(Entry::new(key, contents, Some(fields)));
        Ok(settings)
    }

    /// Leaves as they are the settings that the object's programs write themselves, as far as they are
    /// what they were: those are where a program starts, not what it has to stay at.
    pub(crate) fn leave_written(&mut self, member: &Member, object: &Object, number: usize) {
        let detail = &member.settings;
        if detail.old_globals.is_empty() && detail.old_entries.is_empty() {
            return;
        }
        let Some(def) = object.maps.get(number) else { return };
        let globals: Vec<(Range<usize>, &[u8])> = detail
            .old_globals
            .iter()
            .filter(|_| def.data.is_some())
            .filter_map(|(global, value)| Some((object.global(global)?, value)))
            .filter(|((map, ..), _)| *map == number)
            .map(|((_, at, size), value)| (at..at.saturating_add(size), value.as_slice()))
            .collect();
        let old: BTreeMap<&[u8], &Vec<u8>> = entries_of(&detail.old_entries, &def.name)
            .into_iter()
            .flat_map(|old| &old.entries)
            .map(|(key, value)| (key.as_slice(), value))
            .collect();
        for entry in &mut self.entries {
            let mut before = globals.clone();
            if let Some(value) = old.get(entry.key.as_slice()) {
                let fields = fields_of(&detail.old_fields, &def.name, &entry.key);
                let all = || iter::once(0..value.len()).collect();
                let fields = if fields.is_empty() { all() } else { fields };
                let bytes = |field: Range<usize>| Some((field.clone(), value.get(field)?));
                before.extend(fields.into_iter().filter_map(bytes));
            }
            if before.is_empty() {
                continue;
            }
            entry.leave(&object.writes().bytes(number, &entry.key), &before);
            entry.may_be_gone = object.writes().deletes(number) && {
                let value = old.get(entry.key.as_slice());
                value.is_some_and(|value| **value == entry.value)
            };
        }
    }

    /// The same for a new map, in which everything is as they say.
    pub(crate) fn in_full(&self) -> Self {
        let mut all = self.clone();
        for entry in &mut all.entries {
            entry.left.clear();
            entry.may_be_gone = false;
        }
        all
    }

    /// What they say, to be compared with those of others.
    pub(crate) fn claims(&self) -> Claims {
        let list = self.list.then(|| {
            let mut entries: Vec<_> = self
                .entries
                .iter()
                .filter(|entry| entry.fields.is_none())
                .map(|entry| (&entry.key, &entry.value))
                .collect();
            entries.sort();
            let bytes: Vec<u8> = entries
                .into_iter()
                .flat_map(|(key, value)| key.iter().chain(value).copied())
                .collect();
            crate::layout::fnv1a(&bytes)
        });
        let fields = self
            .entries
            .iter()
            .flat_map(|entry| {
                entry.fields.iter().flatten().filter_map(|field| {
                    let bytes = entry.value.get(field.clone())?;
                    Some((entry.key.clone(), field.start, bytes.to_vec()))
                })
            })
            .collect();
        Claims { list, fields }
    }

    /// Takes in what another program says of the same map.
    pub(crate) fn merge(&mut self, other: Self) {
        let Self { entries, reset, stale, list, moved } = other;
        for entry in entries {
            // What one of the programs writes is written for all of them.
            let (mut left, mut may_be_gone) = (entry.left.clone(), entry.may_be_gone);
            for mine in self.entries.iter_mut().filter(|mine| mine.key == entry.key) {
                mine.left.extend(entry.left.iter().cloned());
                mine.may_be_gone |= entry.may_be_gone;
                left.extend(mine.left.iter().cloned());
                may_be_gone |= mine.may_be_gone;
            }
            let says_it = |mine: &Entry| {
                mine.key == entry.key && mine.value == entry.value && mine.fields == entry.fields
            };
            if !self.entries.iter().any(says_it) {
                self.entries.push(Entry { left, may_be_gone, ..entry });
            }
        }
        self.reset.extend(reset);
        self.list |= list;
        self.moved = self.moved.take().or(moved);
        self.stale.extend(stale);
        self.drop_set();
    }

    /// Keys that were settings of programs that are there no more.
    pub(crate) fn forget(&mut self, contents: &[MapContents], map: &str) {
        let gone = contents.iter().filter(|contents| contents.map == map);
        self.stale.extend(gone.flat_map(|gone| &gone.entries).map(|(key, _)| key.clone()));
        self.drop_set();
    }

    /// What somebody sets is neither stale nor reset.
    fn drop_set(&mut self) {
        let Self { entries, stale, reset, .. } = self;
        for entry in entries.iter() {
            stale.remove(&entry.key);
            for old in reset.iter_mut().filter(|old| old.key == entry.key) {
                if let (Some(gone), Some(set)) = (&mut old.fields, &entry.fields) {
                    *gone = without(gone, set);
                }
            }
        }
    }

    /// Whether a map that had what was set before cannot have what is set now.
    pub(crate) fn changes(&self) -> bool {
        self.moved.is_some() || !self.stale.is_empty()
    }

    /// Whether a list fills the map.
    pub(crate) fn has_list(&self) -> bool {
        self.list
    }

    /// The contents of the data section they are laid over, with them.
    pub(crate) fn contents(&self) -> Option<&[u8]> {
        self.entries.first().map(|entry| entry.value.as_slice())
    }

    /// Whether it says anything of the map.
    pub(crate) fn any(&self) -> bool {
        self.moved.is_some()
            || !self.stale.is_empty()
            || self
                .entries
                .iter()
                .chain(&self.reset)
                .any(|entry| entry.fields.as_ref().is_none_or(|fields| !fields.is_empty()))
    }

    /// Whether a map holds all that they say, and nothing that they said before.
    pub(crate) fn hold(&self, map: &Map) -> io::Result<bool> {
        Ok(self.moved.is_none() && self.missing(map)?.is_none())
    }

    /// The first key under which a map does not hold what they say.
    pub(crate) fn missing(&self, map: &Map) -> io::Result<Option<Vec<u8>>> {
        let said = || {
            self.reset
                .iter()
                .chain(&self.entries)
                .filter(|entry| entry.fields.as_ref().is_none_or(|fields| !fields.is_empty()))
        };
        let kind = map.info().map_type;
        let whole = self.entries.len() > MANY
            && (map.info().max_entries as usize) / 8 <= self.entries.len()
            || kind == LPM_TRIE && !self.stale.is_empty();
        if whole {
            let have = read_all(map)?;
            let lacks = |entry: &&Entry| match have.get(&entry.key) {
                Some(parts) => parts.iter().any(|part| !entry.is_in(part)),
                None => !entry.may_be_gone,
            };
            let stale = self.stale.iter().find(|key| !is_array(kind) && have.contains_key(*key));
            return Ok(said().find(lacks).map(|entry| &entry.key).or(stale).cloned());
        }
        for entry in said() {
            match map.lookup(&entry.key)? {
                Some(value) if map.split(&value).iter().all(|part| entry.is_in(part)) => {}
                None if entry.may_be_gone => {}
                _ => return Ok(Some(entry.key.clone())),
            }
        }
        for key in self.stale.iter().filter(|_| !is_array(kind)) {
            if map.lookup(key)?.is_some() {
                return Ok(Some(key.clone()));
            }
        }
        Ok(None)
    }

    /// Puts what they say into a new map.
    pub(crate) fn write(&self, map: &Map) -> io::Result<()> {
        let mut written = BTreeSet::new();
        for entry in &self.entries {
            // Several programs may each say a part of one value; the first brings the rest of it.
            let before = if entry.fields.is_some() && !written.insert(&entry.key) {
                map.lookup(&entry.key)?
            } else {
                None
            };
            match before {
                None => map.update(&entry.key, &entry.value, 0)?,
                Some(before) => {
                    let mut parts = map.split(&before);
                    for part in &mut parts {
                        entry.lay_over(part, &entry.set());
                    }
                    map.update(&entry.key, &map.join(&parts), 0)?;
                }
            }
        }
        Ok(())
    }

    /// Brings them about in a map that may be in use: what it lacks is written, and `before` is told of
    /// each entry what was there.
    pub(crate) fn restore(
        &self,
        map: &Map,
        mut before: impl FnMut(&[u8], Option<Vec<u8>>),
    ) -> io::Result<()> {
        for key in self.stale.iter().filter(|_| !is_array(map.info().map_type)) {
            if let Some(value) = map.lookup(key)? {
                before(key, Some(value));
                map.delete(key)?;
            }
        }
        for entry in self.reset.iter().chain(&self.entries) {
            let there = map.lookup(&entry.key)?;
            if there.is_none() && entry.may_be_gone {
                continue;
            }
            let mut parts = match &there {
                Some(value) => map.split(value),
                None => vec![entry.value.clone(); map.parts()],
            };
            if there.is_some() && parts.iter().all(|part| entry.is_in(part)) {
                continue;
            }
            for part in &mut parts {
                entry.lay_over(part, &entry.required());
            }
            before(&entry.key, there);
            map.update(&entry.key, &map.join(&parts), 0)?;
        }
        Ok(())
    }

    /// Copies a map's contents into a new one of the same shape, with what they say laid over it; how
    /// many entries of the programs' own there was no room for.
    pub(crate) fn carry(&self, from: &Map, to: &Map) -> io::Result<usize> {
        self.copy(from, to, true)
    }

    /// `new`: nothing is in `to` yet.
    fn copy(&self, from: &Map, to: &Map, new: bool) -> io::Result<usize> {
        let array = is_array(from.info().map_type);
        // What is set goes first: it must have room.
        if !array {
            self.write(to)?;
        }
        let mut by_key = BTreeMap::<&[u8], Vec<&Entry>>::new();
        for entry in self.reset.iter().chain(&self.entries) {
            by_key.entry(&entry.key).or_default().push(entry);
        }
        let have = read_all(from)?;
        for entry in self.entries.iter().filter(|entry| entry.may_be_gone && !array) {
            if !have.contains_key(&entry.key) {
                to.delete(&entry.key)?;
            }
        }
        let mut lost = 0;
        for (key, mut parts) in self.moved_contents(from, have) {
            let said = by_key.get(key.as_slice()).map(Vec::as_slice).unwrap_or_default();
            if self.stale.contains(&key) && !array
                || said
                    .iter()
                    .any(|entry| entry.fields.is_none() && entry.left.is_empty() && !array)
            {
                continue;
            }
            for part in &mut parts {
                for entry in said {
                    entry.lay_over(part, &entry.required());
                }
            }
            if new && array && parts.iter().flatten().all(|byte| *byte == 0) {
                continue;
            }
            match to.update(&key, &to.join(&parts), 0) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
                    lost += 1;
                }
                result => result?,
            }
        }
        Ok(lost)
    }

    /// Contents, where slots that belong to items of a list are at the items' new places.
    fn moved_contents(&self, map: &Map, have: Contents) -> Contents {
        let Some(moved) = &self.moved else { return have };
        let number = |key: &[u8]| key.try_into().map_or(u32::MAX, u32::from_ne_bytes);
        let empty = || vec![vec![0; map.info().value_size as usize]; map.parts()];
        let mut next = Contents::new();
        for (key, parts) in &have {
            if number(key) >= moved.slots {
                next.insert(key.clone(), parts.clone());
            } else {
                next.entry(key.clone()).or_insert_with(empty);
            }
        }
        for (from, to) in &moved.moves {
            if let Some(parts) = have.get(from.to_ne_bytes().as_slice())
                && let Some(place) = next.get_mut(to.to_ne_bytes().as_slice())
            {
                place.clone_from(parts);
            }
        }
        next
    }
}

/// Whether contents of a type can be copied from outside.
pub(crate) fn can_be_copied(map_type: u32) -> bool {
    is_array(map_type)
        || matches!(map_type, HASH | PERCPU_HASH | LRU_HASH | LRU_PERCPU_HASH | LPM_TRIE)
}

fn is_array(map_type: u32) -> bool {
    matches!(map_type, ARRAY | PERCPU_ARRAY)
}

/// Entries by key, with a value for each CPU.
type Contents = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// Everything a map holds.
fn read_all(map: &Map) -> io::Result<Contents> {
    let mut have = Contents::new();
    let (mut place, mut room) = (None, BATCH);
    loop {
        match map.lookup_batch(place.as_deref(), room) {
            Ok((entries, next)) => {
                have.extend(entries);
                let Some(next) = next else { return Ok(have) };
                place = Some(next);
            }
            // A bucket that has more.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => room *= 2,
            // An older kernel, or another type.
            Err(_) => break,
        }
    }
    // A key that goes meanwhile starts the walk anew.
    let steps = (map.info().max_entries as usize).saturating_mul(2).saturating_add(16);
    let mut last: Option<Vec<u8>> = None;
    for _ in 0..steps {
        let Some(key) = map.next_key(last.as_deref())? else { break };
        if let Some(value) = map.lookup(&key)? {
            have.insert(key.clone(), map.split(&value));
        }
        last = Some(key);
    }
    Ok(have)
}

/// Where a variable of a member's object lies: the data section's map, the offset, its size.
pub(crate) fn place(
    member: &Member,
    object: &Object,
    global: &str,
) -> Result<(usize, usize, usize), KernelError> {
    object.global(global).ok_or_else(|| {
        refused(
            &member.name,
            format!("the object has no global variable \"{global}\""),
            "name a global variable of the object in the package's manifest",
        )
    })
}

/// Why settings could not be put into a map.
pub(crate) fn entry_error(
    name: &ProgramName,
    map: &str,
    room: u32,
    error: io::Error,
) -> KernelError {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => refused(
            name,
            format!("map \"{map}\" has room for {room} entries, and is given more"),
            "configure fewer entries, or raise max_entries in the package's manifest",
        ),
        Some(libc::EPERM) => refused(
            name,
            format!("map \"{map}\" cannot be read and written from outside: its flags forbid it"),
            "bind the setting to another map, or declare this one without BPF_F_RDONLY and BPF_F_WRONLY",
        ),
        None => refused(
            name,
            format!("an entry for map \"{map}\" does not fit it: {error}"),
            "give the parameter the key and value types of the map in the package's manifest",
        ),
        Some(_) => os(name, map, "fill", error),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "bytes of one setting")]
mod tests {
    use super::*;
    use canopy_api::VerdictSet;
    use canopy_kernel::{Carry, SettingsDetail};
    use std::sync::Arc;

    fn member(now: &[(u8, u8)], old: &[(u8, u8)]) -> Member {
        let contents = |entries: &[(u8, u8)]| {
            let entries = entries.iter().map(|(key, value)| (vec![*key], vec![*value; 4]));
            vec![MapContents { map: "m".to_owned(), entries: entries.collect() }]
        };
        Member {
            name: "one".parse().unwrap(),
            object: Arc::from(Vec::new()),
            function: "f".to_owned(),
            frags: false,
            tail_calls: None,
            proceed_on: VerdictSet::from_bits(4),
            globals: Vec::new(),
            map_entries: contents(now),
            settings: SettingsDetail { old_entries: contents(old), ..SettingsDetail::default() },
            carry: Carry::Nothing,
            max_entries: Vec::new(),
            shared_maps: Vec::new(),
        }
    }

    fn field(key: u8, offset: usize, size: usize) -> MapField {
        MapField { map: "m".to_owned(), key: vec![key], offset, size }
    }

    #[test]
    fn keys_that_left_a_list_are_stale() {
        let settings = MapSettings::of_map(&member(&[(1, 1), (2, 2)], &[(2, 9), (3, 3)]), "m");
        assert_eq!(settings.stale, BTreeSet::from([vec![3]]));
        assert!(settings.changes() && settings.has_list() && settings.reset.is_empty());
    }

    #[test]
    fn bytes_that_are_no_setting_any_more_are_reset() {
        let mut member = member(&[(0, 7)], &[(0, 6), (1, 6)]);
        member.settings.fields = vec![field(0, 0, 1)];
        member.settings.old_fields = vec![field(0, 0, 2), field(1, 2, 2)];
        let settings = MapSettings::of_map(&member, "m");
        let mut value = [5; 4];
        for entry in settings.reset.iter().chain(&settings.entries).filter(|e| e.key == [0]) {
            entry.lay_over(&mut value, &entry.set());
        }
        assert_eq!(value, [7, 0, 5, 5]);
        let mut value = [5; 4];
        for entry in settings.reset.iter().filter(|e| e.key == [1]) {
            entry.lay_over(&mut value, &entry.set());
        }
        assert_eq!(value, [5, 5, 0, 0]);
        assert!(settings.stale.is_empty());
    }

    #[test]
    fn written_settings_are_left_only_if_they_are_what_they_were() {
        let entry = |value: [u8; 4]| Entry::new(vec![0], value.to_vec(), Some(vec![0..2, 2..4]));
        let laid = |mut entry: Entry, written: &[Range<usize>], before: [u8; 4]| {
            entry.leave(written, &[(0..2, &before[..2]), (2..4, &before[2..])]);
            let mut value = [7; 4];
            entry.lay_over(&mut value, &entry.required());
            value
        };
        assert_eq!(laid(entry([1, 0, 2, 0]), &[0..2], [1, 0, 2, 0]), [7, 7, 2, 0]);
        assert_eq!(laid(entry([1, 0, 2, 0]), &[0..4], [1, 0, 2, 0]), [7, 7, 7, 7]);
        assert_eq!(laid(entry([1, 0, 2, 0]), &[0..4], [3, 0, 2, 0]), [1, 0, 7, 7], "as a whole");
        assert_eq!(laid(entry([1, 0, 2, 0]), &[], [1, 0, 2, 0]), [1, 0, 2, 0]);
        let mut all = Entry::new(vec![0], vec![1; 4], None);
        all.leave(&[2..4], &[(0..4, &[1; 4])]);
        assert!(all.is_in(&[1, 1, 9, 9]) && !all.is_in(&[1, 9, 1, 1]));
        assert!(!all.is_in(&[1, 1, 9]), "another size");
    }

    #[test]
    fn programs_agree_on_what_both_set() {
        let list = |entries: &[(u8, u8)]| MapSettings::of_map(&member(entries, &[]), "m").claims();
        assert!(list(&[(1, 1), (2, 2)]).agree(&list(&[(2, 2), (1, 1)])));
        assert!(!list(&[(1, 1)]).agree(&list(&[])), "an empty list is a list");
        assert!(list(&[(1, 1)]).agree(&Claims::default()), "no settings");
        let part = |value: u8, offset: usize, size: usize| {
            let mut member = member(&[(0, value)], &[]);
            member.settings.fields = vec![field(0, offset, size)];
            MapSettings::of_map(&member, "m").claims()
        };
        assert!(part(1, 0, 2).agree(&part(2, 2, 2)), "other bytes of one value");
        assert!(part(1, 0, 3).agree(&part(1, 2, 2)));
        assert!(!part(1, 0, 3).agree(&part(2, 2, 2)));
    }
}
