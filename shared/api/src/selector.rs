//! How a chain's interface is named: by its name, or by what it is.

use crate::{
    desired::{ChainKey, Hook},
    name::{InterfaceName, fits},
    netns::{self, Netns},
    pattern,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// Which interfaces a chain is for. What is not a plain name stands for every interface that fits,
/// now or later:
///
/// | written | means |
/// |---|---|
/// | `eth0` | the interface of that name |
/// | `eth*`, `veth?` | every interface whose name fits: `*` is any text, `?` one character; `lo` only where it is spelled |
/// | `default-route` | where the default route leads: IPv4's, or IPv6's where there is none |
/// | `mac:52:54:00:12:34:56` | the interfaces with that hardware address |
/// | `altname:enp3s0` | the interface with that alternative name |
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterfaceSelector {
    /// The interface of that name.
    Name(InterfaceName),
    /// Every interface whose name fits.
    Glob(Glob),
    /// Where the default route leads.
    DefaultRoute,
    /// The interfaces with that hardware address.
    Mac([u8; 6]),
    /// The interface with that alternative name.
    AltName(String),
}

/// A pattern of names with `*` and `?`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(String);

/// Longest alternative name, bytes (`ALTIFNAMSIZ`, its terminating zero excluded).
const ALTNAME: usize = 127;

const RULE: &str = "a name (eth0) or a pattern (eth*) of 1 to 15 printable characters without space, \
                    '/' or ':'; default-route; mac:52:54:00:12:34:56; altname:enp3s0";

impl InterfaceSelector {
    /// The name, for one that is nothing else.
    pub fn name(&self) -> Option<&InterfaceName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Glob(_) | Self::DefaultRoute | Self::Mac(_) | Self::AltName(_) => None,
        }
    }

    /// Which of two that fit the same interface counts: the greater. Equal ones do not go together.
    pub fn specificity(&self) -> usize {
        // A pattern has at most 15 characters.
        match self {
            Self::Name(_) => 103,
            Self::AltName(_) => 102,
            Self::Mac(_) => 101,
            Self::DefaultRoute => 100,
            Self::Glob(glob) => glob.0.bytes().filter(|b| !matches!(b, b'*' | b'?')).count(),
        }
    }
}

impl InterfaceSelector {
    /// Whether there may be an interface, now or later, that both stand for. What cannot be told from the
    /// two alone (which interface has an alternative name, an address or the default route) may be.
    pub fn may_meet(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a), Self::Name(b)) => a == b,
            (Self::Name(name), Self::Glob(glob)) | (Self::Glob(glob), Self::Name(name)) => {
                glob.matches(name.as_str())
            }
            (Self::Glob(a), Self::Glob(b)) => pattern::overlap(&a.0, &b.0),
            // An interface has one address.
            (Self::Mac(a), Self::Mac(b)) => a == b,
            (Self::DefaultRoute | Self::Mac(_) | Self::AltName(_), _)
            | (_, Self::DefaultRoute | Self::Mac(_) | Self::AltName(_)) => true,
        }
    }

    /// Whether every interface that `other` stands for, now or later, is one that this stands for. Never
    /// says yes wrongly.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            _ if self == other => true,
            (Self::Glob(glob), Self::Name(name)) => glob.matches(name.as_str()),
            (Self::Glob(a), Self::Glob(b)) => {
                // `l*` is for `lo`, `*` is not.
                pattern::covers(&a.0, &b.0) && (a.spelled() || !b.matches("lo"))
            }
            (
                Self::Name(_)
                | Self::Glob(_)
                | Self::DefaultRoute
                | Self::Mac(_)
                | Self::AltName(_),
                _,
            ) => false,
        }
    }
}

impl Glob {
    /// Whether it begins with a letter of its own.
    fn spelled(&self) -> bool {
        !self.0.starts_with(['*', '?'])
    }

    /// Whether a name fits.
    pub fn matches(&self, name: &str) -> bool {
        // As a shell's '*' leaves out files with a leading dot.
        (name != "lo" || self.spelled()) && fits(self.0.as_bytes(), name.as_bytes())
    }
}

