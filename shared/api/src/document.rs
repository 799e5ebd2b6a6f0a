//! Reading what a person wrote: JSON or YAML by the same schema, strict, all mistakes at once, each
//! with its path and what to do about it.
//!
//! ```
//! use canopy_api::{DesiredState, document::{self, Format}};
//!
//! let text = "chains:\n- interface: eth0\n  hook: xpd\n  programs: []\n";
//! let problems = document::load::<DesiredState>(text, Format::Yaml).unwrap_err();
//! assert_eq!(
//!     problems.to_string(),
//!     "chains[0].hook: \"xpd\" is not one of xdp, tc-ingress, tc-egress (did you mean \"xdp\"?)"
//! );
//! ```

mod explain;
mod field_index;
mod fields;
mod json;
pub(crate) mod placeholder;
mod strict;
mod yaml;

pub use json::not_json;
pub use strict::Lenient;

use crate::{
    desired::DesiredState,
    problem::{Problem, Problems},
};
use field_index::FieldIndex;
use jsonschema::Validator;
use schemars::{JsonSchema, schema_for};
use serde::{Deserializer, de::DeserializeOwned};
use serde_json::Value;
use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

/// How long a document may be, bytes: a chain of hundreds of programs is a tenth of it.
pub const MAX_BYTES: usize = 512 * 1024;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 8259.
    Json,
    /// YAML 1.2, with the words of YAML 1.1 for true and false.
    Yaml,
}

impl Format {
    /// By file extension: `.json`, `.yaml`, `.yml`.
    pub fn of(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Self::Json),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 100;
/// Most values of a text, aliases put in.
const MAX_VALUES: usize = 500_000;

/// One document as it was read: a generic value, and how its values were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    value: Value,
    /// By JSON pointer, where the text is not what JSON would write: `on` for true.
    written: BTreeMap<String, String>,
    line: usize,
}

impl Document {
    /// The value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The value alone.
    pub fn into_value(self) -> Value {
        self.value
    }

    /// The line it begins at, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// How the value at a path (`chains[0].programs[0].name`) was written, where it was a plain word of
    /// YAML that means no text and JSON would write it otherwise: `on`, `1.10`, `0x10`.
    pub fn written(&self, path: &str) -> Option<&str> {
        let found = self.written.iter().find(|(at, _)| explain::path(at) == path);
        found.map(|(_, text)| text.as_str())
    }

    /// The value checked: every violation of the schema at once, each with its path, unknown fields
    /// with the nearest known one.
    ///
    /// # Errors
    /// Every mistake.
    pub fn check<T: JsonSchema + DeserializeOwned + 'static>(self) -> Result<T, Problems> {
        let rules = rules::<T>()?;
        // Looking for every mistake takes several times as long as seeing that there is none.
        if !rules.validator.is_valid(&self.value) {
            let errors = rules.validator.iter_errors(&self.value);
            explain::problems(&rules.schema, errors, &self.written).into_result()?;
        }
        // What the schema cannot say the type does; one such mistake at a time.
        serde_path_to_error::deserialize(&self.value).map_err(|error| {
            let path = match error.path().to_string() {
                whole if whole == "." => String::new(),
                path => path,
            };
            explain::of_type(path, &error.inner().to_string(), &self).into()
        })
    }
}

impl Document {
    /// The desired state, with everything checked that can be without a host; see [`desired_state`].
    ///
    /// # Errors
    /// Every mistake.
    pub fn check_desired(self) -> Result<DesiredState, Problems> {
        let desired: DesiredState = self.check()?;
        desired.check()?;
        Ok(desired)
    }
}

impl From<Value> for Document {
    fn from(value: Value) -> Self {
        Self { value, written: BTreeMap::new(), line: 1 }
    }
}

/// A place in a text, both from 1.
#[derive(Clone, Copy, Debug)]
struct Place {
    line: usize,
    column: usize,
}

