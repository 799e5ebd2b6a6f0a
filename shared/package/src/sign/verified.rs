//! What was verified once need not be computed again: that a key made a signature over some bytes is
//! true for ever. Whether the key is trusted, and until when, is asked each time.

use super::PublicKey;
use canopy_api::Digest;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Facts that are remembered, the last ones.
const MOST: usize = 256;

static KNOWN: Mutex<VecDeque<Digest>> = Mutex::new(VecDeque::new());

/// Whether `key` made the signature file `signature` over the bytes of a digest, which `verify` finds
/// out. Only what is so is remembered.
pub(super) fn fact(
    key: &PublicKey,
    signature: &str,
    signed: &Digest,
    verify: impl FnOnce() -> bool,
) -> bool {
    // No key and no digest has a line break.
    let fact = Digest::of(format!("{key}\n{signed}\n{signature}").as_bytes());
    if known().contains(&fact) {
        return true;
    }
    let is_so = verify();
    if is_so {
        let mut known = known();
        known.push_back(fact);
        if known.len() > MOST {
            known.pop_front();
        }
    }
    is_so
}

fn known() -> MutexGuard<'static, VecDeque<Digest>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;

    #[test]
    fn what_is_so_is_found_out_once_and_what_is_not_each_time() {
        let key = || SecretKey::generate().unwrap().public().unwrap();
        let (one, other) = (key(), key());
        let (bytes, more) = (Digest::of(b"bytes"), Digest::of(b"more"));
        for _ in 0..2 {
            assert!(!fact(&one, "signature", &bytes, || false));
        }
        assert!(fact(&one, "signature", &bytes, || true));
        assert!(fact(&one, "signature", &bytes, || panic!("known")));
        // Each part counts.
        assert!(!fact(&other, "signature", &bytes, || false));
        assert!(!fact(&one, "another", &bytes, || false));
        assert!(!fact(&one, "signature", &more, || false));
    }
}
