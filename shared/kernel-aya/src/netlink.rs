//! rtnetlink: a request, its answers, attributes.

use crate::sys;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
        socket,
    },
};
use std::{
    cell::RefCell,
    fmt, io,
    os::fd::{AsRawFd as _, OwnedFd},
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Only if it is not there.
pub(crate) const NLM_F_EXCL: u16 = 0x200;
/// Made if it is not there.
pub(crate) const NLM_F_CREATE: u16 = 0x400;

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are flags in an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// What rtnetlink answered to a change that it did not make.
#[derive(Debug)]
pub(crate) struct Refusal {
    error: io::Error,
    /// The extended acknowledgement: why, in the kernel's words. Empty where it gave none.
    message: String,
}

impl Refusal {
    /// The kernel's error number.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }

    /// Why, in the kernel's words; empty where it gave no reason.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, message: String::new() }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        if refusal.message.is_empty() {
            return refusal.error;
        }
        Self::new(refusal.error.kind(), refusal.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// Changes something, and returns once the kernel has done it.
pub(crate) fn change(kind: u16, flags: u16, body: &[u8]) -> Result<(), Refusal> {
    sys::timed(|| changed(kind, flags, body))
}

fn changed(kind: u16, flags: u16, body: &[u8]) -> Result<(), Refusal> {
    let netlink = rtnetlink()?;
    explain(&netlink)?;
    send(&netlink, kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)?;
    let refused = answer(&netlink, |bytes| match Message::first(bytes) {
        Some(Message { kind: NLMSG_ERROR, flags, body, .. }) => Ok(acknowledged(flags, body)),
        _ => Err(io::Error::other("rtnetlink gave no answer")),
    })?;
    refused.map_or(Ok(()), Err)
}

/// Asks for extended acknowledgements, without the request in them.
fn explain(netlink: &OwnedFd) -> io::Result<()> {
    const SOL_NETLINK: libc::c_int = 270;
    const NETLINK_CAP_ACK: libc::c_int = 10;
    const NETLINK_EXT_ACK: libc::c_int = 11;
    let on: libc::c_int = 1;
    for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
        let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
        // SAFETY: `on` is a live integer of the length given, which the kernel only reads.
        let result = unsafe {
            libc::setsockopt(
                netlink.as_raw_fd(),
                SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads `struct nlmsgerr` and the attributes behind it; `None` for done.
fn acknowledged(flags: u16, body: &[u8]) -> Option<Refusal> {
    const NLM_F_CAPPED: u16 = 0x100;
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let errno = u32_at(body, 0).cast_signed();
    if errno == 0 {
        return None;
    }
    // The error, then the request: its header, and the rest of it unless that was cut off.
    let request = if flags & NLM_F_CAPPED == 0 { u32_at(body, 4) as usize } else { HEADER };
    let attached = body.get(4 + request.next_multiple_of(4)..).unwrap_or_default();
    let message = attributes(attached)
        .find(|(kind, _)| flags & NLM_F_ACK_TLVS != 0 && *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, message)| text(message))
        .unwrap_or_default();
    Some(Refusal { error: io::Error::from_raw_os_error(-errno), message })
}

/// One of a kind, as `read` takes it from the body of the answer, a message of kind `answer`.
pub(crate) fn get<T>(
    kind: u16,
    body: &[u8],
    answer: u16,
    read: impl Fn(&[u8]) -> T,
) -> io::Result<T> {
    sys::timed(|| {
        let netlink = request(kind, NLM_F_REQUEST, body)?;
        self::answer(&netlink, |bytes| match Message::first(bytes) {
            Some(Message { kind, body, .. }) if kind == answer => Ok(read(body)),
            Some(Message { kind: NLMSG_ERROR, body, .. }) => {
                Err(io::Error::from_raw_os_error(-u32_at(body, 0).cast_signed()))
            }
            _ => Err(io::Error::other("rtnetlink gave no answer")),
        })
    })
}

/// Everything of a kind, each as `read` takes it from the body of a message of kind `answer`.
pub(crate) fn list<T>(
    kind: u16,
    body: &[u8],
    answer: u16,
    read: impl Fn(&[u8]) -> T,
) -> io::Result<Vec<T>> {
    // A list that changed while it was read is read again; where nothing ever stands still, the
    // last one has to do.
    let mut found = Vec::new();
    for _ in 0..8 {
        let (list, whole) = sys::timed(|| dump(kind, body, answer, &read))?;
        found = list;
        if whole {
            break;
        }
    }
    Ok(found)
}

/// Word of what changes, as the kernel sends it to whoever listens.
#[derive(Debug)]
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// Listens from now on, in the network namespace of the calling thread; `groups` has a bit for each
    /// of `RTNLGRP_…`.
    pub(crate) fn of(groups: u32) -> io::Result<Self> {
        let netlink = rtnetlink()?;
        bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(netlink))
    }

    /// Whether anything changed since this was asked last.
    pub(crate) fn any(&self) -> io::Result<bool> {
        let mut any = false;
        // What a message says does not matter: only that there is one.
        let mut buffer = [0; 64];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                // Lost ones are as good.
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EAGAIN) => return Ok(any),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn rtnetlink() -> io::Result<OwnedFd> {
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
    Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// Sends a request; its answers come from the socket returned.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<OwnedFd> {
    let netlink = rtnetlink()?;
    send(&netlink, kind, flags, body)?;
    Ok(netlink)
}

fn send(netlink: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(u32::try_from(HEADER + body.len()).map_err(io::Error::other)?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: one request a socket, so neither matters.
    message.resize(HEADER, 0);
    message.extend(body);
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

fn dump<T>(
    kind: u16,
    body: &[u8],
    answer: u16,
    read: &impl Fn(&[u8]) -> T,
) -> io::Result<(Vec<T>, bool)> {
    let netlink = request(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
    let mut found = Vec::new();
    let mut whole = true;
    let mut done = false;
    while !done {
        done = self::answer(&netlink, |mut rest| {
            while let Some(message) = Message::first(rest) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(true),
                    NLMSG_ERROR => {
                        let errno = u32_at(message.body, 0).cast_signed();
                        return Err(io::Error::from_raw_os_error(-errno));
                    }
                    kind if kind == answer => found.push(read(message.body)),
                    _ => {}
                }
                rest = rest.get(message.stride..).unwrap_or_default();
            }
            Ok(false)
        })?;
    }
    Ok((found, whole))
}

/// The next answer, as `read` takes it.
fn answer<T>(netlink: &OwnedFd, read: impl FnOnce(&[u8]) -> io::Result<T>) -> io::Result<T> {
    thread_local! {
        /// Made once a thread: the kernel fills at most 32 KiB a read of a dump.
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let length = recv(netlink.as_raw_fd(), buffer, MsgFlags::empty())?;
        read(buffer.get(..length).unwrap_or_default())
    })
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
    stride: usize,
}

impl<'a> Message<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = u32_at(bytes, 0) as usize;
        let body = bytes.get(HEADER..length)?;
        Some(Self {
            kind: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            body,
            stride: length.next_multiple_of(4),
        })
    }
}

/// One attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of a text attribute.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// The attributes of a message or of a nested attribute.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0));
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2) & NLA_TYPE_MASK;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number in the machine's order; 0 where the bytes end before.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

