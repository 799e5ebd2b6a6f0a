//! Packets that an XDP chain sent or redirected and that the device then dropped: the verdict is counted
//! by the chain, the loss only by the driver, in counters of its own (`ethtool -S`).

use crate::{AyaKernel, netif, netns, sys};
use canopy_api::{ChainKey, Hook, InterfaceName};
use canopy_kernel::KernelError;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::PoisonError,
};

/// The counters of one interface, by index, when a chain was attached to it.
pub(crate) type Baseline = (u32, BTreeMap<String, u64>);

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
/// `ETH_GSTRING_LEN`
const NAME: usize = 32;

/// More counters than this are not read: that many queues cost more than the answer is worth.
const MOST: u32 = 8192;
/// Places beyond those asked for. The kernel fills as many as there are when it fills them, and asks
/// nobody how many fit.
const ROOM: usize = 8192;

/// What grew since the chain was attached; see [`canopy_kernel::Kernel::device_errors`].
pub(crate) fn device_errors(
    kernel: &AyaKernel,
    key: &ChainKey,
) -> Result<BTreeMap<String, u64>, KernelError> {
    if key.hook != Hook::Xdp {
        return Ok(BTreeMap::new());
    }
    let (index, mut counters) = netns::within(key.netns.as_ref(), || now(key))?;
    let baselines = kernel.device_baselines.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, before)) = baselines.get(key)
        && *of == index
    {
        for (name, count) in &mut counters {
            *count = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        }
    }
    counters.retain(|_, count| *count != 0);
    Ok(counters)
}

/// Remembers where the counters stand: what they counted before a chain was attached is not its doing.
/// Called in the chain's network namespace.
pub(crate) fn attached(kernel: &AyaKernel, key: &ChainKey) {
    if key.hook != Hook::Xdp {
        return;
    }
    let mut baselines = kernel.device_baselines.lock().unwrap_or_else(PoisonError::into_inner);
    match now(key) {
        Ok(baseline) => baselines.insert(key.clone(), baseline),
        Err(error) => {
            tracing::debug!(%key, %error, "the device's counters are not read");
            baselines.remove(key)
        }
    };
}

fn now(key: &ChainKey) -> Result<Baseline, KernelError> {
    let Some(device) = netif::device(&key.interface)? else {
        return Err(KernelError::no_interface(key));
    };
    let counters = match sys::timed(|| counters(&key.interface)) {
        Ok(counters) => counters,
        // The driver has none.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => {
            return Err(crate::pins::os(format!("read the counters of {}", key.interface), error));
        }
    };
    let mut errors = BTreeMap::new();
    for (name, count) in counters {
        if let Some(name) = error_of(&name) {
            *errors.entry(name).or_insert(0) += count;
        }
    }
    Ok((device.index, errors))
}

/// What a driver's counter is summed under, where it counts packets that XDP wanted to send and that were
/// lost; each driver has names of its own, and most have one counter for each queue.
fn error_of(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    // "rx_queue_0_xdp_tx_errors" and "rx0_xdp_tx_drops" without the queue.
    let words: Vec<&str> = name
        .split('_')
        .filter(|word| !word.chars().all(|c| c.is_ascii_digit()) && *word != "queue")
        .map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()))
        .collect();
    let plain = words.join("_");
    let has = |part: &str| words.iter().any(|word| word.starts_with(part));
    let sends = has("tx") || has("xmit") || has("redirect");
    let lost = has("err") || has("drop") || has("full") || has("fail");
    // A drop that is a verdict ("xdp_drops") sends nothing. veth counts packets that a redirect lost
    // with the others that the XDP side of a queue lost.
    let veth = name.starts_with("rx_queue_") && plain == "rx_drops";
    ((has("xdp") && sends && lost) || veth).then_some(plain)
}

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: u64,
    padding: [u64; 2],
}

