//! One member of a chain: its maps made or carried over, its program loaded alone.

use crate::{
    chain_types::{ChainTypes, MapTypes},
    core_relocate,
    elf::ObjectError,
    eligibility,
    member_maps::{self, Made, MapMaker},
    object::Object,
    object_maps::PROG_ARRAY,
    sys,
    verified::{Subject, Verdict},
    verifier_log,
};
use canopy_api::{Hook, ProgramName};
use canopy_chain::{self as chain, Attachment, Code, Composed, MapSource, alone};
use canopy_kernel::{KernelError, Member};
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// A refusal that names the member.
pub(crate) fn refused(
    member: &ProgramName,
    reason: impl Into<String>,
    remedy: impl Into<String>,
) -> KernelError {
    KernelError::Refused {
        member: Some(member.clone()),
        reason: reason.into(),
        remedy: remedy.into(),
        log: None,
    }
}

/// What an object error means to the person who asked.
pub(crate) fn object_error(member: &ProgramName, error: &ObjectError) -> KernelError {
    let remedy = match error {
        ObjectError::Elf(_) | ObjectError::Malformed(_) => {
            "compile the object again with clang -target bpf -g".to_owned()
        }
        ObjectError::Machine => {
            "compile it with clang -target bpf, which takes this machine's byte order".to_owned()
        }
        ObjectError::NoFunction { .. } => {
            "name a function of the object in the package's manifest".to_owned()
        }
        ObjectError::Unsupported { remedy, .. } => remedy.clone(),
    };
    refused(member, error.to_string(), remedy)
}

/// How a chain's programs are loaded; all of them and their tail-call targets alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loading {
    pub(crate) attachment: Attachment,
    pub(crate) frags: bool,
}

/// Loads a composed program, as `load` does it.
pub(crate) fn load<R>(
    loading: Loading,
    composed: &Composed,
    (name, licence): (&str, &str),
    btf: Option<BorrowedFd<'_>>,
    map: &dyn Fn(MapSource) -> Option<i32>,
    load: impl FnOnce(&sys::ProgLoad<'_>) -> R,
) -> R {
    let mut instructions = composed.instructions.clone();
    for load in &composed.loads {
        if let (Some(insn), Some(fd)) = (instructions.get_mut(load.at), map(load.map)) {
            insn.imm = fd;
        }
    }
    let bytes: Vec<u8> = instructions.into_iter().flat_map(chain::insn::Insn::to_bytes).collect();
    let (prog_type, expected_attach_type, flags) = match loading.attachment {
        Attachment::Xdp => {
            (BPF_PROG_TYPE_XDP, BPF_XDP, if loading.frags { BPF_F_XDP_HAS_FRAGS } else { 0 })
        }
        Attachment::Tcx | Attachment::Clsact => (BPF_PROG_TYPE_SCHED_CLS, 0, 0),
    };
    load(&sys::ProgLoad {
        expected_attach_type,
        flags,
        btf,
        func_info: if btf.is_some() { &composed.func_info } else { &[] },
        line_info: if btf.is_some() { &composed.line_info } else { &[] },
        ..sys::ProgLoad::new(prog_type, &bytes, licence, name)
    })
}

/// A member that has passed the verifier alone.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) chain: chain::Member,
    /// By the object's map number; `None` for those it does not use.
    pub(crate) maps: Vec<Option<Made>>,
    /// By map number: the number of its layout.
    pub(crate) layouts: Vec<(String, u64)>,
    pub(crate) notes: Vec<String>,
}

impl Loaded {
    /// The descriptor of a map.
    pub(crate) fn fd(&self, map: usize) -> Option<i32> {
        self.maps.get(map)?.as_ref().map(|made| made.map.as_fd().as_raw_fd())
    }
}

/// A member whose code is linked.
#[derive(Debug)]
pub(crate) struct Linked {
    object: Arc<Object>,
    /// Its program, then those it jumps to.
    programs: Vec<chain::Member>,
    /// The functions it jumps to.
    targets: Vec<String>,
    /// By number, the maps that any of them loads.
    used: BTreeSet<usize>,
    /// The object's own type information, if the kernel takes it.
    btf: Option<OwnedFd>,
    notes: Vec<String>,
}

impl Linked {
    /// The programs: the member's, then those it jumps to.
    pub(crate) fn programs(&self) -> &[chain::Member] {
        &self.programs
    }

    /// Whether a map it uses holds objects of its own types.
    pub(crate) fn has_own_types(&self) -> bool {
        let maps = self.used.iter().filter_map(|map| self.object.maps.get(*map));
        self.btf.is_some() && maps.into_iter().any(|map| map.own_types)
    }
}