/// Every document of a text, at least one: YAML separates them by `---`, JSON by nothing. Those that hold
/// nothing are left out, unless there is no other. A field given twice is a mistake, and so is any that
/// the problem names by line and column.
///
/// # Errors
/// What keeps the text from being read.
pub fn documents(text: &str, format: Format) -> Result<Vec<Document>, Problems> {
    if text.len() > MAX_BYTES {
        return Err(Problem::new(
            "",
            format!("the document is {} bytes long; at most {MAX_BYTES} are read", text.len()),
        )
        .into());
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(Problem::new("", "the document is empty").into());
    }
    match format {
        Format::Json => json::documents(text),
        Format::Yaml => yaml::documents(text),
    }
}

/// The one document of a text.
///
/// # Errors
/// As [`documents`], and where there are several.
pub fn document(text: &str, format: Format) -> Result<Document, Problems> {
    let mut found = documents(text, format)?.into_iter();
    match (found.next(), found.next()) {
        (Some(document), None) => Ok(document),
        (_, Some(second)) => Err(Problem::new(
            "",
            format!("there are several documents; the second begins at line {}", second.line),
        )
        .remedy("put each in a file of its own")
        .into()),
        (None, None) => Err(Problem::new("", "the document is empty").into()),
    }
}

/// The one document of a text, as a generic value.
///
/// # Errors
/// As [`document`].
pub fn parse(text: &str, format: Format) -> Result<Value, Problems> {
    Ok(document(text, format)?.value)
}

/// A field that is there twice.
fn given_twice(path: &str, name: &str, first: Place, second: Place) -> Problem {
    let places = if first.line == second.line {
        format!("line {}, columns {} and {}", first.line, first.column, second.column)
    } else {
        format!("lines {} and {}", first.line, second.line)
    };
    Problem::new(join(path, name), format!("\"{name}\" is given twice: {places}"))
        .remedy("keep one of the two")
}

/// The path of a field.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The JSON pointer (RFC 6901) of a field.
fn pointer(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// A generic value to a checked one; see [`Document::check`].
///
/// # Errors
/// Every mistake.
pub fn check<T: JsonSchema + DeserializeOwned + 'static>(value: Value) -> Result<T, Problems> {
    Document::from(value).check()
}

/// What a request of type `T` has and should not have, found in its bytes: fields that are not fields of
/// `T`, with the nearest one that is, fields that are given twice, lists in place of fields. Whether `T`
/// itself refuses them does not matter.
///
/// # Errors
/// When it cannot be read at all.
pub fn unknown_fields<'de, T: JsonSchema + 'static, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Problems, D::Error> {
    match rules::<T>() {
        Ok(rules) => fields::problems(&rules.fields, deserializer),
        Err(problem) => Ok(problem.into()),
    }
}

/// Whether a request of type `T` has a field at this path: where its receiver says that it is unknown, the
/// receiver is older than the caller.
pub fn has_field<T: JsonSchema + 'static>(path: &str) -> bool {
    rules::<T>().is_ok_and(|rules| fields::has_field(&rules.schema, path))
}

/// Every field of a schema, as paths such as `entries[].key`.
pub(crate) fn fields(schema: &Value) -> BTreeSet<String> {
    fields::all(schema)
}

/// Every violation of the schema of `T`, after those in `known`; none is told twice, and a few dozen at
/// most.
pub fn violations<T: JsonSchema + 'static>(known: Problems, value: &Value) -> Problems {
    let mut all = known;
    match rules::<T>() {
        Ok(rules) => {
            let more = explain::problems(
                &rules.schema,
                rules.validator.iter_errors(value),
                &BTreeMap::new(),
            );
            for problem in more.0 {
                if !all.0.contains(&problem) {
                    all.push(problem);
                }
            }
        }
        Err(problem) => all.push(problem),
    }
    all.0.truncate(fields::LISTED);
    all
}

/// What documents of a type are checked by.
struct Rules {
    schema: Value,
    fields: FieldIndex,
    validator: Validator,
}

