//! The clock. Services take the time from here, so that one place decides what time it is.

use std::time::{Instant, SystemTime};

pub use canopy_api::time::{rfc3339, unix_millis};

/// Wall-clock time.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Monotonic time, for measuring.
pub fn monotonic() -> Instant {
    Instant::now()
}
