//! Violations of a schema in words a person can act on.

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

/// Longest quotation of a value, characters.
const QUOTE: usize = 48;

/// Every violation, in the order of the document's paths as the validator finds them.
pub(super) fn problems<'a>(
    schema: &Value,
    errors: impl Iterator<Item = ValidationError<'a>>,
) -> Problems {
    let mut out = Problems::default();
    for error in errors {
        one(schema, &error, &mut out);
    }
    // Found twice where two parts of a schema say the same.
    let mut seen = std::collections::BTreeSet::new();
    out.0.retain(|problem| seen.insert((problem.path.clone(), problem.message.clone())));
    out
}

fn one(schema: &Value, error: &ValidationError<'_>, out: &mut Problems) {
    let pointer = error.instance_path().as_str();
    let at = path(pointer);
    // The part of the schema that holds the violated keyword.
    let holder = parent(error.schema_path().as_str()).and_then(|pointer| schema.pointer(pointer));
    let found = error.instance().as_ref();
    let simple = |message: String| Problem::new(at.clone(), message);
    match error.kind() {
        Kind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let problem = Problem::new(join(&at, name), format!("\"{name}\" is missing"));
            out.push(match about(schema, holder, name) {
                Some(about) => problem.remedy(about),
                None => problem,
            });
        }
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            for name in unexpected {
                out.push(unknown_field(&at, name, &fields(schema, holder)));
            }
        }
        Kind::Type { kind } => out.push(wrong_type(&at, kind, found)),
        Kind::Enum { options } => {
            let options = options.as_array().map(Vec::as_slice).unwrap_or_default();
            out.push(not_one_of(&at, found, options.iter()));
        }
        Kind::Constant { expected_value } => {
            out.push(not_one_of(&at, found, std::iter::once(expected_value.as_ref())));
        }
        Kind::Pattern { pattern } => {
            let problem = simple(format!("{} is not allowed", quote(found)));
            let rule = holder.and_then(|holder| holder.get("description")).and_then(Value::as_str);
            out.push(match rule {
                Some(rule) => problem.remedy(prose::plain(rule)),
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
            one(schema, error, &mut inner);
            let remedy = inner.0.into_iter().next().and_then(|problem| problem.remedy);
            let problem = simple(format!("{name} is not allowed as a name"));
            out.push(match remedy {
                Some(remedy) => problem.remedy(remedy),
                None => problem,
            });
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            alternatives(schema, &at, found, context, out);
        }
        _ => out.push(simple(error.to_string().lines().next().unwrap_or_default().to_owned())),
    }
}

/// None of several alternatives fits: says what is wrong with the one that was meant.
fn alternatives(
    schema: &Value,
    at: &str,
    found: &Value,
    context: &[Vec<ValidationError<'static>>],
    out: &mut Problems,
) {
    let mut branches: Vec<&Vec<ValidationError<'static>>> = context.iter().collect();
    // `or nothing`, of an optional field, was not meant: there is something.
    branches.retain(|branch| !branch.iter().any(only_null));
    // A list of words.
    let words: Option<Vec<&Value>> = branches
        .iter()
        .map(|branch| match branch.as_slice() {
            [error] => match error.kind() {
                Kind::Constant { expected_value } => Some(vec![expected_value.as_ref()]),
                Kind::Enum { options } => options.as_array().map(|list| list.iter().collect()),
                _ => None,
            },
            _ => None,
        })
        .collect::<Option<Vec<_>>>()
        .map(|lists| lists.into_iter().flatten().collect());
    if let Some(words) = words
        && !words.is_empty()
    {
        out.push(not_one_of(at, found, words.into_iter()));
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
                one(schema, error, out);
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

fn at_depth(path: &str) -> usize {
    path.matches(['.', '[']).count() + usize::from(!path.is_empty())
}

fn wrong_type(at: &str, kind: &TypeKind, found: &Value) -> Problem {
    let kinds: Vec<JsonType> = match kind {
        TypeKind::Single(kind) => vec![*kind],
        TypeKind::Multiple(set) => set.iter().filter(|kind| *kind != JsonType::Null).collect(),
    };
    let expected: Vec<&str> = kinds.iter().copied().map(type_name).collect();
    let problem =
        Problem::new(at, format!("must be {}, not {}", expected.join(" or "), noun(found)));
    if kinds.contains(&JsonType::String) && (found.is_number() || found.is_boolean()) {
        problem.remedy(format!("write it in quotes: \"{found}\""))
    } else {
        problem
    }
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

/// What was found, in words.
fn noun(found: &Value) -> String {
    match found {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) => quote(found),
        Value::Number(_) => format!("the number {found}"),
        Value::String(_) => format!("the text {}", quote(found)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a set of fields".to_owned(),
    }
}

fn quote(found: &Value) -> String {
    let text = found.to_string();
    if text.chars().count() <= QUOTE {
        return text;
    }
    let mut short: String = text.chars().take(QUOTE).collect();
    short.push('…');
    short
}

fn not_one_of<'a>(at: &str, found: &Value, options: impl Iterator<Item = &'a Value>) -> Problem {
    let options: Vec<String> = options
        .filter(|option| !option.is_null())
        .map(|option| option.as_str().map_or_else(|| option.to_string(), str::to_owned))
        .collect();
    let list = options.join(", ");
    let message = match options.as_slice() {
        [only] => format!("{} is not {only}", quote(found)),
        _ => format!("{} is not one of {list}", quote(found)),
    };
    let problem = Problem::new(at, message);
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

/// First sentence about a field.
fn about(schema: &Value, holder: Option<&Value>, name: &str) -> Option<String> {
    let field = resolve(schema, holder?).get("properties")?.get(name)?;
    let text = field
        .get("description")
        .or_else(|| resolve(schema, field).get("description"))?
        .as_str()?
        .lines()
        .take_while(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    let text = prose::plain(&text);
    let sentence = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
    Some(sentence.trim_end_matches('.').to_owned())
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

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
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