/// Links a member and what it may jump to.
pub(crate) fn link(member: &Member, hook: Hook, loading: Loading) -> Result<Linked, KernelError> {
    let name = &member.name;
    let failed = |error: &ObjectError| object_error(name, error);
    let object = Object::get(&member.object).map_err(|error| failed(&error))?;
    let mut notes = Vec::new();

    let doubt = eligibility::section(&object, &member.function, hook);
    if let Some(doubt) = doubt.map_err(|error| failed(&error))? {
        notes.push(format!("\"{name}\": {doubt}"));
    }
    let entry = object.link(&member.function).map_err(|error| failed(&error))?;
    let mut members = vec![chain_member(member, &object, entry)];
    // What it may jump to by program arrays the object fills: programs of their own.
    let mut targets: Vec<String> = Vec::new();
    let mut seen = 0;
    let mut used = BTreeSet::new();
    while let Some(program) = members.get(seen) {
        used.extend(program.code.maps.iter().map(|load| load.map));
        for function in targets_of(&object, &used) {
            if !targets.contains(&function) {
                let code = object.link(&function).map_err(|error| failed(&error))?;
                members.push(chain_member(member, &object, code));
                targets.push(function);
            }
        }
        seen += 1;
    }
    if member.tail_calls == Some(0) && !targets.is_empty() && members.iter().any(jumps) {
        return Err(refused(
            name,
            format!(
                "its package says that it takes no tail calls, and its object fills an array with \
                 \"{}\" to jump to",
                targets.first().map_or("", String::as_str)
            ),
            "correct tail_calls in the package's manifest, or leave it out: the arrays that the \
             object fills are counted",
        ));
    }
    for program in &members {
        eligibility::exceptions(&program.code).map_err(|error| failed(&error))?;
        eligibility::device_bound(&program.code).map_err(|error| failed(&error))?;
    }

    // The object's own type information, as the kernel takes it. An object whose BTF the kernel
    // refuses is loaded without, as libbpf does.
    let btf = match (&object.btf, members.first()) {
        (Some(_), Some(first)) => match load_types(&object, member, first, loading)? {
            (Ok(fd), plain) => {
                if plain {
                    for member in &mut members {
                        member.code.btf.clone_from(&object.plain_btf);
                    }
                }
                Some(fd)
            }
            (Err(rejected), _) => {
                let complaint = verifier_log::read(&rejected);
                notes.push(format!(
                    "\"{name}\": its type information is not used: {}",
                    complaint.reason
                ));
                for member in &mut members {
                    strip(&mut member.code);
                }
                None
            }
        },
        _ => None,
    };
    notes.extend(object.lost_pointers(&used).map(|lost| format!("\"{name}\": {lost}")));
    Ok(Linked { object, programs: members, targets, used, btf, notes })
}

