//! Values made from schemas: every field of every structure, at every depth.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use canopy_api::HostId;
use serde_json::{Map, Value, json};

/// A value that fits a schema, with every field it knows.
pub fn full(schema: &Value) -> Value {
    Maker { root: schema }.value(schema, "")
}

struct Maker<'s> {
    root: &'s Value,
}

impl Maker<'_> {
    fn value(&self, part: &Value, name: &str) -> Value {
        if let Some(reference) = part.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next().unwrap();
            let target = self.root.pointer(reference.strip_prefix('#').unwrap()).unwrap();
            return self.value(target, name);
        }
        if let Some(text) = named(name) {
            return text.into();
        }
        for alternatives in ["anyOf", "oneOf"] {
            if let Some(first) = part.get(alternatives).and_then(|list| list.get(0)) {
                return self.value(first, "");
            }
        }
        if let Some(only) = part.get("const") {
            return only.clone();
        }
        if let Some(first) = part.get("enum").and_then(|list| list.get(0)) {
            return first.clone();
        }
        let kind = match part.get("type") {
            Some(Value::Array(many)) => many[0].as_str(),
            Some(one) => one.as_str(),
            None => None,
        };
        match kind {
            Some("object") => self.object(part),
            Some("array") => match part.get("items") {
                Some(items) => json!([self.value(items, "")]),
                None => json!([]),
            },
            Some("string") => "x".into(),
            Some("integer" | "number") => part.get("minimum").cloned().unwrap_or(json!(0)),
            Some("boolean") => false.into(),
            Some("null") => Value::Null,
            // Anything at all.
            _ => json!({ "anything": 1 }),
        }
    }

    fn object(&self, part: &Value) -> Value {
        let mut object = Map::new();
        for (name, field) in part.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            object.insert(name.clone(), self.value(field, ""));
        }
        if let Some(others @ Value::Object(_)) = part.get("additionalProperties") {
            // Maps by service and by other text alike.
            object.insert("loader".to_owned(), self.value(others, ""));
        }
        object.into()
    }
}

/// What types with rules of their own look like.
fn named(name: &str) -> Option<String> {
    let text = match name {
        "Digest" => format!("sha256:{}", "a".repeat(64)),
        "HostId" => "web1".to_owned(),
        "HostPattern" => "web*".to_owned(),
        "InterfaceName" | "InterfaceSelector" => "eth0".to_owned(),
        "NameGlob" | "NameRegex" => "spiffe://canopy/u-x".to_owned(),
        "Netns" => "blue".to_owned(),
        "PackageName" | "ProgramName" => "firewall".to_owned(),
        "Principal" => "u-alice".to_owned(),
        "SemVer" => "1.2.3".to_owned(),
        "Blob" => "AAAA".to_owned(),
        _ => return None,
    };
    Some(text)
}

/// Steps to a place in a value.
pub type Path = Vec<String>;

/// Every structure of a value that fits `schema`: what is not of its making (`anything`) and maps with
/// keys of any name are left out.
pub fn structures(value: &Value) -> Vec<Path> {
    let mut found = Vec::new();
    collect(value, &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, at: &mut Path, found: &mut Vec<Path>) {
    match value {
        Value::Object(fields) => {
            let map = fields.contains_key("anything") || fields.keys().eq(["loader"]);
            if !map {
                found.push(at.clone());
            }
            for (name, field) in fields.iter().filter(|(name, _)| *name != "anything") {
                at.push(name.clone());
                collect(field, at, found);
                at.pop();
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                at.push(n.to_string());
                collect(item, at, found);
                at.pop();
            }
        }
        _ => {}
    }
}

/// The place as a pointer.
pub fn pointer(path: &Path) -> String {
    path.iter().fold(String::new(), |pointer, step| {
        pointer + "/" + &step.replace('~', "~0").replace('/', "~1")
    })
}

/// A host that samples speak of.
pub fn host() -> HostId {
    "web1".parse().unwrap()
}
