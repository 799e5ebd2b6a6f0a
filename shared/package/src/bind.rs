//! Settings to bytes: what a person wrote under `config` becomes the content of globals and maps.

use crate::{
    manifest::{Bind, Manifest, Parameter, ParameterType},
    near,
};
use canopy_api::{Problem, Problems, prefix::network_of};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Most items of a list when the manifest sets no `max`.
pub const LIST_LIMIT: u64 = 65_536;

/// A map's entries: key and value of each.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// What a program's settings become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Symbol and bytes.
    pub globals: Vec<(String, Vec<u8>)>,
    /// Map and its entries; a map bound to an empty list is here with none.
    pub map_entries: Vec<(String, Entries)>,
    /// Bytes of values in `map_entries` that one setting each says: map, key, offset and length. The rest
    /// of such a value is the program's own. Entries of lists are not among them.
    pub map_fields: Vec<(String, Vec<u8>, usize, usize)>,
    /// Every setting with its value, defaults filled in.
    pub effective: Map<String, Value>,
}

/// Checks settings against the manifest and lays them out; every mistake at once, paths below
/// `path` (`chains[0].programs[1].config`).
pub fn bind(
    manifest: &Manifest,
    config: &Map<String, Value>,
    path: &str,
) -> Result<Bindings, Problems> {
    let mut problems = Problems::default();
    let mut layout = Layout::default();
    let mut effective = Map::new();
    for name in config.keys() {
        if !manifest.config.iter().any(|parameter| parameter.name == *name) {
            problems.push(unknown(manifest, name, path));
        }
    }
    for parameter in &manifest.config {
        let at = below(path, &parameter.name);
        let Some(value) = config.get(&parameter.name).or(parameter.default.as_ref()) else {
            problems.push(
                Problem::new(
                    &at,
                    format!("\"{}\" must be set: {}", parameter.name, parameter.description),
                )
                .remedy(format!("write {}", example(parameter))),
            );
            continue;
        };
        match parse(parameter, value, &at) {
            Ok(laid) => {
                if let Err(problem) = layout.place(parameter, laid, &at) {
                    problems.push(problem);
                }
                effective.insert(parameter.name.clone(), value.clone());
            }
            Err(bad) => problems.0.extend(bad.0),
        }
    }
    problems.into_result()?;
    Ok(layout.finish(effective))
}

/// One value, typed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Laid {
    /// A single value's bytes.
    Scalar(Vec<u8>),
    /// Keys in the order of the list.
    Ports(Vec<u16>),
    /// Prefixes in the order of the list.
    Prefixes(Vec<(IpAddr, u8)>),
}

/// `CANOPY_FILLED_…` of rules.h.
const FILLED_LPM_V4: u8 = 1;
const FILLED_LPM_V6: u8 = 2;
/// From a trie's bit to that of the hash map of the same family.
const FILLED_HASH_SHIFT: u32 = 2;

/// The maps of one family's prefixes.
struct FamilyMaps<'a> {
    trie: &'a str,
    hash: Option<&'a str>,
}

/// The maps of a list of prefixes.
struct PrefixMaps<'a> {
    v4: FamilyMaps<'a>,
    v6: FamilyMaps<'a>,
}

/// Where all values end up.
#[derive(Default)]
struct Layout {
    globals: Vec<(String, Vec<u8>)>,
    slots: BTreeMap<(String, u32), Vec<u8>>,
    fields: Vec<(String, Vec<u8>, usize, usize)>,
    maps: BTreeMap<String, Entries>,
}

impl Layout {
    fn place(&mut self, parameter: &Parameter, laid: Laid, at: &str) -> Result<(), Problem> {
        match (&parameter.bind, laid) {
            (Bind::Global { global }, Laid::Scalar(bytes)) => {
                self.globals.push((global.clone(), bytes));
            }
            (Bind::Slot { map, slot, offset, value_size }, Laid::Scalar(bytes)) => {
                let value = self
                    .slots
                    .entry((map.clone(), *slot))
                    .or_insert_with(|| vec![0; *value_size as usize]);
                let from = *offset as usize;
                match value.get_mut(from..from.saturating_add(bytes.len())) {
                    Some(place) => place.copy_from_slice(&bytes),
                    None => return Err(unfit(parameter, at)),
                }
                self.fields.push((map.clone(), slot.to_ne_bytes().to_vec(), from, bytes.len()));
            }
            (Bind::Keys { keys }, Laid::Ports(ports)) => {
                let entries = self.maps.entry(keys.clone()).or_default();
                for (i, port) in (0u32..).zip(ports) {
                    entries.push((port.to_ne_bytes().to_vec(), i.to_ne_bytes().to_vec()));
                }
            }
            (Bind::Prefixes { lpm_v4, lpm_v6, hash_v4, hash_v6, filled }, Laid::Prefixes(list)) => {
                let maps = PrefixMaps {
                    v4: FamilyMaps { trie: lpm_v4, hash: hash_v4.as_deref() },
                    v6: FamilyMaps { trie: lpm_v6, hash: hash_v6.as_deref() },
                };
                let used = self.prefixes(&maps, list);
                if let Some(filled) = filled {
                    self.globals.push((filled.clone(), vec![used]));
                }
            }
            (Bind::Global { .. } | Bind::Slot { .. }, Laid::Ports(_) | Laid::Prefixes(_))
            | (Bind::Keys { .. }, Laid::Scalar(_) | Laid::Prefixes(_))
            | (Bind::Prefixes { .. }, Laid::Scalar(_) | Laid::Ports(_)) => {
                return Err(unfit(parameter, at));
            }
        }
        Ok(())
    }

