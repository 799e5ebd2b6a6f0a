//! Which findings are told one by one: a writer that makes them as fast as it can is told of now and then,
//! with how many there were.

use canopy_api::Principal;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How long findings of a kind are counted together.
const WINDOW: Duration = Duration::from_mins(1);
/// Findings of a kind that are told one by one in a window.
const TOLD: u32 = 20;

/// Findings by writer and code.
#[derive(Default)]
pub(super) struct Findings(Mutex<BTreeMap<(Principal, String), Window>>);

struct Window {
    began: Instant,
    told: u32,
    untold: u64,
}

impl Findings {
    /// Whether a finding is told, and how many like it were not since the last that was.
    pub(super) fn note(&self, writer: &Principal, code: &str) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let new = || Window { began: now, told: 0, untold: 0 };
        let window = all.entry((writer.clone(), code.to_owned())).or_insert_with(new);
        if now.duration_since(window.began) >= WINDOW {
            (window.began, window.told) = (now, 0);
        }
        if window.told >= TOLD {
            window.untold += 1;
            return None;
        }
        window.told += 1;
        Some(std::mem::take(&mut window.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_findings_is_counted_by_writer_and_code() {
        let findings = Findings::default();
        let (web1, web2) = ("h-web1-loader".parse().unwrap(), "h-web2-loader".parse().unwrap());
        let told = (0..10_000).filter(|_| findings.note(&web1, "foreign").is_some()).count();
        assert_eq!(told, usize::try_from(TOLD).unwrap());
        assert_eq!(findings.note(&web1, "fork"), Some(0));
        assert_eq!(findings.note(&web2, "foreign"), Some(0));
        let mut all = findings.0.lock().unwrap();
        for window in all.values_mut() {
            window.began -= WINDOW;
        }
        drop(all);
        assert_eq!(findings.note(&web1, "foreign"), Some(10_000 - u64::from(TOLD)));
    }
}
