//! Real packets, and a count of them that knows nothing of Canopy: UDP datagrams from the
//! namespace, echoed at this end, counted by the sender.

use crate::{
    network::{self, Network},
    shell,
};
use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use serde::{Deserialize, Serialize};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What a sender did and saw.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// Datagrams sent.
    pub sent: u64,
    /// Answers that came back.
    pub replies: u64,
    /// How long the sending took, seconds.
    pub seconds: f64,
    /// When the first answer came, seconds after the first datagram; 0 without answers.
    pub first_reply: f64,
    /// When the last answer came, seconds after the first datagram; 0 without answers.
    pub last_reply: f64,
}

/// Answers every datagram with itself until dropped.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    /// Listens on this end of the pair, on a free port.
    pub fn start() -> Result<Self> {
        let socket = UdpSocket::bind((network::ADDRESS, 0))
            .with_context(|| format!("cannot listen on {}", network::ADDRESS))?;
        // No answer may leave this machine, even if the pair goes away meanwhile.
        setsockopt(&socket, BindToDevice, &network::INTERFACE.into())?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // An answer that cannot be sent is an answer the sender does not count.
                    let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                }
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would have nothing to add.
            let _ = thread.join();
        }
    }
}

/// Sends from inside the namespace (in a process of its own) and counts the answers.
pub fn send(
    network: &Network,
    from: &str,
    to: SocketAddr,
    count: u64,
    per_second: u64,
) -> Result<Sent> {
    let me = std::env::current_exe()?;
    let text = shell::output(
        shell::root("ip")
            .args(["netns", "exec", network.namespace()])
            .arg(me)
            .args(["send", "--from", from, "--to", &to.to_string()])
            .args(["--count", &count.to_string(), "--per-second", &per_second.to_string()]),
    )?;
    serde_json::from_str(&text).with_context(|| format!("the sender said {text:?}"))
}

/// The sender's side of [`send`]: runs in the namespace.
pub fn send_here(from: &str, to: SocketAddr, count: u64, per_second: u64) -> Result<Sent> {
    let socket = UdpSocket::bind((from, 0)).with_context(|| format!("cannot send from {from}"))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    let gap = Duration::from_nanos(1_000_000_000 / per_second.max(1));
    let begin = Instant::now();
    let mut answers = Answers { socket: &socket, count: 0, first: None, last: None };
    let mut due = begin;
    let mut sent = 0;
    // Twice the time it should take, and some: a network that has gone takes nothing for ever.
    let limit = gap.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)) * 2 + PATIENCE;
    while sent < count {
        answers.take();
        ensure!(
            begin.elapsed() < limit,
            "only {sent} of {count} datagrams could be sent from {from} to {to} in {limit:?}"
        );
        let now = Instant::now();
        if now < due {
            thread::sleep((due - now).min(Duration::from_millis(1)));
            continue;
        }
        due += gap;
        // A full queue refuses a datagram: it was not sent, and the next one tries again.
        if socket.send(b"canopy").is_ok() {
            sent += 1;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < QUIET {
        if answers.take() {
            quiet_since = Instant::now();
        }
        thread::sleep(Duration::from_millis(1));
    }
    let since_begin = |time: Option<Instant>| time.map_or(0.0, |t| (t - begin).as_secs_f64());
    Ok(Sent {
        sent,
        replies: answers.count,
        seconds,
        first_reply: since_begin(answers.first),
        last_reply: since_begin(answers.last),
    })
}

/// How much longer than planned the sending may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// After this long without an answer the sender takes it that none will come.
const QUIET: Duration = Duration::from_millis(300);

struct Answers<'a> {
    socket: &'a UdpSocket,
    count: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Answers<'_> {
    /// Counts what has come since; whether anything has.
    fn take(&mut self) -> bool {
        let mut buffer = [0; 64];
        let before = self.count;
        while self.socket.recv(&mut buffer).is_ok() {
            self.count += 1;
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
        }
        self.count > before
    }
}
