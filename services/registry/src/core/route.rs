//! Which repository a package comes from.

use canopy_api::PackageName;
use std::{fmt, str::FromStr};

/// A package name, or a family of names with one `*` in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    head: String,
    /// What follows the `*`; `None` without one.
    tail: Option<String>,
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" cannot match a package name")]
pub struct PatternError(String);

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        // With the star filled in it must be a name.
        let sound = match text.split_once('*') {
            Some((head, tail)) => format!("{head}a{tail}").parse::<PackageName>().is_ok(),
            None => text.parse::<PackageName>().is_ok(),
        };
        if !sound {
            return Err(PatternError(text.to_owned()));
        }
        let (head, tail) = match text.split_once('*') {
            Some((head, tail)) => (head, Some(tail.to_owned())),
            None => (text, None),
        };
        Ok(Self { head: head.to_owned(), tail })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head)?;
        match &self.tail {
            Some(tail) => write!(f, "*{tail}"),
            None => Ok(()),
        }
    }
}

impl Pattern {
    /// Whether the pattern is for this name.
    pub fn matches(&self, name: &str) -> bool {
        match &self.tail {
            None => self.head == name,
            Some(tail) => {
                name.len() >= self.head.len() + tail.len()
                    && name.starts_with(&self.head)
                    && name.ends_with(tail.as_str())
            }
        }
    }

    /// Higher wins: a full name, then the number of letters given.
    pub fn specificity(&self) -> (bool, usize) {
        let letters = self.head.len() + self.tail.as_ref().map_or(0, String::len);
        (self.tail.is_none(), letters)
    }
}

/// Whether one name can match both.
pub fn overlaps(a: &Pattern, b: &Pattern) -> bool {
    match (&a.tail, &b.tail) {
        (None, _) => b.matches(&a.head),
        (_, None) => a.matches(&b.head),
        (Some(a_tail), Some(b_tail)) => {
            (a.head.starts_with(&b.head) || b.head.starts_with(&a.head))
                && (a_tail.ends_with(b_tail.as_str()) || b_tail.ends_with(a_tail.as_str()))
        }
    }
}

/// The position of the repository a name comes from: the one with the most specific pattern.
pub fn route(repositories: &[Vec<Pattern>], name: &PackageName) -> Option<usize> {
    let all =
        repositories.iter().enumerate().flat_map(|(i, list)| list.iter().map(move |p| (p, i)));
    all.filter(|(pattern, _)| pattern.matches(name.as_str()))
        .max_by_key(|(pattern, _)| pattern.specificity())
        .map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let repositories = [
            vec![pattern("*")],
            vec![pattern("net-*"), pattern("firewall")],
            vec![pattern("net-meter*")],
        ];
        let at = |name: &str| route(&repositories, &name.parse().unwrap());
        assert_eq!(at("anything"), Some(0));
        assert_eq!(at("firewall"), Some(1));
        assert_eq!(at("firewall2"), Some(0));
        assert_eq!(at("net-x"), Some(1));
        assert_eq!(at("net-meter"), Some(2));
        assert_eq!(route(&repositories[1..], &"other".parse().unwrap()), None);
    }

    #[test]
    fn a_star_does_not_count_letters_twice() {
        assert!(pattern("a*a").matches("aa"));
        assert!(!pattern("a*a").matches("a"));
    }

    #[test]
    fn overlaps_are_seen() {
        assert!(overlaps(&pattern("a*"), &pattern("*b")));
        assert!(!overlaps(&pattern("a*"), &pattern("b*")));
        assert!(overlaps(&pattern("ab"), &pattern("a*")));
        assert!(!overlaps(&pattern("ab"), &pattern("ac")));
    }

    #[test]
    fn what_cannot_match_a_name_is_refused() {
        for bad in ["", "A*", "a**", "a b", "-a", "../*"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
    }
}
