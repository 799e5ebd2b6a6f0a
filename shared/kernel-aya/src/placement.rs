//! What of others handles a chain's packets before the chain does: attached is not reached.
//!
//! On the way in, a packet meets the interface's XDP program (the hardware's, then the driver's or the
//! generic one), then the TCX list, then the filters of clsact; on the way out the last two. One hook has
//! at most one XDP program of each kind, so only what lies before is looked for.

use crate::{AyaKernel, clsact, netif, netns, pins::os, sys};
use canopy_api::{
    ChainKey, Hook,
    wire::{ChainPlacement, FilterPosition, ForeignProgram, ObservedChain},
};
use canopy_kernel::KernelError;

/// Where an attached chain stands; see [`canopy_kernel::Kernel::placement`].
pub(crate) fn placement(
    kernel: &AyaKernel,
    key: &ChainKey,
    chain: &ObservedChain,
) -> Result<Option<ChainPlacement>, KernelError> {
    netns::within(key.netns.as_ref(), || {
        let Some(device) = netif::device(&key.interface)? else { return Ok(None) };
        if device.index != chain.ifindex {
            return Ok(None);
        }
        if key.hook == Hook::Xdp {
            return Ok(Some(of_xdp(&device, chain)));
        }
        let mut before = match key.hook {
            Hook::Xdp | Hook::TcEgress => Vec::new(),
            Hook::TcIngress => foreign_xdp(kernel, key, &device)?,
        };
        let Some(mut placement) = of_tc(key, &device, chain)? else { return Ok(None) };
        before.append(&mut placement.before);
        Ok(Some(ChainPlacement { before, ..placement }))
    })
}

fn of_xdp(device: &netif::Device, chain: &ObservedChain) -> ChainPlacement {
    let offloaded = Some(device.xdp_hardware).filter(|id| *id != 0 && *id != chain.program_id);
    ChainPlacement {
        position: 0,
        programs: 1,
        revision: None,
        before: offloaded.map(|id| program("xdp-offload", id)).into_iter().collect(),
    }
}

fn of_tc(
    key: &ChainKey,
    device: &netif::Device,
    chain: &ObservedChain,
) -> Result<Option<ChainPlacement>, KernelError> {
    let list = match sys::tcx_list(device.index, key.hook == Hook::TcEgress) {
        Ok(list) => Some(list),
        // Before Linux 6.6 there are none.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(os(format!("list the programs of {key}"), error)),
    };
    let tcx = |programs: &[sys::TcxProgram]| -> Vec<_> {
        let told = |one: &sys::TcxProgram| ForeignProgram {
            link_id: Some(one.link_id).filter(|id| *id != 0),
            ..program("tcx", one.prog_id)
        };
        programs.iter().map(told).collect()
    };
    if chain.link_id == 0 {
        let Some(filters) = clsact::in_order(key, device)? else { return Ok(None) };
        let mut before = tcx(list.as_ref().map_or(&[], |list| &list.programs));
        before.extend(filters.before.iter().map(|filter| ForeignProgram {
            filter: Some(FilterPosition { priority: filter.priority(), handle: filter.handle() }),
            ..filter_program(filter)
        }));
        return Ok(Some(ChainPlacement {
            position: count(filters.before.len()),
            programs: count(filters.total),
            revision: None,
            before,
        }));
    }
    let Some(list) = list else { return Ok(None) };
    let ours = |one: &sys::TcxProgram| one.link_id == chain.link_id;
    let Some(position) = list.programs.iter().position(ours) else { return Ok(None) };
    Ok(Some(ChainPlacement {
        position: count(position),
        programs: count(list.programs.len()),
        revision: Some(list.revision),
        before: tcx(list.programs.get(..position).unwrap_or_default()),
    }))
}

/// XDP programs of the interface that are not its chain's.
fn foreign_xdp(
    kernel: &AyaKernel,
    key: &ChainKey,
    device: &netif::Device,
) -> Result<Vec<ForeignProgram>, KernelError> {
    let xdp = ChainKey { hook: Hook::Xdp, ..key.clone() };
    let mut found = Vec::new();
    for (attached, id) in [
        ("xdp-offload", device.xdp_hardware),
        ("xdp-native", device.xdp_native),
        ("xdp-generic", device.xdp_generic),
    ] {
        // Its own is held, also while its pins cannot be seen.
        let held = || kernel.held().get(&xdp).is_some_and(|held| held.runs(id));
        if id != 0 && !held() && kernel.pins.generation_of(&xdp, id)?.is_none() {
            found.push(program(attached, id));
        }
    }
    Ok(found)
}

/// A program by its id; what only `CAP_SYS_ADMIN` may ask stays open without it.
fn program(attached: &str, program_id: u32) -> ForeignProgram {
    let info = sys::fd_by_id(sys::Kind::Prog, program_id).and_then(|prog| sys::prog_info(&prog));
    let info = info.ok();
    ForeignProgram {
        attached: attached.to_owned(),
        program_id,
        name: info.as_ref().map(|info| info.name.clone()).filter(|name| !name.is_empty()),
        tag: info.as_ref().map(|info| info.tag.clone()),
        program_type: info.map(|info| match info.prog_type {
            3 => "sched_cls".to_owned(),
            4 => "sched_act".to_owned(),
            6 => "xdp".to_owned(),
            other => other.to_string(),
        }),
        link_id: None,
        filter: None,
    }
}

/// What a filter runs. rtnetlink tells everybody a program's tag, and the name that its filter was given.
fn filter_program(filter: &clsact::Filter) -> ForeignProgram {
    if filter.program_id == 0 {
        return ForeignProgram {
            attached: "clsact".to_owned(),
            name: Some(filter.kind().to_owned()),
            ..ForeignProgram::default()
        };
    }
    let known = program("clsact", filter.program_id);
    let name = Some(filter.name().to_owned()).filter(|name| !name.is_empty());
    ForeignProgram { name: known.name.or(name), tag: known.tag.or_else(|| filter.tag()), ..known }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