    /// Puts each prefix into its map, all of which are there afterwards, if empty; which of them are
    /// not.
    fn prefixes(&mut self, maps: &PrefixMaps<'_>, list: Vec<(IpAddr, u8)>) -> u8 {
        for family in [&maps.v4, &maps.v6] {
            for map in [Some(family.trie), family.hash].into_iter().flatten() {
                self.maps.entry(map.to_owned()).or_default();
            }
        }
        let mut used = 0;
        for (i, (address, length)) in (0u32..).zip(list) {
            let (octets, maps, bit) = match address {
                IpAddr::V4(v4) => (v4.octets().to_vec(), &maps.v4, FILLED_LPM_V4),
                IpAddr::V6(v6) => (v6.octets().to_vec(), &maps.v6, FILLED_LPM_V6),
            };
            let whole = usize::from(length) == octets.len() * 8;
            let length = u32::from(length);
            let (map, key, bit) = match maps.hash.filter(|_| whole) {
                Some(hash) => (hash, octets, bit << FILLED_HASH_SHIFT),
                None => (maps.trie, [&length.to_ne_bytes()[..], &octets].concat(), bit),
            };
            let value = [i.to_ne_bytes(), length.to_ne_bytes()].concat();
            self.maps.entry(map.to_owned()).or_default().push((key, value));
            used |= bit;
        }
        used
    }

    fn finish(mut self, effective: Map<String, Value>) -> Bindings {
        for ((map, slot), value) in self.slots {
            self.maps.entry(map).or_default().push((slot.to_ne_bytes().to_vec(), value));
        }
        Bindings {
            globals: self.globals,
            map_entries: self.maps.into_iter().collect(),
            map_fields: self.fields,
            effective,
        }
    }
}

/// The manifest's own mistake; [`Manifest::check`] finds it before anybody's settings do.
fn unfit(parameter: &Parameter, at: &str) -> Problem {
    Problem::new(at, format!("the manifest binds \"{}\" where it does not fit", parameter.name))
        .remedy("run `canopy package check` on the package")
}

