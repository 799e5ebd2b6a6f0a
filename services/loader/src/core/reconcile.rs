//! What is wrong with a chain, and what mends it.

use super::state::Chain;
use canopy_kernel::{Expect, LinkState, Observed};
use std::fmt;

/// How a chain that should be attached stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The link is dead or gone.
    Detached,
    /// Another program is in the link; its kernel id.
    Replaced(u32),
    /// The pins of the generation are gone.
    Unpinned,
}

impl Finding {
    /// One word, for events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Replaced(_) => "replaced",
            Self::Unpinned => "unpinned",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detached => f.write_str("the link is detached or gone"),
            Self::Replaced(id) => write!(f, "program {id} was put in its place"),
            Self::Unpinned => f.write_str("the pins of its programs are gone"),
        }
    }
}

/// What mends a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mend {
    /// Nothing is wrong.
    Nothing,
    /// Attach the generation that is pinned.
    Attach(Finding, Expect),
    /// Build it again from the cache.
    Rebuild(Finding),
    /// Nothing can be done until the interface is there.
    Wait,
    /// Nothing can be done until its network namespace can be entered, or its pins brought back.
    WaitToSee,
}

/// Compares a chain that should be attached with what the kernel has.
pub fn judge(chain: &Chain, seen: Option<&Observed>) -> Mend {
    let Some(seen) = seen else { return Mend::Rebuild(Finding::Unpinned) };
    let pinned = seen.generations.contains(&chain.running);
    match &seen.state {
        LinkState::InterfaceMissing | LinkState::NetnsMissing => Mend::Wait,
        LinkState::Unseen { .. } => Mend::WaitToSee,
        LinkState::Attached(now) if now.generation == chain.running => {
            if seen.pin_problem.is_some() {
                Mend::WaitToSee
            } else if pinned {
                Mend::Nothing
            } else {
                Mend::Rebuild(Finding::Unpinned)
            }
        }
        LinkState::Attached(now) if pinned => {
            Mend::Attach(Finding::Replaced(now.program_id), Expect::Generation(now.generation))
        }
        LinkState::Attached(_) => Mend::Rebuild(Finding::Unpinned),
        LinkState::Replaced { program_id } if pinned => {
            Mend::Attach(Finding::Replaced(*program_id), Expect::Anything)
        }
        LinkState::Replaced { program_id } => Mend::Rebuild(Finding::Replaced(*program_id)),
        LinkState::Detached if pinned => Mend::Attach(Finding::Detached, Expect::Nothing),
        LinkState::Detached => Mend::Rebuild(Finding::Detached),
    }
}
