//! Programs to measure: `programs/hop.bpf.c` in each of its forms, and the loading of the forms that
//! do not go through Canopy.

use anyhow::{Context, Result, anyhow, bail, ensure};
use canopy_api::Hook;
use canopy_kernel_aya::sys::{self, Map, MapCreate, ProgLoad};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, SymbolKind,
    elf::RelocationType,
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

/// Cells of a hop, as in the source.
pub const CELLS: u32 = 33;
const MAX_HOPS: u32 = 64;

// linux/bpf.h
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const PSEUDO_MAP_FD: u8 = 1;
// The kernel's Documentation/bpf/llvm_reloc.rst
const R_BPF_64_64: RelocationType = RelocationType(1);
const R_BPF_64_32: RelocationType = RelocationType(10);

/// `position()` of the source: the second half of a 16-byte load of the constant.
const POSITION: [u8; 12] = *b"noit\0\0\0\0isop";

/// What a hop does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Nothing.
    Empty,
    /// Reads it down to its ports.
    Parsing,
}

impl Work {
    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Parsing => "parsing",
        }
    }
}

/// How a hop leads to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// It does not: a program alone, or to be fused.
    Plain,
    /// A generated wrapper calls it and goes on by tail call.
    Wrapper,
    /// It goes on by tail call itself.
    Cooperative,
}

/// The objects of every form, compiled once.
#[derive(Debug, Default)]
pub struct Objects(BTreeMap<(bool, Work, Form), Vec<u8>>);

impl Objects {
    /// The object of the hop at `position`, a program of its own.
    pub fn hop(&mut self, hook: Hook, work: Work, form: Form, position: u32) -> Result<Vec<u8>> {
        let key = (hook == Hook::Xdp, work, form);
        let mut object = match self.0.entry(key) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(place) => place.insert(compile(hook, work, form)?).clone(),
        };
        let mut places = 0;
        let mut at = 0;
        while let Some(window) = object.get_mut(at..at + POSITION.len()) {
            if window == POSITION {
                let (low, rest) = window.split_at_mut(4);
                low.copy_from_slice(&position.to_le_bytes());
                rest.fill(0);
                places += 1;
            }
            at += 1;
        }
        ensure!(places > 0, "the object has no place for a position");
        Ok(object)
    }
}

fn compile(hook: Hook, work: Work, form: Form) -> Result<Vec<u8>> {
    let mut options = Vec::new();
    if hook != Hook::Xdp {
        options.push("-DHOOK_TC");
    }
    if work == Work::Parsing {
        options.push("-DPARSING");
    }
    match form {
        Form::Plain => {}
        Form::Wrapper => options.push("-DWRAPPER"),
        Form::Cooperative => options.push("-DCOOPERATIVE"),
    }
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("hop.o");
    let source = canopy_test_support::repository().join("tests/bench/programs/hop.bpf.c");
    canopy_test_support::compile_with(&source, &out, &options)?;
    Ok(std::fs::read(&out)?)
}

/// A program loaded as it is, without Canopy.
pub fn load_plain(objects: &mut Objects, hook: Hook, work: Work) -> Result<OwnedFd> {
    load(&objects.hop(hook, work, Form::Plain, 0)?, hook, &BTreeMap::new())
}

/// Programs that lead to each other by tail call.
#[derive(Debug)]
pub struct TailCalls {
    /// The first; the others are in its map.
    pub first: OwnedFd,
    /// Where each counts.
    pub cells: Map,
    /// A program array forgets its programs when its last user goes.
    _hops: Map,
}

