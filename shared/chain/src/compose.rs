//! Composing: members in, one program out.

use crate::{
    btf::{FUNC_GLOBAL, FUNC_STATIC, Import, Merger, kind},
    error::ComposeError,
    inline::Inlined,
    insn::Insn,
    licence::gpl_compatible,
    limits,
    main_program::{self, Step},
    member::{Map, Member},
};
use canopy_api::Hook;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where the chain will hang, which decides what its return value has to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// XDP. Verdicts are returned as they are.
    Xdp,
    /// TC by a TCX link: `ok`, `pipe` and `unspec` become `TCX_NEXT`, so that TCX programs of others
    /// still run; `stolen`, `queued` and `trap`, which TCX would deliver, become `shot`.
    Tcx,
    /// TC by a direct-action filter of a clsact qdisc: `ok` becomes `unspec`, so that filters of
    /// others behind it still run; what else is returned the kernel takes as it always has.
    Clsact,
}

impl Attachment {
    /// What is added to a return value to get its verdict slot: `TC_ACT_UNSPEC` is -1.
    pub(crate) fn bias(self) -> i32 {
        match self {
            Self::Xdp => 0,
            Self::Tcx | Self::Clsact => 1,
        }
    }

    /// A hook of that kind: the two TC hooks count alike.
    pub(crate) fn hook(self) -> Hook {
        match self {
            Self::Xdp => Hook::Xdp,
            Self::Tcx | Self::Clsact => Hook::TcIngress,
        }
    }

    /// The name of the generated `main`, which is the program's in the kernel.
    pub fn main(self) -> &'static str {
        match self {
            Self::Xdp => "canopy_xdp",
            Self::Tcx | Self::Clsact => "canopy_tc",
        }
    }

    /// The type of the programs' context.
    fn context(self) -> &'static str {
        match self {
            Self::Xdp => "xdp_md",
            Self::Tcx | Self::Clsact => "__sk_buff",
        }
    }
}

/// A program for the kernel, less its map descriptors.
#[derive(Clone, Debug)]
pub struct Composed {
    /// All instructions.
    pub instructions: Vec<Insn>,
    /// The maps to fill in, rising by instruction.
    pub loads: Vec<Load>,
    /// Contents of the one read-only map that stands for the members' constant data sections, when
    /// there would be too many maps otherwise.
    pub constants: Option<Vec<u8>>,
    /// The merged BTF.
    pub btf: Vec<u8>,
    /// `struct bpf_func_info` records, 8 bytes each.
    pub func_info: Vec<u8>,
    /// `struct bpf_line_info` records, 16 bytes each.
    pub line_info: Vec<u8>,
    /// The licence to load it with.
    pub licence: String,
    /// Whether it may be given multi-buffer packets: every member handles them.
    pub frags: bool,
    /// The functions' names as the kernel will show them, in order.
    pub functions: Vec<String>,
    /// Members that lie inside `main`; not 0 only for [`Shape::Inlined`].
    pub inlined: usize,
}

/// A load of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The first of the two slots; its immediate is to be the map's descriptor.
    pub at: usize,
    /// Which map.
    pub map: MapSource,
}

/// Which map a load means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapSource {
    /// The chain's accounting: a per-CPU array of one entry of [`crate::cells::value_size`] bytes.
    Cells,
    /// A member's map, both by index.
    Member(usize, usize),
    /// A map holding [`Composed::constants`], read-only to programs and frozen.
    Constants,
}

/// The types that programs are loaded with: those of their objects, and their functions'.
///
/// Programs that share maps whose values hold objects of their own types (lists, trees, pointers) have
/// to be loaded with one and the same BTF, which those maps are made with.
#[derive(Clone, Debug)]
pub struct Types {
    attachment: Attachment,
    merger: Merger,
    prototype: u32,
    own_prototype: u32,
    /// The types of functions that are not an object's own, by name and linkage.
    functions: HashMap<(String, u16), u32>,
}

