//! Packets on the wire: by raw frames as fast as they go, and by sockets that count replies.

use crate::{
    netns::Netns,
    pair::{HOST_IP, PEER_LINK, Pair},
};
use anyhow::{Context as _, Result, anyhow};
use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Frames handed to the kernel in one call.
const BATCH: usize = 64;

/// Sends whole frames out of one interface (`AF_PACKET`).
#[derive(Debug)]
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// For an interface of the calling thread's namespace.
    #[expect(unsafe_code, reason = "there is no safe wrapper for a bound packet socket")]
    pub fn new(link: &str) -> Result<Self> {
        let index = nix::net::if_::if_nametoindex(link).with_context(|| format!("find {link}"))?;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a packet socket");
        }
        // SAFETY: made just now, known to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_ifindex = i32::try_from(index)?;
        let length = libc::socklen_t::try_from(size_of_val(&address))?;
        // SAFETY: `address` lives through the call and has the length given.
        let bound =
            unsafe { libc::bind(fd, (&raw const address).cast::<libc::sockaddr>(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("bind to {link}"));
        }
        Ok(Self(socket))
    }

    /// Sends each frame once, as many as the kernel takes at a time; how many it took.
    #[expect(
        unsafe_code,
        reason = "sendmmsg(2): the flood must be limited by the kernel, not by us"
    )]
    pub fn send(&self, frames: &[Vec<u8>]) -> Result<u64> {
        let mut sent = 0;
        for batch in frames.chunks(BATCH) {
            let mut slices: Vec<libc::iovec> = batch
                .iter()
                .map(|frame| libc::iovec {
                    iov_base: frame.as_ptr().cast_mut().cast(),
                    iov_len: frame.len(),
                })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = slices
                .iter_mut()
                .map(|slice| {
                    // SAFETY: all-zero is a valid `mmsghdr`.
                    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                    message.msg_hdr.msg_iov = slice;
                    message.msg_hdr.msg_iovlen = 1;
                    message
                })
                .collect();
            let mut done = 0;
            while let Some(rest) = messages.get_mut(done..).filter(|rest| !rest.is_empty()) {
                // SAFETY: `rest` has the length given; its slices point to frames that are only read
                // and live through the call.
                let result = unsafe {
                    libc::sendmmsg(
                        self.0.as_raw_fd(),
                        rest.as_mut_ptr(),
                        libc::c_uint::try_from(rest.len())?,
                        0,
                    )
                };
                match usize::try_from(result) {
                    Ok(count) => done += count,
                    Err(_) => match io::Error::last_os_error() {
                        // The queue is full: the frame was not taken, so try again.
                        error if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                        error if error.kind() == io::ErrorKind::Interrupted => {}
                        error => return Err(error).context("send frames"),
                    },
                }
            }
            sent += batch.len() as u64;
        }
        Ok(sent)
    }

    /// Sends a frame of at least a page with only its first `linear` bytes (no fewer than an
    /// Ethernet header) in the buffer's linear part, as network cards with scattered buffers
    /// deliver them.
    pub fn send_scattered(&self, frame: &[u8], linear: u16) -> Result<()> {
        self.send_described(frame, &[0, 0, linear, 0, 0, 0])
    }

    /// Sends a TCP or UDP frame that the kernel has to cut into segments of `size` bytes of payload
    /// each, as a virtual machine or a socket hands it over. `transport` is where the TCP or UDP
    /// header begins, `headers` where the payload does.
    pub fn send_segmented(
        &self,
        frame: &[u8],
        kind: Segmented,
        transport: u16,
        headers: u16,
        size: u16,
    ) -> Result<()> {
        // linux/virtio_net.h: VIRTIO_NET_HDR_GSO_…; where the checksum is in the header.
        let (gso_type, checksum) = match kind {
            Segmented::Tcp4 => (1, 16),
            Segmented::Tcp6 => (4, 16),
            Segmented::Udp => (5, 6),
        };
        // VIRTIO_NET_HDR_F_NEEDS_CSUM
        self.send_described(frame, &[1, gso_type, headers, size, transport, checksum])
    }

    /// Sends a frame behind a `struct virtio_net_hdr`: flags, `gso_type`, `hdr_len`, `gso_size`,
    /// `csum_start`, `csum_offset`.
    #[expect(unsafe_code, reason = "there is no safe wrapper for PACKET_VNET_HDR")]
    fn send_described(&self, frame: &[u8], header: &[u16; 6]) -> Result<()> {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on))?;
        // SAFETY: `on` lives through the call and has the length given.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("set PACKET_VNET_HDR");
        }
        let [flags, gso_type, lengths @ ..] = *header;
        let mut bytes = vec![u8::try_from(flags)?, u8::try_from(gso_type)?];
        bytes.extend(lengths.iter().flat_map(|field| field.to_ne_bytes()));
        bytes.extend(frame);
        // SAFETY: `bytes` lives through the call and has the length given.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if usize::try_from(sent) != Ok(bytes.len()) {
            return Err(io::Error::last_os_error()).context("send a frame");
        }
        Ok(())
    }
}

