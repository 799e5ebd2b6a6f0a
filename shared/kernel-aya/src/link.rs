//! Attaching, replacing and detaching a chain; holding what is attached.

use crate::{
    AyaKernel,
    attach::{self, Place},
    clsact, device_errors,
    held::Held,
    meta::Meta,
    netif, netns,
    observe::{self, Now},
    pins::{self, Pins, os},
    shared_maps, sys,
};
use canopy_api::{ChainKey, Hook, XdpMode, wire::ObservedChain};
use canopy_kernel::{Expect, KernelError};
use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

/// Attaches a prepared generation; see [`canopy_kernel::Kernel::switch`].
pub(crate) fn switch(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    mode: XdpMode,
    expect: Expect,
) -> Result<ObservedChain, KernelError> {
    let device = netif::device(&key.interface)?.ok_or_else(|| KernelError::no_interface(key))?;
    kernel.pins.ensure_unobstructed(key)?;
    let prog = open_prog(kernel, key, generation)?;
    if expect == Expect::Nothing {
        one_name(kernel, key, &device)?;
    }
    let now = Now::look(kernel, key, kernel.held().get(key), &device)?;
    if matches!(expect, Expect::Generation(_) | Expect::Anything) {
        // What the running programs have written since the new maps were made of theirs.
        kernel.copy_again(key, generation)?;
    }
    if by_filter(kernel, key, generation)? {
        compare(kernel, key, &now, expect)?;
        clsact::attach(&kernel.pins, key, &device, &prog, now.filter.as_ref())?;
        adopt(kernel, key, generation, None, prog)?;
        if let Some((link, _)) = now.link {
            sys::link_detach(&link).map_err(|error| os(format!("detach {key}"), error))?;
        }
        pins::remove_file(&kernel.pins.link(key))?;
    } else {
        if now.filter.is_some() {
            compare(kernel, key, &now, expect)?;
        }
        match (now.link, expect) {
            (None, _) if now.filter.is_some() || expect == Expect::Nothing => {
                if let Some((other, link)) = stray(kernel, key, &device)? {
                    tracing::info!(%key, from = %other, "a link is taken over");
                    replace(kernel, key, generation, mode, link, prog, None)?;
                    pins::remove_file(&kernel.pins.link(&other))?;
                    kernel.held().remove(&other);
                } else {
                    let created = create(kernel, key, generation, &device, mode, &prog)?;
                    adopt_new(kernel, key, generation, created, prog)?;
                }
            }
            (None, _) => return Err(nothing_attached(key)),
            (Some((_, info)), Expect::Nothing) => return Err(attached(key, info.prog_id)),
            (Some((link, _)), Expect::Generation(old)) => {
                let old = open_prog(kernel, key, old)?;
                replace(kernel, key, generation, mode, link, prog, Some(&old))?;
            }
            (Some((link, _)), Expect::Anything) => {
                replace(kernel, key, generation, mode, link, prog, None)?;
            }
        }
        // Only now: for a moment packets go through both, and none through neither.
        if now.filter.is_some() {
            clsact::detach(&kernel.pins, key, &device)?;
        }
    }
    shared_maps::follow(&kernel.pins, key, generation)?;
    kernel.forget_copies(key, generation);
    observe::read_back(kernel, key, generation)
}

/// A link of another of our chains that hangs where this chain has to: its interface was renamed or came
/// from another network namespace, so that it is as good as dead to that chain. Whose it is, and the link.
fn stray(
    kernel: &AyaKernel,
    key: &ChainKey,
    device: &netif::Device,
) -> Result<Option<(ChainKey, OwnedFd)>, KernelError> {
    for other in kernel.pins.chains()? {
        if other.hook != key.hook || other == *key {
            continue;
        }
        let link = kernel.link(&other, kernel.held().get(&other))?;
        if let Some(link) = link
            && observe::hangs_on(&link, key, device)?.is_some()
        {
            return Ok(Some((other, link)));
        }
    }
    Ok(None)
}