impl Types {
    fn new<'a>(
        attachment: Attachment,
        members: impl IntoIterator<Item = &'a Member>,
    ) -> Result<Self, ComposeError> {
        let mut merger = Merger::default();
        // Objects first: the types of the first one keep their ids.
        for member in members {
            import(&mut merger, member)?;
        }
        // 32 bits, signed: BTF_INT_SIGNED << 24 | bits.
        let int = merger.add("int", kind::INT, 0, 4, &[1 << 24 | 32]);
        let context = merger.add(attachment.context(), kind::STRUCT, 0, 4, &[]);
        let pointer = merger.add("", kind::PTR, 0, context, &[]);
        let name = merger.string("ctx");
        let prototype = merger.add("", kind::FUNC_PROTO, 1, int, &[name, pointer]);
        let own_prototype = merger.add("", kind::FUNC_PROTO, 0, int, &[]);
        let functions = HashMap::new();
        Ok(Self { attachment, merger, prototype, own_prototype, functions })
    }

    /// The types of a chain of these members and of each of them, and of `others`, alone: composing
    /// any of those with [`alone_in`] and [`compose_in`] adds nothing.
    pub fn of_chain(
        attachment: Attachment,
        members: &[Member],
        others: &[Member],
    ) -> Result<Self, ComposeError> {
        let mut types = Self::new(attachment, members.iter().chain(others))?;
        for member in members.iter().chain(others) {
            alone_in(&mut types, member)?;
        }
        let moved = Moved::new();
        let mut builder = Builder::new(&mut types);
        builder.main(members, &Inlined::nobody(members), &moved)?;
        for (number, member) in members.iter().enumerate() {
            builder.member(number, member, Some(entry_name(number, member)), &moved)?;
        }
        Ok(types)
    }

    /// As the kernel takes them.
    pub fn bytes(&self) -> Vec<u8> {
        self.merger.bytes()
    }

    /// The number that a type of the member's object has here; `None` where the object has no types.
    pub fn type_id(&mut self, member: &Member, id: u32) -> Result<Option<u32>, ComposeError> {
        Ok(import(&mut self.merger, member)?.map(|import| import.type_id(id)))
    }

    fn function(&mut self, name: &str, linkage: u16) -> u32 {
        let key = (name.to_owned(), linkage);
        if let Some(known) = self.functions.get(&key) {
            return *known;
        }
        let prototype = if linkage == FUNC_GLOBAL { self.prototype } else { self.own_prototype };
        let id = self.merger.add(name, kind::FUNC, linkage, prototype, &[]);
        self.functions.insert(key, id);
        id
    }
}

/// Puts a program together.
struct Builder<'a> {
    types: &'a mut Types,
    instructions: Vec<Insn>,
    loads: Vec<Load>,
    functions: Vec<(usize, u32, String)>,
    lines: Vec<[u32; 4]>,
    inlined: usize,
}

impl<'a> Builder<'a> {
    fn new(types: &'a mut Types) -> Self {
        Self {
            types,
            instructions: Vec::new(),
            loads: Vec::new(),
            functions: Vec::new(),
            lines: Vec::new(),
            inlined: 0,
        }
    }

    fn function(&mut self, start: usize, name: &str, type_id: u32) {
        self.functions.push((start, type_id, name.to_owned()));
    }

    fn entry_type(&mut self, name: &str) -> u32 {
        self.types.function(name, FUNC_GLOBAL)
    }

    fn string(&mut self, text: &str) -> u32 {
        self.types.merger.string(text)
    }

    fn line(&mut self, at: usize, text: u32) {
        let file = self.string("canopy");
        self.lines.push([index(at), file, text, 0]);
    }

    fn main(
        &mut self,
        members: &[Member],
        inlined: &Inlined,
        moved: &Moved,
    ) -> Result<(), ComposeError> {
        let steps: Vec<Step<'_>> = members
            .iter()
            .zip(&inlined.members)
            .map(|(member, inside)| Step {
                proceed_on: member.proceed_on,
                inside: inside.then_some(member.code.instructions.as_slice()),
            })
            .collect();
        let attachment = self.types.attachment;
        let main = main_program::generate(attachment, &steps, inlined.stack);
        let name = attachment.main();
        let type_id = self.entry_type(name);
        self.function(0, name, type_id);
        let text = self.string("the chain begins");
        self.line(0, text);
        self.loads.push(Load { at: main.cells, map: MapSource::Cells });
        let mut start = main.instructions.len();
        self.instructions.extend(main.instructions);
        for (number, (at, member)) in main.members.into_iter().zip(members).enumerate() {
            // Both, whichever is used: the strings are the same in every shape.
            let inside = self.string(&entry_name(number, member));
            let call = self.string(&format!("call {}", member.name));
            if inlined.members.get(number) == Some(&true) {
                // At the instruction before, which hands over the context.
                self.line(at - 1, inside);
                self.inlined += 1;
                self.member_loads(at, number, member, moved);
                self.member_types(at, member)?;
                self.member_lines(at, member);
            } else {
                if let Some(insn) = self.instructions.get_mut(at) {
                    *insn = Insn::call_local(i32::try_from(start - at - 1).unwrap_or(i32::MAX));
                }
                self.line(at, call);
                start += member.code.instructions.len();
            }
        }
        Ok(())
    }

