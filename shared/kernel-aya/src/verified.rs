//! What the verifier has said of members, so that one it knows is not shown to it again.
//!
//! Loading a member alone costs as much as loading it in the chain. Its verdict depends on the
//! program, on how it is loaded, and on its maps: their shapes, and what is in those that programs
//! cannot write. The same kernel says the same of the same. Nothing rests on it: the chain itself is
//! verified whole, every time.

use crate::{
    map_create::{ARRAY_OF_MAPS, HASH_OF_MAPS},
    member::Loading,
    member_maps::Made,
    object_maps::{PROG_ARRAY, RDONLY_PROG},
    sys::MapInfo,
};
use canopy_kernel::Member;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes of objects that are remembered, one counted for each member it is in: those of several large
/// chains.
const REMEMBERED: usize = 32 << 20;

/// Everything that decides what the verifier says of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    function: String,
    loading: Loading,
    /// Whether its object's type information is used.
    typed: bool,
    /// By the object's map number; `None` for those it does not use.
    maps: Vec<Option<Shape>>,
    /// Last: the largest.
    object: Arc<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    typed: bool,
    constant: Option<Arc<[u8]>>,
}

/// What it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Instructions it walked.
    pub(crate) instructions: u32,
    /// Stack of each function; empty where the kernel does not tell.
    pub(crate) stack: Vec<u32>,
}

static KNOWN: Mutex<VecDeque<(Subject, Verdict)>> = Mutex::new(VecDeque::new());

impl Subject {
    /// A member with its maps. `None` for one whose verdict depends on more: on programs and maps in
    /// its maps, or on constants whose contents are not at hand.
    pub(crate) fn new(
        member: &Member,
        loading: Loading,
        typed: bool,
        maps: &[Option<Made>],
    ) -> Option<Self> {
        let shape = |made: &Made| {
            let MapInfo { map_type, key_size, value_size, max_entries, flags, btf_id, .. } =
                *made.map.info();
            let nested = matches!(map_type, PROG_ARRAY | ARRAY_OF_MAPS | HASH_OF_MAPS);
            let unknown = flags & RDONLY_PROG != 0 && made.constant.is_none();
            let constant = made.constant.clone();
            let typed = btf_id != 0;
            (!nested && !unknown).then_some(Shape {
                map_type,
                key_size,
                value_size,
                max_entries,
                flags,
                typed,
                constant,
            })
        };
        let maps = maps
            .iter()
            .map(|made| match made {
                Some(made) => shape(made).map(Some),
                None => Some(None),
            })
            .collect::<Option<_>>()?;
        Some(Self {
            function: member.function.clone(),
            loading,
            typed,
            maps,
            object: Arc::clone(&member.object),
        })
    }

    /// What the verifier said of it before, if it did.
    pub(crate) fn recall(&self) -> Option<Verdict> {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(subject, _)| subject == self).map(|(_, verdict)| verdict.clone())
    }

    /// Remembers what it said.
    pub(crate) fn remember(self, verdict: Verdict) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.push_front((self, verdict));
        let mut bytes = 0;
        known.retain(|(subject, _)| {
            bytes += subject.object.len();
            bytes <= REMEMBERED
        });
    }
}
