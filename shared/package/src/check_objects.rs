//! Whether the objects are what the manifest says.

use crate::{
    archive::Package,
    bind,
    describe::kind_name,
    elf::{MapShape, ObjectFile, is_data},
    layout::{Field, Reading, contradiction},
    manifest::{
        Bind, KeyType, Manifest, ManifestMap, ManifestProgram, Metric, Parameter, Select, ValueType,
    },
    near,
};
use canopy_api::{
    Problem, Problems, map_kind,
    program_section::{SectionFit, section_fit},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// `enum bpf_map_type`, as far as the manifest speaks of it.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;

impl Package {
    /// Compares the manifest with what is in the objects; every mistake at once.
    pub fn check_objects(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        let mut objects = BTreeMap::new();
        for (name, bytes) in &self.objects {
            match ObjectFile::read(bytes) {
                Ok(object) => {
                    objects.insert(name.as_str(), object);
                }
                Err(error) => {
                    problems.push(
                        Problem::new(
                            self.manifest.place_of(name),
                            format!("{name} cannot be used: {error}"),
                        )
                        .remedy("compile it with `clang -target bpf -g -O2 -c`"),
                    );
                }
            }
        }
        // Without all objects, what is missing elsewhere would be guesswork.
        problems.into_result()?;
        let mut check = Check { package: self, objects, problems: Problems::default() };
        check.programs();
        check.variants();
        for (i, parameter) in self.manifest.config.iter().enumerate() {
            check.parameter(parameter, &format!("config[{i}].bind"));
        }
        for (i, metric) in self.manifest.metrics.iter().enumerate() {
            check.metric(metric, &format!("metrics[{i}]"));
        }
        for (i, map) in self.manifest.maps.iter().enumerate() {
            check.declared(map, &format!("maps[{i}]"));
        }
        check.problems.into_result()
    }
}

struct Check<'a> {
    package: &'a Package,
    objects: BTreeMap<&'a str, ObjectFile>,
    problems: Problems,
}