    /// Gives the instructions of a member that are numbers of types the numbers they have here, its
    /// instructions being at `base`.
    fn member_types(&mut self, base: usize, member: &Member) -> Result<(), ComposeError> {
        let Some(import) = import(&mut self.types.merger, member)? else { return Ok(()) };
        for at in &member.code.type_ids {
            if let Some(insn) = self.instructions.get_mut(base + at) {
                insn.imm = import.type_id(insn.imm.cast_unsigned()).cast_signed();
            }
        }
        Ok(())
    }

    /// Notes the maps that a member loads, its instructions being at `base`.
    fn member_loads(&mut self, base: usize, number: usize, member: &Member, moved: &Moved) {
        for load in &member.code.maps {
            let at = base + load.at;
            let moved = moved.get(number).and_then(|moved| moved.get(&load.map));
            let map = if let Some(offset) = moved {
                // The second slot's immediate is the offset in the value.
                if let Some(second) = self.instructions.get_mut(at + 1) {
                    second.imm = second.imm.wrapping_add(i32::try_from(*offset).unwrap_or(0));
                }
                MapSource::Constants
            } else {
                MapSource::Member(number, load.map)
            };
            self.loads.push(Load { at, map });
        }
    }

    /// Appends a member. `entry` is the name and type of its first function; its own when `None`.
    fn member(
        &mut self,
        number: usize,
        member: &Member,
        entry: Option<String>,
        moved: &Moved,
    ) -> Result<(), ComposeError> {
        let base = self.instructions.len();
        let code = &member.code;
        let import = import(&mut self.types.merger, member)?;
        self.instructions.extend_from_slice(&code.instructions);

        self.member_loads(base, number, member, moved);
        self.member_types(base, member)?;

        let mut entry = entry;
        for (place, function) in code.functions.iter().enumerate() {
            let (name, type_id) = match (entry.take(), &import, function.btf) {
                (Some(name), _, _) => {
                    let type_id = self.entry_type(&name);
                    (name, type_id)
                }
                (None, Some(import), Some(id)) => (function.name.clone(), import.type_id(id)),
                (None, _, _) if place == 0 => {
                    let type_id = self.entry_type(&identifier(&function.name));
                    (function.name.clone(), type_id)
                }
                (None, _, _) => {
                    let name = identifier(&function.name);
                    let type_id = self.types.function(&name, FUNC_STATIC);
                    (name, type_id)
                }
            };
            self.function(base + function.start, &name, type_id);
        }
        self.member_lines(base, member);
        Ok(())
    }

    /// Source lines of a member; the kernel wants one at the start of every function.
    fn member_lines(&mut self, base: usize, member: &Member) {
        let code = &member.code;
        let source = code.btf.as_ref().and_then(|raw| crate::btf::Btf::parse(raw).ok());
        let mut lines = BTreeMap::new();
        if let Some(source) = &source {
            for line in &code.lines {
                // Not inside a two-slot load, whose second slot has no operation.
                if code.instructions.get(line.at).is_some_and(|insn| insn.code != 0) {
                    let file = self.string(source.string(line.file));
                    let text = self.string(source.string(line.text));
                    lines.entry(line.at).or_insert([file, text, line.position]);
                }
            }
        }
        for function in &code.functions {
            let (file, text) = (self.string("?"), self.string(&function.name));
            lines.entry(function.start).or_insert([file, text, 0]);
        }
        self.lines.extend(
            lines
                .into_iter()
                .map(|(at, [file, text, position])| [index(base + at), file, text, position]),
        );
    }