/// Refuses a chain where one of ours is attached already, that calls the network namespace by another
/// name: each would take the other one's place, for ever.
fn one_name(kernel: &AyaKernel, key: &ChainKey, device: &netif::Device) -> Result<(), KernelError> {
    let chains = kernel.pins.chains()?;
    for other in chains.into_iter().filter(|other| observe::same_name(key, other)) {
        let link = kernel.link(&other, kernel.held().get(&other))?;
        let linked = link.map_or(Ok(0), |link| link_index(&link, &other))? != 0;
        let filter = clsact::filter(key, device)?;
        let attached = linked
            || match filter {
                Some(filter) => kernel.pins.generation_of(&other, filter.program_id)?.is_some(),
                None => false,
            };
        // A namespace that cannot be entered is not this one.
        let there = netns::within(other.netns.as_ref(), netns::identity).ok();
        if attached && there == Some(netns::identity()?) {
            return Err(KernelError::Conflict {
                what: format!("{key} is the same place as {other}, which has a chain"),
                remedy: "name the network namespace in one way, and delete the other chain"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Whether a generation is to be attached by a filter of clsact.
fn by_filter(kernel: &AyaKernel, key: &ChainKey, generation: u64) -> Result<bool, KernelError> {
    if key.hook == Hook::Xdp {
        return Ok(false);
    }
    Meta::read(&kernel.pins.meta(key, generation))
        .map(|meta| meta.clsact)
        .map_err(|error| os(format!("read what generation {generation} of {key} is"), error))
}

/// Compares what is attached with what is expected, where the kernel does not do it in the step.
fn compare(
    kernel: &AyaKernel,
    key: &ChainKey,
    now: &Now,
    expect: Expect,
) -> Result<(), KernelError> {
    let generation = |id| kernel.pins.generation_of(key, id);
    match (now.program(), expect) {
        (None, Expect::Nothing) | (Some(_), Expect::Anything) => Ok(()),
        (None, Expect::Generation(_) | Expect::Anything) => Err(nothing_attached(key)),
        // Its pins were removed while nobody held it, so nothing of it was known.
        (Some(id), Expect::Nothing)
            if now.link.is_none()
                && generation(id)?.is_none()
                && now.filter.as_ref().is_some_and(clsact::Filter::is_composed_here) =>
        {
            Ok(())
        }
        (Some(id), Expect::Nothing) => Err(attached(key, id)),
        (Some(id), Expect::Generation(old)) if generation(id)? == Some(old) => Ok(()),
        (Some(_), Expect::Generation(_)) => Err(other_program(key)),
    }
}

fn nothing_attached(key: &ChainKey) -> KernelError {
    KernelError::Conflict {
        what: format!("{key}: nothing of ours is attached; somebody detached it"),
        remedy: "apply again: what is attached now is looked at anew".to_owned(),
    }
}

fn attached(key: &ChainKey, id: u32) -> KernelError {
    KernelError::Conflict {
        what: format!("{key}: program {id} is attached there already, in our link or our place"),
        remedy: "apply again: what is attached now is looked at anew".to_owned(),
    }
}

fn other_program(key: &ChainKey) -> KernelError {
    KernelError::Conflict {
        what: format!("{key}: another program has been put in the place of ours meanwhile"),
        remedy: "apply again, after finding out who changes this interface".to_owned(),
    }
}

/// Detaches a chain; see [`canopy_kernel::Kernel::detach`].
pub(crate) fn detach(kernel: &AyaKernel, key: &ChainKey) -> Result<(), KernelError> {
    let link = kernel.link(key, kernel.held().get(key))?;
    let filter = netns::within(key.netns.as_ref(), || {
        let Some(device) = netif::device(&key.interface)? else { return Ok(false) };
        let now = Now::look(kernel, key, None, &device)?;
        if now.filter.is_some() {
            clsact::detach(&kernel.pins, key, &device)?;
        }
        Ok(true)
    });
    match filter {
        Ok(true) => {}
        // Without the right to enter: a link is detached from everywhere, a filter only where it is.
        Err(error) if !error.interface_missing() => {
            if link.is_none() {
                return Err(error);
            }
        }
        Ok(false) | Err(_) => pins::remove_tree(&kernel.pins.qdisc(key))?,
    }
    if let Some(link) = link {
        let failed = |error| os(format!("detach {key}"), error);
        sys::link_detach(&link).map_err(failed)?;
        // The promise is that it is gone, so ask.
        let info = sys::link_info(&link).map_err(failed)?;
        if info.ifindex != Some(0) {
            return Err(failed(io::Error::other("the kernel still shows the link as attached")));
        }
    }
    pins::remove_file(&kernel.pins.link(key))?;
    forget_unfinished(&kernel.pins, key);
    kernel.held().remove(key);
    pins::prune(kernel.pins.root(), &kernel.pins.chain(key));
    Ok(())
}

/// Removes a generation's pins; see [`canopy_kernel::Kernel::discard`].
pub(crate) fn discard(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
) -> Result<(), KernelError> {
    {
        // Held, it would be pinned again. Its link, if that is attached, has its own pin.
        let mut held = kernel.held();
        if held.get(key).is_some_and(|held| held.generation == generation) {
            held.remove(key);
        }
    }
    kernel.forget_deferred(key, generation);
    // First what makes it a generation: a crash half-way leaves nothing that looks whole.
    pins::remove_file(&kernel.pins.prog(key, generation))?;
    pins::remove_tree(&kernel.pins.generation(key, generation))?;
    forget_dead_link(kernel, key)?;
    pins::prune(kernel.pins.root(), &kernel.pins.chain(key));
    shared_maps::collect(&kernel.pins)?;
    Ok(())
}

/// Removes the pin of a link that was detached while its pin could not be seen, once none of its
/// generations is left.
fn forget_dead_link(kernel: &AyaKernel, key: &ChainKey) -> Result<(), KernelError> {
    let path = kernel.pins.link(key);
    if kernel.held().contains_key(key) || !kernel.pins.generations(key)?.is_empty() {
        return Ok(());
    }
    let Some(link) = pins::open(&path)? else { return Ok(()) };
    if link_index(&link, key)? == 0 {
        pins::remove_file(&path)?;
    }
    Ok(())
}

/// A generation's program.
pub(crate) fn open_prog(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
) -> Result<OwnedFd, KernelError> {
    let path = kernel.pins.prog(key, generation);
    pins::open_kind(&path, sys::Kind::Prog)?.ok_or_else(|| {
        os(
            format!("open generation {generation} of {key} at {}", path.display()),
            io::ErrorKind::NotFound.into(),
        )
    })
}

/// The interface a link hangs on; 0 when it is dead.
pub(crate) fn link_index(link: &impl AsFd, key: &ChainKey) -> Result<u32, KernelError> {
    let info =
        sys::link_info(link).map_err(|error| os(format!("read the link of {key}"), error))?;
    Ok(info.ifindex.unwrap_or(0))
}

/// Pins a new link and holds it. Dropping the old one's last descriptor detaches it from wherever it
/// still hung. Without a link the program is held: a filter keeps itself.
fn adopt(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    link: Option<OwnedFd>,
    prog: OwnedFd,
) -> Result<(), KernelError> {
    if let Some(link) = &link {
        let path = kernel.pins.link(key);
        let pinned = pins::make_dir(&kernel.pins.chain(key)).and_then(|()| pins::pin(link, &path));
        if pinned.is_err() {
            // By half a pin it would stay attached, and nobody would look.
            forget_unfinished(&kernel.pins, key);
        }
        pinned?;
    }
    let mut held = kernel.held();
    let next = Held::new(&kernel.pins, key, generation, link, prog, held.remove(key))?;
    held.insert(key.clone(), next);
    Ok(())
}

/// The same with a link that was made just now.
fn adopt_new(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    created: Created,
    prog: OwnedFd,
) -> Result<(), KernelError> {
    adopt(kernel, key, generation, Some(created.link), prog)?;
    if let Some(held) = kernel.held().get_mut(key) {
        held.native_refused = created.native_refused;
    }
    device_errors::attached(kernel, key);
    Ok(())
}

/// Removes a link that was made and did not get as far as its place: with its only pin it goes.
fn forget_unfinished(pins: &Pins, key: &ChainKey) {
    let path = pins::unfinished(&pins.link(key));
    if let Err(error) = pins::remove_file(&path) {
        tracing::error!(%key, %error, "a link that should not be there stays attached");
    }
}

/// Removes what a process that died while it attached chains has left.
pub(crate) fn clean_up(pins: &Pins) -> Result<(), KernelError> {
    for key in pins.chains()? {
        forget_unfinished(pins, &key);
    }
    match shared_maps::clean_up(pins) {
        // On a file system that is mounted read-only nothing can be opened or removed; each chain says so.
        Err(KernelError::Os { source, .. })
            if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
        {
            tracing::warn!(root = %pins.root().display(), "nothing is cleaned up: {source}");
            Ok(())
        }
        result => result,
    }
}

/// Puts a program in the place of what our live link runs.
fn replace(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    mode: XdpMode,
    link: OwnedFd,
    prog: OwnedFd,
    old: Option<&OwnedFd>,
) -> Result<(), KernelError> {
    if key.hook == Hook::Xdp && !observe::runs_in(key, mode)? {
        return change_mode(kernel, key, generation, mode, &link, prog, old);
    }
    match sys::link_update(&link, &prog, old) {
        Ok(()) => adopt(kernel, key, generation, Some(link), prog),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) if old.is_some() => other_program(key),
            Some(libc::ENOLINK) => KernelError::Conflict {
                what: format!("{key}: our link was detached meanwhile"),
                remedy: "apply again: what is attached now is looked at anew".to_owned(),
            },
            _ => os(format!("replace the program of {key}"), error),
        }),
    }
}

/// Moves a chain between driver and generic XDP. The kernel has no step for that: a link keeps its
/// mode, and the two cannot be there together, so for some milliseconds nothing is attached.
fn change_mode(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    mode: XdpMode,
    link: &OwnedFd,
    prog: OwnedFd,
    old: Option<&OwnedFd>,
) -> Result<(), KernelError> {
    let failed = |error| os(format!("change the mode of {key}"), error);
    let running = sys::link_info(link).map_err(failed)?.prog_id;
    if let Some(old) = old
        && sys::prog_info(old).map_err(failed)?.id != running
    {
        return Err(other_program(key));
    }
    let before = kernel.pins.generation_of(key, running)?;
    let device = netif::device(&key.interface)?.ok_or_else(|| KernelError::no_interface(key))?;
    let was = if device.xdp_native == 0 { XdpMode::Generic } else { XdpMode::Native };
    sys::link_detach(link).map_err(failed)?;
    match create(kernel, key, generation, &device, mode, &prog) {
        Ok(created) => adopt_new(kernel, key, generation, created, prog),
        Err(refused) => {
            // As it was before: a failed change leaves the old chain running. A program that
            // somebody else had put into our link is not brought back.
            if let Some(before) = before {
                let prog = open_prog(kernel, key, before)?;
                let created = create(kernel, key, before, &device, was, &prog)?;
                adopt_new(kernel, key, before, created, prog)?;
            }
            Err(refused)
        }
    }
}

/// A link that was made.
struct Created {
    link: OwnedFd,
    /// What was said to native XDP, where it is generic instead.
    native_refused: Option<String>,
}

/// A new link on an interface, for a generation's program.
fn create(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    device: &netif::Device,
    mode: XdpMode,
    prog: &OwnedFd,
) -> Result<Created, KernelError> {
    let attempt = |place| attach::attach(prog, device.index, place);
    let mut native_refused = None;
    let result = match (key.hook, mode) {
        (Hook::TcIngress, _) => attempt(Place::TcxIngress),
        (Hook::TcEgress, _) => attempt(Place::TcxEgress),
        (Hook::Xdp, XdpMode::Native) => attempt(Place::XdpNative),
        (Hook::Xdp, XdpMode::Generic) => attempt(Place::XdpGeneric),
        (Hook::Xdp, XdpMode::Best) => match attempt(Place::XdpNative) {
            Err(refused) if !attach::is_final(&refused.error) => {
                tracing::debug!(interface = %key.interface, %refused, "native XDP is refused");
                native_refused = Some(refused.to_string());
                attempt(Place::XdpGeneric)
            }
            result => result,
        },
    };
    match result {
        Ok(link) => Ok(Created { link, native_refused }),
        Err(error) => {
            let frags = handles_frags(kernel, key, generation);
            Err(refused(key, device, mode, frags, error))
        }
    }
}

/// Whether every program of a generation handles multi-buffer packets.
fn handles_frags(kernel: &AyaKernel, key: &ChainKey, generation: u64) -> bool {
    Meta::read(&kernel.pins.meta(key, generation)).is_ok_and(|meta| meta.frags)
}

/// Why the kernel made no link, in words: a cause where it is certain, else what the kernel said.
fn refused(
    key: &ChainKey,
    device: &netif::Device,
    mode: XdpMode,
    frags: bool,
    refused: attach::Refused,
) -> KernelError {
    match (key.hook, refused.errno()) {
        (_, Some(libc::ENODEV)) => KernelError::no_interface(key),
        (Hook::Xdp, Some(libc::EBUSY | libc::EEXIST)) => occupied(key, device),
        (Hook::Xdp, Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::ENOSPC))
            if mode == XdpMode::Native =>
        {
            let other = "set `xdp_mode: best` or `generic`";
            KernelError::Unsupported {
                what: format!("{key}: native XDP is refused: {refused} (MTU {})", device.mtu),
                remedy: match refused.hint(frags) {
                    Some(hint) => format!("{}, or {other}", hint.replace("DEV", &device.name)),
                    None => other.to_owned(),
                },
            }
        }
        (Hook::TcIngress | Hook::TcEgress, Some(libc::EINVAL)) if !has_tcx() => {
            KernelError::Unsupported {
                what: format!("{key}: this kernel has no TCX links"),
                remedy: "set `tc_mode: best` or `clsact`, or use Linux 6.6 or newer".to_owned(),
            }
        }
        _ => os(format!("attach {key}"), refused.into()),
    }
}

/// Whether the kernel knows TCX: asked about loopback, which every namespace has.
pub(crate) fn has_tcx() -> bool {
    let loopback = 1;
    !matches!(sys::tcx_query(loopback, false), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// The XDP hook is somebody else's: who, and how to take it back.
fn occupied(key: &ChainKey, device: &netif::Device) -> KernelError {
    let (prog_id, mode) = match device {
        netif::Device { xdp_hardware: id @ 1.., .. } => (*id, "in hardware"),
        netif::Device { xdp_native: id @ 1.., .. } => (*id, "native"),
        netif::Device { xdp_generic: id @ 1.., .. } => (*id, "generic"),
        _ => {
            return KernelError::Conflict {
                what: format!("{key}: the kernel says the hook is taken, and shows no program"),
                remedy: "if the interface is part of a bond or bridge, look for an XDP program on \
                         the upper interface"
                    .to_owned(),
            };
        }
    };
    let name = sys::fd_by_id(sys::Kind::Prog, prog_id)
        .and_then(|prog| sys::prog_info(&prog))
        .map_or_else(|_| String::new(), |info| format!(" \"{}\"", info.name));
    match find_link(device.index, prog_id) {
        // Whether by a link, only who may ask for links by their ids can tell.
        None if sys::next_id(sys::Kind::Link, 0).is_err() => KernelError::Conflict {
            what: format!("{key}: program {prog_id}{name} is attached ({mode})"),
            remedy: format!(
                "find out who attached it, as root: bpftool prog show id {prog_id}, bpftool net \
                 show dev {0}; then stop or detach it",
                key.interface
            ),
        },
        Some(link) => KernelError::Conflict {
            what: format!(
                "{key}: program {prog_id}{name} is attached ({mode}) by link {link}{}",
                holders(link)
            ),
            remedy: format!(
                "stop the tool that attached it, or detach it: bpftool link detach id {link}"
            ),
        },
        None => KernelError::Conflict {
            what: format!("{key}: program {prog_id}{name} is attached ({mode}) through netlink"),
            remedy: format!(
                "stop the tool that attached it, or detach it: ip link set dev {} xdp off",
                key.interface
            ),
        },
    }
}

/// The link by which a program hangs on an interface. Only `CAP_SYS_ADMIN` may ask.
pub(crate) fn find_link(ifindex: u32, prog_id: u32) -> Option<u32> {
    let mut id = 0;
    while let Ok(Some(next)) = sys::next_id(sys::Kind::Link, id) {
        id = next;
        let info = sys::fd_by_id(sys::Kind::Link, id).and_then(|link| sys::link_info(&link));
        if info.is_ok_and(|info| info.ifindex == Some(ifindex) && info.prog_id == prog_id) {
            return Some(id);
        }
    }
    None
}

/// The processes that have a link open, as a piece of a sentence.
fn holders(link_id: u32) -> String {
    let wanted = format!("link_id:\t{link_id}");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let infos = fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten();
        if infos
            .filter_map(|info| fs::read_to_string(info.path()).ok())
            .any(|info| info.lines().any(|line| line == wanted))
        {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid})", comm.trim()));
        }
    }
    if found.is_empty() {
        ", held by no process: it is pinned".to_owned()
    } else {
        format!(", held by {}", found.join(", "))
    }
}