fn unknown(manifest: &Manifest, name: &str, path: &str) -> Problem {
    let problem = Problem::new(
        below(path, name),
        format!("{} {} has no setting \"{name}\"", manifest.name, manifest.version),
    );
    let known = || manifest.config.iter().map(|parameter| parameter.name.as_str());
    match near::nearest(name, known()) {
        Some(near) => problem.remedy(format!("did you mean \"{near}\"?")),
        None if manifest.config.is_empty() => problem.remedy("remove it: it has none at all"),
        None => problem.remedy(format!("one of {}", known().collect::<Vec<_>>().join(", "))),
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A value of the right form, for a remedy.
pub(crate) fn example(parameter: &Parameter) -> String {
    match parameter.kind {
        ParameterType::U32 | ParameterType::U64 => {
            format!("a whole number, such as {}", parameter.min.unwrap_or(1).max(1))
        }
        ParameterType::Bool => "true or false".to_owned(),
        ParameterType::Duration => "a duration in text, such as 250ms, 10s, 5m, 1h".to_owned(),
        ParameterType::Port => "a port, such as 443".to_owned(),
        ParameterType::Ports => "a list of ports, such as [80, 443]".to_owned(),
        ParameterType::Prefixes => {
            "a list of prefixes in text, such as [\"198.51.100.0/24\", \"2001:db8::/32\"]"
                .to_owned()
        }
        ParameterType::Mac => "a MAC address in text, such as \"02:00:5e:10:00:01\"".to_owned(),
        ParameterType::String => "text".to_owned(),
    }
}

/// Types and bounds of one value; every mistake of a list at once.
pub(crate) fn parse(parameter: &Parameter, value: &Value, at: &str) -> Result<Laid, Problems> {
    let wrong = |at: &str, found: &Value| {
        Problem::new(at, format!("{} is not {}", shown(found), noun(parameter.kind)))
            .remedy(format!("write {}", example(parameter)))
    };
    let bytes = match parameter.kind {
        ParameterType::U32 => {
            let number = value.as_u64().ok_or_else(|| wrong(at, value))?;
            bounds(parameter, number, at)?;
            u32::try_from(number)
                .map_err(|_| {
                    Problem::new(at, format!("{number} is more than {}", u32::MAX))
                        .remedy("write a smaller number")
                })?
                .to_ne_bytes()
                .to_vec()
        }
        ParameterType::U64 => {
            let number = value.as_u64().ok_or_else(|| wrong(at, value))?;
            bounds(parameter, number, at)?;
            number.to_ne_bytes().to_vec()
        }
        ParameterType::Bool => {
            vec![u8::from(value.as_bool().ok_or_else(|| wrong(at, value))?)]
        }
        ParameterType::Duration => {
            let nanos = value.as_str().and_then(duration).ok_or_else(|| wrong(at, value))?;
            bounds(parameter, nanos, at)?;
            nanos.to_ne_bytes().to_vec()
        }
        ParameterType::Port => {
            let port = port(value).ok_or_else(|| wrong(at, value))?;
            bounds(parameter, u64::from(port), at)?;
            port.to_ne_bytes().to_vec()
        }
        ParameterType::Mac => {
            value.as_str().and_then(mac).ok_or_else(|| wrong(at, value))?.to_vec()
        }
        ParameterType::String => {
            string(parameter, value.as_str().ok_or_else(|| wrong(at, value))?, at)?
        }
        ParameterType::Ports => {
            return items(parameter, value, at, &wrong, |item, _| port(item).ok_or(None))
                .map(Laid::Ports);
        }
        ParameterType::Prefixes => {
            return items(parameter, value, at, &wrong, |item, at| {
                prefix(item.as_str().ok_or(None)?, at)
            })
            .map(Laid::Prefixes);
        }
    };
    Ok(Laid::Scalar(bytes))
}

/// The items of a list: each parsed, none twice, not too many.
fn items<T: Ord + Copy>(
    parameter: &Parameter,
    value: &Value,
    at: &str,
    wrong: &dyn Fn(&str, &Value) -> Problem,
    parse: impl Fn(&Value, &str) -> Result<T, Option<Problem>>,
) -> Result<Vec<T>, Problems> {
    let list = value.as_array().ok_or_else(|| wrong(at, value))?;
    let (count, max) = (list.len() as u64, parameter.max.unwrap_or(LIST_LIMIT));
    if count > max {
        let problem = Problem::new(at, format!("{count} items are more than {max}"));
        return Err(problem.remedy("shorten the list, or merge neighbours").into());
    }
    if let Some(min) = parameter.min.filter(|min| count < *min) {
        let problem = Problem::new(at, format!("{count} items are fewer than {min}"));
        return Err(problem.remedy("add to the list").into());
    }
    let mut problems = Problems::default();
    let (mut out, mut seen) = (Vec::new(), BTreeMap::new());
    for (i, item) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        match parse(item, &at) {
            Ok(parsed) => {
                if let Some(first) = seen.insert(parsed, i) {
                    let message = format!("{} is already item {first} of the list", shown(item));
                    problems.push(Problem::new(at, message).remedy("remove one of the two"));
                }
                out.push(parsed);
            }
            Err(problem) => problems.push(problem.unwrap_or_else(|| {
                let kind = match parameter.kind {
                    ParameterType::Ports => "a port (1 to 65535)",
                    _ => "an IPv4 or IPv6 prefix",
                };
                Problem::new(at, format!("{} is not {kind}", shown(item)))
                    .remedy(format!("write {}", example(parameter)))
            })),
        }
    }
    problems.into_result()?;
    Ok(out)
}

fn bounds(parameter: &Parameter, number: u64, at: &str) -> Result<(), Problem> {
    let unit = match (parameter.kind, &parameter.unit) {
        (ParameterType::Duration, _) | (_, None) => String::new(),
        (_, Some(unit)) => format!(" {unit}"),
    };
    let show = |number: u64| match parameter.kind {
        ParameterType::Duration => show_duration(number),
        _ => format!("{number}{unit}"),
    };
    if let Some(min) = parameter.min.filter(|min| number < *min) {
        let message = format!("{} is less than {}", show(number), show(min));
        return Err(Problem::new(at, message).remedy(format!("write {} or more", show(min))));
    }
    if let Some(max) = parameter.max.filter(|max| number > *max) {
        let message = format!("{} is more than {}", show(number), show(max));
        return Err(Problem::new(at, message).remedy(format!("write {} or less", show(max))));
    }
    Ok(())
}

fn string(parameter: &Parameter, text: &str, at: &str) -> Result<Vec<u8>, Problem> {
    let max = parameter.max.unwrap_or(0);
    if text.contains('\0') {
        return Err(Problem::new(at, "the text has a zero byte in it").remedy("remove it"));
    }
    let length = text.len() as u64;
    if length > max {
        let message = format!("the text has {length} bytes, more than {max}");
        return Err(Problem::new(at, message).remedy("shorten it"));
    }
    if let Some(min) = parameter.min.filter(|min| length < *min) {
        let message = format!("the text has {length} bytes, fewer than {min}");
        return Err(Problem::new(at, message).remedy("lengthen it"));
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(usize::try_from(max).unwrap_or(usize::MAX).saturating_add(1), 0);
    Ok(bytes)
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0)
}

/// `250ms` to nanoseconds. A number without a unit is not a duration.
pub(crate) fn duration(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let nanos: u64 = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(nanos)
}

/// Nanoseconds to the form [`duration`] reads.
fn show_duration(nanos: u64) -> String {
    let units = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    match units.into_iter().find(|(size, _)| nanos != 0 && nanos.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", nanos / size),
        None => format!("{nanos}ns"),
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// `198.51.100.0/24`, `198.51.100.7`, `2001:db8::/32`. Bits outside the prefix are a mistake, not
/// something to drop silently.
fn prefix(text: &str, at: &str) -> Result<(IpAddr, u8), Option<Problem>> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| None)?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => full,
        Some(length) => {
            let digits =
                (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
            let length: u32 =
                if digits { length.parse().map_err(|_| None)? } else { return Err(None) };
            u8::try_from(length).ok().filter(|length| *length <= full).ok_or_else(|| {
                Some(
                    Problem::new(at, format!("\"{text}\": the prefix is longer than {full} bits"))
                        .remedy(format!("write a length of 0 to {full}")),
                )
            })?
        }
    };
    let network = network_of(address, length);
    if network != address {
        return Err(Some(
            Problem::new(at, format!("\"{text}\" has bits set beyond its prefix"))
                .remedy(format!("write {network}/{length}, or {address} for the one address")),
        ));
    }
    Ok((address, length))
}

fn noun(kind: ParameterType) -> &'static str {
    match kind {
        ParameterType::U32 | ParameterType::U64 => "a whole number of 0 or more",
        ParameterType::Bool => "true or false",
        ParameterType::Duration => "a duration",
        ParameterType::Port => "a port (1 to 65535)",
        ParameterType::Ports => "a list of ports",
        ParameterType::Prefixes => "a list of prefixes",
        ParameterType::Mac => "a MAC address",
        ParameterType::String => "text",
    }
}