impl Check<'_> {
    fn push(&mut self, at: &str, message: String, remedy: &str) {
        self.problems.push(Problem::new(at, message).remedy(remedy));
    }

    fn missing<'n>(
        &mut self,
        at: &str,
        kind: &str,
        name: &str,
        known: impl Iterator<Item = &'n str> + Clone,
    ) {
        let problem = Problem::new(at, format!("no object has a {kind} \"{name}\""));
        let all: Vec<_> = known.clone().collect();
        self.problems.push(match near::nearest(name, known) {
            Some(near) => problem.remedy(format!("did you mean \"{near}\"?")),
            None if all.is_empty() => problem.remedy(format!("there is no {kind} at all")),
            None => problem.remedy(format!("one of {}", all.join(", "))),
        });
    }

    fn programs(&mut self) {
        let package = self.package;
        for (i, program) in package.manifest.programs.iter().enumerate() {
            for (field, file) in program.objects() {
                self.section(program, file, &format!("programs[{i}].{field}"));
            }
            let Some(object) = self.objects.get(program.object.as_str()) else { continue };
            if object.functions.iter().any(|function| function.name == program.function) {
                continue;
            }
            let names: Vec<_> = object.functions.iter().map(|f| f.name.clone()).collect();
            let at = format!("programs[{i}].function");
            self.missing(&at, "function", &program.function, names.iter().map(String::as_str));
        }
    }

    /// That the function is of a type that the hooks take, as far as its section and context say.
    fn section(&mut self, program: &ManifestProgram, file: &str, at: &str) {
        let object = self.objects.get(file);
        let function = object.and_then(|object| {
            object.functions.iter().find(|function| function.name == program.function)
        });
        let Some(function) = function else { return };
        // `int (struct xdp_md *)`
        let context = function.signature.as_deref().and_then(|signature| {
            let (_, parameters) = signature.split_once("(struct ")?;
            parameters.split_once(" *").map(|(name, _)| name)
        });
        let fit = program.hooks.first().map(|hook| section_fit(*hook, &function.section, context));
        if let Some(SectionFit::Mismatch { reason, hint }) = fit {
            self.push(at, format!("\"{}\" in {file}: {reason}", program.function), &hint);
        }
    }

    /// A variant is the same program: it has what the manifest names in the program's object, in the
    /// same shape, and nothing of that which the object lacks.
    fn variants(&mut self) {
        let manifest = &self.package.manifest;
        let mut told = BTreeSet::new();
        for (p, program) in manifest.programs.iter().enumerate() {
            let plain = program.object.as_str();
            let at_plain = format!("programs[{p}].object");
            for (v, variant) in program.variants.iter().enumerate() {
                let file = variant.object.as_str();
                let at = format!("programs[{p}].variants[{v}].object");
                for thing in manifest.named(program) {
                    let [here, there] = [file, plain].map(|file| {
                        let object = self.objects.get(file)?;
                        shape(object, &thing, manifest)
                    });
                    let (place, said) = match (here, there) {
                        // What the program's object has to have is asked elsewhere.
                        (None, None) => continue,
                        (Some(_), None) if matches!(thing, Thing::Function(_)) => continue,
                        (Some(here), Some(there)) if here == there => continue,
                        (Some(here), Some(there)) => {
                            (&at, format!("{thing} is {here} in {file}, and {there} in {plain}"))
                        }
                        (None, Some(_)) => (&at, format!("{file} has no {thing}, {plain} has")),
                        (Some(_), None) => {
                            (&at_plain, format!("{plain} has no {thing}, {file} has"))
                        }
                    };
                    if told.insert((place.clone(), said.clone())) {
                        self.push(
                            place,
                            said,
                            "define it in the same way in all objects of the program",
                        );
                    }
                }
            }
        }
    }

    /// The maps of that name, one an object at most, sizes overridden by the manifest; none is a
    /// problem.
    fn maps(&mut self, name: &str, at: &str) -> Vec<MapShape> {
        let all = || self.objects.values().flat_map(|object| &object.maps);
        let mut found: Vec<_> = all().filter(|map| map.name == name).cloned().collect();
        if found.is_empty() {
            let names: Vec<_> = all().map(|map| map.name.clone()).collect();
            self.missing(at, "map", name, names.iter().map(String::as_str));
        }
        let overridden = self.package.manifest.maps.iter().find(|map| map.name == name);
        if let Some(entries) = overridden.and_then(|map| map.max_entries) {
            for map in &mut found {
                map.max_entries = Some(entries);
            }
        }
        found
    }

    /// What the manifest says of a map, or of a data section: those are maps of their names.
    fn declared(&mut self, map: &ManifestMap, at: &str) {
        let name = map.name.as_str();
        if !is_data(name) {
            self.maps(name, &format!("{at}.name"));
            return;
        }
        let globals = self.objects.values().flat_map(|object| &object.globals);
        let sections: BTreeSet<String> = globals.map(|global| global.section.clone()).collect();
        // `.data` stands for `.data.x` too.
        let stands_for = |section: &String| {
            section.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if !sections.iter().any(stands_for) {
            let known = sections.iter().map(String::as_str);
            self.missing(&format!("{at}.name"), "data section", name, known);
        }
        if map.max_entries.is_some() {
            self.push(
                &format!("{at}.max_entries"),
                format!("{name} is as large as its variables are"),
                "leave max_entries out",
            );
        }
    }

    fn kind(&mut self, map: &MapShape, kinds: &[u32], words: &str, at: &str) {
        if let Some(kind) = map.kind.filter(|kind| !kinds.contains(kind)) {
            let kind = map_kind(kind).map_or_else(|| kind.to_string(), str::to_owned);
            let message = format!("map \"{}\" is of type {kind}, not {words}", map.name);
            self.push(at, message, "change the map in the source, or bind to another");
        }
    }

    fn sizes(&mut self, map: &MapShape, key: u32, value: u32, at: &str) {
        for (what, wanted, found) in [("key", key, map.key_size), ("value", value, map.value_size)]
        {
            if let Some(found) = found.filter(|found| *found != wanted) {
                let message = format!(
                    "map \"{}\" has a {what} of {found} bytes where {wanted} are needed",
                    map.name
                );
                self.push(at, message, "see the layout of the setting's type in the reference");
            }
        }
    }

    fn room(&mut self, map: &MapShape, needed: u64, at: &str) {
        if let Some(entries) = map.max_entries.filter(|entries| u64::from(*entries) < needed) {
            let message =
                format!("map \"{}\" has room for {entries} entries, not for {needed}", map.name);
            self.push(at, message, "set max on the list, or max_entries on the map");
        }
    }

    fn parameter(&mut self, parameter: &Parameter, at: &str) {
        let items = parameter.max.unwrap_or(bind::LIST_LIMIT);
        match &parameter.bind {
            Bind::Global { global } => {
                self.variable(global, bind::size(parameter), &format!("{at}.global"));
            }
            Bind::Slot { map, slot, value_size, .. } => {
                let at = format!("{at}.map");
                for map in self.maps(map, &at) {
                    self.kind(&map, &[ARRAY], "an array", &at);
                    self.sizes(&map, 4, *value_size, &at);
                    self.room(&map, u64::from(*slot) + 1, &at);
                }
            }
            Bind::Keys { keys } => {
                let at = format!("{at}.keys");
                for map in self.maps(keys, &at) {
                    self.kind(&map, &[HASH, LRU_HASH], "a hash", &at);
                    self.sizes(&map, 2, 4, &at);
                    self.room(&map, items, &at);
                }
            }
            Bind::Prefixes { lpm_v4, lpm_v6, hash_v4, hash_v6, filled } => {
                let maps = [
                    ("lpm_v4", Some(lpm_v4), LPM_TRIE, 8),
                    ("lpm_v6", Some(lpm_v6), LPM_TRIE, 20),
                    ("hash_v4", hash_v4.as_ref(), HASH, 4),
                    ("hash_v6", hash_v6.as_ref(), HASH, 16),
                ];
                for (field, name, kind, key) in maps {
                    let at = format!("{at}.{field}");
                    for map in name.map(|name| self.maps(name, &at)).unwrap_or_default() {
                        let words = if kind == HASH { "a hash" } else { "an LPM trie" };
                        self.kind(&map, &[kind], words, &at);
                        self.sizes(&map, key, 8, &at);
                        self.room(&map, items, &at);
                    }
                }
                if let Some(global) = filled {
                    self.variable(global, 1, &format!("{at}.filled"));
                }
            }
        }
    }

    fn variable(&mut self, name: &str, wanted: u32, at: &str) {
        let all = || self.objects.values().flat_map(|object| &object.globals);
        let found: Vec<_> = all().filter(|global| global.name == name).cloned().collect();
        if found.is_empty() {
            let names: Vec<_> = all().map(|global| global.name.clone()).collect();
            self.missing(at, "global variable", name, names.iter().map(String::as_str));
        }
        for global in found.iter().filter(|global| global.size != u64::from(wanted)) {
            let message = format!(
                "variable \"{name}\" in {} has {} bytes, the setting has {wanted}",
                global.section, global.size
            );
            self.push(at, message, "give both the same type");
        }
    }

    /// That a piece of a map's key or value is what it is read as, where the object's types say.
    fn reads(
        &mut self,
        fields: Option<&[Field]>,
        (map, part): (&str, &str),
        (offset, width, reading): (u32, u32, Reading),
        at: &str,
    ) {
        let wrong = fields.and_then(|fields| contradiction(fields, offset, width, reading));
        if let Some(wrong) = wrong {
            let message = format!("in a {part} of map \"{map}\" {wrong}");
            let hint = match part {
                "key" => {
                    "correct the label's offset or type (be16 and be32 are network byte order)"
                }
                _ => "correct offset or value: u32 is 4 bytes, u64 is 8",
            };
            self.push(&format!("{at}.offset"), message, hint);
        }
    }

    fn metric(&mut self, metric: &Metric, at: &str) {
        let width = match metric.value {
            ValueType::U32 => 4,
            ValueType::U64 => 8,
        };
        for map in self.maps(&metric.map, &format!("{at}.map")) {
            let end = u64::from(metric.offset) + width;
            let counted = matches!(metric.select, Select::Count);
            if let Some(size) = map.value_size.filter(|size| !counted && u64::from(*size) < end) {
                let message = format!(
                    "the value ends at byte {end}, an entry of map \"{}\" has {size}",
                    map.name
                );
                self.push(&format!("{at}.offset"), message, "correct offset or value");
            } else if !counted {
                let width = u32::try_from(width).unwrap_or(u32::MAX);
                let (fields, of) = (map.value_fields.as_deref(), "value");
                self.reads(fields, (&map.name, of), (metric.offset, width, Reading::Host), at);
            }
            let select = format!("{at}.select");
            match &metric.select {
                Select::Slot(slot) => {
                    self.kind(&map, &[ARRAY, PERCPU_ARRAY], "an array", &select);
                    self.room(&map, u64::from(*slot) + 1, &select);
                }
                Select::Items { config, first, .. } => {
                    self.kind(&map, &[ARRAY, PERCPU_ARRAY], "an array", &select);
                    let list = self.package.manifest.config.iter().find(|p| p.name == *config);
                    let items = list.and_then(|p| p.max).unwrap_or(bind::LIST_LIMIT);
                    self.room(&map, u64::from(*first) + items, &select);
                }
                Select::Count => {
                    if matches!(map.kind, Some(ARRAY | PERCPU_ARRAY)) {
                        let message = format!(
                            "map \"{}\" is an array: the number of its entries never changes",
                            map.name
                        );
                        self.push(&select, message, "select slot or total");
                    }
                }
                Select::Total => {}
                Select::Top { labels, .. } => {
                    for (l, label) in labels.iter().enumerate() {
                        let end = u64::from(label.offset) + key_width(label.kind);
                        if let Some(size) = map.key_size.filter(|size| u64::from(*size) < end) {
                            let message = format!(
                                "the label ends at byte {end}, a key of map \"{}\" has {size}",
                                map.name
                            );
                            let at = format!("{select}.top.labels[{l}].offset");
                            self.push(&at, message, "correct offset or type");
                        } else {
                            let width = u32::try_from(key_width(label.kind)).unwrap_or(u32::MAX);
                            let piece = (label.offset, width, reading(label.kind));
                            let at = format!("{select}.top.labels[{l}]");
                            let fields = map.key_fields.as_deref();
                            self.reads(fields, (&map.name, "key"), piece, &at);
                        }
                    }
                }
            }
        }
    }
}