impl FromStr for InterfaceSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("\"{text}\" names no interface: {why}; {RULE}"));
        if text == "default-route" {
            return Ok(Self::DefaultRoute);
        }
        if let Some(address) = text.strip_prefix("mac:") {
            let parts: Vec<_> = address.split(':').collect();
            let pair =
                |part: &&&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let bytes: Vec<u8> = parts
                .iter()
                .filter(pair)
                .filter_map(|part| u8::from_str_radix(part, 16).ok())
                .collect();
            return match (<[u8; 6]>::try_from(bytes), parts.len()) {
                (Ok(mac), 6) => Ok(Self::Mac(mac)),
                _ => bad("a hardware address is six pairs of hexadecimal digits"),
            };
        }
        if let Some(name) = text.strip_prefix("altname:") {
            let legal = (1..=ALTNAME).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
            return if legal {
                Ok(Self::AltName(name.to_owned()))
            } else {
                bad("an alternative name is 1 to 127 printable characters without space or '/'")
            };
        }
        let name: InterfaceName =
            text.parse().map_err(|error: crate::name::NameError| format!("{error}; {RULE}"))?;
        if text.contains(['*', '?']) {
            Ok(Self::Glob(Glob(text.to_owned())))
        } else {
            Ok(Self::Name(name))
        }
    }
}

impl fmt::Display for InterfaceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.pad(name.as_str()),
            Self::Glob(glob) => f.pad(&glob.0),
            Self::DefaultRoute => f.pad("default-route"),
            Self::Mac(bytes) => {
                f.pad(&format!("mac:{}", bytes.map(|byte| format!("{byte:02x}")).join(":")))
            }
            Self::AltName(name) => f.pad(&format!("altname:{name}")),
        }
    }
}

impl From<InterfaceName> for InterfaceSelector {
    /// The interface of that name, whatever characters are in it.
    fn from(name: InterfaceName) -> Self {
        Self::Name(name)
    }
}

impl Serialize for InterfaceSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InterfaceSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for InterfaceSelector {
    fn schema_name() -> Cow<'static, str> {
        "InterfaceSelector".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(mac:([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}|altname:[!-.0-~]{1,127}|[!-.0-9;-~]{1,15})$",
            "description": RULE,
        })
    }
}

/// What a person describes: a hook of the interfaces that a selector stands for.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Target {
    /// The network namespace; absent for the loader's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// Which interfaces.
    pub interface: InterfaceSelector,
    /// The hook on each.
    pub hook: Hook,
}

impl Target {
    /// The chain, of what names its interface.
    pub fn key(&self) -> Option<ChainKey> {
        Some(self.on(self.interface.name()?.clone()))
    }

    /// The chain that an interface has by it.
    pub fn on(&self, interface: InterfaceName) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface, hook: self.hook }
    }

    /// What a chain comes from, by its selector.
    pub fn of(key: &ChainKey, interface: InterfaceSelector) -> Self {
        Self { netns: key.netns.clone(), interface, hook: key.hook }
    }
}

