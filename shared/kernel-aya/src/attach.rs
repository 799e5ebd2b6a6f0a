//! New links, and what the kernel says where it makes none.

use crate::{netif, sys};
use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
};

/// Where a chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// XDP in the driver.
    XdpNative,
    /// XDP on the socket buffer.
    XdpGeneric,
    /// TCX ingress, before all that are there.
    TcxIngress,
    /// TCX egress, before all that are there.
    TcxEgress,
}

/// What the kernel said to an attempt to attach, as it said it.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The error of `BPF_LINK_CREATE`.
    pub(crate) error: io::Error,
    /// The extended acknowledgement; `None` where there is none.
    pub(crate) message: Option<String>,
}

impl Refused {
    /// The kernel's error number.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }

    /// What can be done, beside another mode, where the kernel itself names what is in the way; `frags`
    /// says whether the program handles multi-buffer packets.
    pub(crate) fn hint(&self, frags: bool) -> Option<&'static str> {
        let mtu = if frags {
            "lower the MTU that it names"
        } else {
            "lower the MTU that it names, use programs that all handle multi-buffer packets"
        };
        let message = self.message.as_deref().unwrap_or_default();
        // The kernel's messages name a feature as `ethtool` does not.
        [
            ("GRO_HW", "switch the feature off: ethtool -K DEV rx-gro-hw off"),
            ("LRO", "switch the feature off: ethtool -K DEV lro off"),
            ("MTU", mtu),
        ]
        .into_iter()
        .find(|(named, _)| {
            message
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .any(|word| word == *named)
        })
        .map(|(_, hint)| hint)
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused.message {
            None => refused.error,
            Some(_) => Self::new(refused.error.kind(), refused.to_string()),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

/// Attaches a program by a new link, which goes with its last descriptor until it is pinned.
///
/// The errors are the kernel's for `BPF_LINK_CREATE`: `EBUSY` when the hook is taken (XDP), `EEXIST`
/// when netlink-attached XDP is there in another mode, `EINVAL` when there are no TCX links; for native
/// XDP whatever its driver says, with the driver's reason where it gives one.
pub(crate) fn attach(prog: &impl AsFd, ifindex: u32, place: Place) -> Result<OwnedFd, Refused> {
    let target = match place {
        Place::XdpNative => sys::LinkTarget::XdpNative,
        Place::XdpGeneric => sys::LinkTarget::XdpGeneric,
        Place::TcxIngress => sys::LinkTarget::TcxIngress(sys::LinkOrder::First),
        Place::TcxEgress => sys::LinkTarget::TcxEgress(sys::LinkOrder::First),
    };
    sys::link_create(prog, ifindex, target).map_err(|error| {
        let asks = place == Place::XdpNative && !is_final(&error);
        let message = asks.then(|| netif::why_no_native_xdp(ifindex, prog)).flatten();
        Refused { error, message }
    })
}

/// Whether generic XDP would meet the same: the hook is taken, or the right or the interface is missing.
/// Drivers refuse in many other ways (no XDP, MTU, queues, features).
pub(crate) fn is_final(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_given_only_for_what_the_kernel_names() {
        let refused = |message: Option<&str>| Refused {
            error: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
            message: message.map(str::to_owned),
        };
        let hint = |message| refused(message).hint(true);
        assert!(hint(Some("Peer MTU is too large to set XDP")).unwrap().contains("MTU"));
        assert!(
            hint(Some("Can't set XDP while host is implementing GRO_HW/CSUM"))
                .unwrap()
                .contains("rx-gro-hw")
        );
        assert!(hint(Some("XDP is not supported with LRO")).unwrap().contains("lro off"));
        for unclear in
            [None, Some("Underlying driver does not support XDP in native mode"), Some("COLROUTE")]
        {
            assert_eq!(hint(unclear), None);
        }
        let frags = refused(Some("MTU too large")).hint(false).unwrap();
        assert!(frags.contains("multi-buffer"), "{frags}");
        let said = refused(Some("no")).to_string();
        assert!(said.ends_with("(os error 95): no"), "{said}");
    }
}
