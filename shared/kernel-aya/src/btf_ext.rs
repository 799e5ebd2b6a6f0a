//! `.BTF.ext`: which `FUNC` type and which source lines belong to which instructions.
//!
//! Format: the kernel's `Documentation/bpf/btf.rst`, section ".BTF.ext section".

use std::ops::Range;

/// What the object says about its functions and lines, by section name as an offset in the BTF
/// strings. Offsets are in bytes from the section's start.
#[derive(Clone, Debug, Default)]
pub(crate) struct BtfExt {
    pub(crate) functions: Vec<Record<2>>,
    pub(crate) lines: Vec<Record<4>>,
    /// CO-RE relocations (`struct bpf_core_relo`): offset, type, access string, kind.
    pub(crate) relocations: Vec<Record<4>>,
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
        records(bytes, part(8)?, &mut ext.functions)?;
        records(bytes, part(16)?, &mut ext.lines)?;
        if header >= 32 {
            records(bytes, part(24)?, &mut ext.relocations)?;
        }
        Some(ext)
    }
}

fn records<const N: usize>(
    bytes: &[u8],
    range: Range<usize>,
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
