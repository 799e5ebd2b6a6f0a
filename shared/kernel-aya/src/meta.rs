//! What a generation is, kept in the kernel beside it: who the members are, after which verdicts
//! each goes on, and how the values of its maps are laid out.
//!
//! It lies in a frozen array map of one entry, as text, so that whoever finds the pins after a
//! restart needs nothing else to read the accounting.

use crate::{pins::unescape, sys};
use canopy_api::{Hook, ProgramName, VerdictSet};
use std::{io, os::fd::OwnedFd, path::Path};

/// First word of the text, and the format's number.
const HEAD: &str = "canopy-chain 1";

/// What a generation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The hook it was made for.
    pub(crate) hook: Hook,
    /// Whether every member handles multi-buffer packets.
    pub(crate) frags: bool,
    /// Whether it was made to be attached by a filter of clsact; else by a link.
    pub(crate) clsact: bool,
    /// The members, in the order in which they run.
    pub(crate) members: Vec<(ProgramName, VerdictSet)>,
    /// By member index and map name: a number that is the same for the same layout of key and value.
    pub(crate) layouts: Vec<(usize, String, u64)>,
    /// The names of the program's functions, in order, less the generated `main`. The program's own
    /// types tell them too, to whoever has `CAP_SYS_ADMIN`.
    pub(crate) functions: Vec<String>,
}

impl Meta {
    /// The layout number of a member's map.
    pub(crate) fn layout(&self, member: &ProgramName, map: &str) -> Option<u64> {
        let index = self.members.iter().position(|(name, _)| name == member)?;
        self.layouts
            .iter()
            .find(|(of, name, _)| *of == index && name == map)
            .map(|(_, _, layout)| *layout)
    }

    fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{HEAD}\nhook {} {}", self.hook, u8::from(self.frags));
        text.push_str(if self.clsact { " clsact\n" } else { "\n" });
        for (name, proceed_on) in &self.members {
            let _ = writeln!(text, "member {name} {:x}", proceed_on.bits());
        }
        for (member, map, layout) in &self.layouts {
            let _ = writeln!(text, "map {member} {} {layout:x}", crate::pins::escape(map));
        }
        for function in &self.functions {
            let _ = writeln!(text, "function {}", crate::pins::escape(function));
        }
        text
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let mut words = lines.next()?.strip_prefix("hook ")?.split(' ');
        let mut meta = Self {
            hook: words.next()?.parse().ok()?,
            frags: words.next()? == "1",
            clsact: words.next() == Some("clsact"),
            members: Vec::new(),
            layouts: Vec::new(),
            functions: Vec::new(),
        };
        for line in lines {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("member"), Some(name), Some(bits), None) => {
                    let bits = u32::from_str_radix(bits, 16).ok()?;
                    meta.members.push((name.parse().ok()?, VerdictSet::from_bits(bits)));
                }
                (Some("map"), Some(member), Some(map), Some(layout)) => meta.layouts.push((
                    member.parse().ok()?,
                    unescape(map)?,
                    u64::from_str_radix(layout, 16).ok()?,
                )),
                (Some("function"), Some(name), None, None) => meta.functions.push(unescape(name)?),
                _ => return None,
            }
        }
        Some(meta)
    }

    /// A frozen map that says it.
    pub(crate) fn write(&self) -> io::Result<OwnedFd> {
        write_text("canopy.meta", &self.to_text())
    }

    /// Reads what a pinned map says.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        Self::from_text(&read_text(path)?)
            .ok_or_else(|| io::Error::other(format!("{} is not a chain's", path.display())))
    }
}

/// A frozen map of one entry that holds a text.
pub(crate) fn write_text(name: &str, text: &str) -> io::Result<OwnedFd> {
    let fd = sys::map_create(&sys::MapCreate {
        map_type: crate::object_maps::ARRAY,
        key_size: 4,
        value_size: u32::try_from(text.len()).map_err(io::Error::other)?,
        max_entries: 1,
        flags: crate::object_maps::RDONLY_PROG,
        name,
        ..sys::MapCreate::default()
    })?;
    let map = sys::Map::new(fd)?;
    map.update(&0u32.to_ne_bytes(), text.as_bytes(), 0)?;
    map.freeze()?;
    Ok(map.into_fd())
}

/// The text in a pinned map.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let map = sys::Map::new(sys::obj_get(path)?)?;
    let value = map.lookup(&0u32.to_ne_bytes())?.unwrap_or_default();
    String::from_utf8(value)
        .map_err(|_| io::Error::other(format!("{} holds no text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_wrote() {
        let mut meta = Meta {
            hook: Hook::TcEgress,
            frags: true,
            clsact: false,
            members: vec![
                ("fire-wall".parse().unwrap(), VerdictSet::default_for(Hook::TcEgress)),
                ("2nd".parse().unwrap(), VerdictSet::from_bits(0)),
            ],
            layouts: vec![(0, ".bss".to_owned(), u64::MAX), (1, "flows x".to_owned(), 0)],
            functions: vec!["p0_fire_wall".to_owned(), "p1_2nd.part.0".to_owned()],
        };
        for clsact in [true, false] {
            meta.clsact = clsact;
            assert_eq!(Meta::from_text(&meta.to_text()), Some(meta.clone()));
        }
        assert_eq!(meta.layout(&"fire-wall".parse().unwrap(), ".bss"), Some(u64::MAX));
        assert_eq!(meta.layout(&"2nd".parse().unwrap(), ".bss"), None);
        assert_eq!(Meta::from_text("something else"), None);
    }
}
