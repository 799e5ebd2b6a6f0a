//! BTF: reading it, and merging several objects' into one that the kernel takes.
//!
//! Format: the kernel's `Documentation/bpf/btf.rst`. Only this machine's byte order.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// The encoding word of a plain integer of eight bits.
const BYTE: u32 = 8;

/// Longest string, bytes: as long as a path or a line of source may be. Each of many types may point
/// into one that is longer.
const LONGEST_STRING: usize = 4096;

/// `BTF_KIND_*`
pub mod kind {
    #![allow(missing_docs, reason = "the kernel's names say it")]
    pub const INT: u8 = 1;
    pub const PTR: u8 = 2;
    pub const ARRAY: u8 = 3;
    pub const STRUCT: u8 = 4;
    pub const UNION: u8 = 5;
    pub const ENUM: u8 = 6;
    pub const FWD: u8 = 7;
    pub const TYPEDEF: u8 = 8;
    pub const VOLATILE: u8 = 9;
    pub const CONST: u8 = 10;
    pub const RESTRICT: u8 = 11;
    pub const FUNC: u8 = 12;
    pub const FUNC_PROTO: u8 = 13;
    pub const VAR: u8 = 14;
    pub const DATASEC: u8 = 15;
    pub const FLOAT: u8 = 16;
    pub const DECL_TAG: u8 = 17;
    pub const TYPE_TAG: u8 = 18;
    pub const ENUM64: u8 = 19;
}

/// A function visible to the verifier on its own.
pub const FUNC_GLOBAL: u16 = 1;
/// A function verified at each call.
pub const FUNC_STATIC: u16 = 0;

/// Why BTF cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not BTF of this machine's byte order.
    #[error("the BTF header is not one of this machine's byte order")]
    Header,
    /// Ends too early.
    #[error("the BTF ends inside type {id}")]
    Truncated {
        /// The type that is not whole.
        id: u32,
    },
    /// A kind newer than this code.
    #[error("BTF type {id} is of the unknown kind {kind}")]
    Kind {
        /// The type.
        id: u32,
        /// Its kind.
        kind: u8,
    },
}

/// One type, as it stands in the object.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    /// Offset of its name in the strings.
    pub name: u32,
    /// `BTF_KIND_*`
    pub kind: u8,
    /// Number of members, or a function's linkage.
    pub vlen: u16,
    /// The flag beside the kind.
    pub flag: bool,
    /// Its size in bytes, or the type it refers to.
    pub size_or_type: u32,
    /// What follows, by kind, as 32-bit words.
    pub extra: &'a [[u8; 4]],
}

impl Type<'_> {
    /// Word `index` of what follows the type; 0 past the end.
    pub fn word(&self, index: usize) -> u32 {
        self.extra.get(index).copied().map_or(0, u32::from_ne_bytes)
    }
}

/// The types and strings of one object.
#[derive(Clone, Debug)]
pub struct Btf<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

