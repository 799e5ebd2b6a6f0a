//! Whether a record follows from the last one that is stored.

use crate::record::{Head, Line, LineHash};

/// Where a record stands to those that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the next one.
    Follows,
    /// It comes later than the next one: these are not there. It may be the next after them.
    Gap {
        /// The first that is missing.
        from: u64,
        /// The last.
        to: u64,
    },
    /// It contradicts what is stored: another record of a number that is taken, or one that follows from
    /// another record than the stored one.
    Fork,
}

/// Judges a record by the last one stored of its chain.
pub fn place(stored: Option<Head>, line: &Line) -> Place {
    let last = stored.unwrap_or(Head { seq: 0, hash: LineHash::NONE });
    match line.record.seq.checked_sub(last.seq.saturating_add(1)) {
        Some(0) if line.record.previous == last.hash => Place::Follows,
        None | Some(0) => Place::Fork,
        Some(_) => Place::Gap { from: last.seq + 1, to: line.record.seq - 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chain, Entry, Kind};

    fn lines(reason: &str) -> Vec<Line> {
        let mut chain = Chain::new("h-web1-loader".parse().unwrap(), "0123456789abcdef".to_owned());
        let mut lines = Vec::new();
        for kind in [Kind::Opened, Kind::Begun, Kind::Ended] {
            let entry = Entry { reason: reason.to_owned(), ..Entry::new(kind, "t") };
            let (text, next) = chain.next(entry).unwrap();
            chain = next;
            lines.push(Line::read(text).unwrap());
        }
        lines
    }

    #[test]
    fn what_follows_what_is_missing_and_what_contradicts() {
        let (ours, other) = (lines("a"), lines("b"));
        assert_eq!(place(None, &ours[0]), Place::Follows);
        assert_eq!(place(None, &ours[1]), Place::Gap { from: 1, to: 1 });
        assert_eq!(place(Some(ours[0].head()), &ours[1]), Place::Follows);
        assert_eq!(place(Some(ours[0].head()), &ours[2]), Place::Gap { from: 2, to: 2 });
        assert_eq!(place(Some(ours[0].head()), &other[1]), Place::Fork, "written anew");
        assert_eq!(place(Some(ours[1].head()), &ours[1]), Place::Fork, "comes again");
        assert_eq!(place(Some(ours[2].head()), &other[0]), Place::Fork, "begins again");
    }
}
