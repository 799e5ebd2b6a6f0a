//! Preparing a generation: everything verified, loaded and pinned; nothing attached.

use crate::{
    chain_types::{self, ChainTypes},
    eligibility, inventory, link,
    map_settings::Deferred,
    member::{self, Linked, Loaded, Loading},
    member_maps::MapMaker,
    meta::Meta,
    netif,
    object::Object,
    object_maps::{ARRAY, RDONLY_PROG},
    observe,
    pins::{self, Pins},
    shared_maps, sys, verifier_log,
};
use canopy_api::{ChainKey, Hook, TcMode, XdpMode};
use canopy_chain::{self as chain, Attachment, Composed, MapSource, Shape, cells, compose_as};
use canopy_kernel::{ChainBuild, KernelError, Member, Prepared};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

/// `BPF_MAP_TYPE_PERCPU_ARRAY`
const PERCPU_ARRAY: u32 = 6;

/// How a chain will be attached.
fn attachment(build: &ChainBuild) -> Result<Attachment, KernelError> {
    let key = &build.key;
    match (key.hook, build.tc_mode) {
        (Hook::Xdp, _) => Ok(Attachment::Xdp),
        (_, TcMode::Best | TcMode::Tcx) if link::has_tcx() => Ok(Attachment::Tcx),
        (_, TcMode::Best | TcMode::Clsact) => Ok(Attachment::Clsact),
        (_, TcMode::Tcx) => Err(KernelError::Unsupported {
            what: format!("{key}: this kernel has no TCX links"),
            remedy: "set `tc_mode: best` or `clsact`, or use Linux 6.6 or newer".to_owned(),
        }),
    }
}

/// Verifies each member alone, makes or takes over the maps, composes, loads and pins.
///
/// A failure leaves nothing behind: what was made is known to this process only, and what was
/// pinned is unpinned.
pub(crate) fn prepare(
    pins: &Pins,
    build: &ChainBuild,
) -> Result<(Prepared, Deferred), KernelError> {
    let key = &build.key;
    pins.claim()?;
    pins.ensure_unobstructed(key)?;
    if observe::running(pins, key)? == Some(build.generation) {
        return Err(KernelError::Conflict {
            what: format!("generation {} of {key} is running", build.generation),
            remedy: "prepare a newer generation".to_owned(),
        });
    }
    let loading = Loading {
        attachment: attachment(build)?,
        frags: key.hook == Hook::Xdp && build.members.iter().all(takes_frags),
    };
    one_buffer(build)?;
    let _preparing = shared_maps::preparing();
    let mut maker = MapMaker::new(pins, build, loading)?;
    let result = assemble(pins, build, &mut maker);
    if result.is_err() {
        for path in maker.pinned.iter().rev() {
            // The error at hand is the one to report.
            let _ = pins::remove_file(path);
            if let Some(dir) = path.parent() {
                pins::prune(pins.root(), dir);
            }
        }
    }
    Ok((result?, maker.deferred))
}

/// Whether a member handles multi-buffer packets: its package says so, or its section (`xdp.frags`).
pub(crate) fn takes_frags(member: &Member) -> bool {
    // An object that cannot be read is refused where it is linked.
    member.frags
        || Object::get(&member.object)
            .is_ok_and(|object| eligibility::frags(&object, &member.function))
}

/// A driver gives a program that does not handle multi-buffer packets one page: the packet beside
/// room in front (`XDP_PACKET_HEADROOM`), the Ethernet header and the kernel's own description
/// behind (`struct skb_shared_info`). No driver attaches it where packets may be larger.
fn one_buffer(build: &ChainBuild) -> Result<(), KernelError> {
    let key = &build.key;
    if key.hook != Hook::Xdp || build.xdp_mode != XdpMode::Native {
        return Ok(());
    }
    let limit = sys::page_size().saturating_sub(256 + 14 + 320);
    // Of a virtual device another MTU counts (veth: the other end's), or none (tun): what it takes is
    // found out when it is attached.
    let device = netif::device(&key.interface)?.filter(|device| device.kind.is_empty());
    let mtu = device.map_or(0, |device| device.mtu);
    match build.members.iter().find(|member| !takes_frags(member)) {
        Some(member) if mtu > limit => Err(member::refused(
            &member.name,
            format!(
                "it does not handle multi-buffer packets, and {} has an MTU of {mtu}; {limit} is \
                 the most without",
                key.interface
            ),
            "set xdp_mode to best or generic, or lower the MTU; a program that handles such packets \
             says so by SEC(\"xdp.frags\") or by frags: true in its package's manifest",
        )),
        _ => Ok(()),
    }
}