/// Something in an object that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing<'a> {
    Function(&'a str),
    Map(&'a str),
    Global(&'a str),
}

impl fmt::Display for Thing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Function(name) => ("function", name),
            Self::Map(name) => ("map", name),
            Self::Global(name) => ("global variable", name),
        };
        write!(f, "{kind} \"{name}\"")
    }
}

/// What something in an object looks like, in words; `None` where it is not there.
fn shape(object: &ObjectFile, thing: &Thing<'_>, manifest: &Manifest) -> Option<String> {
    let number = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    match thing {
        Thing::Function(name) => {
            let function = object.functions.iter().find(|function| function.name == *name)?;
            Some(function.signature.clone().unwrap_or_else(|| "of unknown type".to_owned()))
        }
        Thing::Map(name) => {
            let map = object.maps.iter().find(|map| map.name == *name)?;
            let kind = map.kind.map(kind_name).unwrap_or_default();
            let declared = manifest.maps.iter().find(|known| known.name == *name);
            let entries = declared.and_then(|map| map.max_entries).or(map.max_entries);
            Some(format!(
                "{kind} with keys of {}, values of {} bytes and {} entries",
                number(map.key_size),
                number(map.value_size),
                number(entries)
            ))
        }
        Thing::Global(name) => {
            let global = object.globals.iter().find(|global| global.name == *name)?;
            Some(format!("{} bytes", global.size))
        }
    }
}

