//! Fields that a schema does not know, found while the bytes are read: no value is built, so that a
//! request of half a megabyte costs one pass more.
//!
//! Which fields there are comes from the schema, whatever attributes the type has: a type of a request
//! may be part of a reply as well, and readers of replies ignore what they do not know. An object of the
//! schema is closed unless it says what other fields hold (`additionalProperties`).

use super::{
    explain,
    field_index::{FieldIndex, Node},
};
use crate::problem::{Problem, Problems};
use serde::{
    Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeSet, HashSet},
    fmt,
};

/// Problems that are listed; a request can hold many more.
pub(super) const LISTED: usize = 32;

/// Unknown fields, fields given twice and lists in place of fields, at every depth.
pub(super) fn problems<'de, D: Deserializer<'de>>(
    index: &FieldIndex,
    deserializer: D,
) -> Result<Problems, D::Error> {
    let found = RefCell::new(Problems::default());
    let walk = Walk {
        index,
        node: index.root(),
        at: &Place { parent: None, step: Step::Root },
        found: &found,
    };
    walk.deserialize(deserializer)?;
    Ok(found.into_inner())
}

/// Whether a path such as `document.chains[0].hook` leads to a field of the schema.
pub(super) fn has_field(schema: &Value, path: &str) -> bool {
    let mut shape = Shape::of(schema, [schema]);
    let mut names = path.split('.').peekable();
    while let Some(step) = names.next() {
        let (name, indexes) = step.split_at(step.find('[').unwrap_or(step.len()));
        // A map with fields of any name has none of its own.
        if names.peek().is_none() && !shape.fields().iter().any(|known| known == name) {
            return false;
        }
        let Some(field) = shape.field(name) else { return false };
        shape = (0..indexes.matches('[').count()).fold(field, |shape, _| shape.items());
    }
    true
}

/// Every field of the schema, as paths such as `entries[].key`.
pub(super) fn all(schema: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(&Shape::of(schema, [schema]), "", 8, &mut found);
    found
}

fn collect(shape: &Shape<'_>, at: &str, depth: usize, found: &mut BTreeSet<String>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for name in shape.fields() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        if let Some(field) = shape.field(&name) {
            collect(&field, &path, depth, found);
        }
        found.insert(path);
    }
    if shape.is_list() {
        collect(&shape.items(), &format!("{at}[]"), depth, found);
    }
}

/// What may stand at one place: each alternative of the schema that applies there.
pub(super) struct Shape<'s> {
    pub(super) root: &'s Value,
    pub(super) parts: Vec<&'s Value>,
}

impl<'s> Shape<'s> {
    pub(super) fn of(root: &'s Value, parts: impl IntoIterator<Item = &'s Value>) -> Self {
        let mut shape = Self { root, parts: Vec::new() };
        for part in parts {
            shape.add(part, 0);
        }
        shape
    }

    /// Adds a part and what it refers to. Schemas made from types nest a few levels without data between.
    fn add(&mut self, part: &'s Value, depth: usize) {
        const DEEPEST: usize = 32;
        if depth > DEEPEST {
            return;
        }
        let part = explain::resolve(self.root, part);
        self.parts.push(part);
        for alternatives in ["anyOf", "oneOf", "allOf"] {
            for one in part.get(alternatives).and_then(Value::as_array).into_iter().flatten() {
                self.add(one, depth + 1);
            }
        }
    }

    /// Whether any value at all may stand here.
    pub(super) fn open(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Value::Bool(any) => *any,
            Value::Object(rules) => !rules.keys().any(|key| RULES.contains(&key.as_str())),
            _ => false,
        })
    }

    pub(super) fn is_object(&self) -> bool {
        self.parts.iter().any(|part| part.get("properties").is_some() || has_type(part, "object"))
    }

    pub(super) fn is_list(&self) -> bool {
        self.parts.iter().any(|part| has_type(part, "array"))
    }

    /// What may stand in a field; `None` if no alternative has such a field.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        let known = self.parts.iter().filter_map(|part| part.get("properties")?.get(name));
        let known = Self::of(self.root, known);
        if known.parts.is_empty() { self.others() } else { Some(known) }
    }

    /// What may stand in a field with any other name.
    pub(super) fn others(&self) -> Option<Self> {
        let others = self.parts.iter().flat_map(|part| {
            let patterns = part.get("patternProperties").and_then(Value::as_object);
            let patterns = patterns.into_iter().flat_map(|patterns| patterns.values());
            part.get("additionalProperties").into_iter().chain(patterns)
        });
        let others = Self::of(self.root, others.filter(|other| **other != Value::Bool(false)));
        (!others.parts.is_empty()).then_some(others)
    }

    /// The fields of all alternatives.
    pub(super) fn fields(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .parts
            .iter()
            .filter_map(|part| part.get("properties")?.as_object())
            .flat_map(|fields| fields.keys().cloned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) fn items(&self) -> Self {
        let tuple = self.parts.iter().filter_map(|part| part.get("prefixItems")?.as_array());
        let items = self.parts.iter().filter_map(|part| part.get("items"));
        Self::of(self.root, items.chain(tuple.flatten()))
    }
}

