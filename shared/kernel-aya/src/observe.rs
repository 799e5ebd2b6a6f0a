//! What the kernel says about our chains, never what we remember of them.

use crate::{
    AyaKernel, clsact,
    held::Held,
    link,
    meta::Meta,
    netif, netns,
    pins::{self, Pins, os},
    sys,
};
use canopy_api::{ChainKey, Hook, InterfaceName, Netns, XdpMode, wire::ObservedChain};
use canopy_chain::btf::Btf;
use canopy_kernel::{Away, KernelError, LinkState, Observed};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often a chain is looked at again while it changes under the eyes.
const LOOKS: usize = 5;

/// Every chain that has pins, or that we hold; see [`canopy_kernel::Kernel::observe`].
pub(crate) fn observe(kernel: &AyaKernel) -> Result<Vec<Observed>, KernelError> {
    let mut keys: BTreeSet<ChainKey> = kernel.pins.chains()?.into_iter().collect();
    keys.extend(kernel.held().keys().cloned());
    observe_all(kernel, keys)
}

/// Those of these chains that have pins, or that we hold; see
/// [`canopy_kernel::Kernel::observe_chains`].
pub(crate) fn observe_chains(
    kernel: &AyaKernel,
    keys: &BTreeSet<ChainKey>,
) -> Result<Vec<Observed>, KernelError> {
    let mut there = Vec::new();
    for key in keys {
        if kernel.held().contains_key(key) || kernel.pins.has(key)? {
            there.push(key.clone());
        }
    }
    observe_all(kernel, there)
}

fn observe_all(
    kernel: &AyaKernel,
    keys: impl IntoIterator<Item = ChainKey>,
) -> Result<Vec<Observed>, KernelError> {
    let mut by_netns = BTreeMap::<Option<Netns>, Vec<ChainKey>>::new();
    for key in keys {
        by_netns.entry(key.netns.clone()).or_default().push(key);
    }
    let mut seen = Vec::new();
    for (netns, keys) in by_netns {
        let look = |key: &ChainKey| {
            let (state, problem) = state(kernel, key).or_else(unreadable)?;
            let away = match &state {
                LinkState::InterfaceMissing | LinkState::Detached => away(kernel, key)?,
                LinkState::Attached(_)
                | LinkState::Replaced { .. }
                | LinkState::NetnsMissing
                | LinkState::Unseen { .. } => None,
            };
            Ok((state, away, problem))
        };
        // Whether it can be entered is a question of its own: what goes wrong inside is no answer.
        let inside = netns::within(netns.as_ref(), || {
            Ok(keys.iter().map(look).collect::<Result<Vec<_>, KernelError>>())
        });
        let states = match inside {
            Ok(states) => states?,
            Err(error) if netns.is_none() => return Err(error),
            Err(error) => {
                let state = match error {
                    KernelError::NetnsNotFound { .. } => LinkState::NetnsMissing,
                    KernelError::Unsupported { what, remedy } => {
                        LinkState::Unseen { why: format!("{what} ({remedy})") }
                    }
                    error => LinkState::Unseen { why: error.to_string() },
                };
                keys.iter().map(|_| (state.clone(), None, None)).collect()
            }
        };
        for (key, (state, away, pin_problem)) in keys.into_iter().zip(states) {
            let generations = kernel.pins.generations(&key)?;
            seen.push(Observed { key, state, generations, away, pin_problem });
        }
    }
    Ok(seen)
}