impl TailCalls {
    /// Loads `n` hops of one form.
    pub fn new(objects: &mut Objects, hook: Hook, work: Work, form: Form, n: u32) -> Result<Self> {
        let map = |name, map_type, value_size, max_entries| {
            let map = MapCreate {
                map_type,
                key_size: 4,
                value_size,
                max_entries,
                name,
                ..MapCreate::default()
            };
            sys::map_create(&map).with_context(|| format!("create the map {name}"))
        };
        let hops = map("hops", MAP_TYPE_PROG_ARRAY, 4, MAX_HOPS)?;
        let cells = map("cells", MAP_TYPE_PERCPU_ARRAY, 8, MAX_HOPS * CELLS)?;
        let maps = BTreeMap::from([("hops", hops.as_raw_fd()), ("cells", cells.as_raw_fd())]);
        let mut programs = Vec::new();
        for position in 0..n {
            programs.push(load(&objects.hop(hook, work, form, position)?, hook, &maps)?);
        }
        let hops = Map::new(hops)?;
        for (position, program) in (0..n).zip(&programs) {
            let fd = program.as_fd().as_raw_fd();
            hops.update(&position.to_ne_bytes(), &fd.to_ne_bytes(), 0)
                .context("put a program into the map of hops")?;
        }
        let first = programs.into_iter().next().context("a chain has at least one hop")?;
        Ok(Self { first, cells: Map::new(cells)?, _hops: hops })
    }
}

/// Loads an object's `hop`, and the functions it calls, with these maps.
fn load(object: &[u8], hook: Hook, maps: &BTreeMap<&str, i32>) -> Result<OwnedFd> {
    let code = link(object, maps)?;
    let prog_type = if hook == Hook::Xdp { PROG_TYPE_XDP } else { PROG_TYPE_SCHED_CLS };
    sys::prog_load(&ProgLoad::new(prog_type, &code, "GPL", "hop"))
        .map_err(|rejected| anyhow!("the kernel refused the program: {}", rejected.log))
}

/// The instructions of `hop` and behind it those of the section's other functions, with map
/// descriptors and call distances filled in. As much of a linker as these programs need.
fn link(object: &[u8], maps: &BTreeMap<&str, i32>) -> Result<Vec<u8>> {
    let file = object::File::parse(object)?;
    let hop = file.symbol_by_name("hop").context("the object has no function hop")?;
    let section = file.section_by_index(hop.section_index().context("hop has no section")?)?;
    let text = section.data()?;

    let mut functions: Vec<_> = file
        .symbols()
        .filter(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.section_index() == hop.section_index()
        })
        .collect();
    functions.sort_by_key(|symbol| symbol.index() != hop.index());
    let mut code = Vec::with_capacity(text.len());
    let mut placed = Vec::new();
    for function in &functions {
        let start = usize::try_from(function.address())?;
        let end = start + usize::try_from(function.size())?;
        placed.push((start..end, code.len(), function.index()));
        code.extend(text.get(start..end).context("a function reaches beyond its section")?);
    }
    let place = |offset: usize| {
        placed
            .iter()
            .find(|(range, ..)| range.contains(&offset))
            .map(|(range, at, _)| offset - range.start + at)
            .context("a relocation lies outside the functions")
    };

    for (offset, relocation) in section.relocations() {
        let at = place(usize::try_from(offset)?)?;
        let object::RelocationTarget::Symbol(index) = relocation.target() else {
            bail!("a relocation without a symbol");
        };
        let symbol = file.symbol_by_index(index)?;
        let name = symbol.name()?;
        let RelocationFlags::Elf { r_type } = relocation.flags() else {
            bail!("not an ELF relocation");
        };
        let value = match r_type {
            R_BPF_64_64 => {
                let register = code.get_mut(at + 1).context("an instruction is cut short")?;
                *register = (*register & 0x0f) | (PSEUDO_MAP_FD << 4);
                *maps.get(name).with_context(|| format!("there is no map {name}"))?
            }
            R_BPF_64_32 => {
                let target = placed.iter().find(|(.., function)| *function == index);
                let (_, target, _) =
                    target.with_context(|| format!("there is no function {name}"))?;
                i32::try_from(target / 8)? - i32::try_from(at / 8)? - 1
            }
            other => bail!("relocation {} of {name} is not known", other.0),
        };
        code.get_mut(at + 4..at + 8)
            .context("an instruction is cut short")?
            .copy_from_slice(&value.to_ne_bytes());
    }
    Ok(code)
}
