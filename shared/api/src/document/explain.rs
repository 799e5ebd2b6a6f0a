//! Violations of a schema in words a person can act on.

use super::{
    Document, join,
    placeholder::{is_placeholder, not_expanded},
};
use crate::{
    near::nearest,
    problem::{Problem, Problems},
    prose,
};
use jsonschema::{
    JsonType, ValidationError,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Longest quotation of a value, characters.
const QUOTE: usize = 48;

/// Every violation, in the order of the document's paths as the validator finds them; `written` is how
/// values were written, by JSON pointer.
pub(super) fn problems<'a>(
    schema: &Value,
    errors: impl Iterator<Item = ValidationError<'a>>,
    written: &BTreeMap<String, String>,
) -> Problems {
    let mut out = Problems::default();
    let source = Source { schema, written };
    for error in errors {
        one(&source, &error, &mut out);
    }
    // Found twice where two parts of a schema say the same.
    let mut seen = BTreeSet::new();
    out.0.retain(|problem| seen.insert((problem.path.clone(), problem.message.clone())));
    out
}

/// What a type says of a value that its schema let pass. The type's own words are ours; those of the
/// library that reads it are not for people.
pub(super) fn of_type(path: String, text: &str, document: &Document) -> Problem {
    const LIBRARY: [&str; 9] = [
        "invalid type: ",
        "invalid value: ",
        "invalid length ",
        "unknown variant ",
        "unknown field ",
        "missing field ",
        "duplicate field ",
        "number out of range",
        "data did not match any variant",
    ];
    if !LIBRARY.iter().any(|known| text.starts_with(known)) {
        return Problem::new(path, text);
    }
    let found = at_path(&document.value, &path);
    let Some((found, number)) =
        found.filter(|found| found.is_f64()).zip(found.and_then(Value::as_f64))
    else {
        let what = found.map_or_else(|| "this".to_owned(), quote);
        return Problem::new(path, format!("{what} is not possible here"));
    };
    let shown = document.written(&path).map_or_else(|| found.to_string(), str::to_owned);
    let problem = Problem::new(path, format!("must be a whole number, not the number {shown}"));
    // Where a whole number and its f64 are the same (2^53).
    if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 {
        problem.remedy(format!("write it as {number:.0}"))
    } else {
        problem
    }
}

/// The value at `chains[0].programs[1].priority`.
fn at_path<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut here = value;
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        here = match part.strip_suffix(']').and_then(|index| index.parse::<usize>().ok()) {
            Some(index) => here.get(index)?,
            None => here.get(part)?,
        };
    }
    Some(here)
}

/// What violations are told from.
struct Source<'a> {
    schema: &'a Value,
    /// How values were written, by JSON pointer.
    written: &'a BTreeMap<String, String>,
}