impl<'a> Btf<'a> {
    /// Reads the contents of a `.BTF` section.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let (types, strings) = Self::sections(bytes)?;
        let mut btf = Self { types: Vec::new(), strings };
        btf.append(types)?;
        Ok(btf)
    }

    /// The types of a kernel module, which go on where those of the kernel end (split BTF): numbers and
    /// strings are counted through. `strings` are [`Self::joined_strings`].
    pub fn with_split(&self, bytes: &'a [u8], strings: &'a [u8]) -> Result<Self, BtfError> {
        let (types, _) = Self::sections(bytes)?;
        let mut btf = Self { types: self.types.clone(), strings };
        btf.append(types)?;
        Ok(btf)
    }

    /// The strings of these types and, behind them, those of a module.
    pub fn joined_strings(&self, bytes: &[u8]) -> Result<Vec<u8>, BtfError> {
        let (_, strings) = Btf::sections(bytes)?;
        Ok([self.strings, strings].concat())
    }

    /// Types and strings.
    fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8]), BtfError> {
        let header = || -> Option<(&[u8], &[u8])> {
            let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
            if magic != MAGIC {
                return None;
            }
            let length = word(bytes, 4)? as usize;
            let body = bytes.get(length..)?;
            let part = |at: usize| -> Option<&[u8]> {
                let offset = word(bytes, at)? as usize;
                body.get(offset..offset.checked_add(word(bytes, at + 4)? as usize)?)
            };
            Some((part(8)?, part(16)?))
        };
        header().ok_or(BtfError::Header)
    }

    /// Reads types behind those that are there.
    fn append(&mut self, bytes: &'a [u8]) -> Result<(), BtfError> {
        let (words, _) = bytes.as_chunks::<4>();
        let types = &mut self.types;
        let mut rest = words;
        while !rest.is_empty() {
            let id = u32::try_from(types.len() + 1).unwrap_or(u32::MAX);
            let (head, tail) = rest.split_at_checked(3).ok_or(BtfError::Truncated { id })?;
            let &[name, info, size] = head else { return Err(BtfError::Truncated { id }) };
            let info = u32::from_ne_bytes(info);
            let kind = (info >> 24 & 0x1f) as u8;
            let vlen = (info & 0xffff) as u16;
            let length = extra_words(kind, vlen).ok_or(BtfError::Kind { id, kind })?;
            let (extra, tail) = tail.split_at_checked(length).ok_or(BtfError::Truncated { id })?;
            types.push(Type {
                name: u32::from_ne_bytes(name),
                kind,
                vlen,
                flag: info >> 31 != 0,
                size_or_type: u32::from_ne_bytes(size),
                extra,
            });
            rest = tail;
        }
        Ok(())
    }

    /// The type with this id; `None` for 0 (void) and past the end.
    pub fn get(&self, id: u32) -> Option<&Type<'a>> {
        self.types.get((id as usize).checked_sub(1)?)
    }

    /// All types with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Type<'a>)> {
        (1..).zip(&self.types)
    }

    /// The string at an offset; empty where there is none of at most [`LONGEST_STRING`] bytes.
    pub fn string(&self, offset: u32) -> &'a str {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        let rest = rest.get(..=LONGEST_STRING).unwrap_or(rest);
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        rest.get(..end).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }

    /// The type behind typedefs and qualifiers.
    pub fn resolve(&self, mut id: u32) -> Option<(u32, &Type<'a>)> {
        // A cycle of typedefs is malformed; the bound ends it.
        for _ in 0..32 {
            let ty = self.get(id)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Some((id, ty)),
            }
        }
        None
    }

    /// How many types there are; ids are 1 to this.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// The id of the type behind typedefs and qualifiers, 0 for void; `None` where there is none.
    pub fn resolve_or_void(&self, mut id: u32) -> Option<u32> {
        for _ in 0..32 {
            if id == 0 {
                return Some(0);
            }
            let ty = self.get(id)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Some(id),
            }
        }
        None
    }

    /// Whether a variable can be of the type: no variable or section is one.
    fn is_value(&self, mut id: u32) -> bool {
        for _ in 0..32 {
            match self.resolve(id) {
                Some((_, ty)) if ty.kind == kind::ARRAY => id = ty.word(0),
                Some((_, ty)) => return !matches!(ty.kind, kind::VAR | kind::DATASEC),
                None => return false,
            }
        }
        false
    }

    /// Whether the kernel takes a data section as it is: its size is known, its variables lie in it one
    /// behind the other, and each has a size and is defined.
    pub fn is_whole_section(&self, section: &Type<'_>) -> bool {
        let mut end = 0_u64;
        section.kind == kind::DATASEC
            && section.vlen > 0
            && section.size_or_type > 0
            && (0..usize::from(section.vlen)).all(|place| {
                let [id, offset, size] = [0, 1, 2].map(|word| section.word(place * 3 + word));
                let variable = self.get(id).filter(|ty| ty.kind == kind::VAR);
                let whole = variable.is_some_and(|ty| {
                    // BTF_VAR_STATIC, BTF_VAR_GLOBAL_ALLOCATED
                    ty.word(0) <= 1
                        && !self.string(ty.name).is_empty()
                        && size > 0
                        && self.is_value(ty.size_or_type)
                        && self.size(ty.size_or_type).is_some_and(|real| real > 0 && real <= size)
                });
                let follows = u64::from(offset) >= end;
                end = u64::from(offset) + u64::from(size);
                whole && follows
            })
            && end <= u64::from(section.size_or_type)
    }

    /// Size of a value of the type in bytes; `None` where it has none.
    pub fn size(&self, id: u32) -> Option<u32> {
        let mut count = 1u32;
        let mut id = id;
        for _ in 0..32 {
            let (_, ty) = self.resolve(id)?;
            let size = match ty.kind {
                kind::INT
                | kind::STRUCT
                | kind::UNION
                | kind::ENUM
                | kind::ENUM64
                | kind::FLOAT
                | kind::DATASEC => ty.size_or_type,
                kind::PTR => 8,
                kind::VAR => {
                    id = ty.size_or_type;
                    continue;
                }
                kind::ARRAY => {
                    count = count.checked_mul(ty.word(2))?;
                    id = ty.word(0);
                    continue;
                }
                _ => return None,
            };
            return count.checked_mul(size);
        }
        None
    }
}

