//! What the kernel says about our chains, never what we remember of them.

use crate::{AyaKernel, held::Held, link, meta::Meta, netif, pins, pins::os, sys};
use canopy_api::{ChainKey, Hook, XdpMode, wire::ObservedChain};
use canopy_chain::btf::Btf;
use canopy_kernel::{KernelError, LinkState, Observed};
use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// How often a chain is looked at again while it changes under the eyes.
const LOOKS: usize = 5;

/// Every chain that has pins, or that we hold; see [`canopy_kernel::Kernel::observe`].
pub(crate) fn observe(kernel: &AyaKernel) -> Result<Vec<Observed>, KernelError> {
    let mut keys: BTreeSet<ChainKey> = kernel.pins.chains()?.into_iter().collect();
    keys.extend(kernel.held().keys().cloned());
    keys.into_iter()
        .map(|key| {
            let state = state(kernel, &key)?;
            let generations = kernel.pins.generations(&key)?;
            Ok(Observed { key, state, generations })
        })
        .collect()
}

fn state(kernel: &AyaKernel, key: &ChainKey) -> Result<LinkState, KernelError> {
    // Locked from reading the link to remembering it: what is remembered last is what was read last.
    let mut held = kernel.held();
    if let Some(held) = held.get(key)
        && link::link_index(&held.link, key)? != 0
    {
        held.repair(&kernel.pins, key)?;
    }
    for _ in 0..LOOKS {
        let Some(device) = netif::device(&key.interface)? else {
            return Ok(LinkState::InterfaceMissing);
        };
        let Some(link) = kernel.link(key, held.get(key))? else { return Ok(LinkState::Detached) };
        let info =
            sys::link_info(&link).map_err(|error| os(format!("read the link of {key}"), error))?;
        if info.ifindex != Some(device.index) {
            return Ok(LinkState::Detached);
        }
        let Some(generation) = kernel.pins.generation_of(key, info.prog_id)? else {
            return Ok(LinkState::Replaced { program_id: info.prog_id });
        };
        let prog = link::open_prog(kernel, key, generation)?;
        // Interface and link were asked one after the other; a switch in between is no tampering.
        if let Some(observed) = describe(kernel, key, generation, &device, &info, &prog)? {
            let before = held.remove(key);
            let next = Held::new(&kernel.pins, key, generation, link, prog, before)?;
            held.insert(key.clone(), next);
            return Ok(LinkState::Attached(observed));
        }
    }
    Ok(LinkState::Detached)
}

/// What is attached after a switch, which must be that generation.
pub(crate) fn read_back(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
) -> Result<ObservedChain, KernelError> {
    let device = netif::device(&key.interface)?
        .ok_or_else(|| KernelError::InterfaceNotFound { name: key.interface.clone() })?;
    let failed = |what: &str| os(format!("read back {key}"), io::Error::other(what.to_owned()));
    let link =
        pins::open(&kernel.pins.link(key))?.ok_or_else(|| failed("the link is not pinned"))?;
    let prog = link::open_prog(kernel, key, generation)?;
    let info =
        sys::link_info(&link).map_err(|error| os(format!("read the link of {key}"), error))?;
    let wanted = sys::prog_info(&prog).map_err(|error| os(format!("read back {key}"), error))?.id;
    if info.prog_id != wanted || info.ifindex != Some(device.index) {
        return Err(KernelError::Conflict {
            what: format!(
                "{key}: was switched to program {wanted}, and the link now runs program {} on \
                 interface index {}",
                info.prog_id,
                info.ifindex.unwrap_or(0)
            ),
            remedy: "apply again, after finding out who changes this interface".to_owned(),
        });
    }
    describe(kernel, key, generation, &device, &info, &prog)?
        .ok_or_else(|| failed("the interface does not list the program that its link runs"))
}

/// The chain as link, program and interface tell it; `None` when the interface does not agree with
/// the link.
fn describe(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    device: &netif::Device,
    link: &sys::LinkInfo,
    prog: &OwnedFd,
) -> Result<Option<ObservedChain>, KernelError> {
    let failed = |error| os(format!("read the program of {key}"), error);
    let mode = match key.hook {
        Hook::Xdp if device.xdp_native == link.prog_id => "native",
        Hook::Xdp if device.xdp_generic == link.prog_id => "generic",
        Hook::Xdp => return Ok(None),
        Hook::TcIngress | Hook::TcEgress => {
            let listed = sys::tcx_query(device.index, key.hook == Hook::TcEgress)
                .map_err(|error| os(format!("list the programs of {key}"), error))?;
            if !listed.iter().any(|entry| entry.link_id == link.id && entry.prog_id == link.prog_id)
            {
                return Ok(None);
            }
            "tcx"
        }
    };
    let info = sys::prog_info(prog).map_err(failed)?;
    let meta = kernel.pins.meta(key, generation);
    Ok(Some(ObservedChain {
        program_id: info.id,
        link_id: link.id,
        tag: info.tag.clone(),
        ifindex: device.index,
        mode: mode.to_owned(),
        generation,
        verified_instructions: info.verified_instructions,
        jited_bytes: info.jited_bytes,
        functions: functions(&meta, prog, &info).map_err(failed)?,
    }))
}

/// The names of a program's functions, in order, less the generated `main`: as its types tell them,
/// or, without the right to read those, as the description at `meta` does.
fn functions(meta: &Path, prog: &impl AsFd, info: &sys::ProgInfo) -> io::Result<Vec<String>> {
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
    Ok(sys::prog_records(prog)?.function_types.into_iter().skip(1).filter_map(name).collect())
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
