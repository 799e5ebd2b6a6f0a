//! The fields of a schema, to be looked up while a request is read: made once for each type, as following a
//! schema's references takes longer than reading a short request.

use super::fields::Shape;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    ptr,
};

/// What may stand at each place of the values that a schema describes. A type that holds itself is described
/// once.
#[derive(Debug)]
pub(super) struct FieldIndex(Vec<Node>);

/// What may stand at one place.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Whether any value at all.
    pub(super) is_open: bool,
    pub(super) is_object: bool,
    pub(super) is_list: bool,
    /// By name, the node of each field.
    fields: BTreeMap<String, usize>,
    /// The node of fields with any other name.
    others: Option<usize>,
    items: Option<usize>,
}

/// Nodes that have a number, and those of them that are not made yet.
#[derive(Default)]
struct Numbers<'s> {
    /// By the parts of the schema that a node stands for.
    by_parts: HashMap<Vec<*const Value>, usize>,
    waiting: Vec<(usize, Vec<&'s Value>)>,
}

impl<'s> Numbers<'s> {
    fn of(&mut self, shape: Shape<'s>) -> usize {
        let key = shape.parts.iter().copied().map(ptr::from_ref).collect();
        let next = self.by_parts.len();
        *self.by_parts.entry(key).or_insert_with(|| {
            self.waiting.push((next, shape.parts));
            next
        })
    }
}

impl FieldIndex {
    pub(super) fn new(schema: &Value) -> Self {
        let mut numbers = Numbers::default();
        numbers.of(Shape::of(schema, [schema]));
        let mut nodes: Vec<Node> = Vec::new();
        while let Some((at, parts)) = numbers.waiting.pop() {
            let shape = Shape { root: schema, parts };
            let mut node = Node {
                is_open: shape.open(),
                is_object: shape.is_object(),
                is_list: shape.is_list(),
                ..Node::default()
            };
            for name in shape.fields() {
                if let Some(field) = shape.field(&name) {
                    node.fields.insert(name, numbers.of(field));
                }
            }
            node.others = shape.others().map(|others| numbers.of(others));
            let items = shape.items();
            node.items = (!items.parts.is_empty()).then(|| numbers.of(items));
            if nodes.len() <= at {
                nodes.resize_with(at + 1, Node::default);
            }
            if let Some(place) = nodes.get_mut(at) {
                *place = node;
            }
        }
        Self(nodes)
    }

    pub(super) fn root(&self) -> Option<&Node> {
        self.0.first()
    }

    /// What may stand in a field; `None` if there is no such field.
    pub(super) fn field(&self, node: &Node, name: &str) -> Option<&Node> {
        let at = node.fields.get(name).copied().or(node.others)?;
        self.0.get(at)
    }

    /// What may stand in a list.
    pub(super) fn items(&self, node: &Node) -> Option<&Node> {
        self.0.get(node.items?)
    }
}

impl Node {
    /// The names of the fields, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        self.fields.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_type_that_holds_itself_is_described_once() {
        let schema = json!({
            "$ref": "#/$defs/tree",
            "$defs": { "tree": {
                "type": "object",
                "properties": {
                    "name": { "type": "string" },
                    "children": { "type": "array", "items": { "$ref": "#/$defs/tree" } },
                    "labels": { "type": "object", "additionalProperties": { "type": "string" } }
                }
            }}
        });
        let index = FieldIndex::new(&schema);
        assert!(index.0.len() <= 6, "{index:?}");
        let root = index.root().unwrap();
        let children = index.field(root, "children").unwrap();
        assert!(children.is_list && !children.is_object);
        let child = index.items(children).unwrap();
        assert!(ptr::eq(child, root));
        assert_eq!(child.names(), ["children", "labels", "name"]);
        assert!(index.field(root, "nmae").is_none());
        let labels = index.field(root, "labels").unwrap();
        assert!(index.field(labels, "anything").is_some());
    }
}