/// The rules of a type: making them takes longer than checking a document, so it is done once.
fn rules<T: JsonSchema + 'static>() -> Result<Arc<Rules>, Problem> {
    static MADE: Mutex<BTreeMap<TypeId, Arc<Rules>>> = Mutex::new(BTreeMap::new());
    let made = || MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(rules) = made().get(&TypeId::of::<T>()) {
        return Ok(Arc::clone(rules));
    }
    let schema = Value::from(schema_for!(T));
    let validator = jsonschema::validator_for(&schema)
        .map_err(|_| Problem::new("", "the schema of this kind of document is wrong: a defect"))?;
    let fields = FieldIndex::new(&schema);
    let rules = Arc::new(Rules { schema, fields, validator });
    made().insert(TypeId::of::<T>(), Arc::clone(&rules));
    Ok(rules)
}

/// Both at once.
pub fn load<T: JsonSchema + DeserializeOwned + 'static>(
    text: &str,
    format: Format,
) -> Result<T, Problems> {
    document(text, format)?.check()
}

/// A desired state with everything checked that can be without a host: the schema, then
/// duplicates, verdicts and settings that have no meaning.
///
/// # Errors
/// Every mistake.
pub fn desired_state(value: Value) -> Result<DesiredState, Problems> {
    Document::from(value).check_desired()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each bad document, and everything that is said about it.
    const BAD: &[(&str, &[&str])] = &[
        ("", &["the document is empty"]),
        ("# only a comment\n", &["the document is empty"]),
        ("- a\n- b\n", &["must be a set of fields, not a list"]),
        ("chains:\n  - {interface: eth0\n", &["not YAML: line "]),
        ("chains: []\n\tx: 1\n", &["not YAML: line 2", "indent with spaces"]),
        ("chains: []\nchains: []\n", &["chains: \"chains\" is given twice: lines 1 and 2"]),
        ("a: 1\n---\nb: 1\n", &["several documents; the second begins at line 3"]),
        ("chians: []\n", &["chians: unknown field \"chians\" (did you mean \"chains\"?)"]),
        ("zzz: []\n", &["zzz: unknown field \"zzz\" (known fields: chains)"]),
        ("chains: eth0\n", &["chains: must be a list, not the text \"eth0\""]),
        (
            "chains: [{}]\n",
            &[
                "chains[0].interface: \"interface\" is missing (add interface: a name (eth0) or a pattern (eth*) of 1 to 15 printable",
                "chains[0].hook: \"hook\" is missing (add hook: one of xdp, tc-ingress, tc-egress)",
                "chains[0].programs: \"programs\" is missing (add programs: a list)",
            ],
        ),
        (
            "chains: [{interface: 7, hook: xdp, programs: []}]",
            &["chains[0].interface: must be a text, not the number 7 (write it in quotes: \"7\")"],
        ),
        (
            "chains: [{interface: \"a b\", hook: xpd, programs: []}]",
            &[
                "chains[0].interface: \"a b\" is not allowed (a name (eth0) or a pattern (eth*) of 1 to 15 printable characters without space, '/' or ':'; default-route; mac:52:54:00:12:34:56; altname:enp3s0)",
                "chains[0].hook: \"xpd\" is not one of xdp, tc-ingress, tc-egress (did you mean \"xdp\"?)",
            ],
        ),
        (
            "chains: [{netns: \"a/b\", interface: eth0, hook: xdp, programs: []}, {netns: 7, interface: eth0, hook: xdp, programs: []}]",
            &[
                "chains[0].netns: \"a/b\" is not allowed (a name of ip-netns (blue)",
                "chains[1].netns: must be a text, not the number 7 (write it in quotes: \"7\")",
            ],
        ),
        (
            "chains: [{netns: /run/../x, interface: eth0, hook: xdp, programs: []}]",
            &["chains[0].netns: \"/run/../x\" names no network namespace: a path has no"],
        ),
        (
            "chains: [{netns: blue, interface: eth0, hook: xdp, programs: []}, {interface: eth0, hook: xdp, programs: []}, {netns: blue, interface: eth0, hook: xdp, programs: []}]",
            &["chains[2]: eth0/xdp in network namespace blue is already described by chains[0]"],
        ),
        (
            "chains: [{interface: \"..\", hook: xdp, programs: []}]",
            &["chains[0].interface: \"..\" is not a"],
        ),
        (
            "chains:\n- interface: eth0\n  hook: xdp\n  xdp_mode: nativ\n  programs: [{name: Bad, package: firewall@, priority: 70000, config: 3}]\n",
            &[
                "chains[0].xdp_mode: \"nativ\" is not one of best, native, generic (did you mean \"native\"?)",
                "chains[0].programs[0].name: \"Bad\" is not allowed (1 to 63 of a-z",
                "chains[0].programs[0].package: \"firewall@\" is not allowed (name@requirement",
                "chains[0].programs[0].priority: 70000 is too large: at most 65535",
                "chains[0].programs[0].config: must be a set of fields, not the number 3",
            ],
        ),
        (
            "chains: [{interface: eth0, hook: xdp, programs: [{name: a, package: \"f@^x\"}]}]",
            &[
                "chains[0].programs[0].package: \"^x\" in \"f@^x\" is not a version requirement; write name@requirement",
            ],
        ),
        (
            "chains: [{interface: eth0, hook: xdp, programs: [{name: a, package: f, priority: -1}]}]",
            &["chains[0].programs[0].priority: -1 is too small: at least 0"],
        ),
        (
            "chains: [{interface: eth0, hook: xdp, programs: [{name: a, package: f, priority: 1.5}]}]",
            &["chains[0].programs[0].priority: must be a whole number, not the number 1.5"],
        ),
        (
            "chains: [{interface: eth0, hook: xdp, programs: [{name: a, package: f, proceed_on: pass, proceedon: 1}]}]",
            &[
                "chains[0].programs[0].proceed_on: must be a list, not the text \"pass\"",
                "chains[0].programs[0].proceedon: unknown field \"proceedon\" (did you mean \"proceed_on\"?)",
            ],
        ),
        (
            "chains:\n- {interface: eth0, hook: tc-ingress, xdp_mode: native, programs: []}\n- {interface: eth0, hook: tc-ingress, programs: [{name: a, package: f, proceed_on: [drop]}, {name: a, package: g}]}\n- {interface: eth0, hook: xdp, tc_mode: clsact, programs: []}\n",
            &[
                "chains[0].xdp_mode: xdp_mode has no meaning on tc-ingress",
                "chains[1]: eth0/tc-ingress is already described by chains[0]",
                "chains[1].programs[0].proceed_on[0]: \"drop\" is not a verdict of tc-ingress",
                "chains[1].programs[1].name: \"a\" is already the name of programs[0]",
                "chains[2].tc_mode: tc_mode has no meaning on xdp",
            ],
        ),
    ];

    fn said(text: &str, format: Format) -> String {
        parse(text, format).and_then(desired_state).unwrap_err().to_string()
    }

    #[test]
    fn comments_of_fields_are_no_remedies() {
        #[derive(Debug, serde::Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only its schema is looked at")]
        struct Server {
            /// Address of the server: `tls://127.0.0.1:4222`. Several, separated by commas.
            url: String,
            /// The port that it listens on.
            #[schemars(range(min = 1, max = 65535))]
            port: u16,
        }
        #[derive(Debug, serde::Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "only its schema is looked at")]
        struct Config {
            /// What it is told by in logs.
            #[schemars(regex(pattern = "^[a-z]+$"), extend("x-rule" = "letters from a to z"))]
            name: String,
            /// How it is shown to people.
            #[schemars(regex(pattern = "^[A-Z]+$"))]
            title: String,
            /// Where it connects at the start.
            server: Server,
            /// Whom it belongs to.
            host: crate::HostId,
        }
        let problems = |text: &str| load::<Config>(text, Format::Yaml).unwrap_err();
        let remedies = |text: &str| -> Vec<String> {
            let mut problems = problems(text).0;
            problems.sort_by(|a, b| a.path.cmp(&b.path));
            problems.into_iter().filter_map(|problem| problem.remedy).collect()
        };
        assert_eq!(
            remedies("{}"),
            [
                "add host: 1 to 48 of a-z, 0-9, '_' and '-', starting with a letter or digit; \"all\" is reserved",
                "add name: letters from a to z",
                "add server: a set of fields: url, port",
                "add title",
            ]
        );
        assert_eq!(
            remedies("{name: A1, title: b, server: {}, host: A}"),
            [
                "1 to 48 of a-z, 0-9, '_' and '-', starting with a letter or digit; \"all\" is reserved",
                "letters from a to z",
                "add port: a whole number from 1 to 65535",
                "add url: a text such as tls://127.0.0.1:4222",
                "it must match ^[A-Z]+$",
            ]
        );
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        for (text, expected) in BAD {
            let said = said(text, Format::Yaml);
            for part in *expected {
                assert!(said.contains(part), "{text:?}\nlacks {part:?}; says\n{said}");
            }
            let multiline = expected.iter().filter(|part| part.starts_with("chains")).count();
            if multiline > 1 {
                assert_eq!(said.lines().count(), multiline, "{text:?}\nsays\n{said}");
            }
        }
    }

    #[test]
    fn paths_lead_to_fields_or_nowhere() {
        use crate::wire::{MapSetRequest as Set, hosts::HostEnrolRequest as Enrol};
        for path in ["map", "map.netns", "entries", "entries[3].key"] {
            assert!(has_field::<Set>(path), "{path}");
        }
        for path in ["", "mapp", "map.nets", "entries[3].kee", "key", "entries.key"] {
            assert!(!has_field::<Set>(path), "{path}");
        }
        assert!(has_field::<Enrol>("labels") && !has_field::<Enrol>("labels.rack"));
    }

    #[test]
    fn json_says_line_and_column() {
        assert_eq!(
            said("{\n  \"chains\": [,]\n}", Format::Json),
            "not JSON: line 2, column 14: ',' is not expected; a value is"
        );
        assert_eq!(
            said("{\"chains\": [], \"chains\": []}", Format::Json),
            "chains: \"chains\" is given twice: line 1, columns 2 and 16 (keep one of the two)"
        );
        assert!(said(&"[".repeat(10_000), Format::Json).contains("too many levels"));
    }

    #[test]
    fn hostile_documents_are_bounded() {
        let long = format!("chains: [] # {}", "x".repeat(MAX_BYTES));
        assert!(said(&long, Format::Yaml).contains("at most 524288 are read"));
        assert!(!said(&"[".repeat(100_000), Format::Yaml).is_empty());
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let alias = format!("*a{}", n - 1);
            let list = [alias.as_str(); 10].join(", ");
            laughs = format!("{laughs}a{n}: &a{n} [{list}]\n");
        }
        assert!(!said(&laughs, Format::Yaml).is_empty());
    }

    #[test]
    fn both_formats_read_the_same() {
        let yaml = "chains:\n- interface: eth0\n  hook: xdp\n  programs:\n  - {name: a, package: firewall@^0.1, config: {blocked: [\"198.51.100.0/24\"]}}\n";
        let json = r#"{"chains": [{"interface": "eth0", "hook": "xdp", "programs": [
            {"name": "a", "package": "firewall@^0.1", "config": {"blocked": ["198.51.100.0/24"]}}]}]}"#;
        let read = |text, format| parse(text, format).and_then(desired_state).unwrap();
        assert_eq!(read(yaml, Format::Yaml), read(json, Format::Json));
    }
}
