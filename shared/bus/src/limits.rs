//! What a service takes on at most.

use crate::Bus;
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
    /// Requests worked on at once; more are told to come back. Default 64.
    pub in_flight: usize,
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
            remembered_requests: 1024,
            remembered_bytes: 8 * 1024 * 1024,
            clock_tolerance: Duration::from_secs(5),
            longest_deadline: Duration::from_mins(10),
            drain: Duration::from_secs(10),
        }
    }
}
