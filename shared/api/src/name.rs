//! Names, checked once where they are made. Each is a legal NATS token and a legal bpffs file name
//! by construction, so no later code has to escape or re-check them.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

/// Why a text is not a name of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {kind}: {rule}")]
pub struct NameError {
    /// What the text was meant to be.
    pub kind: &'static str,
    /// The text as given.
    pub text: String,
    /// The rule it breaks, in words.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $pattern:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError { kind: $kind, text: text.to_owned(), rule: $rule })
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $rule })
            }
        }
    };
}

/// `[a-z0-9][a-z0-9_-]{0,max-1}`
fn is_token(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

name!(
    /// The name a person gives to one program of a chain, unique in its chain.
    ProgramName, "program name", "^[a-z0-9][a-z0-9_-]{0,62}$",
    "1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or digit", |t| is_token(t, 63)
);
name!(
    /// The name of a package.
    PackageName, "package name", "^[a-z0-9][a-z0-9_-]{0,62}$",
    "1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or digit", |t| is_token(t, 63)
);
name!(
    /// A host's enrolled id. Not its DNS name: it is one token of a subject.
    HostId, "host id", "^[a-z0-9][a-z0-9_-]{0,47}$",
    "1 to 48 of a-z, 0-9, '_' and '-', starting with a letter or digit; \"all\" is reserved",
    |t| is_token(t, 48) && t != "all"
);
name!(
    /// Who speaks on the bus: `u-<person>`, `s-<central service>` or `h-<host>-<service>`.
    Principal, "principal", "^[ush]-[a-z0-9][a-z0-9_-]{0,60}$",
    "u-<person>, s-<service> or h-<host>-<service>, at most 63 of a-z, 0-9, '_' and '-'",
    |t| is_token(t, 63)
        && matches!(t.get(..2), Some("u-" | "s-" | "h-"))
        && t.get(2..).is_some_and(|rest| is_token(rest, 61))
);
name!(
    /// A network interface's name, as the kernel allows it (`dev_valid_name`, at most 15 bytes),
    /// less what cannot be a file name or a metric label.
    InterfaceName, "name of an interface", "^[!-.0-9;-~]{1,15}$",
    "1 to 15 printable characters without space, '/' or ':'; not \".\" or \"..\"",
    |t| (1..=15).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && t != "." && t != ".."
);
name!(
    /// The SHA-256 of a package file: `sha256:` and 64 lower-case hexadecimal digits.
    Digest, "digest", "^sha256:[0-9a-f]{64}$",
    "sha256: followed by 64 of 0-9 and a-f",
    |t| t.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
);

/// Whether a name fits a pattern: `*` is any text, `?` one character. In time of pattern times name:
/// only the last `*` seen is ever tried again.
pub(crate) fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where the pattern goes on behind the last star, and where in the name that was tried.
    let mut again = None;
    while let Some(one) = name.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                again = Some((at, seen));
            }
            Some(wanted) if *wanted == b'?' || wanted == one => {
                at += 1;
                seen += 1;
            }
            Some(_) | None => {
                let Some((behind, tried)) = again else { return false };
                at = behind;
                seen = tried + 1;
                again = Some((behind, seen));
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|one| *one == b'*')
}

/// Most states looked at by [`is_within`]; real patterns need a few dozen.
const INCLUSION_STATES: usize = 4_096;

/// Whether every name that fits the pattern `inner` fits `outer` too: inclusion of the two languages,
/// over names that are not empty. Patterns made to be hard to compare are taken for not included.
pub(crate) fn is_within(inner: &[u8], outer: &[u8]) -> bool {
    // A set of places in `outer` is a bit mask; ids have at most 63 characters.
    if outer.len() >= 128 {
        return inner == outer;
    }
    let skip_stars = |mut places: u128| {
        for (place, one) in outer.iter().enumerate() {
            if *one == b'*' && places & (1 << place) != 0 {
                places |= 1 << (place + 1);
            }
        }
        places
    };
    let step = |places: u128, letter: u8| {
        let mut next = 0;
        for (place, one) in outer.iter().enumerate().filter(|(at, _)| places & (1 << at) != 0) {
            match one {
                b'*' => next |= 1 << place,
                b'?' => next |= 1 << (place + 1),
                one if *one == letter => next |= 1 << (place + 1),
                _ => {}
            }
        }
        skip_stars(next)
    };
    // Letters that `outer` names, and one that stands for all others.
    let mut letters: Vec<u8> = outer.iter().copied().filter(|one| !b"*?".contains(one)).collect();
    letters.sort_unstable();
    letters.dedup();
    letters.push(0);
    let mut known = BTreeSet::new();
    let mut waiting = vec![(0_usize, skip_stars(1), false)];
    while let Some(state) = waiting.pop() {
        if !known.insert(state) {
            continue;
        }
        if known.len() > INCLUSION_STATES {
            return false;
        }
        let (at, places, begun) = state;
        match inner.get(at) {
            None if begun && places & (1 << outer.len()) == 0 => return false,
            None => {}
            Some(b'*') => {
                waiting.push((at + 1, places, begun));
                waiting.extend(letters.iter().map(|letter| (at, step(places, *letter), true)));
            }
            Some(b'?') => {
                waiting.extend(letters.iter().map(|letter| (at + 1, step(places, *letter), true)));
            }
            Some(letter) => waiting.push((at + 1, step(places, *letter), true)),
        }
    }
    true
}