/// Makes a member's maps and loads it alone. `types` are the chain's where it has some of its own.
pub(crate) fn prepare(
    member: &Member,
    linked: Linked,
    loading: Loading,
    types: Option<&ChainTypes>,
    maker: &mut MapMaker<'_>,
) -> Result<Loaded, KernelError> {
    let name = &member.name;
    let Linked { object, programs: mut members, targets, used, btf, mut notes } = linked;
    let own = btf.as_ref().map(|fd| MapTypes::alone(fd.as_fd()));
    let of_chain = types.zip(members.first()).and_then(|(types, first)| types.of_maps(first));
    let map_types = own.map(|own| of_chain.unwrap_or(own));
    let maps = maker.make(member, &object, &used, map_types, &mut notes)?;
    for program in &mut members {
        for (place, made) in program.maps.iter_mut().zip(&maps) {
            if let Some(made) = made {
                place.identity = u64::from(made.map.info().id);
            }
        }
    }
    let layouts = object
        .maps
        .iter()
        .enumerate()
        .filter_map(|(at, map)| Some((map.name.clone(), object.layout(at)?)))
        .collect();
    let mut loaded = Vec::new();
    // What it may jump to has to be there, not only to be known.
    let subject =
        Subject::new(member, loading, btf.is_some(), &maps).filter(|_| targets.is_empty());
    let known = subject.as_ref().and_then(Subject::recall);
    if let (Some(program), Some(verdict)) = (members.first_mut(), &known) {
        program.verified_instructions = verdict.instructions;
        program.stack.clone_from(&verdict.stack);
    }
    let unknown = if known.is_some() { Vec::new() } else { alone_of(&members, loading, types)? };
    for ((program, composed), function) in
        members.iter_mut().zip(&unknown).zip(std::iter::once(&member.function).chain(&targets))
    {
        let fd = |source| match source {
            MapSource::Member(_, map) => {
                maps.get(map)?.as_ref().map(|made| made.map.as_fd().as_raw_fd())
            }
            _ => None,
        };
        let shared = types.and_then(|types| types.fd(composed));
        let own = if shared.is_some() {
            None
        } else {
            let loaded_types = sys::btf_load(&composed.btf);
            Some(loaded_types.map_err(|rejected| rejection(name, &rejected))?)
        };
        let btf = own.as_ref().map(AsFd::as_fd).or(shared);
        let called = (function.as_str(), object.licence());
        let (prog, stats) = load(loading, composed, called, btf, &fd, sys::prog_load_with_stats)
            .map_err(|rejected| missing(name, &program.code, &rejected))?;
        let info = sys::prog_info(&prog).map_err(|error| KernelError::Os {
            operation: format!("read program \"{name}\""),
            source: error,
        })?;
        program.verified_instructions = info.verified_instructions;
        program.stack = verifier_log::stack_depths(&stats);
        if program.stack.len() != program.code.functions.len() {
            program.stack.clear();
        }
        loaded.push(prog);
    }
    if let (Some(subject), None, Some(program)) = (subject, known, members.first()) {
        let chain::Member { stack, verified_instructions: instructions, .. } = program;
        subject.remember(Verdict { instructions: *instructions, stack: stack.clone() });
    }
    let programs: Vec<(&str, BorrowedFd<'_>)> =
        targets.iter().map(String::as_str).zip(loaded.iter().skip(1).map(AsFd::as_fd)).collect();
    member_maps::fill(name, &object, &maps, &programs, &mut notes)?;

    let tail_calls = tail_calls(member, &object, &members, &targets);
    let mut members = members.into_iter();
    let Some(mut chain) = members.next() else {
        return Err(refused(name, "it has no code", "compile the object again"));
    };
    chain.tail_calls = tail_calls;
    Ok(Loaded { chain, maps, layouts, notes })
}

/// What the verifier's refusal of this member means.
pub(crate) fn rejection(member: &ProgramName, rejected: &sys::Rejected) -> KernelError {
    let complaint = verifier_log::read(rejected);
    KernelError::Refused {
        member: Some(member.clone()),
        reason: complaint.reason,
        remedy: complaint.remedy.to_owned(),
        log: complaint.log,
    }
}

/// The refusal of a program that reaches something this kernel lacks says what that is.
fn missing(member: &ProgramName, code: &Code, rejected: &sys::Rejected) -> KernelError {
    let at = verifier_log::instruction_of(&rejected.log, core_relocate::UNRESOLVED);
    let Some(what) = at.and_then(|at| code.missing.get(&at)) else {
        return rejection(member, rejected);
    };
    KernelError::Refused {
        member: Some(member.clone()),
        reason: format!("it needs what this kernel does not have: {what}"),
        remedy: "use a kernel that has it, or test for it before: bpf_core_field_exists, \
                 bpf_core_type_exists, bpf_core_enum_value_exists"
            .to_owned(),
        log: verifier_log::read(rejected).log,
    }
}

/// Loads the types that come with a member, and says whether it took the compiler's own form: that of
/// data sections is new to some kernels.
fn load_types(
    object: &Object,
    member: &Member,
    first: &chain::Member,
    loading: Loading,
) -> Result<(Result<OwnedFd, sys::Rejected>, bool), KernelError> {
    let loaded = sys::btf_load(&types(object, member, first, loading)?);
    if loaded.is_ok() || object.plain_btf == object.btf {
        return Ok((loaded, false));
    }
    let mut plain = first.clone();
    plain.code.btf.clone_from(&object.plain_btf);
    let composed = alone(loading.attachment, &plain).map_err(|error| compose_error(&error))?;
    Ok((sys::btf_load(&composed.btf), true))
}

/// The types that come with a member, composed alone.
fn types(
    object: &Object,
    member: &Member,
    first: &chain::Member,
    loading: Loading,
) -> Result<Arc<[u8]>, KernelError> {
    object.types(&member.function, loading.attachment, || {
        let composed = alone(loading.attachment, first).map_err(|error| compose_error(&error))?;
        Ok(composed.btf)
    })
}

fn alone_of(
    members: &[chain::Member],
    loading: Loading,
    types: Option<&ChainTypes>,
) -> Result<Vec<Composed>, KernelError> {
    members
        .iter()
        .map(|member| match types {
            Some(types) => types.alone(member),
            None => alone(loading.attachment, member).map_err(|error| compose_error(&error)),
        })
        .collect()
}

/// What the composer's refusal means.
pub(crate) fn compose_error(error: &chain::ComposeError) -> KernelError {
    use std::error::Error as _;
    let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
    KernelError::Refused {
        member: error.member().cloned(),
        reason: format!("{error}{cause}"),
        remedy: error.remedy(),
        log: None,
    }
}

fn chain_member(member: &Member, object: &Object, code: Code) -> chain::Member {
    chain::Member {
        name: member.name.clone(),
        code,
        maps: object
            .maps
            .iter()
            .map(|map| chain::Map { name: map.name.clone(), identity: 0, constant: None })
            .collect(),
        proceed_on: member.proceed_on,
        licence: object.licence().to_owned(),
        needs_gpl: false,
        frags: member.frags,
        stack: Vec::new(),
        verified_instructions: 0,
        tail_calls: 0,
    }
}

/// Makes code do without its object's type information.
fn strip(code: &mut Code) {
    code.btf = None;
    code.lines.clear();
    for function in &mut code.functions {
        function.btf = None;
    }
}

/// Whether a program makes tail calls.
fn jumps(program: &chain::Member) -> bool {
    program.code.makes_tail_calls()
}

/// The functions in the program arrays among these maps, each once.
fn targets_of(object: &Object, used: &BTreeSet<usize>) -> Vec<String> {
    let mut targets = Vec::new();
    for map in used.iter().filter_map(|map| object.maps.get(*map)) {
        if map.map_type == PROG_ARRAY {
            targets.extend(
                map.values
                    .iter()
                    .filter_map(|(_, symbol)| object.symbol(*symbol))
                    .map(str::to_owned),
            );
        }
    }
    targets
}

/// Tail calls a packet can take in a member at most: as its package says; else the longest way through
/// the arrays the object fills, and the kernel's limit where that is a circle, or where others fill an
/// array too because it is shared. An array of the member's own that its object leaves empty stays so:
/// nobody fills it through Canopy.
fn tail_calls(
    member: &Member,
    object: &Object,
    members: &[chain::Member],
    targets: &[String],
) -> u32 {
    let limit = chain::limits::TAIL_CALLS;
    if let Some(calls) = member.tail_calls {
        return calls.min(limit);
    }
    // For each program where it may jump to; `None` for anywhere.
    let jumps: Vec<Option<Vec<usize>>> = members
        .iter()
        .map(|program| {
            let mut to = Vec::new();
            if !program.code.makes_tail_calls() {
                return Some(to);
            }
            let used: BTreeSet<usize> = program.code.maps.iter().map(|load| load.map).collect();
            let arrays = used.iter().filter_map(|map| object.maps.get(*map));
            for map in arrays.filter(|map| map.map_type == PROG_ARRAY) {
                if member_maps::share_scope(member, map).is_some() {
                    return None;
                }
                let names = map.values.iter().filter_map(|(_, symbol)| object.symbol(*symbol));
                to.extend(names.filter_map(|name| {
                    targets.iter().position(|target| target == name).map(|place| place + 1)
                }));
            }
            Some(to)
        })
        .collect();
    // A way longer than there are rounds is a circle, or over the limit anyway.
    let mut depths = vec![0; members.len()];
    for _ in 0..limit {
        depths = jumps
            .iter()
            .map(|to| match to {
                None => limit,
                Some(to) => to
                    .iter()
                    .map(|at| (depths.get(*at).copied().unwrap_or(0) + 1).min(limit))
                    .max()
                    .unwrap_or(0),
            })
            .collect();
    }
    depths.first().copied().unwrap_or(0)
}

/// Whether a member calls something only GPL-compatible programs may: it is loaded once more with
/// another licence.
pub(crate) fn needs_gpl(
    loaded: &Loaded,
    loading: Loading,
    types: Option<&ChainTypes>,
) -> Result<bool, KernelError> {
    let composed = match types {
        Some(types) => types.alone(&loaded.chain)?,
        None => alone(loading.attachment, &loaded.chain).map_err(|error| compose_error(&error))?,
    };
    let shared = types.and_then(|types| types.fd(&composed));
    let own = if shared.is_some() {
        None
    } else {
        let loaded_types = sys::btf_load(&composed.btf);
        Some(loaded_types.map_err(|rejected| rejection(&loaded.chain.name, &rejected))?)
    };
    let btf = own.as_ref().map(AsFd::as_fd).or(shared);
    let fd = |source| match source {
        MapSource::Member(_, map) => loaded.fd(map),
        _ => None,
    };
    let strict = ("licence", "Proprietary");
    Ok(load(loading, &composed, strict, btf, &fd, sys::prog_try_load).is_err())
}

/// The contents of the read-only data sections, for the composer to lay together if it must.
pub(crate) fn constants(loaded: &mut Loaded) {
    for (map, made) in loaded.chain.maps.iter_mut().zip(&loaded.maps) {
        map.constant = made.as_ref().and_then(|made| made.constant.as_ref().map(Arc::clone));
    }
}