fn one(source: &Source<'_>, error: &ValidationError<'_>, out: &mut Problems) {
    let schema = source.schema;
    let pointer = error.instance_path().as_str();
    let at = path(pointer);
    // The part of the schema that holds the violated keyword.
    let holder_path = parent(error.schema_path().as_str());
    let holder = holder_path.and_then(|pointer| schema.pointer(pointer));
    let found = error.instance().as_ref();
    let as_written = source.written.get(pointer).map(String::as_str);
    let simple = |message: String| Problem::new(at.clone(), message);
    match error.kind() {
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let problem = Problem::new(join(&at, name), format!("\"{name}\" is missing"));
            out.push(problem.remedy(missing(schema, holder, name)));
        }
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            for name in unexpected {
                out.push(unknown_field(&at, name, &fields(schema, holder)));
            }
        }
        Kind::Type { kind } => out.push(wrong_type(&at, kind, found, as_written)),
        Kind::Enum { options } => {
            let options = options.as_array().map(Vec::as_slice).unwrap_or_default();
            out.push(not_one_of(&at, found, as_written, options.iter()));
        }
        Kind::Constant { expected_value } => {
            let only = std::iter::once(expected_value.as_ref());
            out.push(not_one_of(&at, found, as_written, only));
        }
        Kind::Pattern { .. } if found.as_str().is_some_and(is_placeholder) => {
            out.push(not_expanded(at.clone(), found.as_str().unwrap_or_default()));
        }
        Kind::Pattern { pattern } => {
            let problem = simple(format!("{} is not allowed", quote(found)));
            let rule = holder.zip(holder_path).and_then(|(holder, path)| rule(holder, path));
            out.push(match rule {
                Some(rule) => problem.remedy(rule),
                // The schema of a semantic version (semver.org) has no words with it.
                None if pattern.starts_with(r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.") => {
                    problem.remedy("write major.minor.patch, such as 1.2.3")
                }
                None => problem.remedy(format!("it must match {pattern}")),
            });
        }
        Kind::Maximum { limit } => {
            out.push(simple(format!("{} is too large: at most {limit}", quote(found))));
        }
        Kind::ExclusiveMaximum { limit } => {
            out.push(simple(format!("{} is too large: less than {limit}", quote(found))));
        }
        Kind::Minimum { limit } => {
            out.push(simple(format!("{} is too small: at least {limit}", quote(found))));
        }
        Kind::ExclusiveMinimum { limit } => {
            out.push(simple(format!("{} is too small: more than {limit}", quote(found))));
        }
        Kind::MaxLength { limit } => {
            out.push(simple(format!("{} is too long: at most {limit} characters", quote(found))));
        }
        Kind::MinLength { limit } => {
            out.push(simple(format!("{} is too short: at least {limit} characters", quote(found))));
        }
        Kind::MaxItems { limit } => out.push(simple(format!("too many items: at most {limit}"))),
        Kind::MinItems { limit } => out.push(simple(format!("too few items: at least {limit}"))),
        Kind::MaxProperties { limit } => {
            out.push(simple(format!("too many fields: at most {limit}")));
        }
        Kind::MinProperties { limit } => {
            out.push(simple(format!("too few fields: at least {limit}")));
        }
        Kind::UniqueItems => out.push(simple("an item is given twice".to_owned())),
        Kind::PropertyNames { error } => {
            let name = quote(error.instance().as_ref());
            let mut inner = Problems::default();
            one(source, error, &mut inner);
            let remedy = inner.0.into_iter().next().and_then(|problem| problem.remedy);
            let problem = simple(format!("{name} is not allowed as a name"));
            out.push(match remedy {
                Some(remedy) => problem.remedy(remedy),
                None => problem,
            });
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            alternatives(source, &at, (found, as_written), context, out);
        }
        // No schema of ours says more; another version of the library may.
        _ => out.push(simple(format!("{} is not allowed here", quote(found)))),
    }
}

