//! An object ready to be linked: functions fitted to this kernel, maps, lines and types; and the
//! linking of one entry function with what it calls.

use crate::{
    btf_ext::{BtfExt, Record},
    core_relocate::{self, Relocated},
    datasec,
    elf::{Elf, Function, ObjectError, Section},
    externs::{Externs, Resolution},
    kconfig::{self, Configuration},
    kernel_btf::{KernelBtf, essential_name},
    layout,
    object_maps::{self, MapDef},
    writes::Writes,
};
use canopy_chain::{
    Attachment, Code, KernelCall, Line, MapLoad,
    btf::{Btf, Type, kind},
    insn::{Insn, PSEUDO_CALL, PSEUDO_FUNC, PSEUDO_MAP, PSEUDO_MAP_VALUE, SIZE},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// `BPF_PSEUDO_KFUNC_CALL`
const PSEUDO_KFUNC: u8 = 2;
/// Bytes of an instruction, for addresses relative to others.
const INSN: i64 = 8;
/// `BPF_PSEUDO_BTF_ID`
const PSEUDO_BTF_ID: u8 = 3;
/// Functions of a program, with its entry: the kernel's `BPF_MAX_SUBPROGS`.
const FUNCTIONS: usize = 256;
/// What a program may refer to of the kernel: its `MAX_KFUNC_DESCS`.
const OUTSIDE: usize = 256;
/// Instructions linked for looking at a whole object.
const LINKED: usize = 16_000_000;
/// Bytes of objects kept parsed: more than the members of a large chain and of its next version.
const CACHE: usize = 32 << 20;

/// An object file, parsed and fitted to this kernel.
#[derive(Debug)]
pub(crate) struct Object {
    elf: Elf,
    pub(crate) btf: Option<Arc<[u8]>>,
    /// The same as the compiler wrote it, for kernels that do not take [`Self::btf`].
    pub(crate) plain_btf: Option<Arc<[u8]>>,
    notes: Notes,
    externs: Externs,
    /// What its CO-RE relocations left to be known when it is linked.
    relocated: Relocated,
    pub(crate) maps: Vec<MapDef>,
    /// See [`Self::layout`].
    layouts: OnceLock<Vec<u64>>,
    /// See [`Self::writes`].
    writes: OnceLock<Writes>,
    types: Mutex<Vec<Types>>,
}

/// The types of a function that was composed alone, as the kernel takes them.
#[derive(Debug)]
struct Types {
    function: String,
    attachment: Attachment,
    btf: Arc<[u8]>,
}

/// What `.BTF.ext` says of functions and lines, found by section. Sections of one name are one here, as
/// they are there.
#[derive(Debug, Default)]
struct Notes {
    /// The first section of each name.
    sections: BTreeMap<String, usize>,
    /// The type of the function at an offset of a section.
    types: BTreeMap<(usize, u32), u32>,
    /// The lines of a section, by offset.
    lines: BTreeMap<usize, Vec<[u32; 4]>>,
}

impl Notes {
    fn new(elf: &Elf, btf: &Btf<'_>, ext: &BtfExt) -> Self {
        let mut notes = Self::default();
        for (index, section) in elf.sections.iter().enumerate() {
            notes.sections.entry(section.name.clone()).or_insert(index);
        }
        let mut known = BTreeMap::new();
        let sections = &notes.sections;
        let mut section = |name: u32| -> Option<usize> {
            *known.entry(name).or_insert_with(|| sections.get(btf.string(name)).copied())
        };
        for Record { section: name, words: [offset, id] } in &ext.functions {
            if let Some(section) = section(*name) {
                notes.types.entry((section, *offset)).or_insert(*id);
            }
        }
        for Record { section: name, words } in &ext.lines {
            if let Some(section) = section(*name) {
                notes.lines.entry(section).or_default().push(*words);
            }
        }
        for lines in notes.lines.values_mut() {
            lines.sort_by_key(|[offset, ..]| *offset);
        }
        notes
    }

    /// The type of a function.
    fn type_of(&self, section: &Section, address: u64) -> Option<u32> {
        let section = self.sections.get(&section.name)?;
        self.types.get(&(*section, u32::try_from(address).ok()?)).copied()
    }

    /// The lines of a part of a section.
    fn lines_in(&self, section: &Section, part: Range<u64>) -> &[[u32; 4]] {
        let section = self.sections.get(&section.name);
        let lines = section.and_then(|section| self.lines.get(section));
        let lines = lines.map(Vec::as_slice).unwrap_or_default();
        let before = |end: u64| lines.partition_point(|[offset, ..]| u64::from(*offset) < end);
        lines.get(before(part.start)..before(part.end)).unwrap_or_default()
    }
}

type Cached = (Arc<[u8]>, Arc<Object>);
static OBJECTS: Mutex<VecDeque<Cached>> = Mutex::new(VecDeque::new());

impl Object {
    /// Parses an object, or takes it from the cache: fitting it to the kernel takes 10 to 20 ms.
    pub(crate) fn get(bytes: &Arc<[u8]>) -> Result<Arc<Self>, ObjectError> {
        let same = |known: &Arc<[u8]>| Arc::ptr_eq(known, bytes) || known == bytes;
        let objects = || OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, object)) = objects().iter().find(|(known, _)| same(known)) {
            return Ok(Arc::clone(object));
        }
        let object = Arc::new(Self::parse(bytes)?);
        let mut objects = objects();
        objects.push_front((Arc::clone(bytes), Arc::clone(&object)));
        let mut bytes = 0;
        objects.retain(|(object, _)| {
            bytes += object.len();
            bytes <= CACHE
        });
        Ok(object)
    }

    /// Parses an object and applies its CO-RE relocations.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let mut elf = Elf::parse(bytes)?;
        let btf: Option<Arc<[u8]>> = elf
            .section(".BTF")
            .filter(|section| !section.data.is_empty())
            .map(|section| Arc::from(section.data.as_slice()));
        let parsed = btf
            .as_ref()
            .map(|raw| Btf::parse(raw))
            .transpose()
            .map_err(|error| ObjectError::Malformed(error.to_string()))?;
        let mut maps = object_maps::parse(&elf, parsed.as_ref())?;
        let configuration = parsed.as_ref().and_then(Configuration::new);
        maps.extend(configuration.as_ref().and_then(object_maps::kernel_configuration));
        let ext = elf.section(".BTF.ext").filter(|_| btf.is_some()).map(|section| {
            BtfExt::parse(&section.data)
                .ok_or_else(|| ObjectError::Malformed(".BTF.ext is not whole".to_owned()))
        });
        let ext = ext.transpose()?.unwrap_or_default();
        let notes = parsed.as_ref().map(|btf| Notes::new(&elf, btf, &ext)).unwrap_or_default();
        let (mut relocated, mut externs) = (Relocated::default(), Externs::default());
        if let Some(parsed) = &parsed {
            relocated =
                core_relocate::relocate(&mut elf, parsed, &ext.relocations, &notes.sections)?;
            externs = Externs::new(parsed, configuration.as_ref());
        }
        let sections = object_maps::data_sections(&maps);
        let settled = btf.as_ref().zip(parsed.as_ref());
        let settled = settled.and_then(|(raw, btf)| datasec::settled(raw, btf, &elf, &sections));
        let plain_btf = btf.clone();
        let btf = settled.map(Arc::from).or(btf);
        if let Some(parsed) = btf.as_ref().and_then(|raw| Btf::parse(raw).ok()) {
            object_maps::type_values(&mut maps, &parsed);
        }
        let (layouts, writes, types) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        Ok(Self { elf, btf, plain_btf, notes, externs, relocated, maps, layouts, writes, types })
    }

    /// The maps that an object declares `LIBBPF_PIN_BY_NAME`.
    pub(crate) fn pinned_by_name(bytes: &[u8]) -> Result<Vec<String>, ObjectError> {
        let elf = Elf::parse(bytes)?;
        let types = elf.section(".BTF").map(|section| section.data.clone()).unwrap_or_default();
        let types = (!types.is_empty()).then(|| Btf::parse(&types)).transpose();
        let types = types.map_err(|error| ObjectError::Malformed(error.to_string()))?;
        let maps = object_maps::parse(&elf, types.as_ref())?;
        Ok(maps.into_iter().filter(|map| map.pinned).map(|map| map.name).collect())
    }

    /// The types of a function, as `compose` makes them when it is asked for the first time.
    pub(crate) fn types<E>(
        &self,
        function: &str,
        attachment: Attachment,
        compose: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<[u8]>, E> {
        let known = || self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |types: &&Types| types.function == function && types.attachment == attachment;
        if let Some(types) = known().iter().find(same) {
            return Ok(Arc::clone(&types.btf));
        }
        let btf: Arc<[u8]> = compose()?.into();
        let function = function.to_owned();
        known().push(Types { function, attachment, btf: Arc::clone(&btf) });
        Ok(btf)
    }

    /// The number of a map's layout.
    pub(crate) fn layout(&self, map: usize) -> Option<u64> {
        self.layouts.get_or_init(|| layout::numbers(self)).get(map).copied()
    }

    /// What its own programs write in its maps and variables.
    pub(crate) fn writes(&self) -> &Writes {
        self.writes.get_or_init(|| Writes::of(self))
    }

    /// Its programs, each linked with what it calls, without those that cannot be. What lies in `.text`
    /// is only called.
    pub(crate) fn programs(&self) -> impl Iterator<Item = Code> {
        let is_program = |function: &&Function| {
            self.elf.sections.get(function.section).is_some_and(|section| section.name != ".text")
        };
        let functions = self.elf.functions.iter().filter(is_program);
        functions.filter_map(|function| self.link(&function.name).ok())
    }

    /// The maps that a map of maps holds from the start.
    pub(crate) fn held_maps(&self, def: &MapDef) -> impl Iterator<Item = usize> {
        let names = def.values.iter().filter_map(|(_, symbol)| self.symbol(*symbol));
        names.filter_map(|name| {
            self.maps.iter().position(|map| map.data.is_none() && map.name == name)
        })
    }

    /// Parses an object and links every function of it, as an entry; their names.
    pub(crate) fn read_whole(bytes: &[u8]) -> Result<Vec<String>, ObjectError> {
        let object = Self::parse(bytes)?;
        let mut room = LINKED;
        for function in &object.elf.functions {
            let code = object.link(&function.name)?;
            room = room.saturating_sub(code.instructions.len());
            if room == 0 {
                return Err(ObjectError::Malformed(format!(
                    "its functions are more than {LINKED} instructions, each with what it calls"
                )));
            }
        }
        Ok(object.elf.functions.into_iter().map(|function| function.name).collect())
    }

    /// The data sections among these maps with addresses in them, which the kernel has no way to give:
    /// programs read numbers there.
    pub(crate) fn lost_pointers(&self, used: &BTreeSet<usize>) -> impl Iterator<Item = String> {
        let used = used.iter().filter_map(|map| self.maps.get(*map));
        used.filter(|map| map.data.is_some()).filter_map(|map| {
            let section = self.elf.sections.get(map.section)?;
            let count = section.relocations.len();
            let first = section.relocations.values().next()?;
            let target = self.symbol(*first).filter(|name| !name.is_empty());
            let target = target.map_or_else(String::new, |name| format!(" (the first: \"{name}\")"));
            Some(format!(
                "{count} addresses in section \"{}\"{target} are not filled in: eBPF has no pointers \
                 in data",
                map.name
            ))
        })
    }

    /// The name of the ELF section a function lies in.
    pub(crate) fn section_of(&self, function: &str) -> Option<&str> {
        let found = self.elf.functions.iter().find(|known| known.name == function)?;
        self.elf.sections.get(found.section).map(|section| section.name.as_str())
    }

    /// The name of the struct that a function's first parameter points to, where its type says it.
    pub(crate) fn context_of(&self, function: &str) -> Option<String> {
        let btf = Btf::parse(self.btf.as_ref()?).ok()?;
        let is_function = |ty: &Type<'_>| ty.kind == kind::FUNC && btf.string(ty.name) == function;
        let (_, ty) = btf.iter().find(|(_, ty)| is_function(ty))?;
        let (_, prototype) = btf.resolve(ty.size_or_type)?;
        // A parameter is two words: its name and its type.
        let takes = prototype.kind == kind::FUNC_PROTO && prototype.vlen > 0;
        let first = takes.then(|| prototype.word(1))?;
        let (_, pointer) = btf.resolve(first).filter(|(_, ty)| ty.kind == kind::PTR)?;
        let (_, context) = btf.resolve(pointer.size_or_type)?;
        let named = matches!(context.kind, kind::STRUCT | kind::FWD);
        named.then(|| btf.string(context.name).to_owned())
    }

    /// The licence the object declares; empty when it declares none.
    pub(crate) fn licence(&self) -> &str {
        &self.elf.licence
    }

    /// The name of a symbol.
    pub(crate) fn symbol(&self, index: usize) -> Option<&str> {
        self.elf.symbols.get(index).map(|symbol| symbol.name.as_str())
    }

    /// Where a global variable lies: the data section's map, the offset, its size in bytes.
    pub(crate) fn global(&self, name: &str) -> Option<(usize, usize, usize)> {
        self.elf.symbols.iter().filter(|symbol| symbol.name == name).find_map(|symbol| {
            let section = symbol.section?;
            let map = self.maps.iter().position(|m| m.section == section && m.data.is_some())?;
            Some((map, usize::try_from(symbol.address).ok()?, usize::try_from(symbol.size).ok()?))
        })
    }

    /// The variables of a data section: name, offset, size; by offset.
    pub(crate) fn variables(&self, map: &MapDef) -> Vec<(&str, u64, u64)> {
        let mut variables: Vec<_> = self
            .elf
            .symbols
            .iter()
            .filter(|symbol| symbol.section == Some(map.section) && symbol.size > 0)
            .map(|symbol| (symbol.name.as_str(), symbol.address, symbol.size))
            .collect();
        variables.sort_by_key(|(name, address, _)| (*address, *name));
        variables
    }

    /// Links a function with everything it calls. Map loads name maps by index in [`Self::maps`];
    /// places in data sections are in the second slots.
    pub(crate) fn link(&self, entry: &str) -> Result<Code, ObjectError> {
        let first = self.elf.functions.iter().position(|function| function.name == entry);
        let first = first.ok_or_else(|| ObjectError::NoFunction {
            name: entry.to_owned(),
            have: self.elf.functions.iter().map(|function| function.name.clone()).collect(),
        })?;
        Linker {
            object: self,
            code: Code::default(),
            placed: BTreeMap::new(),
            todo: Vec::new(),
            outside: BTreeMap::new(),
        }
        .link(first)
    }
}

