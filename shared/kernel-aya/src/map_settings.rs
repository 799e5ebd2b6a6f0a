//! Settings in maps: which bytes of a map's contents they are, whether a map has them, and how a map
//! that has them is made of one that has others.
//!
//! A running map is never changed for a setting (ADR 0015): its contents are copied into a new one,
//! with the settings laid over them.

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
    io,
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

/// `BPF_F_RDONLY` and `BPF_F_WRONLY`: who made the map can do only one of the two.
const ONE_WAY: u32 = 1 << 3 | 1 << 4;

/// Entries that are read in one call.
const BATCH: usize = 1024;
/// Settings from which on a map is read whole instead of entry by entry.
const MANY: usize = 32;
/// Bytes of a map that is copied once more in the instant of the switch.
const SMALL: usize = 256 << 10;

/// One entry that settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    key: Vec<u8>,
    value: Vec<u8>,
    /// The bytes of the value that are settings; `None` for all of it.
    fields: Option<Vec<Range<usize>>>,
}

impl Entry {
    /// Puts the bytes that are settings over what is there.
    fn lay_over(&self, value: &mut [u8]) {
        let Some(fields) = &self.fields else {
            if value.len() == self.value.len() {
                value.copy_from_slice(&self.value);
            }
            return;
        };
        for field in fields {
            if let (Some(to), Some(from)) =
                (value.get_mut(field.clone()), self.value.get(field.clone()))
            {
                to.copy_from_slice(from);
            }
        }
    }

    /// Whether a value has the bytes that are settings.
    fn is_in(&self, value: &[u8]) -> bool {
        match &self.fields {
            None => value == self.value,
            Some(fields) => fields.iter().all(|field| {
                let wanted = self.value.get(field.clone());
                wanted.is_some() && value.get(field.clone()) == wanted
            }),
        }
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
                settings.entries.push(Entry { key: key.clone(), value: value.clone(), fields });
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
                    settings.reset.push(Entry { key: key.clone(), value, fields: Some(gone) });
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
            .filter_map(|global| object.global(global))
            .filter(|(map, ..)| *map == number)
            .map(|(_, offset, size)| offset..offset.saturating_add(size))
            .collect();
        let gone = without(&gone, &fields);
        if !gone.is_empty() {
            let (key, value) = (key.clone(), contents.clone());
            settings.reset.push(Entry { key, value, fields: Some(gone) });
        }
        settings.entries.push(Entry { key, value: contents, fields: Some(fields) });
        Ok(settings)
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
            if !self.entries.contains(&entry) {
                self.entries.push(entry);
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
            let lacks = |entry: &&Entry| {
                have.get(&entry.key).is_none_or(|parts| parts.iter().any(|part| !entry.is_in(part)))
            };
            let stale = self.stale.iter().find(|key| !is_array(kind) && have.contains_key(*key));
            return Ok(said().find(lacks).map(|entry| &entry.key).or(stale).cloned());
        }
        for entry in said() {
            match map.lookup(&entry.key)? {
                Some(value) if map.split(&value).iter().all(|part| entry.is_in(part)) => {}
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
                        entry.lay_over(part);
                    }
                    map.update(&entry.key, &map.join(&parts), 0)?;
                }
            }
        }
        Ok(())
    }

    /// Brings them about in a map that is in use: only to restore what everybody who uses it says.
    pub(crate) fn restore(&self, map: &Map) -> io::Result<()> {
        for key in self.stale.iter().filter(|_| !is_array(map.info().map_type)) {
            map.delete(key)?;
        }
        for entry in self.reset.iter().chain(&self.entries) {
            let mut parts = match map.lookup(&entry.key)? {
                Some(value) => map.split(&value),
                None => vec![entry.value.clone(); map.parts()],
            };
            if entry.fields.is_none() {
                parts = vec![entry.value.clone(); map.parts()];
            }
            for part in &mut parts {
                entry.lay_over(part);
            }
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
        let mut lost = 0;
        for (key, mut parts) in self.moved_contents(from, have) {
            let said = by_key.get(key.as_slice()).map(Vec::as_slice).unwrap_or_default();
            if self.stale.contains(&key) && !array
                || said.iter().any(|entry| entry.fields.is_none() && !array)
            {
                continue;
            }
            for part in &mut parts {
                for entry in said {
                    entry.lay_over(part);
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

/// A map that was made of one that runs, to be made of it once more in the instant of the switch.
#[derive(Debug)]
pub(crate) struct Copied {
    from: Map,
    to: Map,
    settings: MapSettings,
}

impl Copied {
    /// Of two maps of the same shape; `None` for large ones, for which there is no time then.
    pub(crate) fn new(from: Map, to: &Map, settings: &MapSettings) -> Option<Self> {
        let each = from.info().key_size as usize
            + (from.info().value_size as usize).saturating_mul(from.parts());
        let bytes = each.saturating_mul(from.info().max_entries as usize);
        let open = from.info().flags & ONE_WAY == 0;
        let to = to.try_clone().ok().filter(|_| bytes <= SMALL && open)?;
        Some(Self { from, to, settings: settings.clone() })
    }

    /// Copies what the running programs have written since.
    pub(crate) fn again(&self) -> io::Result<()> {
        let Self { from, to, settings } = self;
        settings.copy(from, to, false)?;
        if !is_array(from.info().map_type) {
            let (now, set) = (read_all(from)?, read_all(to)?);
            for key in set.keys().filter(|key| {
                !now.contains_key(*key) && !settings.entries.iter().any(|entry| entry.key == **key)
            }) {
                to.delete(key)?;
            }
        }
        Ok(())
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
