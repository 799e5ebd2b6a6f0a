//! TC without links: a clsact qdisc and a direct-action filter of ours in it, by rtnetlink.
//!
//! The filter has a place of its own ([`PRIORITY`], [`HANDLE`], every protocol); what runs there runs
//! for us. Filters of others are left alone: those of a higher priority number run behind ours, as
//! our chain's "pass" lets them; those of the same priority run before ours when they came later.
//!
//! What the kernel does not offer here, and a link does: a compare-and-swap (the program is read just
//! before it is replaced), and protection against others (who administers traffic control can remove
//! the filter or the qdisc; the loader's check puts them back). Replacing itself is atomic: the
//! kernel exchanges the filter under RCU (`cls_bpf_change`), a packet meets the old one or the new.

use crate::{
    netif::Device,
    netlink::{self, NLM_F_CREATE, NLM_F_EXCL, attribute, attributes, u32_at},
    pins::{self, Pins, os},
    sys,
};
use canopy_api::{ChainKey, Hook};
use canopy_chain::Attachment;
use canopy_kernel::KernelError;
use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

/// The filter's priority: the first.
const PRIORITY: u32 = 1;
/// The filter's handle.
const HANDLE: u32 = 0xca09;
/// `ETH_P_ALL`, in network order.
const PROTOCOL: u32 = 0x0003_u16.to_be() as u32;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// `TC_H_CLSACT`, which is `TC_H_INGRESS`: the parent of a clsact and of an ingress qdisc.
const CLSACT: u32 = 0xffff_fff1;
const QDISC_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAGS_GEN: u16 = 9;
const TCA_BPF_TAG: u16 = 10;
const TCA_BPF_ID: u16 = 11;
/// The program's verdict is the packet's.
const ACT_DIRECT: u32 = 1;
/// Never in the hardware: there our counters and maps are not.
const SKIP_HW: u32 = 1;
const SKIP_SW: u32 = 2;

/// Bytes of `struct tcmsg`.
const TCMSG: usize = 20;

/// Of filters: `(priority << 16) | protocol`.
const INFO: u32 = (PRIORITY << 16) | PROTOCOL;

/// A filter, as rtnetlink tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    parent: u32,
    handle: u32,
    info: u32,
    chain: u32,
    kind: String,
    /// The name that it was given.
    name: String,
    /// Its program's.
    tag: [u8; 8],
    flags: u32,
    /// Its program.
    pub(crate) program_id: u32,
}