/// Keywords that limit a value; a part without any of them takes everything.
const RULES: [&str; 12] = [
    "type",
    "properties",
    "additionalProperties",
    "patternProperties",
    "items",
    "prefixItems",
    "enum",
    "const",
    "$ref",
    "anyOf",
    "oneOf",
    "allOf",
];

fn has_type(part: &Value, name: &str) -> bool {
    match part.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(many)) => many.iter().any(|one| one == name),
        _ => false,
    }
}

/// A place in the value that is read.
struct Place<'p> {
    parent: Option<&'p Self>,
    step: Step<'p>,
}

enum Step<'p> {
    Root,
    Field(&'p str),
    Item(usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Item(at) => write!(f, "[{at}]"),
            Step::Field(name) => {
                let first = self.parent.is_none_or(|parent| matches!(parent.step, Step::Root));
                write!(f, "{}{name}", if first { "" } else { "." })
            }
        }
    }
}

/// Reads one value and looks for fields that are not in its shape.
struct Walk<'s, 'p> {
    index: &'s FieldIndex,
    /// `None` in what is not known: the field that holds it is.
    node: Option<&'s Node>,
    at: &'p Place<'p>,
    found: &'p RefCell<Problems>,
}

impl Walk<'_, '_> {
    fn report(&self, problem: impl FnOnce() -> Problem) {
        let mut found = self.found.borrow_mut();
        if found.0.len() < LISTED {
            found.push(problem());
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        // What reads structures takes lists for them, field by field in order of declaration.
        if self.node.is_some_and(|node| node.is_object && !node.is_list && !node.is_open) {
            self.report(|| {
                Problem::new(self.at.to_string(), "must be a set of fields, not a list")
            });
        }
        let node = self.node.and_then(|node| self.index.items(node));
        for at in 0.. {
            let place = Place { parent: Some(self.at), step: Step::Item(at) };
            let walk = Walk { index: self.index, node, at: &place, found: self.found };
            if items.next_element_seed(walk)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let closed = self.node.filter(|node| node.is_object && !node.is_open);
        let mut seen = Seen::default();
        while let Some(name) = fields.next_key_seed(Name)? {
            let place = Place { parent: Some(self.at), step: Step::Field(&name) };
            if seen.contains(&name) {
                self.report(|| {
                    Problem::new(place.to_string(), format!("field \"{name}\" is given twice"))
                        .remedy("give it once")
                });
            }
            let known = self.node.and_then(|node| self.index.field(node, &name));
            if let (None, Some(node)) = (known, closed) {
                self.report(|| explain::unknown_field(&self.at.to_string(), &name, &node.names()));
            }
            let walk = Walk { index: self.index, node: known, at: &place, found: self.found };
            fields.next_value_seed(walk)?;
            seen.insert(name);
        }
        Ok(())
    }
}

/// Names of fields that were read. Most objects have a few.
#[derive(Default)]
struct Seen<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

impl<'de> Seen<'de> {
    fn contains(&self, name: &str) -> bool {
        self.few.iter().any(|other| other == name) || self.many.contains(name)
    }

    fn insert(&mut self, name: Cow<'de, str>) {
        const FEW: usize = 16;
        if self.few.len() < FEW {
            self.few.push(name);
        } else {
            self.many.insert(name);
        }
    }
}

/// The name of a field: text. MessagePack could say its number, which means another field in another
/// version.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field as text")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_bytes<E: serde::de::Error>(self, name: &[u8]) -> Result<Self::Value, E> {
        Err(E::custom(format!(
            "the name of a field has to be text, not the {} bytes {}",
            name.len(),
            hex::encode(name.get(..16).unwrap_or(name))
        )))
    }
}