fn assemble(
    pins: &Pins,
    build: &ChainBuild,
    maker: &mut MapMaker<'_>,
) -> Result<Prepared, KernelError> {
    let key = &build.key;
    let mut notes = Vec::new();
    maker.settle_frags(&mut notes)?;
    let loading = maker.loading();
    if loading.attachment == Attachment::Clsact && build.tc_mode == TcMode::Best {
        notes.push("attached by a filter of clsact: this kernel has no TCX links".to_owned());
    }
    let linked = build.members.iter().map(|member| member::link(member, key.hook, loading));
    let linked: Vec<Linked> = linked.collect::<Result<_, _>>()?;
    let types = types(pins, key, loading, &linked)?;
    let mut members = Vec::with_capacity(build.members.len());
    for (member, linked) in build.members.iter().zip(linked) {
        let mut loaded = member::prepare(member, linked, loading, types.as_ref(), maker)?;
        member::constants(&mut loaded);
        notes.append(&mut loaded.notes);
        members.push(loaded);
    }
    licences(&mut members, loading, types.as_ref(), &mut notes)?;

    let chain_members: Vec<chain::Member> = members.iter().map(|m| m.chain.clone()).collect();
    let compose = |shape| {
        let composed = match &types {
            Some(types) => types.compose(&chain_members, shape),
            None => compose_as(loading.attachment, &chain_members, shape),
        };
        composed
            .map(|composed| Composed { frags: loading.frags, ..composed })
            .map_err(|error| member::compose_error(&error))
    };
    let mut composed = compose(Shape::Inlined)?;
    if composed.constants.is_some() {
        notes.push("constant data of the programs shares one map: there would be too many".into());
    }

    let cells =
        create_cells(members.len()).map_err(|error| os(key, "make the accounting map", error))?;
    let constants = composed
        .constants
        .as_deref()
        .map(create_constants)
        .transpose()
        .map_err(|error| os(key, "make the map of constants", error))?;
    let parts = Parts {
        loading,
        types: types.as_ref(),
        members: &members,
        cells: &cells,
        constants: constants.as_ref(),
    };
    // Each loads alone. What the verifier does not follow through all of them in one function, it may
    // take one by one; and only then its complaint names a member.
    let inlined = if composed.inlined > 0 { parts.try_load(&composed) } else { None };
    let prog = if let Some(prog) = inlined {
        prog
    } else {
        if composed.inlined > 0 {
            tracing::debug!(chain = %key, "the members are called instead of inlined");
            composed = compose(Shape::Calls)?;
        }
        parts.load(&composed)?
    };
    let info = sys::prog_info(&prog).map_err(|error| os(key, "read the program", error))?;

    let meta = Meta {
        hook: key.hook,
        frags: loading.frags,
        clsact: loading.attachment == Attachment::Clsact,
        members: build.members.iter().map(|m| (m.name.clone(), m.proceed_on)).collect(),
        layouts: members
            .iter()
            .enumerate()
            .flat_map(|(index, member)| {
                member.layouts.iter().map(move |(map, layout)| (index, map.clone(), *layout))
            })
            .collect(),
        functions: composed.functions.iter().skip(1).cloned().collect(),
    };
    let meta = meta.write().map_err(|error| os(key, "make the description", error))?;

    let directory = Directory::new(pins, key, build.generation)?;
    for (member, loaded) in build.members.iter().zip(&members) {
        pins::make_dir(&pins.maps(key, build.generation, &member.name))?;
        for (map, made) in loaded.chain.maps.iter().zip(&loaded.maps) {
            if let Some(made) = made {
                let path = pins.map(key, build.generation, &member.name, &map.name);
                pins::pin_first(&made.map, &path)?;
            }
        }
    }
    if let Some(constants) = &constants {
        pins::pin_first(constants, &pins.constants(key, build.generation))?;
    }
    pins::pin_first(&cells, &pins.cells(key, build.generation))?;
    pins::pin_first(&meta, &pins.meta(key, build.generation))?;
    if !maker.shares.is_empty() {
        let shares = shared_maps::write(&maker.shares)
            .map_err(|error| os(key, "make the list of shared maps", error))?;
        pins::pin_first(&shares, &pins.shares(key, build.generation))?;
    }
    inventory::bind(pins, key, build.generation, &prog);
    // Last: a generation is whole once its program is there.
    pins::pin_first(&prog, &pins.prog(key, build.generation))?;
    directory.keep();
    Ok(Prepared { program_id: info.id, verified_instructions: info.verified_instructions, notes })
}

/// The chain's own types, where a member's maps ask for them.
fn types(
    pins: &Pins,
    key: &ChainKey,
    loading: Loading,
    linked: &[Linked],
) -> Result<Option<ChainTypes>, KernelError> {
    if !linked.iter().any(Linked::has_own_types) {
        return Ok(None);
    }
    let (mut members, mut others) = (Vec::new(), Vec::new());
    for programs in linked.iter().map(Linked::programs) {
        members.extend(programs.first().cloned());
        others.extend(programs.iter().skip(1).cloned());
    }
    let running = chain_types::running(pins, key)?;
    ChainTypes::load(loading.attachment, &members, &others, running).map(Some)
}