/// None of several alternatives fits: says what is wrong with the one that was meant.
fn alternatives(
    source: &Source<'_>,
    at: &str,
    (found, written): (&Value, Option<&str>),
    context: &[Vec<ValidationError<'static>>],
    out: &mut Problems,
) {
    let mut branches: Vec<&Vec<ValidationError<'static>>> = context.iter().collect();
    // `or nothing`, of an optional field, was not meant: there is something.
    branches.retain(|branch| !branch.iter().any(only_null));
    // A list of words.
    let words: Option<Vec<&Value>> = branches
        .iter()
        .map(|branch| {
            // A value of another type is not the word either.
            let mut errors = branch.iter().filter(|error| !is_type(error));
            match (errors.next().map(ValidationError::kind), errors.next()) {
                (Some(Kind::Constant { expected_value }), None) => {
                    Some(vec![expected_value.as_ref()])
                }
                (Some(Kind::Enum { options }), None) => {
                    options.as_array().map(|list| list.iter().collect())
                }
                _ => None,
            }
        })
        .collect::<Option<Vec<_>>>()
        .map(|lists| lists.into_iter().flatten().collect());
    if let Some(words) = words
        && !words.is_empty()
    {
        out.push(not_one_of(at, found, written, words.into_iter()));
        return;
    }
    // The alternative that got furthest: whose tag fits, whose type fits, with fewest mistakes.
    let badness = |branch: &[ValidationError<'static>]| {
        let depth = at_depth(at);
        let wrong_kind = branch.iter().any(|error| {
            let here = at_depth(&path(error.instance_path().as_str())) <= depth;
            here && matches!(error.kind(), Kind::Type { .. })
        });
        let wrong_tag = branch
            .iter()
            .any(|error| matches!(error.kind(), Kind::Constant { .. } | Kind::Enum { .. }));
        (wrong_kind, wrong_tag, branch.len())
    };
    match branches.iter().min_by_key(|branch| badness(branch)) {
        Some(best) => {
            for error in *best {
                one(source, error, out);
            }
        }
        None => {
            out.push(Problem::new(
                at,
                format!("{} is none of the forms allowed here", quote(found)),
            ));
        }
    }
}

fn only_null(error: &ValidationError<'static>) -> bool {
    matches!(error.kind(), Kind::Type { kind: TypeKind::Single(JsonType::Null) })
}

fn is_type(error: &ValidationError<'static>) -> bool {
    matches!(error.kind(), Kind::Type { .. })
}

fn at_depth(path: &str) -> usize {
    path.matches(['.', '[']).count() + usize::from(!path.is_empty())
}

fn wrong_type(at: &str, kind: &TypeKind, found: &Value, written: Option<&str>) -> Problem {
    let kinds: Vec<JsonType> = match kind {
        TypeKind::Single(kind) => vec![*kind],
        TypeKind::Multiple(set) => set.iter().filter(|kind| *kind != JsonType::Null).collect(),
    };
    let expected: Vec<&str> = kinds.iter().copied().map(type_name).collect();
    let expected = expected.join(" or ");
    let problem = Problem::new(at, format!("must be {expected}, not {}", noun(found, written)));
    let scalar =
        found.is_number() || found.is_boolean() || (found.is_null() && written != Some(""));
    if kinds.contains(&JsonType::String) && scalar {
        // As it was written: quotes around what YAML made of it would be another text.
        let text = written.map_or_else(|| found.to_string(), str::to_owned);
        return problem.remedy(format!("write it in quotes: \"{text}\""));
    }
    let wants_number = kinds.contains(&JsonType::Integer) || kinds.contains(&JsonType::Number);
    match found.as_str() {
        Some(text) if wants_number && is_zero_led(text) => {
            let digits = text.trim_start_matches(['-', '+', '0']);
            let sign = if text.starts_with('-') { "-" } else { "" };
            let digits = if digits.is_empty() { "0" } else { digits };
            problem.remedy(format!(
                "write it without the leading zero: {sign}{digits}, or 0o… for an octal number"
            ))
        }
        Some(text) if wants_number && is_digits(text) => problem.remedy("write it without quotes"),
        Some("true" | "false") if kinds.contains(&JsonType::Boolean) => {
            problem.remedy("write it without quotes")
        }
        _ => problem,
    }
}

fn is_digits(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_zero_led(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.len() > 1 && digits.starts_with('0') && is_digits(digits)
}

fn type_name(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Null => "nothing",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::String => "a text",
        JsonType::Array => "a list",
        JsonType::Object => "a set of fields",
    }
}

/// What was found, in words; with how it was written, where YAML made something else of it.
fn noun(found: &Value, written: Option<&str>) -> String {
    let noun = match found {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) => quote(found),
        Value::Number(_) => format!("the number {found}"),
        Value::String(_) => format!("the text {}", quote(found)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a set of fields".to_owned(),
    };
    match written {
        Some(text) if !text.is_empty() => format!("{text}, which YAML reads as {noun}"),
        _ => noun,
    }
}

fn quote(found: &Value) -> String {
    let text = found.to_string();
    if text.chars().count() <= QUOTE {
        return text;
    }
    let mut short: String = text.chars().take(QUOTE).collect();
    short.push('…');
    // A text that is cut ends with its quotes all the same.
    if found.is_string() {
        short.push('"');
    }
    short
}

fn not_one_of<'a>(
    at: &str,
    found: &Value,
    written: Option<&str>,
    options: impl Iterator<Item = &'a Value>,
) -> Problem {
    let options: Vec<String> = options
        .filter(|option| !option.is_null())
        .map(|option| option.as_str().map_or_else(|| option.to_string(), str::to_owned))
        .collect();
    let list = options.join(", ");
    let shown = written.filter(|text| !text.is_empty()).map_or_else(|| quote(found), str::to_owned);
    let message = match options.as_slice() {
        [only] => format!("{shown} is not {only}"),
        _ => format!("{shown} is not one of {list}"),
    };
    let problem = Problem::new(at, message);
    // A word of the list that YAML does not read as a text.
    if let Some(text) = written.filter(|text| options.iter().any(|option| option == text)) {
        return problem.remedy(format!("write it in quotes: \"{text}\""));
    }
    match found.as_str().and_then(|found| nearest(found, options.iter().map(String::as_str))) {
        Some(near) => problem.remedy(format!("did you mean \"{near}\"?")),
        None => problem,
    }
}

