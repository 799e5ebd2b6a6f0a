//! What a register or a stack slot may be, and what arithmetic makes of it.

use std::{ops::Range, slice, vec};

/// Places in a function's stack frame, with what an access may reach beyond.
pub(super) const FRAME: Range<i64> = -1024..1024;
/// Things that one register may be; more are told apart no longer by their places.
pub(super) const THINGS: usize = 12;

/// What a register or a stack slot may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    /// A number, or a pointer to what is of no interest here.
    Unknown,
    Number(i64),
    /// A place in this function's stack frame; `None` for any.
    Stack(Option<i64>),
    Map(usize),
    /// A place in a value: the map, its key where that is known, the place (`None` for any) and the
    /// bytes it stays within.
    Value {
        map: usize,
        key: Option<u32>,
        at: Option<i64>,
        within: (i64, i64),
    },
    /// A function of the program, by its first instruction.
    Function(usize),
}

impl Thing {
    /// The same moved by so many bytes; `None` for an unknown number.
    pub(super) fn moved(self, by: Option<i64>) -> Self {
        let moved = |at: Option<i64>| at?.checked_add(by?);
        match self {
            Self::Stack(at) => Self::Stack(moved(at).filter(|at| FRAME.contains(at))),
            Self::Value { map, key, at, within } => Self::Value { map, key, at: moved(at), within },
            Self::Number(number) => moved(Some(number)).map_or(Self::Unknown, Self::Number),
            Self::Unknown | Self::Map(_) | Self::Function(_) => Self::Unknown,
        }
    }

    pub(super) fn is_pointer(self) -> bool {
        !matches!(self, Self::Unknown | Self::Number(_))
    }
}

/// All that a register or slot may be, each once. Mostly it is one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Things(pub(super) Vec<Thing>);

impl Things {
    pub(super) fn insert(&mut self, thing: Thing) {
        if let Err(place) = self.0.binary_search(&thing) {
            self.0.insert(place, thing);
        }
    }

    pub(super) fn iter(&self) -> slice::Iter<'_, Thing> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Thing> for Things {
    fn from(thing: Thing) -> Self {
        Self(vec![thing])
    }
}

impl Extend<Thing> for Things {
    fn extend<I: IntoIterator<Item = Thing>>(&mut self, more: I) {
        more.into_iter().for_each(|thing| self.insert(thing));
    }
}

impl FromIterator<Thing> for Things {
    fn from_iter<I: IntoIterator<Item = Thing>>(things: I) -> Self {
        let mut all = Self::default();
        all.extend(things);
        all
    }
}

impl IntoIterator for Things {
    type Item = Thing;
    type IntoIter = vec::IntoIter<Thing>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Things {
    type Item = &'a Thing;
    type IntoIter = slice::Iter<'a, Thing>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

pub(super) fn unknown() -> Things {
    Thing::Unknown.into()
}

/// Adds what something else may be; whether that is news.
pub(super) fn join(things: &mut Things, more: &Things) -> bool {
    let before = things.clone();
    things.extend(more.iter().copied());
    if things.len() > THINGS {
        *things = things
            .iter()
            .map(|thing| match *thing {
                Thing::Number(_) => Thing::Unknown,
                Thing::Value { map, within, .. } => {
                    Thing::Value { map, key: None, at: None, within }
                }
                Thing::Stack(_) => Thing::Stack(None),
                other => other,
            })
            .collect();
    }
    *things != before
}

pub(super) fn is_value(thing: Thing) -> bool {
    matches!(thing, Thing::Value { .. } | Thing::Map(_))
}

/// A place in one function's frame is nothing that another one knows.
pub(super) fn of_another_frame(thing: Thing) -> Thing {
    if matches!(thing, Thing::Stack(_)) { Thing::Unknown } else { thing }
}

/// The number that it is, where it can be no other.
pub(super) fn number(things: &Things) -> Option<i64> {
    match things.iter().next() {
        Some(Thing::Number(number)) if things.len() == 1 => Some(*number),
        _ => None,
    }
}

pub(super) fn moved(things: &Things, by: Option<i64>) -> Things {
    things.iter().map(|thing| thing.moved(by)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_places_of_one_value_become_any_place_of_it() {
        let at = |at| Thing::Value { map: 1, key: Some(0), at: Some(at), within: (0, 64) };
        let mut things = Things::default();
        for place in 0..12 {
            assert!(join(&mut things, &at(place).into()));
        }
        assert!(!join(&mut things, &at(3).into()), "it is known");
        assert!(join(&mut things, &at(12).into()));
        let any = Thing::Value { map: 1, key: None, at: None, within: (0, 64) };
        assert_eq!(things, any.into());
    }

    #[test]
    fn pointers_move_by_numbers_that_are_known() {
        let stack = Thing::Stack(Some(0));
        assert_eq!(stack.moved(Some(-8)), Thing::Stack(Some(-8)));
        assert_eq!(stack.moved(None), Thing::Stack(None));
        assert_eq!(stack.moved(Some(4096)), Thing::Stack(None), "beyond the frame");
        assert_eq!(Thing::Number(2).moved(None), Thing::Unknown);
    }
}
