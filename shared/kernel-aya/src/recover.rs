//! A chain that is attached while its pins are not in their place: hidden by a mount, moved, removed
//! while somebody else held the link, or in another mount namespace. It is recognised by its program and
//! pinned again; where that cannot be, it is left as it is and said so. Attached a second time, packets
//! would meet it twice.
//!
//! The kernel turns an id into a descriptor only for `CAP_SYS_ADMIN`. Without it, a link is within reach
//! only if it is pinned somewhere that this process can see; what a program is called is told all the
//! same, by an iterator.

use crate::{
    AyaKernel, clsact, inventory, link, netif, netns,
    observe::Now,
    pins::{self, os},
    program_names, sys,
};
use canopy_api::{ChainKey, Hook};
use canopy_chain::Attachment;
use canopy_kernel::{KernelError, KnownProgram};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How deep, and among how many names, a link is looked for in a BPF file system.
const DEEP: usize = 8;
const NAMES: usize = 20_000;

/// What is attached to a hook.
#[derive(Clone, Copy, Debug)]
struct OnHook {
    program_id: u32,
    /// Where the kernel tells it.
    link_id: Option<u32>,
    by_filter: bool,
}

/// A link, and the pin by which it was found.
struct Reached {
    link: OwnedFd,
    pin: Option<PathBuf>,
}

/// Looks for a chain without pins and takes it over; see [`canopy_kernel::Kernel::recover_pins`].
pub(crate) fn recover_pins(
    kernel: &AyaKernel,
    key: &ChainKey,
    known: Option<KnownProgram>,
) -> Result<bool, KernelError> {
    netns::within(key.netns.as_ref(), || {
        let Some(device) = netif::device(&key.interface)? else { return Ok(false) };
        let on_hook = on_hook(key, &device)?;
        if on_hook.is_empty() || Now::look(kernel, key, None, &device)?.link.is_some() {
            return Ok(false);
        }
        for one in &on_hook {
            let pinned = kernel.pins.generation_of(key, one.program_id)?;
            let remembered = known
                .filter(|known| known.program_id == one.program_id)
                .map(|known| known.generation);
            if let Some(generation) = pinned.or(remembered) {
                return take_over(kernel, key, &device, *one, generation, pinned.is_some());
            }
        }
        for one in on_hook.iter().filter(|one| !one.by_filter) {
            if is_composed_here(key.hook, one.program_id) && !is_of_another(kernel, key, one)? {
                return Err(of_some_loader(kernel, key, &device, *one));
            }
        }
        Ok(false)
    })
}

fn on_hook(key: &ChainKey, device: &netif::Device) -> Result<Vec<OnHook>, KernelError> {
    if key.hook == Hook::Xdp {
        let ids = [device.xdp_native, device.xdp_generic, device.xdp_hardware];
        let there = ids.into_iter().filter(|id| *id != 0);
        let link = |program_id| OnHook { program_id, link_id: None, by_filter: false };
        return Ok(there.map(link).collect());
    }
    let listed = match sys::tcx_query(device.index, key.hook == Hook::TcEgress) {
        Ok(listed) => listed,
        // No TCX, or no interface any more.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
            Vec::new()
        }
        Err(error) => return Err(os(format!("list the programs of {key}"), error)),
    };
    let mut found: Vec<_> = listed
        .into_iter()
        .filter(|one| one.link_id != 0)
        .map(|one| OnHook { program_id: one.prog_id, link_id: Some(one.link_id), by_filter: false })
        .collect();
    if let Some(filter) = clsact::filter(key, device)? {
        found.push(OnHook { program_id: filter.program_id, link_id: None, by_filter: true });
    }
    Ok(found)
}

fn is_composed_here(hook: Hook, program_id: u32) -> bool {
    let attachment = if hook == Hook::Xdp { Attachment::Xdp } else { Attachment::Tcx };
    let info = sys::fd_by_id(sys::Kind::Prog, program_id).and_then(|prog| sys::prog_info(&prog));
    let name = info.map(|info| info.name).or_else(|_| {
        let mut names = program_names::names()?;
        names.remove(&program_id).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    });
    match name {
        Ok(name) => name == attachment.main(),
        Err(error) => {
            tracing::warn!(program = program_id, %error, "whose program it is cannot be told");
            false
        }
    }
}

