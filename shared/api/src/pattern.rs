//! Patterns of names as sets of names: `*` is any text, also none; `?` is one character.

#[derive(Clone, Copy, PartialEq, Eq)]
enum Symbol {
    /// This character.
    Is(u8),
    /// One character.
    One,
    /// Any text.
    Any,
}

/// Whether a text is as a pattern says.
pub fn matches(pattern: &str, text: &str) -> bool {
    takes(pattern, text.bytes().map(Symbol::Is))
}

/// Whether every text that `other` is for is one that `pattern` is for. May miss some patterns of equal
/// meaning (`*?` and `?*`), never says yes wrongly.
pub fn covers(pattern: &str, other: &str) -> bool {
    takes(pattern, symbols(other))
}

/// Whether there is a text that both patterns are for.
pub fn overlap(a: &str, b: &str) -> bool {
    let (a, b): (Vec<_>, Vec<_>) = (symbols(a).collect(), symbols(b).collect());
    // For each rest of `b`, whether it shares a text with the rest of `a` at hand.
    let mut below: Vec<bool> = (0..=b.len()).map(|j| rest_is_any(&b, j)).collect();
    for one in a.iter().rev() {
        let mut row = vec![false; b.len() + 1];
        let get = |row: &[bool], j: usize| row.get(j).copied().unwrap_or(false);
        for j in (0..=b.len()).rev() {
            let shares = match (one, b.get(j)) {
                (Symbol::Any, Some(_)) => get(&below, j) || get(&row, j + 1),
                (Symbol::Any, None) => get(&below, j),
                (_, Some(Symbol::Any)) => get(&row, j + 1) || get(&below, j),
                (Symbol::Is(x), Some(Symbol::Is(y))) => x == y && get(&below, j + 1),
                (_, Some(_)) => get(&below, j + 1),
                (_, None) => false,
            };
            if let Some(cell) = row.get_mut(j) {
                *cell = shares;
            }
        }
        below = row;
    }
    below.first().copied().unwrap_or(false)
}

fn symbols(pattern: &str) -> impl Iterator<Item = Symbol> {
    pattern.bytes().map(|b| match b {
        b'*' => Symbol::Any,
        b'?' => Symbol::One,
        other => Symbol::Is(other),
    })
}

/// Walks a pattern over symbols. A `*` among them is taken by a `*` only, a `?` by `*` and `?`.
fn takes(pattern: &str, text: impl Iterator<Item = Symbol>) -> bool {
    let own: Vec<_> = symbols(pattern).collect();
    let mut at = vec![false; own.len() + 1];
    if let Some(first) = at.first_mut() {
        *first = true;
    }
    skip(&own, &mut at);
    for symbol in text {
        let mut next = vec![false; own.len() + 1];
        for (i, one) in own.iter().enumerate().filter(|(i, _)| at.get(*i) == Some(&true)) {
            let to = match (one, symbol) {
                (Symbol::Any, _) => i,
                (Symbol::One, Symbol::Is(_) | Symbol::One) => i + 1,
                (Symbol::Is(x), Symbol::Is(y)) if *x == y => i + 1,
                (Symbol::One | Symbol::Is(_), _) => continue,
            };
            if let Some(cell) = next.get_mut(to) {
                *cell = true;
            }
        }
        skip(&own, &mut next);
        at = next;
    }
    at.last() == Some(&true)
}

/// A `*` may stand for nothing.
fn skip(own: &[Symbol], at: &mut [bool]) {
    for (i, one) in own.iter().enumerate() {
        if *one == Symbol::Any
            && at.get(i) == Some(&true)
            && let Some(next) = at.get_mut(i + 1)
        {
            *next = true;
        }
    }
}

fn rest_is_any(symbols: &[Symbol], from: usize) -> bool {
    symbols.iter().skip(from).all(|symbol| *symbol == Symbol::Any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_cover_and_overlap() {
        for (pattern, text, yes) in [
            ("*", "", true),
            ("fire*", "firewall", true),
            ("f*w*l", "firewall", true),
            ("firewall", "firewalls", false),
            ("eth?", "eth0", true),
            ("eth?", "eth", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
        assert!(covers("e*", "eth*") && !covers("eth*", "e*"));
        assert!(covers("eth?", "eth0") && !covers("eth?", "eth*"));
        assert!(overlap("a*", "*b") && !overlap("a*", "b*"));
        assert!(overlap("eth0", "e?h*") && !overlap("eth0", "eth"));
    }

    proptest! {
        /// `covers` and `overlap` say of patterns what `matches` says of every text.
        #[test]
        fn what_is_said_of_patterns_holds_for_every_text(
            a in "[ab*?]{1,5}", b in "[ab*?]{1,5}",
        ) {
            let mut texts = vec![String::new()];
            let mut last = texts.clone();
            for _ in 0..8 {
                last = last.iter().flat_map(|t| [format!("{t}a"), format!("{t}b")]).collect();
                texts.extend(last.iter().cloned());
            }
            let both = texts.iter().any(|text| matches(&a, text) && matches(&b, text));
            prop_assert_eq!(overlap(&a, &b), both);
            if covers(&a, &b) {
                prop_assert!(texts.iter().all(|text| !matches(&b, text) || matches(&a, text)));
            }
        }
    }
}
