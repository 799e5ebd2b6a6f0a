//! Waiting for a state, never for a time.

use anyhow::{Result, bail};
use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// Looks again and again until `look` has what is waited for.
///
/// # Errors
///
/// After `limit`: names what was waited for, and the last state seen.
pub fn wait_for<T, S: Debug>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, S>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(state) if start.elapsed() >= limit => {
                bail!("{what}: not within {limit:?}; last seen: {state:?}");
            }
            Err(_) => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_state_is_told() {
        let mut count = 0;
        let error = wait_for(Duration::from_millis(20), "the moon", || {
            count += 1;
            Err::<(), _>(count)
        })
        .unwrap_err()
        .to_string();
        assert!(error.starts_with("the moon: not within 20ms; last seen: "), "{error}");
        assert!(wait_for(Duration::ZERO, "now", || Ok::<_, ()>(7)).unwrap() == 7);
    }
}