/// How a chain stands, and why its pins could not be brought back, where they could not.
fn state(kernel: &AyaKernel, key: &ChainKey) -> Result<(LinkState, Option<String>), KernelError> {
    // Locked from reading the link to remembering it: what is remembered last is what was read last.
    let mut held = kernel.held();
    let mut problem = None;
    if let Some(held) = held.get(key)
        && held.is_attached(key)?
    {
        // It runs as before without them, for as long as this process does.
        problem = held.repair(&kernel.pins, key).err().map(|error| pin_problem(&error));
    }
    for _ in 0..LOOKS {
        let Some(device) = netif::device(&key.interface)? else {
            return Ok((LinkState::InterfaceMissing, None));
        };
        let now = Now::look(kernel, key, held.get(key), &device)?;
        let Some(program_id) = now.program() else { return Ok((LinkState::Detached, None)) };
        // What is held needs no pins to be known.
        let known = held.get(key).map(|held| held.running(key, program_id)).transpose()?.flatten();
        let known = match known {
            Some(known) => Some(known),
            None => match kernel.pins.generation_of(key, program_id)? {
                Some(generation) => Some((generation, link::open_prog(kernel, key, generation)?)),
                None => None,
            },
        };
        let Some((generation, prog)) = known else {
            return Ok((LinkState::Replaced { program_id }, None));
        };
        let link_id = match &now {
            // A move from one to the other was cut short: another switch completes it.
            Now { link: Some(_), filter: Some(_) } => {
                return Ok((LinkState::Replaced { program_id }, None));
            }
            Now { link: Some((_, info)), .. } => Some(info.id),
            Now { link: None, .. } => None,
        };
        // Interface and link were asked one after the other; a switch in between is no tampering.
        let described = describe(kernel, key, generation, &device, link_id, program_id, &prog)?;
        if let Some(mut observed) = described {
            let before = held.remove(key);
            let link = now.link.map(|(link, _)| link);
            let next = Held::new(&kernel.pins, key, generation, link, prog, before)?;
            observed.native_refused = next.told_of(&observed.mode);
            held.insert(key.clone(), next);
            return Ok((LinkState::Attached(observed), problem));
        }
    }
    Ok((LinkState::Detached, None))
}

/// A chain whose pins we may not open may be attached; the others are seen all the same.
fn unreadable(error: KernelError) -> Result<(LinkState, Option<String>), KernelError> {
    match &error {
        KernelError::Os { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok((LinkState::Unseen { why: pin_problem(&error) }, Some(pin_problem(&error))))
        }
        _ => Err(error),
    }
}

fn pin_problem(error: &KernelError) -> String {
    match error {
        KernelError::Os { operation, source } => format!("{operation} failed: {source}"),
        KernelError::Unsupported { what, remedy } | KernelError::Conflict { what, remedy } => {
            format!("{what} ({remedy})")
        }
        other => other.to_string(),
    }
}

/// Where the interface is that a chain is attached to, when it does not have its name any more.
fn away(kernel: &AyaKernel, key: &ChainKey) -> Result<Option<Away>, KernelError> {
    let link = kernel.link(key, kernel.held().get(key))?;
    let index = link.as_ref().map_or(Ok(0), |link| link::link_index(link, key))?;
    let clsact = |generation: &u64| {
        Meta::read(&kernel.pins.meta(key, *generation)).is_ok_and(|generation| generation.clsact)
    };
    if index == 0 && !kernel.pins.generations(key)?.iter().any(clsact) {
        return Ok(None);
    }
    let devices = netif::devices()?;
    let named = |device: &netif::Device| {
        let name: InterfaceName = device.name.parse().ok()?;
        (name != key.interface).then_some(Away::Renamed(name))
    };
    if let Some(link) = link.filter(|_| index != 0) {
        // Numbers of interfaces repeat in each namespace.
        let found = devices.iter().find(|device| device.index == index);
        return Ok(match found {
            Some(device) if hangs_on(&link, key, device)?.is_some() => named(device),
            Some(_) | None => Some(Away::OtherNamespace),
        });
    }
    for device in &devices {
        if let Some(filter) = clsact::filter(key, device)?
            && kernel.pins.generation_of(key, filter.program_id)?.is_some()
        {
            return Ok(named(device));
        }
    }
    Ok(None)
}

/// What of ours hangs on a chain's hook.
pub(crate) struct Now {
    /// A link that is alive, on this interface.
    pub(crate) link: Option<(OwnedFd, sys::LinkInfo)>,
    /// The filter in our place.
    pub(crate) filter: Option<clsact::Filter>,
}

impl Now {
    /// Looks.
    pub(crate) fn look(
        kernel: &AyaKernel,
        key: &ChainKey,
        held: Option<&Held>,
        device: &netif::Device,
    ) -> Result<Self, KernelError> {
        let mut link = None;
        if let Some(found) = kernel.link(key, held)? {
            // One that hangs on another interface (renamed, re-created) is as good as dead to this
            // chain.
            if let Some(info) = hangs_on(&found, key, device)? {
                link = Some((found, info));
            }
        }
        let mut filter = clsact::filter(key, device)?;
        if let Some(found) = &filter {
            let running =
                held.map(|held| held.running(key, found.program_id)).transpose()?.flatten();
            if running.is_none() && !is_ours(&kernel.pins, key, found)? {
                filter = None;
            }
        }
        Ok(Self { link, filter })
    }