/// Words that follow a type of this kind.
fn extra_words(kind: u8, vlen: u16) -> Option<usize> {
    let vlen = usize::from(vlen);
    Some(match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 1,
        kind::ARRAY => 3,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => vlen * 3,
        kind::ENUM | kind::FUNC_PROTO => vlen * 2,
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        _ => return None,
    })
}

/// Where one object's types and strings went.
#[derive(Clone, Debug)]
pub struct Import {
    raw: Arc<[u8]>,
    shift: u32,
    /// Types that stand for ones of objects before.
    known: Arc<HashMap<u32, u32>>,
}

/// Structs that are the kernel's own where they are fields of map values or of objects that programs make:
/// it neither shows nor takes them (`btf_get_field_type` in `kernel/bpf/btf.c`), and takes only the first
/// of each name in a BTF for what it is (`alloc_obj_fields`).
pub const KERNEL_FIELDS: [&str; 10] = [
    "bpf_spin_lock",
    "bpf_res_spin_lock",
    "bpf_timer",
    "bpf_wq",
    "bpf_task_work",
    "bpf_list_head",
    "bpf_list_node",
    "bpf_rb_root",
    "bpf_rb_node",
    "bpf_refcount",
];

/// Type tags of pointers in map values that are the kernel's own.
pub const KERNEL_POINTER_TAGS: [&str; 4] = ["kptr", "kptr_untrusted", "percpu_kptr", "uptr"];

/// What of an object's types is not imported as it stands.
#[derive(Debug, Default)]
struct Adjusted {
    /// The data sections and variables that the kernel takes.
    kept: HashSet<u32>,
    /// Structs that the kernel finds by name, under names of their own.
    renamed: HashMap<String, String>,
}

/// What precedes the name of a struct in the tag of a list or tree that holds such
/// (`__contains(name, field)`); behind the name follow a colon and the field.
const CONTAINS: &str = "contains:";

impl Adjusted {
    /// A tag's text, which may name a struct.
    fn tag(&self, text: &str) -> String {
        let held = text.strip_prefix(CONTAINS).and_then(|rest| rest.split_once(':'));
        match held.and_then(|(name, field)| Some((self.renamed.get(name)?, field))) {
            Some((other, field)) => format!("{CONTAINS}{other}:{field}"),
            None => text.to_owned(),
        }
    }
}

impl Import {
    /// The merged id of one of the object's types.
    pub fn type_id(&self, id: u32) -> u32 {
        match self.known.get(&id) {
            Some(known) => *known,
            None if id == 0 => 0,
            None => id + self.shift,
        }
    }
}

/// Builds one BTF out of several objects' and own types.
#[derive(Clone, Debug)]
pub struct Merger {
    types: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
    interned: HashMap<Box<[u8]>, u32>,
    imports: Vec<Import>,
    /// The names of structs.
    structs: HashSet<String>,
    /// The first of each of [`KERNEL_FIELDS`]: id and size.
    special: HashMap<&'static str, (u32, u32)>,
}

impl Default for Merger {
    fn default() -> Self {
        Self {
            types: Vec::new(),
            count: 0,
            strings: vec![0],
            interned: HashMap::new(),
            imports: Vec::new(),
            structs: HashSet::new(),
            special: HashMap::new(),
        }
    }
}

/// An identifier as the kernel wants it: other characters become `_`, an overlong one is cut.
fn identifier(name: &str) -> String {
    let mut text: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '.' { c } else { '_' })
        .take(127)
        .collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        text.insert(0, '_');
    }
    text
}

