//! How a network namespace is named that is not the loader's own.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr};

/// A network namespace, by what leads to it:
///
/// | written | means |
/// |---|---|
/// | `blue` | `/run/netns/blue`, as `ip netns add blue` makes it |
/// | `/run/docker/netns/1f0c` | the namespace that this file is |
/// | `pid:4711` | the one that process is in |
///
/// It says where to look, not which namespace is found there: one that is made anew under the same name
/// is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Netns(Reference);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Reference {
    Name(String),
    Path(String),
    Pid(u32),
}

/// Longest text, bytes: escaped and beside an interface's name, it still is one name of a directory.
const LONGEST: usize = 64;

const RULE: &str = "a name of ip-netns (blue), the absolute path of a namespace's file \
                    (/run/docker/netns/1f0c) or a process (pid:4711); at most 64 printable characters \
                    without space";

impl Netns {
    /// The file that is the namespace, as the kernel shows it.
    pub fn path(&self) -> PathBuf {
        match &self.0 {
            Reference::Name(name) => PathBuf::from(format!("/run/netns/{name}")),
            Reference::Path(path) => PathBuf::from(path),
            Reference::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

impl FromStr for Netns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("\"{text}\" names no network namespace: {why}; {RULE}"));
        if !(1..=LONGEST).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("it is empty, too long, or has other characters");
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            // One spelling for one process: what is compared is the text.
            return match pid.parse::<u32>() {
                Ok(number @ 1..) if number.to_string() == pid && i32::try_from(number).is_ok() => {
                    Ok(Self(Reference::Pid(number)))
                }
                _ => bad("a process is a number above 0"),
            };
        }
        if let Some(rest) = text.strip_prefix('/') {
            return if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
                bad("a path has no \".\", no \"..\" and no empty parts")
            } else {
                Ok(Self(Reference::Path(text.to_owned())))
            };
        }
        if matches!(text, "." | "..") || text.contains(['/', ':']) {
            return bad("a name has no '/' and no ':', and is not \".\" or \"..\"");
        }
        Ok(Self(Reference::Name(text.to_owned())))
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reference::Name(text) | Reference::Path(text) => f.pad(text),
            Reference::Pid(pid) => f.pad(&format!("pid:{pid}")),
        }
    }
}

impl Serialize for Netns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Netns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Netns {
    fn schema_name() -> Cow<'static, str> {
        "Netns".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(pid:[1-9][0-9]{0,9}|/[!-~]{1,63}|[!-.0-9;-~]{1,64})$",
            "description": RULE,
        })
    }
}

/// " in network namespace blue", or nothing for the loader's own.
pub(crate) struct In<'a>(pub(crate) Option<&'a Netns>);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(netns) => write!(f, " in network namespace {netns}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_kind_is_written_in_its_own_way() {
        for (text, path) in [
            ("blue", "/run/netns/blue"),
            ("cni-1f.0c", "/run/netns/cni-1f.0c"),
            ("/run/docker/netns/1f0c", "/run/docker/netns/1f0c"),
            ("pid:4711", "/proc/4711/ns/net"),
        ] {
            let netns: Netns = text.parse().unwrap();
            assert_eq!((netns.to_string().as_str(), netns.path()), (text, PathBuf::from(path)));
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "ü",
            "/",
            "/a/",
            "/a//b",
            "/a/../b",
            "./a",
            "pid:",
            "pid:0",
            "pid:01",
            "pid:+1",
            "pid:-1",
            "pid:4294967295",
            "pid:self",
            &"a".repeat(65),
        ] {
            let said = bad.parse::<Netns>().unwrap_err();
            assert!(said.contains("names no network namespace"), "{bad:?}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_danger(text in ".{0,90}") {
            if let Ok(netns) = text.parse::<Netns>() {
                prop_assert_eq!(netns.to_string(), text);
            }
        }
    }
}