    /// The program that runs.
    pub(crate) fn program(&self) -> Option<u32> {
        let link = self.link.as_ref().map(|(_, info)| info.prog_id);
        link.or(self.filter.as_ref().map(|filter| filter.program_id))
    }
}

/// What a link is, if it hangs on this interface. The number it tells may be that of another one, in
/// another network namespace: so the interface is asked as well.
pub(crate) fn hangs_on(
    link: &OwnedFd,
    key: &ChainKey,
    device: &netif::Device,
) -> Result<Option<sys::LinkInfo>, KernelError> {
    let failed = |error| os(format!("read the link of {key}"), error);
    let mut device = device.clone();
    for _ in 0..LOOKS {
        let info = sys::link_info(link).map_err(failed)?;
        if info.ifindex != Some(device.index) {
            return Ok(None);
        }
        let listed = if key.hook == Hook::Xdp {
            [device.xdp_native, device.xdp_generic, device.xdp_hardware].contains(&info.prog_id)
        } else {
            match sys::tcx_query(device.index, key.hook == Hook::TcEgress) {
                Ok(listed) => listed.iter().any(|entry| entry.link_id == info.id),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => false,
                Err(error) => return Err(os(format!("list the programs of {key}"), error)),
            }
        };
        if listed {
            return Ok(Some(info));
        }
        // A link whose program is exchanged between the two looks hangs there as before.
        let again = netif::devices()?.into_iter().find(|now| now.index == device.index);
        match again {
            Some(again) if again != device => device = again,
            Some(_) | None => return Ok(None),
        }
    }
    Ok(None)
}

/// Whether what is in the filter's place is the chain's, or was put there in its stead. A chain that
/// was never attached by a filter has no claim to the place.
fn is_ours(pins: &Pins, key: &ChainKey, filter: &clsact::Filter) -> Result<bool, KernelError> {
    let program_id = filter.program_id;
    if pins.generation_of(key, program_id)?.is_some() {
        return Ok(true);
    }
    // Nor is it this one's if it is that of a chain which calls the same place by another name.
    for other in pins.chains()?.iter().filter(|other| same_name(key, other)) {
        if pins.generation_of(other, program_id)?.is_some() {
            return Ok(false);
        }
    }
    if filter.is_composed_here() {
        return Ok(true);
    }
    let clsact = |generation: &u64| {
        Meta::read(&pins.meta(key, *generation)).is_ok_and(|generation| generation.clsact)
    };
    Ok(pins.generations(key)?.iter().any(clsact))
}

/// Whether two chains are for interfaces that are called alike, in namespaces that are not.
pub(crate) fn same_name(key: &ChainKey, other: &ChainKey) -> bool {
    (key.hook, &key.interface) == (other.hook, &other.interface) && key.netns != other.netns
}

/// The generation that runs; `None` when nothing of ours is attached, or when something else is in
/// its place.
pub(crate) fn running(pins: &Pins, key: &ChainKey) -> Result<Option<u64>, KernelError> {
    if let Some(link) = pins::open_kind(&pins.link(key), sys::Kind::Link)? {
        let info =
            sys::link_info(&link).map_err(|error| os(format!("read the link of {key}"), error))?;
        if info.ifindex.unwrap_or(0) != 0 {
            return pins.generation_of(key, info.prog_id);
        }
    }
    let Some(device) = netif::device(&key.interface)? else { return Ok(None) };
    match clsact::filter(key, &device)? {
        Some(filter) => pins.generation_of(key, filter.program_id),
        None => Ok(None),
    }
}