impl Merger {
    /// The offset of this string, added where it is new.
    pub fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(offset) = self.interned.get(text.as_bytes()) {
            return *offset;
        }
        let offset = u32::try_from(self.strings.len()).unwrap_or(u32::MAX);
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.interned.insert(text.as_bytes().into(), offset);
        offset
    }

    /// Adds a type of the merged BTF's own; `words` are what follows it. Returns its id.
    pub fn add(
        &mut self,
        name: &str,
        kind: u8,
        vlen: u16,
        size_or_type: u32,
        words: &[u32],
    ) -> u32 {
        let name = self.string(name);
        self.push(name, u32::from(kind) << 24 | u32::from(vlen), size_or_type);
        for word in words {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.count
    }

    fn push(&mut self, name: u32, info: u32, size_or_type: u32) {
        self.count += 1;
        for word in [name, info, size_or_type] {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
    }

    /// Adds an object's types and strings, once however often it is asked.
    ///
    /// What the kernel refuses in a program's BTF is replaced by something of the same id: data sections
    /// that are not whole by empty structs, their variables and the tags of those by one-byte
    /// integers (as libbpf does); the kernel's special structs are those of the first object that has
    /// them; unnamed parameters get a name, undefined functions become global,
    /// names that are not identifiers are made so. A struct that lists or trees hold is found by its
    /// name by the kernel: where an object before has a struct of the same name, it gets another.
    pub fn import(&mut self, raw: &Arc<[u8]>) -> Result<Import, BtfError> {
        if let Some(import) = self.imports.iter().find(|import| import.raw == *raw) {
            return Ok(import.clone());
        }
        let btf = Btf::parse(raw)?;
        let shift = self.count;
        let known = Arc::new(self.special_types(&btf, shift));
        let import = Import { raw: Arc::clone(raw), shift, known };
        let adjusted = self.adjust(&btf);
        for (id, ty) in btf.iter() {
            self.import_type(&btf, id, ty, &import, &adjusted);
        }
        self.imports.push(import.clone());
        Ok(import)
    }

    /// The special types of an object that are there already: its own ids to those.
    fn special_types(&mut self, btf: &Btf<'_>, shift: u32) -> HashMap<u32, u32> {
        let mut known = HashMap::new();
        for (id, ty) in btf.iter().filter(|(_, ty)| ty.kind == kind::STRUCT) {
            let Some(name) = KERNEL_FIELDS.iter().find(|name| **name == btf.string(ty.name)) else {
                continue;
            };
            let (first, size) = *self.special.entry(name).or_insert((id + shift, ty.size_or_type));
            if first != id + shift && size == ty.size_or_type {
                known.insert(id, first);
            }
        }
        known
    }

    /// What of an object's types has to be changed.
    fn adjust(&mut self, btf: &Btf<'_>) -> Adjusted {
        let mut adjusted = Adjusted::default();
        for (id, ty) in btf.iter().filter(|(_, ty)| btf.is_whole_section(ty)) {
            adjusted.kept.insert(id);
            adjusted.kept.extend((0..usize::from(ty.vlen)).map(|place| ty.word(place * 3)));
        }
        let structs: HashSet<String> = btf
            .iter()
            .filter(|(_, ty)| ty.kind == kind::STRUCT)
            .map(|(_, ty)| identifier(btf.string(ty.name)))
            .collect();
        let held = btf
            .iter()
            .filter(|(_, ty)| ty.kind == kind::DECL_TAG)
            .filter_map(|(_, ty)| btf.string(ty.name).strip_prefix(CONTAINS)?.split_once(':'))
            .map(|(name, _)| name);
        for name in held.filter(|name| self.structs.contains(*name)) {
            if adjusted.renamed.contains_key(name) {
                continue;
            }
            let free = |name: &String| !self.structs.contains(name) && !structs.contains(name);
            let other = (2..=u32::MAX).map(|number| format!("{name}__{number}")).find(free);
            adjusted.renamed.extend(other.map(|other| (name.to_owned(), other)));
        }
        for name in structs {
            let renamed = adjusted.renamed.get(&name).cloned();
            self.structs.insert(renamed.unwrap_or(name));
        }
        adjusted
    }

    /// The members of a struct or union: name, type and place of each.
    fn import_members(&mut self, btf: &Btf<'_>, import: &Import, members: &mut [u32]) {
        for [name, ty, _] in members.as_chunks_mut::<3>().0 {
            *name = self.string(&identifier(btf.string(*name)));
            *ty = import.type_id(*ty);
        }
    }

    fn import_type(
        &mut self,
        btf: &Btf<'_>,
        id: u32,
        ty: &Type<'_>,
        import: &Import,
        adjusted: &Adjusted,
    ) {
        let mut info = u32::from(ty.flag) << 31 | u32::from(ty.kind) << 24 | u32::from(ty.vlen);
        let mut size_or_type = ty.size_or_type;
        let mut name = identifier(btf.string(ty.name));
        let mut extra: Vec<u32> = ty.extra.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        match ty.kind {
            kind::PTR | kind::VOLATILE | kind::CONST | kind::RESTRICT => {
                name.clear();
                size_or_type = import.type_id(size_or_type);
            }
            kind::TYPEDEF | kind::TYPE_TAG => {
                if ty.kind == kind::TYPE_TAG {
                    btf.string(ty.name).clone_into(&mut name);
                }
                size_or_type = import.type_id(size_or_type);
            }
            kind::FUNC => {
                if ty.vlen > FUNC_GLOBAL {
                    info = u32::from(kind::FUNC) << 24 | u32::from(FUNC_GLOBAL);
                }
                size_or_type = import.type_id(size_or_type);
            }
            kind::FUNC_PROTO => {
                name.clear();
                size_or_type = import.type_id(size_or_type);
                for (index, parameter) in extra.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let [name, ty] = parameter;
                    // A type of 0 is the "..." of a variadic function, which has no name.
                    *name = match (btf.string(*name), *ty) {
                        (_, 0) => 0,
                        ("", _) => self.string(&format!("arg{index}")),
                        (text, _) => self.string(&identifier(text)),
                    };
                    *ty = import.type_id(*ty);
                }
            }
            kind::ARRAY => {
                name.clear();
                if let [element, index, _] = extra.as_mut_slice() {
                    *element = import.type_id(*element);
                    *index = import.type_id(*index);
                }
            }
            kind::STRUCT | kind::UNION => {
                self.import_members(btf, import, &mut extra);
                if ty.kind == kind::STRUCT
                    && let Some(other) = adjusted.renamed.get(&name)
                {
                    name.clone_from(other);
                }
            }
            kind::ENUM => {
                for [name, _] in extra.as_chunks_mut::<2>().0 {
                    *name = self.string(&identifier(btf.string(*name)));
                }
            }
            kind::ENUM64 => {
                for [name, _, _] in extra.as_chunks_mut::<3>().0 {
                    *name = self.string(&identifier(btf.string(*name)));
                }
            }
            kind::VAR if adjusted.kept.contains(&id) => {
                size_or_type = import.type_id(size_or_type);
            }
            kind::DATASEC if adjusted.kept.contains(&id) => {
                for [variable, _, _] in extra.as_chunks_mut::<3>().0 {
                    *variable = import.type_id(*variable);
                }
            }
            kind::VAR => {
                info = u32::from(kind::INT) << 24;
                size_or_type = 1;
                extra = vec![BYTE];
            }
            kind::DATASEC => {
                info = u32::from(kind::STRUCT) << 24;
                size_or_type = 0;
                name.clear();
                extra.clear();
            }
            kind::DECL_TAG => {
                let target = btf.get(ty.size_or_type).map(|target| target.kind);
                if matches!(target, Some(kind::FUNC | kind::STRUCT | kind::UNION | kind::TYPEDEF))
                    || adjusted.kept.contains(&ty.size_or_type)
                {
                    name = adjusted.tag(btf.string(ty.name));
                    size_or_type = import.type_id(size_or_type);
                } else {
                    info = u32::from(kind::INT) << 24;
                    size_or_type = 1;
                    name.clear();
                    extra = vec![BYTE];
                }
            }
            _ => {}
        }
        let name = self.string(&name);
        self.push(name, info, size_or_type);
        for word in extra {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
    }

    /// The merged BTF, as the kernel and [`Btf::parse`] take it.
    pub fn bytes(&self) -> Vec<u8> {
        let types = u32::try_from(self.types.len()).unwrap_or(u32::MAX);
        let strings = u32::try_from(self.strings.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.types.len() + self.strings.len());
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        for word in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&u32::to_ne_bytes(word));
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}
