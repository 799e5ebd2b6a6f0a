//! Patterns of names: `*` is any text, also none; `?` is one character.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt};

/// Longest pattern, bytes: no name is longer.
pub(crate) const LONGEST: usize = 128;

/// A pattern. A text without `*` and `?` means exactly itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Glob(String);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Symbol {
    /// This character.
    Is(u8),
    /// One character.
    One,
    /// Any text.
    Any,
}

impl Glob {
    /// A pattern of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is for every text.
    pub fn is_everything(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|b| b == b'*')
    }

    /// Whether a text is as the pattern says.
    pub fn matches(&self, text: &str) -> bool {
        self.takes(text.bytes().map(Symbol::Is))
    }

    /// Whether every text that `other` is for is one that this is for. May miss some patterns of
    /// equal meaning (`*?` and `?*`), never says yes wrongly.
    pub fn covers(&self, other: &Self) -> bool {
        self.takes(other.symbols())
    }

    /// Whether there is a text that both are for.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b): (Vec<_>, Vec<_>) = (self.symbols().collect(), other.symbols().collect());
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

    fn symbols(&self) -> impl Iterator<Item = Symbol> {
        self.0.bytes().map(|b| match b {
            b'*' => Symbol::Any,
            b'?' => Symbol::One,
            other => Symbol::Is(other),
        })
    }

    /// Walks the pattern over symbols. A `*` among them is taken by a `*` only, a `?` by `*` and `?`.
    fn takes(&self, symbols: impl Iterator<Item = Symbol>) -> bool {
        let own: Vec<_> = self.symbols().collect();
        let mut at = vec![false; own.len() + 1];
        if let Some(first) = at.first_mut() {
            *first = true;
        }
        skip(&own, &mut at);
        for symbol in symbols {
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

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl JsonSchema for Glob {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": format!("^[!-~]{{1,{LONGEST}}}$"),
            "description": "a name, with * for any text and ? for one character"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn glob(text: &str) -> Glob {
        Glob::new(text)
    }

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
            assert_eq!(glob(pattern).matches(text), yes, "{pattern} {text}");
        }
        assert!(glob("e*").covers(&glob("eth*")) && !glob("eth*").covers(&glob("e*")));
        assert!(glob("eth?").covers(&glob("eth0")) && !glob("eth?").covers(&glob("eth*")));
        assert!(glob("a*").overlaps(&glob("*b")) && !glob("a*").overlaps(&glob("b*")));
        assert!(glob("eth0").overlaps(&glob("e?h*")) && !glob("eth0").overlaps(&glob("eth")));
    }

    proptest! {
        /// `covers` and `overlaps` say of patterns what `matches` says of every text.
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
            let (a, b) = (glob(&a), glob(&b));
            let both = texts.iter().any(|text| a.matches(text) && b.matches(text));
            prop_assert_eq!(a.overlaps(&b), both);
            if a.covers(&b) {
                prop_assert!(texts.iter().all(|text| !b.matches(text) || a.matches(text)));
            }
        }
    }
}
