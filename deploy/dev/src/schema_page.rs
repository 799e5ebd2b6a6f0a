//! A JSON Schema (as schemars writes it, draft 2020-12) to a table a person can read.

use serde_json::Value;
use std::fmt::Write as _;

/// How deep tables go; nothing we write nests deeper, and a schema that refers to itself ends.
const DEPTH: usize = 8;

/// One document's section: its description and a table of every field.
pub fn section(title: &str, intro: &str, schema: &Value) -> String {
    let mut out = format!("## {title}\n\n{intro}\n\n");
    if let Some(text) = description(schema) {
        let _ = writeln!(out, "{text}\n");
    }
    out.push_str("| Field | Type | Default | Meaning |\n|---|---|---|---|\n");
    let page = Page { root: schema };
    page.rows(&mut out, schema, "", DEPTH);
    out
}

struct Page<'a> {
    root: &'a Value,
}

impl<'a> Page<'a> {
    /// Follows `$ref`, and looks through "this or null".
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..DEPTH {
            if let Some(pointer) = schema.get("$ref").and_then(Value::as_str) {
                match self.root.pointer(pointer.trim_start_matches('#')) {
                    Some(target) => schema = target,
                    None => return schema,
                }
            } else if let Some(inner) = optional(schema) {
                schema = inner;
            } else {
                return schema;
            }
        }
        schema
    }

    fn rows(&self, out: &mut String, schema: &'a Value, prefix: &str, depth: usize) {
        let schema = self.resolve(schema);
        if depth == 0 {
            return;
        }
        if let Some(items) = schema.get("items") {
            self.rows(out, items, &format!("{prefix}[]"), depth - 1);
        }
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, field) in properties.into_iter().flatten() {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let target = self.resolve(field);
            let default = match field.get("default").or_else(|| target.get("default")) {
                Some(Value::Null) | None if required.contains(&name.as_str()) => {
                    "**required**".to_owned()
                }
                // An object's fields have rows, and defaults, of their own.
                Some(Value::Null | Value::Object(_)) | None => String::new(),
                Some(value) => format!("`{value}`"),
            };
            let meaning = description(field).or_else(|| description(target)).unwrap_or_default();
            let _ = writeln!(
                out,
                "| `{path}` | {} | {default} | {} |",
                self.kind(field),
                cell(&meaning)
            );
            self.rows(out, field, &path, depth - 1);
        }
        // Alternatives, each an object of its own.
        for branch in alternatives(schema) {
            if branch.get("properties").is_some() {
                self.rows(out, branch, prefix, depth - 1);
            }
        }
    }

    fn kind(&self, field: &'a Value) -> String {
        let schema = self.resolve(field);
        let values = choices(schema);
        if !values.is_empty() {
            return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
        }
        let word = match schema.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("any")
            }
            _ if alternatives(schema).next().is_some() => "one of several",
            _ => "any",
        };
        match word {
            "array" => {
                let items = schema.get("items").map(|items| self.kind(items));
                format!("list of {}", items.unwrap_or_else(|| "any".to_owned()))
            }
            "integer" => range(schema, "whole number"),
            "number" => range(schema, "number"),
            other => other.to_owned(),
        }
    }
}

fn range(schema: &Value, word: &str) -> String {
    let bound = |key: &str| schema.get(key).filter(|bound| bound.is_number());
    match (bound("minimum"), bound("maximum")) {
        (Some(low), Some(high)) => format!("{word}, {low} to {high}"),
        (Some(low), None) if low.as_f64() != Some(0.0) => format!("{word}, {low} or more"),
        _ => word.to_owned(),
    }
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> + Clone {
    ["anyOf", "oneOf"]
        .into_iter()
        .filter_map(|key| schema.get(key).and_then(Value::as_array))
        .flatten()
}

/// The only alternative to null, if that is what the schema says.
fn optional(schema: &Value) -> Option<&Value> {
    let mut real = schema
        .get("anyOf")?
        .as_array()?
        .iter()
        .filter(|branch| branch.get("type").and_then(Value::as_str) != Some("null"));
    let only = real.next()?;
    real.next().is_none().then_some(only)
}

/// The words of an enumeration, however it is written.
fn choices(schema: &Value) -> Vec<&str> {
    let mut all = words(schema);
    let branches: Vec<Vec<&str>> = alternatives(schema).map(words).collect();
    if branches.iter().all(|words| !words.is_empty()) {
        all.extend(branches.into_iter().flatten());
    }
    all
}

fn words(schema: &Value) -> Vec<&str> {
    let constant = schema.get("const").and_then(Value::as_str);
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    listed.filter_map(Value::as_str).chain(constant).collect()
}

fn description(schema: &Value) -> Option<String> {
    schema.get("description").and_then(Value::as_str).map(str::to_owned)
}

/// Text that can stand in a table's cell.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_becomes_a_table() {
        let schema = serde_json::json!({
            "description": "A service.",
            "required": ["bus"],
            "properties": {
                "bus": { "$ref": "#/$defs/Bus" },
                "level": { "anyOf": [{ "$ref": "#/$defs/Level" }, { "type": "null" }] },
                "rates": { "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 9 } },
            },
            "$defs": {
                "Bus": {
                    "description": "Where.",
                    "properties": { "url": { "type": "string", "default": "tls://x", "description": "A|B" } },
                },
                "Level": { "oneOf": [{ "const": "low" }, { "const": "high" }] },
            },
        });
        let text = section("Service", "JSON.", &schema);
        for line in [
            "| `bus` | any | **required** | Where. |",
            "| `bus.url` | string | `\"tls://x\"` | A\\|B |",
            "| `level` | `low`, `high` |  |  |",
            "| `rates` | list of whole number, 1 to 9 |  |  |",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