/// A number in the machine's order; 0 where the bytes end before.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_message_is_no_message() {
        assert!(Message::first(&[]).is_none());
        assert!(Message::first(&[255, 0, 0, 0, 16, 0, 0, 0]).is_none());
        assert!(attributes(&[1, 0, 3, 0]).next().is_none());
    }

    #[test]
    fn an_extended_acknowledgement_is_read() {
        let header = [[16_u32, 0, 0, 0].map(u32::to_ne_bytes).concat()].concat();
        let error = (-95_i32).to_ne_bytes();
        let why = attribute(1, b"no such luck\0");
        let capped = [&error[..], &header, &why].concat();
        let refusal = acknowledged(0x300, &capped).unwrap();
        assert_eq!((refusal.errno(), refusal.message()), (Some(95), "no such luck"));
        assert!(refusal.to_string().ends_with("(os error 95): no such luck"), "{refusal}");
        // Not said to be there, it is part of something else.
        assert_eq!(acknowledged(0x100, &capped).unwrap().message(), "");
        let whole = [
            &error[..],
            &[[20_u32, 0, 0, 0].map(u32::to_ne_bytes).concat()].concat(),
            &[0; 4],
            &why,
        ];
        assert_eq!(acknowledged(0x200, &whole.concat()).unwrap().message(), "no such luck");
        assert_eq!(acknowledged(0x300, &error).unwrap().message(), "");
        assert!(acknowledged(0x300, &[0; 4]).is_none());
    }

    #[test]
    fn attributes_are_read_as_written() {
        let bytes = [attribute(1, b"bpf\0"), attribute(7, b"x"), attribute(9, &[])].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &b"bpf\0"[..]), (7, b"x"), (9, b"")]);
        assert_eq!(text(b"bpf\0"), "bpf");
    }
}