/// Every counter of a driver, by its name.
fn counters(interface: &InterfaceName) -> io::Result<Vec<(String, u64)>> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // struct ethtool_sset_info: cmd, reserved, mask (64 bits), then one count for the one bit asked for.
    let mut info = [halves(ETHTOOL_GSSET_INFO, 0), 1 << ETH_SS_STATS, 0];
    ask(&socket, interface, &mut info)?;
    let [_, mask, count] = info;
    let count = u32::from_ne_bytes(*count.to_ne_bytes().first_chunk().unwrap_or(&[0; 4]));
    if mask == 0 || count == 0 || count > MOST {
        return Ok(Vec::new());
    }
    let places = count as usize + ROOM;
    // struct ethtool_gstrings: cmd, string set, how many, then the names.
    let mut names = vec![0_u32; 3 + places * NAME / size_of::<u32>()];
    if let [cmd, set, ..] = names.as_mut_slice() {
        (*cmd, *set) = (ETHTOOL_GSTRINGS, ETH_SS_STATS);
    }
    ask(&socket, interface, &mut names)?;
    // struct ethtool_stats: cmd, how many, then the values.
    let mut values = vec![0_u64; 1 + places];
    if let [head, ..] = values.as_mut_slice() {
        *head = halves(ETHTOOL_GSTATS, count);
    }
    ask(&socket, interface, &mut values)?;
    let filled = [names.get(2).copied().unwrap_or(0), second_half(values.first().copied())];
    // Queues were added or taken away between the two: nobody knows which value is whose.
    if filled != [count, count] {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let bytes: Vec<u8> = names
        .iter()
        .skip(3)
        .flat_map(|word| word.to_ne_bytes())
        .take(count as usize * NAME)
        .collect();
    let names = bytes.chunks(NAME).map(crate::netlink::text);
    Ok(names.zip(values.into_iter().skip(1)).collect())
}

/// Two numbers that lie side by side.
fn halves(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in
        bytes.iter_mut().zip(first.to_ne_bytes().into_iter().chain(second.to_ne_bytes()))
    {
        *to = from;
    }
    u64::from_ne_bytes(bytes)
}

fn second_half(word: Option<u64>) -> u32 {
    let bytes = word.unwrap_or(0).to_ne_bytes();
    u32::from_ne_bytes(*bytes.last_chunk().unwrap_or(&[0; 4]))
}

/// `SIOCETHTOOL`. `data` begins with the command; it has room for what the kernel writes to it.
fn ask<T>(socket: &OwnedFd, interface: &InterfaceName, data: &mut [T]) -> io::Result<()> {
    let mut request =
        Request { name: [0; libc::IFNAMSIZ], data: data.as_mut_ptr() as u64, padding: [0; 2] };
    for (to, from) in
        request.name.iter_mut().zip(interface.as_str().bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from;
    }
    // SAFETY: `request` is laid out as `struct ifreq` (a name, and a union of 24 bytes of which a pointer
    // is the first) and lives until the call returns; so does `data`, which has `ROOM` places more than
    // the driver says it fills.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_lost_packets_are_known_by_their_names() {
        for (name, sum) in [
            ("rx_queue_0_xdp_tx_errors", "rx_xdp_tx_errors"),
            ("tx_queue_13_xdp_xmit_errors", "tx_xdp_xmit_errors"),
            ("rx_queue_1_drops", "rx_drops"),
            ("rx0_xdp_redirect_errors", "rx_xdp_redirect_errors"),
            ("tx0_xdp_tx_drops", "tx_xdp_tx_drops"),
            ("rx_xdp_tx_full", "rx_xdp_tx_full"),
            ("rx5_xdp_tx_err", "rx_xdp_tx_err"),
        ] {
            assert_eq!(error_of(name).as_deref(), Some(sum), "{name}");
        }
        for other in [
            "rx_queue_0_xdp_drops",
            "rx_queue_0_xdp_tx",
            "rx_queue_0_xdp_redirect",
            "peer_ifindex",
            "rx0_drops",
            "rx_errors",
            "tx_dropped",
        ] {
            assert_eq!(error_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_interface_without_counters_has_none() {
        let none = counters(&"lo".parse().unwrap());
        assert!(none.as_ref().is_ok_and(Vec::is_empty) || none.is_err(), "{none:?}");
    }
}