    fn finish(self, licence: String, frags: bool, constants: Option<Vec<u8>>) -> Composed {
        let func_info = self
            .functions
            .iter()
            .flat_map(|(start, type_id, _)| [index(*start), *type_id])
            .flat_map(u32::to_ne_bytes)
            .collect();
        let line_info = self.lines.into_iter().flatten().flat_map(u32::to_ne_bytes).collect();
        Composed {
            instructions: self.instructions,
            loads: self.loads,
            constants,
            btf: self.types.bytes(),
            func_info,
            line_info,
            licence,
            frags,
            functions: self.functions.into_iter().map(|(_, _, name)| name).collect(),
            inlined: self.inlined,
        }
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn import(merger: &mut Merger, member: &Member) -> Result<Option<Import>, ComposeError> {
    let import = member.code.btf.as_ref().map(|raw| merger.import(raw)).transpose();
    import.map_err(|source| ComposeError::Btf { member: member.name.clone(), source })
}

/// One member as a program of its own: loaded first, so that the verifier's complaint is about it.
/// The limits of a chain are not checked.
pub fn alone(attachment: Attachment, member: &Member) -> Result<Composed, ComposeError> {
    alone_in(&mut Types::new(attachment, [member])?, member)
}

/// As [`alone`], with types that it may share with other programs.
pub fn alone_in(types: &mut Types, member: &Member) -> Result<Composed, ComposeError> {
    let mut builder = Builder::new(types);
    builder.member(0, member, None, &Moved::new())?;
    Ok(builder.finish(member.licence.clone(), member.frags, None))
}

/// How members become part of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `main` calls every member. The verifier looks at each once.
    Calls,
    /// Small members of one function lie inside `main`, which saves the call; the others are called.
    /// The verifier looks at them in the course of `main`, so a chain may be too complex for it in
    /// this shape that is not in the other.
    Inlined,
}

/// The chain in the shape that always loads when its members do: [`Shape::Calls`].
pub fn compose(attachment: Attachment, members: &[Member]) -> Result<Composed, ComposeError> {
    compose_as(attachment, members, Shape::Calls)
}

fn entry_name(number: usize, member: &Member) -> String {
    format!("p{number}_{}", identifier(member.name.as_str()))
}

/// The chain: `main`, then each member that it calls, in order. Its functions are named
/// `p<i>_<name>`; a member inside `main` is no function of its own, and its source lines follow one
/// with that name.
///
/// Every called member's entry becomes a global function taking the hook's context, whatever its own
/// prototype says, so that the verifier looks at each once and `main` may call it.
pub fn compose_as(
    attachment: Attachment,
    members: &[Member],
    shape: Shape,
) -> Result<Composed, ComposeError> {
    compose_in(&mut Types::new(attachment, members)?, members, shape)
}

/// As [`compose_as`], with types that it may share with other programs.
pub fn compose_in(
    types: &mut Types,
    members: &[Member],
    shape: Shape,
) -> Result<Composed, ComposeError> {
    limits::check(members)?;
    let inlined = match shape {
        Shape::Calls => Inlined::nobody(members),
        Shape::Inlined => Inlined::choose(members),
    };
    let (moved, constants) = lay_out_constants(members)?;
    let mut builder = Builder::new(types);
    builder.main(members, &inlined, &moved)?;
    for (number, member) in members.iter().enumerate() {
        if inlined.members.get(number) != Some(&true) {
            builder.member(number, member, Some(entry_name(number, member)), &moved)?;
        }
    }
    // All compatible: "GPL". Otherwise nobody needs GPL-only helpers, and the stricter licence is
    // the chain's: a licence is never upgraded.
    let licence = members
        .iter()
        .map(|member| member.licence.as_str())
        .find(|licence| !gpl_compatible(licence))
        .unwrap_or("GPL");
    let frags = members.iter().all(|member| member.frags);
    Ok(builder.finish(licence.to_owned(), frags, constants))
}

type Moved = Vec<BTreeMap<usize, usize>>;

/// Lays constant data sections together when the chain would have too many maps: for each member,
/// which of its maps moved and to which offset.
fn lay_out_constants(members: &[Member]) -> Result<(Moved, Option<Vec<u8>>), ComposeError> {
    let used = |keep: &dyn Fn(&Map) -> bool| {
        let identities: BTreeSet<u64> = members
            .iter()
            .flat_map(Member::used_maps)
            .filter(|map| keep(map))
            .map(|map| map.identity)
            .collect();
        identities.len() + 1
    };
    if used(&|_| true) <= limits::MAPS {
        return Ok((Vec::new(), None));
    }
    let mut bytes = Vec::new();
    let mut placed: BTreeMap<u64, usize> = BTreeMap::new();
    let mut moved = Moved::new();
    for member in members {
        let mut here = BTreeMap::new();
        for (number, map) in member.maps.iter().enumerate() {
            let Some(constant) = &map.constant else { continue };
            if !member.only_values(number) {
                continue;
            }
            let offset = *placed.entry(map.identity).or_insert_with(|| {
                // As aligned as the start of a map's value.
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                let offset = bytes.len();
                bytes.extend_from_slice(constant);
                offset
            });
            here.insert(number, offset);
        }
        moved.push(here);
    }
    let count = used(&|map| !placed.contains_key(&map.identity)) + usize::from(!placed.is_empty());
    limits::maps(members, count)?;
    Ok((moved, Some(bytes)))
}