impl Filter {
    fn parse(body: &[u8]) -> Self {
        let mut filter = Self {
            handle: u32_at(body, 8),
            parent: u32_at(body, 12),
            info: u32_at(body, 16),
            chain: 0,
            kind: String::new(),
            name: String::new(),
            tag: [0; 8],
            flags: 0,
            program_id: 0,
        };
        for (kind, value) in attributes(body.get(TCMSG..).unwrap_or_default()) {
            match kind {
                TCA_KIND => filter.kind = netlink::text(value),
                TCA_CHAIN => filter.chain = u32_at(value, 0),
                TCA_OPTIONS => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            TCA_BPF_ID => filter.program_id = u32_at(value, 0),
                            TCA_BPF_NAME => filter.name = netlink::text(value),
                            TCA_BPF_TAG => filter.tag = value.try_into().unwrap_or_default(),
                            TCA_BPF_FLAGS_GEN => filter.flags = u32_at(value, 0),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        filter
    }

    /// Whether it is in the place that is ours.
    fn is_ours(&self) -> bool {
        self.kind == "bpf" && self.chain == 0 && self.info == INFO && self.handle == HANDLE
    }

    /// Its classifier: "bpf", "flower".
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// Its priority: what `tc` calls "pref".
    pub(crate) fn priority(&self) -> u32 {
        self.info >> 16
    }

    /// Its handle.
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// The name that it was given, which is not its program's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its program's tag, 16 hexadecimal digits.
    pub(crate) fn tag(&self) -> Option<String> {
        (self.tag != [0; 8]).then(|| format!("{:016x}", u64::from_be_bytes(self.tag)))
    }

    /// Whether its program was composed here, for a chain whose pins are gone: as the filter says,
    /// which everybody may ask, or as the program says.
    pub(crate) fn is_composed_here(&self) -> bool {
        self.name == Attachment::Clsact.main() || composed_here(self.program_id)
    }
}

/// The filters of a chain's hook, as a packet meets them.
pub(crate) struct InOrder {
    /// Those before ours.
    pub(crate) before: Vec<Filter>,
    /// How many there are, with ours.
    pub(crate) total: usize,
}

/// The filters of a chain's hook; `None` where ours is not among them.
pub(crate) fn in_order(key: &ChainKey, device: &Device) -> Result<Option<InOrder>, KernelError> {
    let mut listed = filters(device.index, parent(key.hook))
        .map_err(|error| os(format!("list the filters of {key}"), error))?;
    // A packet begins at chain 0 and comes to another only through a filter's action. The kernel lists
    // a chain as packets walk it; for each priority it names the classifier itself first, with handle 0.
    listed.retain(|filter| filter.chain == 0 && filter.handle != 0);
    let total = listed.len();
    let Some(ours) = listed.iter().position(Filter::is_ours) else { return Ok(None) };
    listed.truncate(ours);
    Ok(Some(InOrder { before: listed, total }))
}

fn parent(hook: Hook) -> u32 {
    if hook == Hook::TcEgress { EGRESS } else { INGRESS }
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, ifindex, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// The clsact qdisc of an interface.
fn qdisc_message(ifindex: u32) -> Vec<u8> {
    [tcmsg(ifindex, QDISC_HANDLE, CLSACT, 0), attribute(TCA_KIND, b"clsact\0")].concat()
}

/// The filter in our place, with its program where it is to be made.
fn filter_message<P: AsFd>(ifindex: u32, parent: u32, prog: Option<&P>) -> Vec<u8> {
    let mut message = tcmsg(ifindex, HANDLE, parent, INFO);
    message.extend(attribute(TCA_KIND, b"bpf\0"));
    if let Some(prog) = prog {
        let options = [
            attribute(TCA_BPF_FD, &prog.as_fd().as_raw_fd().to_ne_bytes()),
            attribute(TCA_BPF_NAME, format!("{}\0", Attachment::Clsact.main()).as_bytes()),
            attribute(TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes()),
            attribute(TCA_BPF_FLAGS_GEN, &SKIP_HW.to_ne_bytes()),
        ];
        message.extend(attribute(TCA_OPTIONS, &options.concat()));
    }
    message
}

/// The filters of an interface's hook; none where there is no qdisc.
fn filters(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let body = tcmsg(ifindex, 0, parent, 0);
    netlink::list(RTM_GETTFILTER, &body, RTM_NEWTFILTER, Filter::parse)
}

/// The kind of the qdisc at the place of clsact.
fn qdisc(ifindex: u32) -> io::Result<Option<String>> {
    let read = |body: &[u8]| {
        let kind = attributes(body.get(TCMSG..).unwrap_or_default())
            .find(|(kind, _)| *kind == TCA_KIND)
            .map(|(_, kind)| netlink::text(kind));
        (u32_at(body, 4), u32_at(body, 12), kind.unwrap_or_default())
    };
    // The kernel lists the qdiscs of every interface.
    let all = netlink::list(RTM_GETQDISC, &tcmsg(ifindex, 0, 0, 0), RTM_NEWQDISC, read)?;
    Ok(all
        .into_iter()
        .find(|(of, parent, _)| *of == ifindex && *parent == CLSACT)
        .map(|(_, _, kind)| kind))
}

/// What is in our place on a chain's hook.
pub(crate) fn filter(key: &ChainKey, device: &Device) -> Result<Option<Filter>, KernelError> {
    if key.hook == Hook::Xdp {
        return Ok(None);
    }
    match filters(device.index, parent(key.hook)) {
        Ok(filters) => Ok(filters.into_iter().find(Filter::is_ours)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(os(format!("list the filters of {key}"), error)),
    }
}

/// Whether a program was composed here. Only `CAP_SYS_ADMIN` may ask.
fn composed_here(program_id: u32) -> bool {
    sys::fd_by_id(sys::Kind::Prog, program_id)
        .and_then(|prog| sys::prog_info(&prog))
        .is_ok_and(|info| info.name == Attachment::Clsact.main())
}

/// Puts a program in our place, instead of what is there.
pub(crate) fn attach(
    pins: &Pins,
    key: &ChainKey,
    device: &Device,
    prog: &impl AsFd,
    there: Option<&Filter>,
) -> Result<(), KernelError> {
    ensure_qdisc(pins, key, device)?;
    // The kernel takes no other flags when it replaces. Ours always have these: what has others let
    // packets pass us before.
    let replace = there.is_some_and(|there| there.flags & (SKIP_HW | SKIP_SW) == SKIP_HW);
    if there.is_some() && !replace {
        remove(key, device)?;
    }
    let body = filter_message(device.index, parent(key.hook), Some(prog));
    // Without these flags the kernel replaces, and only what is there.
    let flags = if replace { 0 } else { NLM_F_CREATE | NLM_F_EXCL };
    netlink::change(RTM_NEWTFILTER, flags, &body)
        .map_err(|error| refused(key, device, replace, error))
}

/// Removes what is in our place, and the qdisc if we made it and nothing else is in it.
pub(crate) fn detach(pins: &Pins, key: &ChainKey, device: &Device) -> Result<(), KernelError> {
    remove(key, device)?;
    let failed = |error| os(format!("remove the qdisc of {key}"), error);
    let made = pins.qdisc(key);
    if !made.join(device.index.to_string()).exists() {
        return Ok(());
    }
    for parent in [INGRESS, EGRESS] {
        if !filters(device.index, parent).map_err(failed)?.is_empty() {
            return Ok(());
        }
    }
    match netlink::change(RTM_DELQDISC, 0, &qdisc_message(device.index)) {
        Ok(()) => {}
        Err(_) if qdisc(device.index).map_err(failed)?.is_none() => {}
        Err(error) => return Err(failed(error.into())),
    }
    pins::remove_tree(&made)
}

/// Removes what is in our place.
fn remove(key: &ChainKey, device: &Device) -> Result<(), KernelError> {
    let body = filter_message::<OwnedFd>(device.index, parent(key.hook), None);
    match netlink::change(RTM_DELTFILTER, 0, &body) {
        Err(error) if filter(key, device)?.is_some() => {
            Err(os(format!("remove the filter of {key}"), error.into()))
        }
        _ => Ok(()),
    }
}

/// Makes the qdisc, if there is none, and notes that it is ours.
fn ensure_qdisc(pins: &Pins, key: &ChainKey, device: &Device) -> Result<(), KernelError> {
    let failed = |error| os(format!("make a clsact qdisc for {key}"), error);
    match qdisc(device.index).map_err(failed)?.as_deref() {
        Some("clsact") => return Ok(()),
        Some(other) => {
            return Err(KernelError::Conflict {
                what: format!("{key}: a qdisc \"{other}\" is where clsact has to be"),
                remedy: format!(
                    "remove it: tc qdisc del dev {} ingress; or set `tc_mode: tcx`",
                    key.interface
                ),
            });
        }
        None => {}
    }
    // Noted first: a qdisc that is there and not noted would stay for ever.
    let made = pins.qdisc(key);
    pins::remove_tree(&made)?;
    pins::make_dir(&made.join(device.index.to_string()))?;
    let new = NLM_F_CREATE | NLM_F_EXCL;
    match netlink::change(RTM_NEWQDISC, new, &qdisc_message(device.index)) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Somebody was faster, or it cannot be: not ours in either case.
            pins::remove_tree(&made)?;
            match error.errno() {
                Some(libc::EEXIST) => Ok(()),
                Some(libc::ENODEV) => Err(KernelError::no_interface(key)),
                // No such kind of qdisc (`qdisc_create`).
                Some(libc::ENOENT) => Err(KernelError::Unsupported {
                    what: format!("{key}: this kernel has no clsact qdisc ({error})"),
                    remedy:
                        "a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or Linux \
                             6.6 with `tc_mode: tcx`"
                            .to_owned(),
                }),
                _ => Err(failed(error.into())),
            }
        }
    }
}

/// Why the kernel took no filter, in words: a cause where it is certain, else what the kernel said.
fn refused(
    key: &ChainKey,
    device: &Device,
    replaces: bool,
    error: netlink::Refusal,
) -> KernelError {
    let interface = &key.interface;
    match error.errno() {
        Some(libc::ENODEV) => KernelError::no_interface(key),
        Some(libc::EEXIST) => KernelError::Conflict {
            what: format!("{key}: a filter came into our place meanwhile"),
            remedy: "apply again: what is attached now is looked at anew".to_owned(),
        },
        Some(libc::ENOENT) if replaces => KernelError::Conflict {
            what: format!("{key}: our filter was removed meanwhile"),
            remedy: "apply again: what is attached now is looked at anew".to_owned(),
        },
        // What there is to be found is the classifier.
        Some(libc::ENOENT) => KernelError::Unsupported {
            what: format!("{key}: this kernel has no BPF classifier ({error})"),
            remedy: "a kernel with CONFIG_NET_CLS_BPF, or Linux 6.6 with `tc_mode: tcx`".to_owned(),
        },
        Some(libc::EOPNOTSUPP) if error.message().contains("block is shared") => {
            KernelError::Conflict {
                what: format!(
                    "{key}: its clsact qdisc shares a block of filters with other interfaces"
                ),
                remedy: format!(
                    "give {interface} a clsact qdisc of its own, or set `tc_mode: tcx`"
                ),
            }
        }
        Some(libc::EINVAL) => {
            // A priority holds filters of one kind and one protocol.
            let there = filters(device.index, parent(key.hook)).unwrap_or_default();
            let other = there.into_iter().find(|filter| {
                filter.chain == 0
                    && filter.info >> 16 == PRIORITY
                    && (filter.kind != "bpf" || filter.info != INFO)
            });
            match other {
                Some(other) => KernelError::Conflict {
                    what: format!(
                        "{key}: a \"{}\" filter of another has priority {PRIORITY}",
                        other.kind
                    ),
                    remedy: "give that filter a higher priority number, or set `tc_mode: tcx`"
                        .to_owned(),
                },
                None => os(format!("attach {key} by a filter"), error.into()),
            }
        }
        _ => os(format!("attach {key} by a filter"), error.into()),
    }
}

/// Tries the whole life of a chain on an interface without a qdisc.
pub(crate) fn probe(ifindex: u32, one: &impl AsFd, other: &impl AsFd) -> io::Result<()> {
    let qdisc = qdisc_message(ifindex);
    let new = NLM_F_CREATE | NLM_F_EXCL;
    netlink::change(RTM_NEWQDISC, new, &qdisc)?;
    for parent in [INGRESS, EGRESS] {
        netlink::change(RTM_NEWTFILTER, new, &filter_message(ifindex, parent, Some(one)))?;
        netlink::change(RTM_NEWTFILTER, 0, &filter_message(ifindex, parent, Some(other)))?;
    }
    Ok(netlink::change(RTM_DELQDISC, 0, &qdisc)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_ours_by_its_place() {
        // What the kernel tells of a filter; it leaves the program's descriptor out and has the id.
        let told = |handle, info, kind: &[u8]| {
            let options = attribute(TCA_BPF_ID, &7_u32.to_ne_bytes());
            let message = [
                tcmsg(3, handle, INGRESS, info),
                attribute(TCA_KIND, kind),
                attribute(TCA_CHAIN, &0_u32.to_ne_bytes()),
                attribute(TCA_OPTIONS, &options),
            ];
            Filter::parse(&message.concat())
        };
        let ours = told(HANDLE, INFO, b"bpf\0");
        assert!(ours.is_ours(), "{ours:?}");
        assert_eq!((ours.program_id, ours.parent), (7, INGRESS));
        assert!(!told(1, INFO, b"bpf\0").is_ours());
        assert!(!told(HANDLE, INFO + (1 << 16), b"bpf\0").is_ours());
        assert!(!told(HANDLE, INFO, b"flower\0").is_ours());
        assert!(!Filter::parse(&[]).is_ours());
    }
}
