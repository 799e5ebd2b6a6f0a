//! A JSON Schema as a list of fields a person can read.

use crate::prose;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt::Write as _};

/// The fields of a schema as Markdown, with a section for each type it refers to.
pub fn fields_markdown(schema: &Value) -> String {
    let (mut out, mut named) = (String::new(), BTreeMap::new());
    fields(&mut out, schema, &mut named);
    types(&mut out, &named);
    out
}

/// Appends the fields of a schema; the types it refers to are added to `named`.
pub(super) fn fields(out: &mut String, schema: &Value, named: &mut BTreeMap<String, Value>) {
    if let Some(definitions) = schema.get("$defs").and_then(Value::as_object) {
        for (name, definition) in definitions {
            named.entry(name.clone()).or_insert_with(|| definition.clone());
        }
    }
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    if properties.is_empty() {
        out.push_str("No fields.\n");
        return;
    }
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    out.push_str("| field | type | |\n|---|---|---|\n");
    for (name, field) in properties {
        let need = if required.contains(&name.as_str()) { "" } else { "Optional. " };
        let default = match field.get("default") {
            None | Some(Value::Null) => String::new(),
            Some(default) => format!(" Default: `{default}`."),
        };
        let _ = writeln!(out, "| `{name}` | {} | {need}{}{default} |", kind(field), about(field));
    }
}

/// Appends a section for each type.
pub(super) fn types(out: &mut String, named: &BTreeMap<String, Value>) {
    if named.is_empty() {
        return;
    }
    out.push_str("\n## Types\n");
    for (name, schema) in named {
        let _ = write!(out, "\n### {name}\n\n");
        let about = about(schema);
        if !about.is_empty() {
            let _ = writeln!(out, "{about}\n");
        }
        if schema.get("properties").is_some() {
            fields(out, schema, &mut BTreeMap::new());
        } else if let Some(options) = alternatives(schema) {
            for option in options {
                let words: Vec<String> = constants(option);
                let what = if words.is_empty() { kind(option) } else { words.join(", ") };
                let _ = writeln!(out, "- {what}: {}", self::about(option));
            }
        } else {
            let _ = writeln!(out, "{}.", kind(schema));
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
                let _ = writeln!(out, "\nPattern: `{pattern}`");
            }
        }
    }
}

fn alternatives(schema: &Value) -> Option<&Vec<Value>> {
    schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array)
}

/// The words a schema allows, in code quotes.
fn constants(schema: &Value) -> Vec<String> {
    let one = schema.get("const").into_iter();
    let many = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    one.chain(many)
        .filter(|word| !word.is_null())
        .map(|word| format!("`{}`", word.as_str().map_or_else(|| word.to_string(), str::to_owned)))
        .collect()
}

/// A type in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix("#/$defs/"))
    {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    let words = constants(schema);
    if !words.is_empty() {
        return words.join(" or ");
    }
    if let Some(options) = alternatives(schema) {
        let kinds: Vec<String> = options
            .iter()
            .filter(|option| option.get("type").and_then(Value::as_str) != Some("null"))
            .map(kind)
            .collect();
        return kinds.join(" or ");
    }
    let names: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(many)) => {
            many.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
        }
        _ => return "anything".to_owned(),
    };
    let kinds: Vec<String> = names.into_iter().map(|name| named(name, schema)).collect();
    kinds.join(" or ")
}

fn named(name: &str, schema: &Value) -> String {
    match name {
        "string" if schema.get("contentEncoding").is_some() => {
            "bytes (MessagePack bin; base64 text in JSON)".to_owned()
        }
        "string" => "text".to_owned(),
        "integer" => match (schema.get("minimum"), schema.get("maximum")) {
            (Some(least), Some(most)) => format!("whole number, {least} to {most}"),
            (Some(least), None) => format!("whole number, at least {least}"),
            _ => "whole number".to_owned(),
        },
        "number" => "number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => {
            let item = schema.get("items").map_or_else(|| "anything".to_owned(), kind);
            format!("list of {item}")
        }
        "object" => match schema.get("additionalProperties") {
            Some(Value::Bool(true)) | None => "fields of any name".to_owned(),
            Some(Value::Bool(false)) => "fields".to_owned(),
            Some(value) => format!("fields of any name, each {}", kind(value)),
        },
        other => other.to_owned(),
    }
}

/// What a schema says about itself, on one line, safe in a table.
fn about(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    prose::plain(text).replace('|', "\\|")
}
