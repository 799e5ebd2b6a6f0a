//! Entries of a map page by page, while others change it.
//!
//! Asked for the key after one that is gone, the kernel begins with the first key again, and says nothing
//! of it. A page therefore goes on behind its place in an order that does not depend on which keys there
//! are: hash buckets by number, indexes by number, prefixes of a trie as the kernel walks them, and all
//! else by the bytes of the key. An entry that is there all the time is on one page exactly; one that
//! comes or goes meanwhile is on one page or on none.

use crate::sys::Map;
use canopy_kernel::{MapEntry, MapKind, MapPage};
use std::{cmp::Ordering, collections::BTreeSet, io};

/// Keys of a map looked at for one page, where most of its places are empty.
const WALKED: usize = 65_536;
/// Keys passed for one page to come back to its place, and keys that are sorted for one.
const PASSED: usize = 1 << 20;
/// Entries of one hash bucket: the kernel gives a bucket whole or not at all.
const BUCKET: usize = 65_536;
/// Bytes of entries that are read at once, and their number.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK: usize = 4096;

/// Maps beside arrays whose keys are numbers, which the kernel walks upwards.
const INDEXED: [MapKind; 5] = [
    MapKind::PROG_ARRAY,
    MapKind::STACK_TRACE,
    MapKind::ARRAY_OF_MAPS,
    MapKind::DEVMAP,
    MapKind::CPUMAP,
];

/// Why there is no page.
#[derive(Debug)]
pub(crate) enum PageError {
    /// The kernel says no.
    Kernel(io::Error),
    /// Keys go faster than the walk comes back to its place.
    Changing,
}

impl From<io::Error> for PageError {
    fn from(error: io::Error) -> Self {
        Self::Kernel(error)
    }
}

/// What a walk asks of a map.
trait Keys {
    /// The key after this one; the first for `None` and for one that is not there.
    fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>>;
    /// The values under a key.
    fn values(&self, key: &[u8]) -> io::Result<Option<Vec<Vec<u8>>>>;
}

impl Keys for Map {
    fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        Self::next_key(self, key)
    }

    fn values(&self, key: &[u8]) -> io::Result<Option<Vec<Vec<u8>>>> {
        Ok(self.lookup(key)?.map(|value| self.split(&value)))
    }
}

/// About `limit` entries behind a place; the first for `None`.
pub(crate) fn page(map: &Map, after: Option<&[u8]>, limit: usize) -> Result<MapPage, PageError> {
    let limit = limit.max(1);
    match MapKind(map.info().map_type) {
        kind if kind.is_hash() => buckets(map, after, limit),
        MapKind::LPM_TRIE => in_order(map, after, limit, trie_order),
        kind if kind.is_array() || INDEXED.contains(&kind) => {
            in_order(map, after, limit, index_order)
        }
        _ => sorted(map, after, limit),
    }
}