/// What is attached after a switch, which must be that generation.
pub(crate) fn read_back(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
) -> Result<ObservedChain, KernelError> {
    let device = netif::device(&key.interface)?.ok_or_else(|| KernelError::no_interface(key))?;
    let failed = |what: &str| os(format!("read back {key}"), io::Error::other(what.to_owned()));
    let prog = link::open_prog(kernel, key, generation)?;
    let wanted = sys::prog_info(&prog).map_err(|error| os(format!("read back {key}"), error))?.id;
    let now = Now::look(kernel, key, None, &device)?;
    if now.link.is_some() && now.filter.is_some() {
        return Err(failed("a link and a filter are attached"));
    }
    match now.program() {
        Some(program) if program == wanted => {}
        program => {
            let program = program.map_or("nothing".to_owned(), |id| format!("program {id}"));
            return Err(KernelError::Conflict {
                what: format!("{key}: was switched to program {wanted}, and now runs {program}"),
                remedy: "apply again, after finding out who changes this interface".to_owned(),
            });
        }
    }
    let link_id = now.link.map(|(_, info)| info.id);
    let mut observed = describe(kernel, key, generation, &device, link_id, wanted, &prog)?
        .ok_or_else(|| failed("the interface does not list the program that its link runs"))?;
    observed.native_refused = kernel.held().get(key).and_then(|held| held.told_of(&observed.mode));
    Ok(observed)
}

/// The chain as link, program and interface tell it; `None` when the interface does not agree with
/// the link. Without a link it is a filter, which the interface itself has told.
fn describe(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    device: &netif::Device,
    link_id: Option<u32>,
    program_id: u32,
    prog: &OwnedFd,
) -> Result<Option<ObservedChain>, KernelError> {
    let failed = |error| os(format!("read the program of {key}"), error);
    let mode = match (key.hook, link_id) {
        (Hook::Xdp, _) if device.xdp_native == program_id => "native",
        (Hook::Xdp, _) if device.xdp_generic == program_id => "generic",
        (Hook::Xdp, _) => return Ok(None),
        (Hook::TcIngress | Hook::TcEgress, None) => "clsact",
        (Hook::TcIngress | Hook::TcEgress, Some(link_id)) => {
            let listed = sys::tcx_query(device.index, key.hook == Hook::TcEgress)
                .map_err(|error| os(format!("list the programs of {key}"), error))?;
            if !listed.iter().any(|entry| entry.link_id == link_id && entry.prog_id == program_id) {
                return Ok(None);
            }
            "tcx"
        }
    };
    let info = sys::prog_info(prog).map_err(failed)?;
    let meta = kernel.pins.meta(key, generation);
    let records = sys::prog_records(prog).map_err(failed)?;
    Ok(Some(ObservedChain {
        program_id: info.id,
        link_id: link_id.unwrap_or(0),
        tag: info.tag.clone(),
        ifindex: device.index,
        mode: mode.to_owned(),
        generation,
        verified_instructions: info.verified_instructions,
        jited_bytes: info.jited_bytes,
        memory_bytes: sys::memory(prog).map_err(failed)?.unwrap_or(0),
        loaded: boot() + info.loaded_at_ns / 1_000_000_000,
        timed_runs: info.run_count,
        timed_ns: info.run_time_ns,
        functions: functions(&meta, &records, &info).map_err(failed)?,
        function_bytes: records.jited_lengths,
        native_refused: None,
    }))
}

/// The names of a program's functions, in order, less the generated `main`: as its types tell them,
/// or, without the right to read those, as the description at `meta` does.
fn functions(
    meta: &Path,
    records: &sys::ProgRecords,
    info: &sys::ProgInfo,
) -> io::Result<Vec<String>> {
    if info.btf_id == 0 {
        return Ok(Vec::new());
    }
    let types = match sys::fd_by_id(sys::Kind::Btf, info.btf_id) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return Ok(Meta::read(meta).map(|meta| meta.functions).unwrap_or_default());
        }
        types => types?,
    };
    let bytes = sys::btf_bytes(&types)?;
    let btf = Btf::parse(&bytes).map_err(io::Error::other)?;
    let name = |id| btf.get(id).map(|function| btf.string(function.name).to_owned());
    Ok(records.function_types.iter().copied().skip(1).filter_map(name).collect())
}

/// When the machine was started, seconds since the epoch, as the clock was when this was first
/// asked: the same program has the same time at every look.
fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(up).as_secs()
    })
}

/// Whether the XDP program of the chain's interface runs in a mode that will do.
pub(crate) fn runs_in(key: &ChainKey, mode: XdpMode) -> Result<bool, KernelError> {
    let Some(device) = netif::device(&key.interface)? else { return Ok(true) };
    Ok(match mode {
        XdpMode::Best => true,
        XdpMode::Native => device.xdp_native != 0,
        XdpMode::Generic => device.xdp_generic != 0,
    })
}