pub(super) fn unknown_field(at: &str, name: &str, known: &[String]) -> Problem {
    let problem = Problem::new(join(at, name), format!("unknown field \"{name}\""));
    match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => problem.remedy(format!("did you mean \"{near}\"?")),
        None if known.is_empty() => problem,
        None => problem.remedy(format!("known fields: {}", known.join(", "))),
    }
}

/// Names of the fields a part of the schema knows.
fn fields(schema: &Value, holder: Option<&Value>) -> Vec<String> {
    let own = |part: &Value| -> Vec<String> {
        part.get("properties")
            .and_then(Value::as_object)
            .map(|fields: &Map<String, Value>| fields.keys().cloned().collect())
            .unwrap_or_default()
    };
    holder.map(|holder| own(resolve(schema, holder))).unwrap_or_default()
}

/// What a text has to be, in words for who writes it: `x-rule` beside a pattern, or what the type itself says.
/// The description of a field says what the field is for, which is no remedy.
fn rule(holder: &Value, path: &str) -> Option<String> {
    let is_type = parent(path).is_some_and(|above| above.ends_with("/$defs"));
    let own = holder.get("x-rule");
    let rule = own.or_else(|| holder.get("description").filter(|_| is_type))?;
    rule.as_str().map(prose::plain)
}

/// What to write where a field is missing: one of its words, or how its value looks.
fn missing(schema: &Value, holder: Option<&Value>, name: &str) -> String {
    let words = words(schema, holder, name);
    if !words.is_empty() {
        return format!("add {name}: one of {}", words.join(", "));
    }
    let field = holder.and_then(|holder| resolve(schema, holder).get("properties")?.get(name));
    match field.and_then(|field| form(schema, field)) {
        Some(form) => format!("add {name}: {form}"),
        None => format!("add {name}"),
    }
}

/// How a value looks, as far as a schema says in few words.
fn form(schema: &Value, field: &Value) -> Option<String> {
    let reference = field.get("$ref").and_then(Value::as_str).unwrap_or_default();
    let part = resolve(schema, field);
    if part.get("pattern").is_some() {
        return rule(part, reference);
    }
    let text = |name: &str| part.get(name).and_then(Value::as_str);
    Some(match text("type")? {
        "string" => match field.get("description").and_then(Value::as_str).and_then(example) {
            Some(example) => format!("a text such as {example}"),
            None => "a text".to_owned(),
        },
        "integer" => match (part.get("minimum"), part.get("maximum")) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            _ => "a whole number".to_owned(),
        },
        "number" => "a number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => "a list".to_owned(),
        "object" => {
            let required = part.get("required").and_then(Value::as_array)?;
            let names: Vec<&str> = required.iter().filter_map(Value::as_str).collect();
            format!("a set of fields: {}", names.join(", "))
        }
        _ => return None,
    })
}

/// The example in "Address of the server: `tls://127.0.0.1:4222`."
fn example(description: &str) -> Option<&str> {
    let (_, behind) = [": `", "such as `", "write it as `"]
        .iter()
        .find_map(|before| description.split_once(before))?;
    behind.split_once('`').map(|(example, _)| example)
}

/// The words that a field may be.
fn words(schema: &Value, holder: Option<&Value>, name: &str) -> Vec<String> {
    let field = holder.and_then(|holder| resolve(schema, holder).get("properties")?.get(name));
    let Some(field) = field.map(|field| resolve(schema, field)) else { return Vec::new() };
    let text = |word: &Value| word.as_str().map(str::to_owned);
    if let Some(words) = field.get("enum").and_then(Value::as_array) {
        return words.iter().filter_map(text).collect();
    }
    let alternatives = field.get("oneOf").and_then(Value::as_array);
    alternatives.into_iter().flatten().filter_map(|one| one.get("const").and_then(text)).collect()
}

/// Follows a `$ref` within the schema.
pub(super) fn resolve<'a>(schema: &'a Value, part: &'a Value) -> &'a Value {
    part.get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| schema.pointer(reference.strip_prefix('#')?))
        .unwrap_or(part)
}

fn parent(pointer: &str) -> Option<&str> {
    pointer.rsplit_once('/').map(|(parent, _)| parent)
}

/// `/chains/0/interface` to `chains[0].interface`.
pub(super) fn path(pointer: &str) -> String {
    let mut out = String::new();
    for token in pointer.split('/').skip(1) {
        if !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit()) {
            out.push('[');
            out.push_str(token);
            out.push(']');
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&token.replace("~1", "/").replace("~0", "~"));
        }
    }
    out
}
