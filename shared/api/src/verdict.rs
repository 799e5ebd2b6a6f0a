//! Verdicts: what a program returns, by hook.

use crate::desired::Hook;
use std::fmt;

/// Number of accounting cells a program has: verdict slots 0..=31 and one for anything else.
pub const CELLS: usize = 33;

/// The slot that counts every return value without a slot of its own.
pub const OTHER: u8 = 32;

/// One verdict of a hook, kept as its accounting slot: the return value for XDP, the return value
/// plus one for TC (`TC_ACT_UNSPEC` is -1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verdict(u8);

// linux/bpf.h, enum xdp_action
const XDP: [&str; 5] = ["aborted", "drop", "pass", "tx", "redirect"];
// linux/pkt_cls.h, TC_ACT_*, from TC_ACT_UNSPEC (-1)
const TC: [&str; 10] = [
    "unspec",
    "ok",
    "reclassify",
    "shot",
    "pipe",
    "stolen",
    "queued",
    "repeat",
    "redirect",
    "trap",
];

fn names(hook: Hook) -> &'static [&'static str] {
    match hook {
        Hook::Xdp => &XDP,
        Hook::TcIngress | Hook::TcEgress => &TC,
    }
}

impl Verdict {
    /// The verdict of that name on that hook.
    pub fn parse(hook: Hook, name: &str) -> Option<Self> {
        let slot = names(hook).iter().position(|known| *known == name)?;
        u8::try_from(slot).ok().map(Self)
    }

    /// Every name a document may use on that hook.
    pub fn names(hook: Hook) -> &'static [&'static str] {
        names(hook)
    }

    /// The accounting slot, 0..=31.
    pub fn slot(self) -> u8 {
        self.0
    }

    /// The name of an accounting slot: a verdict's name, `code_<n>` for a return value that has a
    /// slot but no name, `other` for [`OTHER`].
    pub fn slot_name(hook: Hook, slot: u8) -> String {
        if slot >= OTHER {
            return "other".to_owned();
        }
        match names(hook).get(usize::from(slot)) {
            Some(name) => (*name).to_owned(),
            None => match hook {
                Hook::Xdp => format!("code_{slot}"),
                Hook::TcIngress | Hook::TcEgress => format!("code_{}", i32::from(slot) - 1),
            },
        }
    }
}

/// The verdicts after which a chain goes on, one bit a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VerdictSet(u32);

impl VerdictSet {
    /// What a hook's chain proceeds on when nobody says otherwise: XDP on `pass`; TC on `ok`,
    /// `pipe` and `unspec`.
    pub fn default_for(hook: Hook) -> Self {
        let names: &[&str] = match hook {
            Hook::Xdp => &["pass"],
            Hook::TcIngress | Hook::TcEgress => &["ok", "pipe", "unspec"],
        };
        names.iter().filter_map(|name| Verdict::parse(hook, name)).collect()
    }

    /// One bit a slot, slot 0 the lowest.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// From [`Self::bits`].
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether the chain goes on after this verdict.
    pub fn contains(self, verdict: Verdict) -> bool {
        self.0 & (1 << verdict.slot()) != 0
    }

    /// Whether the chain goes on after each verdict of another set.
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// The names of the verdicts in the set.
    pub fn names(self, hook: Hook) -> Vec<String> {
        (0..32)
            .filter(|slot| self.0 & (1 << slot) != 0)
            .map(|slot| Verdict::slot_name(hook, slot))
            .collect()
    }
}

impl FromIterator<Verdict> for VerdictSet {
    fn from_iter<I: IntoIterator<Item = Verdict>>(verdicts: I) -> Self {
        Self(verdicts.into_iter().fold(0, |bits, verdict| bits | (1 << verdict.slot())))
    }
}

impl fmt::Display for VerdictSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