/// Whether another chain has it: one whose interface was renamed, or is called by another namespace.
fn is_of_another(kernel: &AyaKernel, key: &ChainKey, one: &OnHook) -> Result<bool, KernelError> {
    for other in kernel.pins.chains()? {
        if other.hook == key.hook && kernel.pins.generation_of(&other, one.program_id)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Pins what is attached, and its generation where that is not pinned.
fn take_over(
    kernel: &AyaKernel,
    key: &ChainKey,
    device: &netif::Device,
    one: OnHook,
    generation: u64,
    pinned: bool,
) -> Result<bool, KernelError> {
    if one.by_filter {
        // A filter keeps itself, and gives its place to the next generation as it is.
        return Ok(!pinned && restore(kernel, key, generation, one, None));
    }
    let reached = match reach(device, one) {
        Some(reached) => reached,
        // A link whose last pin went is taken off its hook a grace period later.
        None if may_ask_by_id() && is_going(key, device, one)? => return Ok(false),
        None => return Err(out_of_reach(kernel, key, one)),
    };
    if !pinned {
        restore(kernel, key, generation, one, reached.pin.as_deref());
    }
    kernel.pins.ensure_unobstructed(key)?;
    // Last: with its link pinned, it is the chain's.
    pins::make_dir(&kernel.pins.chain(key))?;
    pins::pin(&reached.link, &kernel.pins.link(key))?;
    tracing::warn!(
        %key, program = one.program_id, generation,
        "its pins were not in their place; what is attached is pinned again"
    );
    Ok(true)
}

/// Pins a generation whose program runs; whether it could be done. Without its pins the next round puts
/// a new generation into the link.
fn restore(
    kernel: &AyaKernel,
    key: &ChainKey,
    generation: u64,
    one: OnHook,
    link: Option<&Path>,
) -> bool {
    let beside = link.and_then(Path::parent).map(|dir| dir.join(format!("gen-{generation}")));
    if let Some(from) = beside.filter(|from| runs(&from.join("prog"), one.program_id)) {
        match pin_tree(&from, &kernel.pins.generation(key, generation)) {
            Ok(()) => return true,
            Err(error) => tracing::warn!(%key, generation, %error, "not pinned again"),
        }
    }
    let restored = sys::fd_by_id(sys::Kind::Prog, one.program_id)
        .map_err(|error| os(format!("open program {}", one.program_id), error))
        .and_then(|prog| inventory::restore(&kernel.pins, key, generation, &prog));
    if let Err(error) = &restored {
        tracing::warn!(%key, generation, %error, "its maps are not pinned again");
    }
    restored.is_ok()
}

fn runs(pin: &Path, program_id: u32) -> bool {
    let prog = pins::open_kind(pin, sys::Kind::Prog).ok().flatten();
    prog.is_some_and(|prog| sys::prog_info(&prog).is_ok_and(|info| info.id == program_id))
}

/// Pins what is pinned below one directory below another one too, where nothing is; the program last.
fn pin_tree(from: &Path, to: &Path) -> Result<(), KernelError> {
    let mut entries = pins::entries(from)?;
    entries.sort_by_key(|entry| entry.name.as_deref() == Some("prog"));
    for entry in entries {
        let Some(name) = entry.name else { continue };
        if entry.is_dir {
            pin_tree(&entry.path, &to.join(name))?;
        } else if let Some(object) = pins::open(&entry.path)? {
            inventory::pin_missing(&object, &to.join(name))?;
        }
    }
    Ok(())
}

/// The link by which a program is attached: by its id, where that is allowed, else by any pin of it that
/// can be seen.
fn reach(device: &netif::Device, one: OnHook) -> Option<Reached> {
    let is_it = |link: &OwnedFd| {
        sys::link_info(link)
            .is_ok_and(|info| info.ifindex == Some(device.index) && info.prog_id == one.program_id)
    };
    let seen = seek(&is_it);
    if seen.is_some() {
        return seen;
    }
    let id = one.link_id.or_else(|| link::find_link(device.index, one.program_id))?;
    let link = sys::fd_by_id(sys::Kind::Link, id).ok().filter(is_it)?;
    Some(Reached { link, pin: None })
}

fn may_ask_by_id() -> bool {
    sys::next_id(sys::Kind::Link, 0).is_ok()
}

/// Whether a program that no link holds any more leaves its hook.
fn is_going(key: &ChainKey, device: &netif::Device, one: OnHook) -> Result<bool, KernelError> {
    for _ in 0..20 {
        sys::timed(|| thread::sleep(Duration::from_millis(10)));
        let Some(device) = netif::device(&key.interface)?.filter(|now| now.index == device.index)
        else {
            return Ok(true);
        };
        if on_hook(key, &device)?.iter().all(|now| now.program_id != one.program_id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks through the BPF file systems that can be seen for the pin of a chain's link.
fn seek(is_it: &impl Fn(&OwnedFd) -> bool) -> Option<Reached> {
    let mut left = NAMES;
    let mut dirs: Vec<(PathBuf, usize)> =
        mounts().into_iter().filter(|mount| mount.is_bpf).map(|mount| (mount.point, 0)).collect();
    while let Some((dir, depth)) = dirs.pop() {
        for entry in pins::entries(&dir).unwrap_or_default() {
            left = left.checked_sub(1)?;
            if entry.is_dir && depth < DEEP {
                dirs.push((entry.path, depth + 1));
            } else if entry.name.as_deref() == Some("link")
                && let Ok(Some(link)) = pins::open_kind(&entry.path, sys::Kind::Link)
                && is_it(&link)
            {
                return Some(Reached { link, pin: Some(entry.path) });
            }
        }
    }
    None
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    point: PathBuf,
    is_bpf: bool,
}

fn mounts() -> Vec<Mount> {
    let text = sys::timed(|| fs::read_to_string("/proc/thread-self/mountinfo")).unwrap_or_default();
    read_mounts(&text)
}

fn read_mounts(text: &str) -> Vec<Mount> {
    let read = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        Some(Mount {
            // proc(5): space, tab, newline and backslash are octal.
            point: PathBuf::from(
                before.split(' ').nth(4)?.replace("\\040", " ").replace("\\134", "\\"),
            ),
            is_bpf: after.split(' ').next() == Some("bpf"),
        })
    };
    text.lines().filter_map(read).collect()
}

/// Where a mount hides what a BPF file system below it has for a directory.
fn covered(root: &Path, mounts: &[Mount]) -> Option<PathBuf> {
    // In the order in which they were mounted: at one point the last one is seen.
    let mut above = mounts.iter().filter(|mount| root.starts_with(&mount.point)).enumerate();
    let first = above.find(|(_, mount)| mount.is_bpf)?;
    let depth = |mount: &Mount| mount.point.components().count();
    let upper = above.filter(|(_, mount)| depth(mount) >= depth(first.1));
    upper.max_by_key(|(at, mount)| (depth(mount), *at)).map(|(_, mount)| mount.point.clone())
}

fn out_of_reach(kernel: &AyaKernel, key: &ChainKey, one: OnHook) -> KernelError {
    let root = kernel.pins.root();
    let covered = covered(root, &mounts());
    let link = one.link_id.map(|id| format!(" by link {id}")).unwrap_or_default();
    let why = match &covered {
        Some(point) => format!("another file system is mounted over them at {}", point.display()),
        None => "they were moved or removed, or are in another mount namespace".to_owned(),
    };
    let by_hand = match one.link_id {
        Some(id) => format!(
            "or pin its link as root: mkdir -p {dir} && bpftool link pin id {id} {dir}/link",
            dir = kernel.pins.chain(key).display()
        ),
        None => "or start the loader with cap_sys_admin once, which lets it do so".to_owned(),
    };
    let bring_back = match &covered {
        Some(point) => format!("unmount it: umount {}", point.display()),
        None => format!("bring its pins back to {}", kernel.pins.chain(key).display()),
    };
    KernelError::PinsHidden {
        what: format!(
            "{key}: its own program {} is attached{link}, and its pins are not below {}: {why}",
            one.program_id,
            root.display()
        ),
        remedy: format!("{bring_back}; {by_hand}"),
    }
}

/// A chain of a loader that this one knows nothing of.
fn of_some_loader(
    kernel: &AyaKernel,
    key: &ChainKey,
    device: &netif::Device,
    one: OnHook,
) -> KernelError {
    let root = kernel.pins.root();
    let link = one.link_id.or_else(|| link::find_link(device.index, one.program_id));
    let uncover = match covered(root, &mounts()) {
        Some(point) => format!("if its pins are hidden: umount {}; ", point.display()),
        None => String::new(),
    };
    let (by, detach) = match link {
        Some(id) => {
            (format!(" by link {id}"), format!("; or detach it: bpftool link detach id {id}"))
        }
        None => (String::new(), String::new()),
    };
    let remedy = format!("{uncover}if another loader runs it, remove the chain there{detach}");
    KernelError::PinsHidden {
        what: format!(
            "{key}: program {} of a Canopy loader is attached there{by}, and has no pin below {}",
            one.program_id,
            root.display()
        ),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_over_another_one_is_seen() {
        let one = "30 24 0:26 / /sys/fs/bpf rw,nosuid - bpf bpf rw,mode=700\n\
                   31 24 0:27 / /proc rw - proc proc rw\n\
                   33 24 0:28 / /sys/fs/bpf\\040x rw - tmpfs none rw\n";
        let root = Path::new("/sys/fs/bpf/canopy");
        let mounts = read_mounts(one);
        assert_eq!(
            mounts.iter().map(|mount| mount.is_bpf).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert_eq!(mounts[2].point, Path::new("/sys/fs/bpf x"));
        assert_eq!(covered(root, &mounts), None);
        let two = format!("{one}40 30 0:29 / /sys/fs/bpf rw - bpf bpf rw\n");
        assert_eq!(covered(root, &read_mounts(&two)), Some("/sys/fs/bpf".into()));
        assert_eq!(covered(Path::new("/run/x"), &read_mounts(&two)), None);
        let below = format!("{one}40 30 0:29 / /sys/fs/bpf/canopy rw - tmpfs none rw\n");
        assert_eq!(covered(root, &read_mounts(&below)), Some(root.to_owned()));
        assert_eq!(covered(Path::new("/sys/fs/bpf/other"), &read_mounts(&below)), None);
        let sysfs = format!("20 1 0:20 / /sys rw - sysfs sysfs rw\n{one}");
        assert_eq!(covered(root, &read_mounts(&sysfs)), None);
    }
}