impl Principal {
    /// Whether it is a person's: `u-…`.
    pub fn is_person(&self) -> bool {
        self.0.starts_with("u-")
    }
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes))))
    }

    /// The 64 hexadecimal digits, for a file name.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_what_a_plain_search_says_and_take_no_time() {
        fn plain(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => {
                    plain(rest, name) || (!name.is_empty() && plain(pattern, &name[1..]))
                }
                ([one, rest @ ..], [other, tail @ ..]) => {
                    (*one == b'?' || one == other) && plain(rest, tail)
                }
                _ => false,
            }
        }
        // Every pattern of up to five of these against every name of up to five of those.
        let texts = |letters: &[u8]| {
            let mut all = vec![Vec::new()];
            let mut last = all.clone();
            for _ in 0..5 {
                last = last
                    .iter()
                    .flat_map(|text| {
                        letters.iter().map(move |one| [text.as_slice(), &[*one]].concat())
                    })
                    .collect();
                all.extend(last.clone());
            }
            all
        };
        for pattern in texts(b"ab*?") {
            for name in texts(b"ab") {
                assert_eq!(fits(&pattern, &name), plain(&pattern, &name), "{pattern:?} {name:?}");
            }
        }
        // Tried in every way, this would not end.
        assert!(!fits("*a".repeat(24).as_bytes(), "a".repeat(23).as_bytes()));
        assert!(!fits(&[b"*a".repeat(40), b"b".to_vec()].concat(), &b"a".repeat(4000)));
    }

    #[test]
    fn inclusion_of_patterns_is_exact() {
        let texts = |letters: &[u8], most: usize| {
            let mut all = vec![Vec::new()];
            let mut last = all.clone();
            for _ in 0..most {
                last = last
                    .iter()
                    .flat_map(|text: &Vec<u8>| {
                        letters.iter().map(move |one| [text.as_slice(), &[*one]].concat())
                    })
                    .collect();
                all.extend(last.clone());
            }
            all
        };
        // Names of one letter more than the patterns have tell them apart, and a letter of neither.
        let names: Vec<_> = texts(b"abc", 5).into_iter().filter(|name| !name.is_empty()).collect();
        let patterns = texts(b"ab*?", 3);
        let fitting: Vec<BTreeSet<&Vec<u8>>> = patterns
            .iter()
            .map(|pattern| names.iter().filter(|name| fits(pattern, name)).collect())
            .collect();
        let mut within = 0;
        for (inner, names) in patterns.iter().zip(&fitting) {
            for (outer, all) in patterns.iter().zip(&fitting) {
                let expected = names.is_subset(all);
                within += usize::from(expected);
                assert_eq!(is_within(inner, outer), expected, "{inner:?} within {outer:?}");
            }
        }
        assert!(within > patterns.len(), "{within}");
        // Made to be hard: taken for not included, soon.
        let hard = format!("*a{}", "?".repeat(60));
        assert!(!is_within(format!("{hard}*b").as_bytes(), hard.as_bytes()));
    }

    #[test]
    fn principals_are_one_subject_token() {
        for bad in
            ["", "*", ">", "a.b", "u-", "u-a.b", "u-*", "x-alice", "u-Alice", "s registry", "u--a"]
        {
            assert!(bad.parse::<Principal>().is_err(), "{bad:?} was accepted");
        }
        for good in ["u-alice", "s-cert-monitor", "h-web1-loader"] {
            assert!(good.parse::<Principal>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "ü"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?} was accepted");
        }
        assert!("eth0.100@x".parse::<InterfaceName>().is_ok());
    }
}
