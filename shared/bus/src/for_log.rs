//! Text of callers in logs and audit records.

use canopy_api::text::is_unprintable;
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Characters of a caller's text that a log line holds.
const MOST: usize = 300;

/// Somebody else's text as it may stand in a log: on one line, cut, without control characters, direction
/// marks or characters that cannot be seen.
pub fn for_log(text: &str) -> impl fmt::Display + '_ {
    ForLog { text, most: MOST }
}

struct ForLog<'a> {
    text: &'a str,
    most: usize,
}

impl fmt::Display for ForLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let mut chars = self.text.chars();
        for c in chars.by_ref().take(self.most) {
            if is_unprintable(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        match chars.as_str().len() {
            0 => Ok(()),
            left => write!(f, "… ({left} bytes more)"),
        }
    }
}

/// Kinds of lines that a gate tells apart.
const KINDS: usize = 1024;
/// How often a line of a kind passes.
const EACH: Duration = Duration::from_secs(1);

/// Lets log lines of a kind pass once a second, with how many there were in between.
#[derive(Debug, Default)]
pub struct LogGate(Mutex<HashMap<String, (Instant, u64)>>);

impl LogGate {
    /// Whether a line of this kind is logged, and how many before it were not.
    pub fn pass(&self, kind: impl Into<String>) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if kinds.len() >= KINDS {
            kinds.retain(|_, (last, _)| now.duration_since(*last) < EACH);
        }
        let full = kinds.len() >= KINDS;
        match kinds.entry(kind.into()) {
            Entry::Occupied(mut known) => {
                let (last, more) = known.get_mut();
                if now.duration_since(*last) < EACH {
                    *more += 1;
                    return None;
                }
                *last = now;
                Some(std::mem::take(more))
            }
            Entry::Vacant(_) if full => None,
            Entry::Vacant(new) => {
                new.insert((now, 0));
                Some(0)
            }
        }
    }
}

/// The beginning of a text of at most so many bytes, with a mark where it goes on.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned() + MARK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_caller_stays_on_its_line() {
        let shown = for_log("a\nb\r\u{1b}[2J\u{202e}c\u{200b}\u{9b}1m\0").to_string();
        assert!(shown.chars().all(|c| c.is_ascii_graphic()), "{shown}");
        assert!(shown.starts_with("a\\u{a}b\\u{d}\\u{1b}[2J\\u{202e}c"), "{shown}");
        assert_eq!(for_log("größe \"x\" ✓").to_string(), "größe \"x\" ✓");
    }

    #[test]
    fn text_of_a_caller_is_cut() {
        let shown = for_log(&"é\n".repeat(350_000)).to_string();
        assert!(shown.len() < 3000 && shown.ends_with("bytes more)"), "{} bytes", shown.len());
    }

    #[test]
    fn lines_of_a_kind_pass_once_a_second_with_a_count() {
        let gate = LogGate::default();
        let passed = (0..10_000).filter(|_| gate.pass("a").is_some()).count();
        assert!(passed <= 2, "{passed} lines");
        assert_eq!(gate.pass("b"), Some(0));
        for (last, _) in gate.0.lock().unwrap().values_mut() {
            *last -= EACH;
        }
        assert!(gate.pass("a").is_some_and(|more| more > 9000));
        for n in 0..3 * KINDS {
            gate.pass(n.to_string());
        }
        assert!(gate.0.lock().unwrap().len() <= KINDS);
    }

    #[test]
    fn a_cut_text_says_so_and_is_no_longer_than_asked() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abc…");
        for bytes in 3..20 {
            let cut = cut(&"é".repeat(20), bytes);
            assert!(cut.len() <= bytes && cut.ends_with('…'), "{bytes}: {cut}");
        }
    }
}