/// One linking in progress.
struct Linker<'a> {
    object: &'a Object,
    code: Code,
    /// Where each function went.
    placed: BTreeMap<usize, usize>,
    /// Instructions that refer to a function, to be resolved when all are placed.
    todo: Vec<(usize, usize)>,
    /// What is known of the kernel's functions and variables that it refers to, by symbol and whether
    /// it is called.
    outside: BTreeMap<(usize, bool), Option<u32>>,
}

impl Linker<'_> {
    fn link(mut self, first: usize) -> Result<Code, ObjectError> {
        let mut queue = VecDeque::from([first]);
        while let Some(number) = queue.pop_front() {
            if self.placed.contains_key(&number) {
                continue;
            }
            if self.placed.len() == FUNCTIONS {
                return Err(ObjectError::Unsupported {
                    what: format!("it calls more than {} functions", FUNCTIONS - 1),
                    remedy: "the kernel takes no more in a program: inline some".to_owned(),
                });
            }
            let from = self.todo.len();
            self.place(number)?;
            queue.extend(self.todo.iter().skip(from).map(|(_, target)| *target));
        }
        for (at, target) in &self.todo {
            let start = self.placed.get(target).copied().unwrap_or(0);
            let distance = i32::try_from(start).ok().zip(i32::try_from(*at).ok());
            if let (Some(insn), Some((start, at))) = (self.code.instructions.get_mut(*at), distance)
            {
                insn.imm = start - at - 1;
            }
        }
        self.code.btf.clone_from(&self.object.btf);
        Ok(self.code)
    }

    /// Appends a function and resolves what its instructions refer to.
    fn place(&mut self, number: usize) -> Result<(), ObjectError> {
        let object = self.object;
        let (Some(function), base) =
            (object.elf.functions.get(number), self.code.instructions.len())
        else {
            return Ok(());
        };
        let Some(section) = object.elf.sections.get(function.section) else { return Ok(()) };
        self.placed.insert(number, base);
        self.info(function, section, base);
        self.code.instructions.extend_from_slice(&function.instructions);

        let mut second_slot = false;
        for (index, insn) in function.instructions.iter().enumerate() {
            if std::mem::replace(&mut second_slot, insn.is_load64()) {
                second_slot = false;
                continue;
            }
            let offset = function.address + (index * SIZE) as u64;
            let place = (function.section, offset);
            if self.object.relocated.own_types.contains(&place) {
                self.code.type_ids.push(base + index);
            }
            if let Some(missing) = self.object.relocated.unresolved.get(&place) {
                self.code.missing.insert(base + index, missing.clone());
            }
            if let Some(symbol) = section.relocations.get(&offset) {
                self.refer(function, base + index, *insn, *symbol)?;
            } else if insn.is_local_call() {
                let target = i64::try_from(offset / SIZE as u64).unwrap_or(i64::MAX)
                    + i64::from(insn.imm)
                    + 1;
                self.refer_to(function, base + index, function.section, target * INSN)?;
            }
        }
        Ok(())
    }

    /// The function's type and lines.
    fn info(&mut self, function: &Function, section: &Section, base: usize) {
        let end = function.address + (function.instructions.len() * SIZE) as u64;
        self.code.functions.push(canopy_chain::Function {
            name: function.name.clone(),
            start: base,
            btf: self.object.notes.type_of(section, function.address),
        });
        let lines = self.object.notes.lines_in(section, function.address..end);
        self.code.lines.extend(lines.iter().map(|[offset, file, text, position]| {
            let within = u64::from(*offset) - function.address;
            let at = base + usize::try_from(within).unwrap_or(0) / SIZE;
            Line { at, file: *file, text: *text, position: *position }
        }));
    }

    /// Resolves an instruction that refers to a symbol.
    fn refer(
        &mut self,
        function: &Function,
        at: usize,
        insn: Insn,
        symbol: usize,
    ) -> Result<(), ObjectError> {
        let object = self.object;
        let malformed =
            |what: String| ObjectError::Malformed(format!("function \"{}\" {what}", function.name));
        let number = symbol;
        let symbol = object
            .elf
            .symbols
            .get(number)
            .ok_or_else(|| malformed("refers to a symbol that is not there".to_owned()))?;
        let Some(section) = symbol.section else {
            return self.refer_outside(at, insn, number, symbol);
        };
        let executable = object.elf.sections.get(section).is_some_and(|s| s.executable);
        let address = i64::try_from(symbol.address).unwrap_or(i64::MAX);
        if executable {
            // A call's immediate is the distance in instructions less one, a load's is in bytes;
            // both are from the symbol.
            let distance = if insn.is_load64() {
                i64::from(insn.imm)
            } else {
                (i64::from(insn.imm) + 1) * INSN
            };
            return self.refer_to(function, at, section, address.saturating_add(distance));
        }
        if !insn.is_load64() {
            return Err(malformed(format!("calls \"{}\", which is not code", symbol.name)));
        }
        // Data sections are one map each; declared maps are found by where their symbol lies.
        let place = address.saturating_add(i64::from(insn.imm));
        let in_arena =
            |map: &MapDef| map.arena.as_ref().is_some_and(|arena| arena.section == section);
        let map = object.maps.iter().position(|map| {
            in_arena(map)
                || map.section == section
                    && (map.data.is_some()
                        || i64::try_from(map.address).is_ok_and(|at| at == place))
        });
        let map = map.ok_or_else(|| {
            malformed(format!("refers to \"{}\", which is neither a map nor data", symbol.name))
        })?;
        let data = object.maps.get(map).is_some_and(|map| map.data.is_some() || in_arena(map));
        self.code.maps.push(MapLoad { at, map });
        if let Some(insn) = self.code.instructions.get_mut(at) {
            insn.src = if data { PSEUDO_MAP_VALUE } else { PSEUDO_MAP };
            insn.imm = 0;
        }
        if data && let Some(second) = self.code.instructions.get_mut(at + 1) {
            second.imm = i32::try_from(place)
                .map_err(|_| malformed(format!("refers far outside \"{}\"", symbol.name)))?;
        }
        Ok(())
    }

    /// Resolves an instruction that refers to a function of the object.
    fn refer_to(
        &mut self,
        function: &Function,
        at: usize,
        section: usize,
        address: i64,
    ) -> Result<(), ObjectError> {
        let target = u64::try_from(address)
            .ok()
            .and_then(|address| self.object.elf.function_at(section, address))
            .ok_or_else(|| {
                ObjectError::Malformed(format!(
                    "function \"{}\" calls something that is not the start of a function",
                    function.name
                ))
            })?;
        if let Some(insn) = self.code.instructions.get_mut(at) {
            insn.src = if insn.is_load64() { PSEUDO_FUNC } else { PSEUDO_CALL };
        }
        self.todo.push((at, target));
        Ok(())
    }

    /// The kernel's id of what an instruction refers to without a declaration.
    fn undeclared(
        &mut self,
        number: usize,
        insn: Insn,
        name: &str,
    ) -> Result<Option<u32>, ObjectError> {
        let at = (number, insn.is_load64());
        if let Some(known) = self.outside.get(&at) {
            return Ok(*known);
        }
        if self.outside.len() == OUTSIDE {
            return Err(ObjectError::Unsupported {
                what: format!("it refers to more than {OUTSIDE} things of the kernel"),
                remedy: "the kernel takes no more in a program: leave some out".to_owned(),
            });
        }
        let kernel = KernelBtf::get()?;
        let id = if insn.is_load64() {
            kernel.find(name, kind::VAR).or_else(|| kernel.find(name, kind::FUNC))
        } else {
            kernel.find(essential_name(name), kind::FUNC)
        };
        self.outside.insert(at, id);
        Ok(id)
    }

    /// Resolves an instruction that refers to something of the kernel.
    fn refer_outside(
        &mut self,
        at: usize,
        insn: Insn,
        number: usize,
        symbol: &crate::elf::Symbol,
    ) -> Result<(), ObjectError> {
        let (name, call) = (&symbol.name, !insn.is_load64());
        let resolution = match self.object.externs.resolve(name, symbol.weak, call) {
            Some(resolution) => resolution.map_err(|unresolved| ObjectError::Unsupported {
                what: unresolved.what,
                remedy: unresolved.remedy.to_owned(),
            })?,
            None => match self.undeclared(number, insn, name)? {
                Some(id) => Resolution::Kernel(id),
                None if symbol.weak && call => Resolution::Kernel(0),
                None if symbol.weak => Resolution::Number(0),
                None => return Err(undefined(name)),
            },
        };
        if call {
            let (name, weak) = (name.clone(), symbol.weak);
            self.code.kernel_calls.push(KernelCall { at, name, weak });
        }
        self.put(at, call, &resolution)
    }

    /// Puts into an instruction what it refers to.
    fn put(&mut self, at: usize, call: bool, resolution: &Resolution) -> Result<(), ObjectError> {
        let far = || ObjectError::Malformed("it refers to something far outside".to_owned());
        let kernel_id = |id: u32| i32::try_from(id).map_err(|_| far());
        let (Some(insn), second) =
            (self.code.instructions.get(at).copied(), self.code.instructions.get(at + 1).copied())
        else {
            return Ok(());
        };
        let (insn, second) = match *resolution {
            Resolution::Kernel(id) if call => {
                (Insn { src: PSEUDO_KFUNC, off: 0, imm: kernel_id(id)?, ..insn }, None)
            }
            Resolution::Kernel(id) => (
                Insn { src: PSEUDO_BTF_ID, imm: kernel_id(id)?, ..insn },
                second.map(|second| Insn { imm: 0, ..second }),
            ),
            Resolution::Number(number) => {
                let [low, high] = halves(number);
                (
                    Insn { src: 0, imm: low, ..insn },
                    second.map(|second| Insn { imm: high, ..second }),
                )
            }
            Resolution::Configured(offset) => {
                let map = self
                    .object
                    .maps
                    .iter()
                    .position(|map| map.section == usize::MAX && map.name == kconfig::SECTION);
                self.code.maps.push(MapLoad { at, map: map.ok_or_else(far)? });
                let offset = i32::try_from(offset).map_err(|_| far())?;
                (
                    Insn { src: PSEUDO_MAP_VALUE, imm: 0, ..insn },
                    second.map(|second| Insn { imm: offset, ..second }),
                )
            }
        };
        for (place, insn) in [(at, Some(insn)), (at + 1, second)] {
            if let (Some(place), Some(insn)) = (self.code.instructions.get_mut(place), insn) {
                *place = insn;
            }
        }
        Ok(())
    }
}

/// The two halves of a number, as a wide load has them: low, high.
fn halves(number: u64) -> [i32; 2] {
    let low = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
    let high = u32::try_from(number >> 32).unwrap_or(0);
    [low.cast_signed(), high.cast_signed()]
}

/// A symbol that is defined nowhere: not in the object, not declared to be the kernel's, not in it.
fn undefined(name: &str) -> ObjectError {
    // Rust's mangled names have the paths of their crates in them.
    let panics =
        ["panic", "unwrap_failed", "expect_failed", "_fail"].iter().any(|part| name.contains(part))
            && name.starts_with('_');
    let remedy = if panics {
        "the program can panic there, and no eBPF program may: build it with optimisation, and use \
         checked operations (get, checked_add) instead of what panics"
    } else {
        "link the object with the one that defines the function, have it inlined, or, if the kernel \
         has it, declare it __ksym"
    };
    ObjectError::Unsupported {
        what: format!(
            "it refers to \"{name}\", which is defined neither in the object nor in this \
                       kernel"
        ),
        remedy: remedy.to_owned(),
    }
}