impl From<ChainKey> for Target {
    fn from(key: ChainKey) -> Self {
        Self { netns: key.netns, interface: key.interface.into(), hook: key.hook }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.interface, self.hook, netns::In(self.netns.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> InterfaceSelector {
        text.parse().unwrap()
    }

    #[test]
    fn each_kind_is_written_in_its_own_way() {
        for text in
            ["eth0", "eth*", "v?th0", "default-route", "mac:52:54:00:ab:cd:ef", "altname:a:b"]
        {
            let selector = parse(text);
            assert_eq!(selector.to_string(), text);
            assert_eq!(selector.name().is_some(), text == "eth0");
        }
        assert_eq!(parse("mac:52:54:00:AB:CD:EF"), parse("mac:52:54:00:ab:cd:ef"));
        for bad in [
            "",
            "eth 0",
            "mac:1",
            "mac:00:00:00:00:00",
            "mac:+1:00:00:00:00:00:00",
            "mac:+1:00:00:00:00:00",
            "mac:0:00:00:00:00:00",
            "altname:",
            "altname:a/b",
            "vlan:3",
            "a-name-of-20-letters*",
        ] {
            assert!(bad.parse::<InterfaceSelector>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_pattern_fits_names() {
        let fits = |pattern: &str, name: &str| match parse(pattern) {
            InterfaceSelector::Glob(glob) => glob.matches(name),
            other => panic!("{other:?}"),
        };
        for (pattern, name) in [
            ("eth*", "eth0"),
            ("eth*", "eth"),
            ("*", "wlan0"),
            ("e*0", "enp3s0"),
            ("eth?", "eth1"),
            ("l*", "lo"),
            ("*.100", "eth0.100"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("eth*", "veth0"),
            ("eth?", "eth"),
            ("eth?", "eth10"),
            ("*", "lo"),
            ("?o", "lo"),
            ("e*1", "eth0"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn the_more_specific_selector_counts() {
        let order =
            ["eth0", "altname:x", "mac:00:00:00:00:00:00", "default-route", "eth0*", "eth*", "*"];
        for pair in order.windows(2) {
            assert!(parse(pair[0]).specificity() > parse(pair[1]).specificity(), "{pair:?}");
        }
        assert_eq!(parse("e*0").specificity(), parse("et*").specificity());
    }

    #[test]
    fn selectors_are_compared_as_sets() {
        let meet = |a: &str, b: &str| {
            let (a, b) = (parse(a), parse(b));
            assert_eq!(a.may_meet(&b), b.may_meet(&a), "{a} {b}");
            a.may_meet(&b)
        };
        for (a, b) in [
            ("eth0", "eth0"),
            ("eth0", "e*"),
            ("e*0", "eth?"),
            ("altname:a", "altname:b"),
            ("altname:a", "eth0"),
            ("default-route", "mac:02:00:00:00:00:01"),
        ] {
            assert!(meet(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("eth0", "eth1"),
            ("eth0", "w*"),
            ("eth?", "wan?"),
            ("lo", "*"),
            ("mac:02:00:00:00:00:01", "mac:02:00:00:00:00:02"),
        ] {
            assert!(!meet(a, b), "{a} {b}");
        }
        for (a, b, yes) in [
            ("e*", "eth*", true),
            ("e*", "eth0", true),
            ("*", "eth*", true),
            ("*", "l*", false),
            ("*", "lo", false),
            ("l*", "lo", true),
            ("eth*", "e*", false),
            ("*", "default-route", false),
            ("altname:a", "altname:a", true),
            ("eth0", "altname:eth0", false),
        ] {
            assert_eq!(parse(a).covers(&parse(b)), yes, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn sets_of_names_are_what_each_name_says(
            a in "[lo*?]{1,4}", b in "[lo*?]{1,4}", name in "[lo]{1,4}",
        ) {
            let fits = |selector: &InterfaceSelector| match selector {
                InterfaceSelector::Name(own) => own.as_str() == name,
                InterfaceSelector::Glob(glob) => glob.matches(&name),
                _ => false,
            };
            let (a, b) = (parse(&a), parse(&b));
            prop_assert!(a.may_meet(&b) || !(fits(&a) && fits(&b)), "{a} {b} {name}");
            prop_assert!(!a.covers(&b) || !fits(&b) || fits(&a), "{a} {b} {name}");
        }

        #[test]
        fn a_name_fits_the_pattern_made_of_it(name in "[a-z0-9]{1,15}", at in 0usize..15, length in 0usize..15) {
            prop_assume!(name != "lo");
            let from = at.min(name.len());
            let to = (from + length).min(name.len());
            let star = format!("{}*{}", &name[..from], &name[to..]);
            prop_assert!(Glob(star).matches(&name));
        }

        #[test]
        fn no_text_is_a_danger(text in ".{0,40}") {
            if let Ok(selector) = text.parse::<InterfaceSelector>() {
                prop_assert_eq!(selector.to_string().parse(), Ok(selector));
            }
        }
    }
}
