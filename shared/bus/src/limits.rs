//! What a service takes on at most.

use crate::{Bus, slots::Bounds};
use canopy_api::wire::PAGE_BYTES;
use std::time::Duration;

impl Bus {
    /// Bytes of JSON that the items of one reply may take: half of what the server carries in one message,
    /// at most [`PAGE_BYTES`].
    pub fn page_bytes(&self) -> usize {
        match self.client.server_info().max_payload {
            0 => PAGE_BYTES,
            most => PAGE_BYTES.min(most / 2),
        }
    }
}

/// Limits of a service on the bus.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest request, bytes. Default 768 KiB: below the server's own 1 MiB.
    pub request_bytes: usize,
    /// Requests of each class worked on at once. Default 64.
    pub in_flight: usize,
    /// Requests of one caller worked on at once, of each class. Default 4: what takes processor time is
    /// worked on by as many threads as there are processors, and each request of a flood that is worked on
    /// is in front of everybody else's next step.
    pub in_flight_of_caller: usize,
    /// The same of the daemons of a host together. Default 2: they ask one thing after the other, and there
    /// are many hosts.
    pub in_flight_of_host: usize,
    /// Requests of one caller that wait, of each class; more are told to come back. Default 64.
    pub waiting_of_caller: usize,
    /// Bytes of the requests of one caller that wait, of each class. Default 4 MiB.
    pub waiting_bytes_of_caller: usize,
    /// Requests of all callers that wait, of each class. Default 2048.
    pub waiting: usize,
    /// Bytes of the requests of all callers that wait, of each class. Default 64 MiB.
    pub waiting_bytes: usize,
    /// Changes of one verb that may fail in a row for one caller; then two a second. Default 300.
    pub failed_changes: u32,
    /// Answers kept for repeats of non-idempotent requests. Default 1024.
    pub remembered_requests: usize,
    /// Bytes of those answers together. Default 8 MiB.
    pub remembered_bytes: usize,
    /// How far clocks may be apart. Default 5 s.
    pub clock_tolerance: Duration,
    /// How far ahead a deadline may lie. Default 10 minutes.
    pub longest_deadline: Duration,
    /// How long requests in flight may take to end at shutdown. Default 10 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 768 * 1024,
            in_flight: 64,
            in_flight_of_caller: 4,
            in_flight_of_host: 2,
            waiting_of_caller: 64,
            waiting_bytes_of_caller: 4 * 1024 * 1024,
            waiting: 2048,
            waiting_bytes: 64 * 1024 * 1024,
            failed_changes: 300,
            remembered_requests: 1024,
            remembered_bytes: 8 * 1024 * 1024,
            clock_tolerance: Duration::from_secs(5),
            longest_deadline: Duration::from_mins(10),
            drain: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The bounds of each class.
    pub(crate) fn slots(&self) -> Bounds {
        Bounds {
            running: self.in_flight,
            running_of_caller: self.in_flight_of_caller,
            running_of_host: self.in_flight_of_host,
            waiting_of_caller: self.waiting_of_caller,
            bytes_of_caller: self.waiting_bytes_of_caller,
            waiting: self.waiting,
            bytes: self.waiting_bytes,
        }
    }
}