impl Manifest {
    /// Where an object file is named first.
    fn place_of(&self, file: &str) -> String {
        let mut places = self.programs.iter().enumerate().flat_map(|(i, program)| {
            program.objects().map(move |(place, named)| (format!("programs[{i}].{place}"), named))
        });
        places.find(|(_, named)| *named == file).map_or_else(|| "programs".to_owned(), |(at, _)| at)
    }

    /// What is named in a program's objects: its function; any map or variable may be in them.
    fn named<'a>(&'a self, program: &'a ManifestProgram) -> BTreeSet<Thing<'a>> {
        let mut named = BTreeSet::from([Thing::Function(&program.function)]);
        for parameter in &self.config {
            named.extend(parameter.bind.maps().into_iter().map(Thing::Map));
            named.extend(parameter.bind.global().map(Thing::Global));
        }
        named.extend(self.metrics.iter().map(|metric| Thing::Map(&metric.map)));
        named.extend(self.maps.iter().map(|map| Thing::Map(&map.name)));
        named
    }
}

fn key_width(kind: KeyType) -> u64 {
    match kind {
        KeyType::U8 | KeyType::Protocol => 1,
        KeyType::U16 | KeyType::Be16 => 2,
        KeyType::U32 | KeyType::Be32 => 4,
        KeyType::Ip => 16,
    }
}

fn reading(kind: KeyType) -> Reading {
    match kind {
        KeyType::U8 | KeyType::Protocol | KeyType::U16 | KeyType::U32 => Reading::Host,
        KeyType::Be16 | KeyType::Be32 => Reading::Network,
        KeyType::Ip => Reading::Bytes,
    }
}