/// At most `limit` entries from the first on.
pub(crate) fn entries(map: &Map, limit: usize) -> Result<Vec<MapEntry>, PageError> {
    let info = map.info();
    let bytes = (info.key_size as usize)
        .saturating_add((info.value_size as usize).saturating_mul(map.parts()));
    let chunk = (CHUNK_BYTES / bytes.max(1)).clamp(1, CHUNK);
    let mut entries = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    while entries.len() < limit {
        let page = page(map, after.as_deref(), chunk.min(limit - entries.len()))?;
        entries.extend(page.entries);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    entries.truncate(limit);
    Ok(entries)
}

/// By hash bucket.
fn buckets(map: &Map, after: Option<&[u8]>, limit: usize) -> Result<MapPage, PageError> {
    let mut room = limit;
    loop {
        match map.lookup_batch(after, room) {
            Ok((entries, next)) => return Ok(MapPage { entries, next }),
            // The bucket has more entries than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < BUCKET => room *= 2,
            Err(error) => return Err(error.into()),
        }
    }
}

/// As the kernel walks, whose order is known: where it began again, what was passed before is passed again.
fn in_order(
    map: &impl Keys,
    after: Option<&[u8]>,
    limit: usize,
    order: fn(&[u8], &[u8]) -> Ordering,
) -> Result<MapPage, PageError> {
    let mut place = after.map(<[u8]>::to_vec);
    let mut last = place.clone();
    let mut entries = Vec::new();
    let (mut walked, mut passed) = (0, 0);
    while entries.len() < limit && walked < WALKED.max(limit) {
        let Some(key) = map.next_key(last.as_deref())? else {
            return Ok(MapPage { entries, next: None });
        };
        last = Some(key.clone());
        if place.as_deref().is_some_and(|place| order(&key, place) != Ordering::Greater) {
            passed += 1;
            if passed > PASSED {
                return Err(PageError::Changing);
            }
            continue;
        }
        walked += 1;
        if let Some(values) = map.values(&key)? {
            entries.push((key.clone(), values));
        }
        place = Some(key);
    }
    Ok(MapPage { entries, next: place })
}

/// By the bytes of the key: all keys are read for each page.
fn sorted(map: &impl Keys, after: Option<&[u8]>, limit: usize) -> Result<MapPage, PageError> {
    let mut keys = BTreeSet::new();
    let mut last: Option<Vec<u8>> = None;
    let mut steps = 0;
    while let Some(key) = map.next_key(last.as_deref())? {
        steps += 1;
        if steps > PASSED {
            return Err(PageError::Changing);
        }
        last = Some(key.clone());
        keys.insert(key);
    }
    let mut rest =
        keys.into_iter().filter(|key| after.is_none_or(|after| key.as_slice() > after)).peekable();
    let mut entries = Vec::new();
    let mut place = None;
    while let Some(key) = rest.next_if(|_| entries.len() < limit) {
        if let Some(values) = map.values(&key)? {
            entries.push((key.clone(), values));
        }
        place = Some(key);
    }
    Ok(MapPage { entries, next: place.filter(|_| rest.peek().is_some()) })
}

/// Indexes: numbers of this machine.
fn index_order(one: &[u8], other: &[u8]) -> Ordering {
    let number = |key: &[u8]| key.try_into().map(u32::from_ne_bytes);
    match (number(one), number(other)) {
        (Ok(one), Ok(other)) => one.cmp(&other),
        _ => one.cmp(other),
    }
}

/// Prefixes as `trie_get_next_key` of the kernel walks them, children before what is above
/// them: by the first bit in which they differ; what lies within another comes before it.
fn trie_order(one: &[u8], other: &[u8]) -> Ordering {
    let prefix = |key: &[u8]| -> Option<(usize, Vec<u8>)> {
        let (length, bits) = key.split_first_chunk::<4>()?;
        Some((usize::try_from(u32::from_ne_bytes(*length)).ok()?, bits.to_vec()))
    };
    let (Some((length, bits)), Some((other_length, other_bits))) = (prefix(one), prefix(other))
    else {
        return one.cmp(other);
    };
    let shared = length.min(other_length);
    for (index, (byte, other)) in bits.iter().zip(&other_bits).enumerate() {
        let compared = shared.saturating_sub(index * 8).min(8);
        if compared == 0 {
            break;
        }
        let mask = 0xff_u8 << (8 - compared);
        match (byte & mask).cmp(&(other & mask)) {
            Ordering::Equal => {}
            differs => return differs,
        }
    }
    other_length.cmp(&length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, collections::BTreeMap};

    /// A map that begins again after a key that is gone. Its keys go while they are walked.
    struct Changing {
        /// In the order in which the kernel walks them.
        keys: RefCell<Vec<Vec<u8>>>,
        /// What goes when a key is asked for so many times.
        goes: RefCell<BTreeMap<usize, Vec<u8>>>,
        asked: RefCell<usize>,
    }

    impl Changing {
        fn new(keys: Vec<Vec<u8>>) -> Self {
            let (goes, asked) = (RefCell::default(), RefCell::new(0));
            Self { keys: RefCell::new(keys), goes, asked }
        }

        fn remove(&self, key: &[u8]) {
            self.keys.borrow_mut().retain(|known| known != key);
        }
    }

    impl Keys for Changing {
        fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
            *self.asked.borrow_mut() += 1;
            if let Some(gone) = self.goes.borrow_mut().remove(&self.asked.borrow()) {
                self.remove(&gone);
            }
            let keys = self.keys.borrow();
            let known = key.and_then(|key| keys.iter().position(|known| known == key));
            Ok(keys.get(known.map_or(0, |known| known + 1)).cloned())
        }

        fn values(&self, key: &[u8]) -> io::Result<Option<Vec<Vec<u8>>>> {
            Ok(self.keys.borrow().iter().any(|known| known == key).then(|| vec![key.to_vec()]))
        }
    }

    fn prefix(length: u32, bits: [u8; 4]) -> Vec<u8> {
        [length.to_ne_bytes(), bits].concat()
    }

    /// The prefixes of a trie in the kernel's order.
    fn prefixes() -> Vec<Vec<u8>> {
        vec![
            prefix(32, [10, 0, 0, 1]),
            prefix(24, [10, 0, 0, 0]),
            prefix(24, [10, 0, 1, 0]),
            prefix(23, [10, 0, 0, 0]),
            prefix(8, [10, 0, 0, 0]),
            prefix(12, [172, 16, 0, 0]),
            prefix(1, [128, 0, 0, 0]),
            prefix(0, [0, 0, 0, 0]),
        ]
    }

    #[test]
    fn prefixes_are_ordered_as_the_kernel_walks_them() {
        let walked = prefixes();
        for (i, one) in walked.iter().enumerate() {
            for (j, other) in walked.iter().enumerate() {
                assert_eq!(trie_order(one, other), i.cmp(&j), "{one:?} {other:?}");
            }
        }
        // Bits beyond the length are nothing of the prefix.
        let same = trie_order(&prefix(23, [10, 0, 1, 9]), &prefix(23, [10, 0, 0, 0]));
        assert_eq!(same, Ordering::Equal);
    }

    /// The keys of all pages; the last key of each page is gone when the next is read.
    fn read(
        map: &Changing,
        page: impl Fn(&Changing, Option<&[u8]>) -> Result<MapPage, PageError>,
    ) -> Vec<Vec<u8>> {
        let (mut shown, mut after) = (Vec::new(), None::<Vec<u8>>);
        for _ in 0..100 {
            let found = page(map, after.as_deref()).unwrap();
            shown.extend(found.entries.into_iter().map(|(key, _)| key));
            after = found.next;
            let Some(last) = &after else { return shown };
            map.remove(last);
        }
        panic!("pages without an end: {shown:?}");
    }

    #[test]
    fn a_trie_goes_on_behind_a_prefix_that_is_gone() {
        for limit in 1..4 {
            let map = Changing::new(prefixes());
            let shown = read(&map, |map, after| in_order(map, after, limit, trie_order));
            assert_eq!(shown, prefixes(), "pages of {limit}");
        }
    }

    #[test]
    fn keys_that_go_within_a_page_show_nothing_twice() {
        let gone = prefix(24, [10, 0, 1, 0]);
        for asked in 1..9 {
            let map = Changing::new(prefixes());
            map.goes.borrow_mut().insert(asked, gone.clone());
            let shown = in_order(&map, None, 100, trie_order).unwrap();
            let mut keys: Vec<_> = shown.entries.into_iter().map(|(key, _)| key).collect();
            let others: Vec<_> = prefixes().into_iter().filter(|key| *key != gone).collect();
            keys.retain(|key| *key != gone);
            assert_eq!(keys, others, "gone at step {asked}");
            assert_eq!(shown.next, None);
        }
    }

    #[test]
    fn keys_in_an_order_of_the_kernels_are_shown_by_their_bytes() {
        let keys = [9_u8, 2, 7, 1, 30, 4].map(|key| vec![key, 0, 0, 0]);
        let mut expected = keys.to_vec();
        expected.sort();
        for limit in 1..7 {
            let map = Changing::new(keys.to_vec());
            assert_eq!(read(&map, |map, after| sorted(map, after, limit)), expected);
        }
    }

    #[test]
    fn indexes_are_walked_by_number() {
        let index = |index: u32| index.to_ne_bytes().to_vec();
        let map = Changing::new((254..260).map(index).collect());
        let first = in_order(&map, None, 4, index_order).unwrap();
        assert_eq!(first.next, Some(index(257)));
        let second = in_order(&map, first.next.as_deref(), 4, index_order).unwrap();
        let keys: Vec<_> = second.entries.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [index(258), index(259)]);
    }

    #[test]
    fn a_map_that_changes_without_end_is_given_up() {
        /// Every key is gone at once, so that the walk begins with the same one again.
        struct Restless;
        impl Keys for Restless {
            fn next_key(&self, _: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
                Ok(Some(vec![0; 4]))
            }
            fn values(&self, _: &[u8]) -> io::Result<Option<Vec<Vec<u8>>>> {
                Ok(None)
            }
        }
        let page = in_order(&Restless, Some(&[1, 0, 0, 0]), 10, index_order);
        assert!(matches!(page, Err(PageError::Changing)));
        assert!(matches!(sorted(&Restless, None, 10), Err(PageError::Changing)));
    }
}
