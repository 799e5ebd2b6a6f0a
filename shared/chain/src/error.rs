//! Why a chain cannot be composed.

use crate::btf::BtfError;
use canopy_api::ProgramName;

/// Why a chain cannot be composed. Each names the member to blame, where it is one, and says what to
/// do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// No members.
    #[error("the chain has no programs")]
    Empty,
    /// More members than there is room to count for.
    #[error("the chain has {count} programs; {limit} is the most")]
    TooManyMembers {
        /// How many.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
    /// A member that would never be called.
    #[error("it proceeds on no verdict, so \"{next}\" after it would never run")]
    NeverRuns {
        /// The one in the way.
        member: ProgramName,
        /// The one after it.
        next: ProgramName,
    },
    /// The members together are more than the verifier walks.
    #[error(
        "the verifier walks {total} instructions for the chain's programs together; \
         {limit} is the kernel's limit; this one takes {own} of them"
    )]
    TooComplex {
        /// The member with the most.
        member: ProgramName,
        /// Its share.
        own: u64,
        /// All of them.
        total: u64,
        /// The limit.
        limit: u64,
    },
    /// Too many maps, even with constant data laid together.
    #[error(
        "the chain uses {count} maps, its accounting included; {limit} is the kernel's limit; \
         this program uses {own} of them"
    )]
    TooManyMaps {
        /// The member with the most.
        member: ProgramName,
        /// Its share.
        own: usize,
        /// All of them.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many functions.
    #[error(
        "the chain has {count} functions, the generated one included; {limit} is the kernel's \
         limit; this program has {own} of them"
    )]
    TooManyFunctions {
        /// The member with the most.
        member: ProgramName,
        /// Its share.
        own: usize,
        /// All of them.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Too much stack.
    #[error("it uses {bytes} bytes of stack; {limit} are left to a program in a chain")]
    Stack {
        /// The member.
        member: ProgramName,
        /// What it uses on its deepest path.
        bytes: u32,
        /// What it may use.
        limit: u32,
    },
    /// Calls too deep.
    #[error("its calls are {frames} frames deep; {limit} are left to a program in a chain")]
    Frames {
        /// The member.
        member: ProgramName,
        /// Its frames.
        frames: u32,
        /// What it may use.
        limit: u32,
    },
    /// A licence that would have to be upgraded.
    #[error(
        "it calls helpers for GPL-compatible programs only, and \"{other}\" in the same chain is \
         licensed \"{licence}\""
    )]
    Licence {
        /// The member that needs the helpers.
        member: ProgramName,
        /// The member whose licence forbids them.
        other: ProgramName,
        /// That licence.
        licence: String,
    },
    /// More tail calls than a packet may take.
    #[error(
        "it may take {own} tail calls a packet and \"{other}\" {others}; the kernel allows a \
         packet {limit} in the whole chain, and skips the rest silently"
    )]
    TailCalls {
        /// The member with the most.
        member: ProgramName,
        /// Its share.
        own: u32,
        /// Another that makes tail calls.
        other: ProgramName,
        /// That one's share.
        others: u32,
        /// The limit.
        limit: u32,
    },
    /// Its BTF cannot be read.
    #[error("its BTF cannot be read")]
    Btf {
        /// The member.
        member: ProgramName,
        /// Why.
        source: BtfError,
    },
    /// Code that contradicts itself: no entry, a map that is not there.
    #[error("its code is malformed: {what}")]
    Malformed {
        /// The member.
        member: ProgramName,
        /// What is wrong.
        what: &'static str,
    },
}

impl ComposeError {
    /// The member to blame, where it is one.
    pub fn member(&self) -> Option<&ProgramName> {
        match self {
            Self::Empty | Self::TooManyMembers { .. } => None,
            Self::NeverRuns { member, .. }
            | Self::TooComplex { member, .. }
            | Self::TooManyMaps { member, .. }
            | Self::TooManyFunctions { member, .. }
            | Self::Stack { member, .. }
            | Self::Frames { member, .. }
            | Self::Licence { member, .. }
            | Self::TailCalls { member, .. }
            | Self::Btf { member, .. }
            | Self::Malformed { member, .. } => Some(member),
        }
    }

    /// What to do, in one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Empty => "delete the chain instead".to_owned(),
            Self::TooManyMembers { .. } => {
                "spread the programs over the interface's other hooks".to_owned()
            }
            Self::NeverRuns { next, .. } => {
                format!("name verdicts in its proceed_on, or remove \"{next}\" from the chain")
            }
            Self::TooComplex { .. } => "remove a program from the chain, or make this one simpler \
                 (bounded loops, bpf_loop, global functions)"
                .to_owned(),
            Self::TooManyMaps { .. } => {
                "share maps between programs, or remove a program from the chain".to_owned()
            }
            Self::TooManyFunctions { .. } => {
                "remove a program from the chain, or inline this one's functions".to_owned()
            }
            Self::Stack { .. } => "move large local variables to a per-CPU map".to_owned(),
            Self::Frames { .. } => "inline some of its functions".to_owned(),
            Self::Licence { other, .. } => {
                format!("put the two in different chains, or ask for a GPL-compatible \"{other}\"")
            }
            Self::TailCalls { .. } => {
                "keep one of them in this chain, or say in the packages' manifests how many each takes \
                 at most: tail_calls"
                    .to_owned()
            }
            Self::Btf { .. } => "compile the object with a current clang and -g".to_owned(),
            Self::Malformed { .. } => "compile the object again".to_owned(),
        }
    }
}