/// Where licences differ: finds out who needs helpers that only GPL-compatible programs may call.
fn licences(
    members: &mut [Loaded],
    loading: Loading,
    types: Option<&ChainTypes>,
    notes: &mut Vec<String>,
) -> Result<(), KernelError> {
    let strict = members.iter().find(|m| !chain::gpl_compatible(&m.chain.licence));
    let Some((name, licence)) = strict.map(|m| (m.chain.name.clone(), m.chain.licence.clone()))
    else {
        return Ok(());
    };
    if members.iter().all(|m| !chain::gpl_compatible(&m.chain.licence)) {
        return Ok(());
    }
    for member in members.iter_mut().filter(|m| chain::gpl_compatible(&m.chain.licence)) {
        member.chain.needs_gpl = member::needs_gpl(member, loading, types)?;
    }
    notes.push(format!("the chain is loaded with the licence of \"{name}\", \"{licence}\""));
    Ok(())
}

fn create_cells(members: usize) -> io::Result<OwnedFd> {
    sys::map_create(&sys::MapCreate {
        map_type: PERCPU_ARRAY,
        key_size: 4,
        value_size: u32::try_from(cells::value_size(members)).map_err(io::Error::other)?,
        max_entries: 1,
        name: "canopy.cells",
        ..sys::MapCreate::default()
    })
}

fn create_constants(contents: &[u8]) -> io::Result<OwnedFd> {
    let map = sys::Map::new(sys::map_create(&sys::MapCreate {
        map_type: ARRAY,
        key_size: 4,
        value_size: u32::try_from(contents.len()).map_err(io::Error::other)?,
        max_entries: 1,
        flags: RDONLY_PROG,
        name: "canopy.const",
        ..sys::MapCreate::default()
    })?)?;
    map.update(&0u32.to_ne_bytes(), contents, 0)?;
    map.freeze()?;
    Ok(map.into_fd())
}

/// What a fused program is loaded with.
struct Parts<'a> {
    loading: Loading,
    types: Option<&'a ChainTypes>,
    members: &'a [Loaded],
    cells: &'a OwnedFd,
    constants: Option<&'a OwnedFd>,
}

impl Parts<'_> {
    fn fd(&self, source: MapSource) -> Option<i32> {
        match source {
            MapSource::Cells => Some(self.cells.as_raw_fd()),
            MapSource::Constants => self.constants.map(AsRawFd::as_raw_fd),
            MapSource::Member(member, map) => self.members.get(member)?.fd(map),
        }
    }

    fn load_as<R>(
        &self,
        composed: &Composed,
        own: Option<&OwnedFd>,
        load: impl FnOnce(&sys::ProgLoad<'_>) -> R,
    ) -> R {
        let name = composed.functions.first().map_or("canopy", String::as_str);
        let called = (name, composed.licence.as_str());
        let btf = own.map(AsFd::as_fd).or_else(|| self.types.and_then(|types| types.fd(composed)));
        member::load(self.loading, composed, called, btf, &|map| self.fd(map), load)
    }

    /// The type information of the program, unless it has the one that the chain's maps have.
    fn own_types(&self, composed: &Composed) -> Result<Option<OwnedFd>, sys::Rejected> {
        let shared = self.types.and_then(|types| types.fd(composed)).is_some();
        if shared { Ok(None) } else { sys::btf_load(&composed.btf).map(Some) }
    }

    /// Loads it if the kernel takes it.
    fn try_load(&self, composed: &Composed) -> Option<OwnedFd> {
        let own = self.own_types(composed).ok()?;
        self.load_as(composed, own.as_ref(), sys::prog_try_load).ok()
    }

    /// Loads it, or says why the kernel does not take it.
    fn load(&self, composed: &Composed) -> Result<OwnedFd, KernelError> {
        let blame = |rejected: &sys::Rejected, what: &str| {
            let complaint = verifier_log::read(rejected);
            let member = verifier_log::member_at_fault(&rejected.log);
            let member = member.and_then(|at| self.members.get(at)).map(|m| m.chain.name.clone());
            KernelError::Refused {
                reason: format!("{what}: {}", complaint.reason),
                remedy: format!(
                    "{}; each program loads alone, so a smaller chain may do",
                    complaint.remedy
                ),
                member,
                log: complaint.log,
            }
        };
        let own = self
            .own_types(composed)
            .map_err(|rejected| blame(&rejected, "the programs' types do not go together"))?;
        self.load_as(composed, own.as_ref(), sys::prog_load)
            .map_err(|rejected| blame(&rejected, "the programs do not load together"))
    }
}

/// A generation's directory, removed again unless it is kept.
struct Directory<'a> {
    pins: &'a Pins,
    path: PathBuf,
    keep: bool,
}

impl<'a> Directory<'a> {
    /// Made anew: what a preparation that was cut short left is removed.
    fn new(pins: &'a Pins, key: &ChainKey, generation: u64) -> Result<Self, KernelError> {
        let path = pins.generation(key, generation);
        pins::remove_tree(&path)?;
        let directory = Self { pins, path, keep: false };
        pins::make_dir(&directory.path)?;
        Ok(directory)
    }

    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Directory<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = pins::remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "pins of a failed preparation stay");
        }
        if let Some(parent) = self.path.parent() {
            pins::prune(self.pins.root(), parent);
        }
    }
}

fn os(key: &ChainKey, what: &str, source: io::Error) -> KernelError {
    KernelError::Os { operation: format!("{what} of {key}"), source }
}