/// What a frame is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmented {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP.
    Udp,
}

/// A thread that sends the same frames over and over, until it is stopped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// Starts it, out of an interface of a namespace. Each round sends every frame once.
    pub fn start(netns: &Netns, link: &str, frames: Vec<Vec<u8>>) -> Result<Self> {
        Self::paced(netns, link, frames, Duration::ZERO)
    }

    /// The same with a pause after each round, which leaves the processors to others.
    pub fn paced(netns: &Netns, link: &str, frames: Vec<Vec<u8>>, pause: Duration) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, link) = (stop.clone(), sent.clone(), link.to_owned());
        let thread = netns.spawn(move || {
            let sender = FrameSender::new(&link)?;
            while !stopped.load(Ordering::Relaxed) {
                counted.fetch_add(sender.send(&frames)?, Ordering::Relaxed);
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
            }
            Ok(())
        })?;
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// Frames given to the kernel so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops it; frames given to the kernel in all.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the sending thread died"))??;
        }
        Ok(self.sent())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A UDP server that sends back what it gets, until dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Echo {
    /// Starts it on an address of a namespace; it listens when this returns.
    pub fn start(netns: &Netns, address: Ipv4Addr, port: u16) -> Result<Self> {
        let socket = netns.run(|| {
            let socket = UdpSocket::bind((address, port)).context("listen for echo requests")?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut buffer, mut count) = (vec![0; 2048], 0);
            while !stopped.load(Ordering::Relaxed) {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        count += 1;
                        socket.send_to(buffer.get(..length).unwrap_or_default(), from)?;
                    }
                    Err(error) if would_block(&error) => {}
                    Err(error) => return Err(error).context("receive echo requests"),
                }
            }
            Ok(count)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops it; how many requests it got.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the echo thread died"))?,
            None => Ok(0),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Sends `count` requests from a namespace to an echo server, one after the other, and counts the
/// replies. A request without a reply takes 0.2 s; when some replies came and others did not, late
/// ones (of a busy machine) are waited for.
pub fn udp_replies(from: &Netns, to: Ipv4Addr, port: u16, count: u32) -> Result<u32> {
    const SOON: Duration = Duration::from_millis(200);
    const LATE: Duration = Duration::from_secs(3);
    from.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(SOON))?;
        let mut replied = BTreeSet::new();
        let receive = || {
            let mut reply = [0; 16];
            match socket.recv(&mut reply) {
                Ok(length) => Ok(reply.get(..length).map(<[u8]>::to_vec)),
                // A refusal (ICMP) of an earlier request shows as an error of a later call.
                Err(error)
                    if would_block(&error) || error.kind() == io::ErrorKind::ConnectionRefused =>
                {
                    Ok(None)
                }
                Err(error) => Err(error).context("receive a reply"),
            }
        };
        for number in 0..count {
            match socket.send(&number.to_be_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                result => result.context("send a request")?,
            };
            replied.extend(receive()?);
        }
        if !replied.is_empty() {
            socket.set_read_timeout(Some(LATE))?;
            while replied.len() < count as usize {
                let Some(reply) = receive()? else { break };
                replied.insert(reply);
            }
        }
        Ok(u32::try_from(replied.len())?)
    })
}

/// Asks the host end of a pair for `count` echoes from the peer end; the replies that came.
pub fn ping(pair: &Pair, count: u32) -> Result<u32> {
    const PORT: u16 = 7;
    let _echo = Echo::start(&pair.host, HOST_IP, PORT)?;
    udp_replies(&pair.peer, HOST_IP, PORT, count)
}

/// Sends frames from the peer end of a pair, each once; how many the kernel took.
pub fn send_frames(pair: &Pair, frames: &[Vec<u8>]) -> Result<u64> {
    pair.peer.run(|| FrameSender::new(PEER_LINK)?.send(frames))
}
