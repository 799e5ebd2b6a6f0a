//! `.BTF.ext`: which `FUNC` type and which source lines belong to which instructions.
//!
//! Format: the kernel's `Documentation/bpf/btf.rst`, section ".BTF.ext section".

use std::{collections::BTreeSet, ops::Range};

/// What the object says about its functions and lines, by section name as an offset in the BTF
/// strings. Offsets are in bytes from the section's start.
#[derive(Clone, Debug, Default)]
pub(crate) struct BtfExt {
    pub(crate) functions: Vec<Record<2>>,
    pub(crate) lines: Vec<Record<4>>,
    /// How many CO-RE relocations there are, and of how many types.
    pub(crate) relocations: usize,
    pub(crate) relocated_types: usize,
    /// Where in the section the section names' offsets stand.
    pub(crate) names: Vec<usize>,
}

/// One record: the section it is about, and its words, the first of which is the offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<const N: usize> {
    pub(crate) section: u32,
    pub(crate) words: [u32; N],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

impl BtfExt {
    /// Reads the section; `None` when it ends too early or is of the other byte order.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != 0xeb9f {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let part = |at: usize| -> Option<Range<usize>> {
            let start = header.checked_add(word(bytes, at)? as usize)?;
            let end = start.checked_add(word(bytes, at + 4)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let mut ext = Self::default();
        let mut names = Vec::new();
        records(bytes, part(8)?, &mut names, &mut ext.functions)?;
        records(bytes, part(16)?, &mut names, &mut ext.lines)?;
        if header >= 32 {
            let mut relocations = Vec::<Record<4>>::new();
            records(bytes, part(24)?, &mut names, &mut relocations)?;
            // struct bpf_core_relo: insn_off, type_id, access_str_off, kind.
            let types: BTreeSet<u32> = relocations.iter().map(|record| record.words[1]).collect();
            ext.relocations = relocations.len();
            ext.relocated_types = types.len();
        }
        ext.names = names;
        Some(ext)
    }
}

fn records<const N: usize>(
    bytes: &[u8],
    range: Range<usize>,
    names: &mut Vec<usize>,
    records: &mut Vec<Record<N>>,
) -> Option<()> {
    if range.is_empty() {
        return Some(());
    }
    let size = word(bytes, range.start)? as usize;
    if size < N * 4 {
        return None;
    }
    let mut at = range.start + 4;
    while at < range.end {
        names.push(at);
        let section = word(bytes, at)?;
        let count = word(bytes, at + 4)? as usize;
        at += 8;
        for _ in 0..count {
            if at.checked_add(size)? > range.end {
                return None;
            }
            let mut words = [0; N];
            for (place, value) in words.iter_mut().enumerate() {
                *value = word(bytes, at + place * 4)?;
            }
            records.push(Record { section, words });
            at += size;
        }
    }
    Some(())
}