/// A value as written, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    format!("{}…", text.chars().take(59).collect::<String>())
}

/// Names that stand for the same bytes twice, for the manifest's check.
pub(crate) fn overlaps(parameters: &[Parameter]) -> Vec<(usize, String)> {
    let mut taken: BTreeMap<String, BTreeSet<(u32, u32)>> = BTreeMap::new();
    let mut out = Vec::new();
    for (i, parameter) in parameters.iter().enumerate() {
        let size = size(parameter);
        let mut places: Vec<(String, (u32, u32))> = match &parameter.bind {
            Bind::Slot { map, slot, offset, .. } => {
                vec![(format!("slot {slot} of {map}"), (*offset, offset.saturating_add(size)))]
            }
            bind => bind.maps().iter().map(|map| (format!("map {map}"), (0, 1))).collect(),
        };
        places.extend(parameter.bind.global().map(|global| (format!("global {global}"), (0, 1))));
        for (place, (from, to)) in places {
            let ranges = taken.entry(place.clone()).or_default();
            if ranges.iter().any(|(a, b)| from < *b && *a < to) {
                out.push((i, place));
            }
            ranges.insert((from, to));
        }
    }
    out
}

/// Bytes a single value takes; 0 for lists.
pub(crate) fn size(parameter: &Parameter) -> u32 {
    match parameter.kind {
        ParameterType::U32 => 4,
        ParameterType::U64 | ParameterType::Duration => 8,
        ParameterType::Bool => 1,
        ParameterType::Port => 2,
        ParameterType::Mac => 6,
        ParameterType::String => {
            parameter.max.and_then(|max| u32::try_from(max).ok()).unwrap_or(0).saturating_add(1)
        }
        ParameterType::Ports | ParameterType::Prefixes => 0,
    }
}
