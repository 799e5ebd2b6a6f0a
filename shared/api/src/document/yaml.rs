//! YAML text to values: our own words for what is wrong, and every value as it was written.
//!
//! Only the events of a parser come from a library. What a plain word means is decided here, as the
//! tools of Kubernetes do: the words of YAML 1.1 for true and false, the numbers of YAML 1.2, and
//! merges by `<<`.

mod syntax;

use super::{Document, MAX_DEPTH, MAX_VALUES, Place, given_twice, join, pointer};
use crate::problem::{Problem, Problems};
use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Number, Value};
use std::{collections::BTreeMap, rc::Rc};

/// Every document of the text; one that holds nothing counts only where there is no other.
pub(super) fn documents(text: &str) -> Result<Vec<Document>, Problems> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { parser, text, anchors: BTreeMap::new() };
    let mut roots = Vec::new();
    while let Some((event, place)) = reader.next()? {
        match event {
            // An anchor counts in its own document only.
            Event::DocumentStart(..) => reader.anchors.clear(),
            Event::StreamStart | Event::DocumentEnd => {}
            Event::StreamEnd => break,
            event => roots.push(reader.node(event, place, 0)?),
        }
    }
    let mut problems = Problems::default();
    let mut count = 0;
    let mut documents = Vec::new();
    for root in &roots {
        let mut values = Values { written: BTreeMap::new(), count, problems: Problems::default() };
        let value = values.value(root, "", "");
        count = values.count;
        problems.0.append(&mut values.problems.0);
        if count > MAX_VALUES {
            let message =
                format!("the document has more than {MAX_VALUES} values, aliases counted");
            return Err(Problem::new("", message).into());
        }
        documents.push(Document { value, written: values.written, line: root.place.line });
    }
    problems.into_result()?;
    // Comments, and lines that separate documents.
    let nothing = |document: &Document| {
        document.value.is_null() && document.written.get("").is_none_or(String::is_empty)
    };
    if documents.iter().all(nothing) {
        return Err(Problem::new("", "the document is empty").into());
    }
    if documents.iter().any(|document| !document.value.is_null()) {
        documents.retain(|document| !document.value.is_null());
    } else {
        documents.truncate(1);
    }
    Ok(documents)
}

impl From<&Marker> for Place {
    fn from(marker: &Marker) -> Self {
        Self { line: marker.line().max(1), column: marker.col() + 1 }
    }
}

/// A part of a document as it was written.
#[derive(Debug)]
struct Node {
    place: Place,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The value, and how it was written where it is a plain word that is no text.
    Scalar(Value, Option<String>),
    List(Vec<Rc<Node>>),
    Fields(Vec<Field>),
}

#[derive(Debug)]
struct Field {
    name: String,
    place: Place,
    /// `<<`, which puts other fields in here.
    merge: bool,
    value: Rc<Node>,
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    text: &'a str,
    anchors: BTreeMap<usize, Rc<Node>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Place)>, Problem> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok((event, span))) => {
                let place = Place::from(&span.start);
                // Where nothing is written the parser says `~`.
                let nothing = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "~")
                    && span.slice(self.text) != Some("~");
                let event = match event {
                    Event::Scalar(_, style, anchor, tag) if nothing => {
                        Event::Scalar("".into(), style, anchor, tag)
                    }
                    event => event,
                };
                Ok(Some((event, place)))
            }
            Some(Err(error)) => Err(syntax::problem(&error, self.text)),
        }
    }

    /// The next event within a collection.
    fn inside(&mut self) -> Result<(Event<'a>, Place), Problem> {
        self.next()?
            .ok_or_else(|| not_yaml(Place { line: 1, column: 1 }, "the document ends too early"))
    }

    fn node(&mut self, event: Event<'a>, place: Place, depth: usize) -> Result<Rc<Node>, Problem> {
        if depth > MAX_DEPTH {
            return Err(not_yaml(
                place,
                &format!("more than {MAX_DEPTH} levels within each other"),
            ));
        }
        let (kind, anchor) = match event {
            Event::Alias(id) => {
                return self.anchors.get(&id).cloned().ok_or_else(|| {
                    not_yaml(place, "an alias (*name) stands inside what it is the name of")
                });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| Tagged::of(&tag, place)).transpose()?;
                (scalar(&text, style, tag.as_ref(), place)?, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                if let Some(tag) = &tag
                    && tag.core_suffix() != Some("seq")
                {
                    return Err(unknown_tag(&tag.original(), place));
                }
                let mut items = Vec::new();
                loop {
                    match self.inside()? {
                        (Event::SequenceEnd, _) => break,
                        (event, place) => items.push(self.node(event, place, depth + 1)?),
                    }
                }
                (Kind::List(items), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                if let Some(tag) = &tag
                    && tag.core_suffix() != Some("map")
                {
                    return Err(unknown_tag(&tag.original(), place));
                }
                (Kind::Fields(self.fields(depth)?), anchor)
            }
            _ => return Err(not_yaml(place, "a value is expected here")),
        };
        let node = Rc::new(Node { place, kind });
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    fn fields(&mut self, depth: usize) -> Result<Vec<Field>, Problem> {
        let mut fields = Vec::new();
        loop {
            let (event, place) = self.inside()?;
            let (name, merge) = match event {
                Event::MappingEnd => return Ok(fields),
                Event::Scalar(name, style, ..) => {
                    let merge = style == ScalarStyle::Plain && name == "<<";
                    (name.into_owned(), merge)
                }
                _ => {
                    let problem = not_yaml(place, "the name of a field has to be a text");
                    return Err(match syntax::placeholder_on(self.text, place.line) {
                        Some(hint) => problem.remedy(hint),
                        None => problem.remedy("write it as name: value"),
                    });
                }
            };
            let (event, value_place) = self.inside()?;
            let value = self.node(event, value_place, depth + 1)?;
            fields.push(Field { name, place, merge, value });
        }
    }
}

/// What an explicit tag makes of a scalar.
enum Tagged {
    Text,
    Resolved(&'static str),
}

impl Tagged {
    fn of(tag: &granit_parser::Tag, place: Place) -> Result<Self, Problem> {
        match (tag.core_suffix(), tag.parts()) {
            (Some("str"), _) | (None, ("", "!") | ("!", "")) => Ok(Self::Text),
            (Some("int"), _) => Ok(Self::Resolved("a whole number")),
            (Some("float"), _) => Ok(Self::Resolved("a number")),
            (Some("bool"), _) => Ok(Self::Resolved("true or false")),
            (Some("null"), _) => Ok(Self::Resolved("nothing")),
            _ => Err(unknown_tag(&tag.original(), place)),
        }
    }
}

fn unknown_tag(tag: &str, place: Place) -> Problem {
    not_yaml(place, &format!("the tag {tag} is not known here"))
        .remedy("remove it; a text that begins with ! needs quotes")
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tagged>,
    place: Place,
) -> Result<Kind, Problem> {
    let plain = || resolve(text).map_err(|message| not_yaml(place, &message));
    let value = match tag {
        Some(Tagged::Resolved(expected)) => {
            let value = plain()?;
            let fits = match *expected {
                "a whole number" => value.is_u64() || value.is_i64(),
                "a number" => value.is_number(),
                "true or false" => value.is_boolean(),
                _ => value.is_null(),
            };
            if !fits {
                return Err(not_yaml(place, &format!("\"{text}\" is tagged as {expected}")));
            }
            value
        }
        None if style == ScalarStyle::Plain => plain()?,
        Some(Tagged::Text) | None => Value::String(text.to_owned()),
    };
    let json = value.to_string();
    let written = (!value.is_string() && json != text).then(|| text.to_owned());
    Ok(Kind::Scalar(value, written))
}

/// What a plain word means.
fn resolve(text: &str) -> Result<Value, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            Value::Bool(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            Value::Bool(false)
        }
        _ if is_special_float(text) => {
            return Err(format!("{text} is not a number that can be used"));
        }
        _ => match number(text)? {
            Some(number) => Value::Number(number),
            None => Value::String(text.to_owned()),
        },
    })
}

fn is_special_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
}

/// A number, if the word is one. A leading zero makes it none: YAML 1.1 and 1.2 read it differently.
fn number(text: &str) -> Result<Option<Number>, String> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Ok(None);
    }
    let too_large = || format!("the number {text} is too large");
    let (radix, digits) = match (unsigned.get(..2), unsigned.get(2..)) {
        (Some("0x" | "0X"), Some(rest)) => (16, rest),
        (Some("0o" | "0O"), Some(rest)) => (8, rest),
        (Some("0b" | "0B"), Some(rest)) => (2, rest),
        _ => (10, unsigned),
    };
    let grouped = !digits.split('_').any(str::is_empty);
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    if grouped && plain.chars().all(|c| c.is_digit(radix)) {
        if radix == 10 && plain.len() > 1 && plain.starts_with('0') {
            return Ok(None);
        }
        let magnitude = u128::from_str_radix(&plain, radix).map_err(|_| too_large())?;
        let number = if text.starts_with('-') {
            i128::try_from(magnitude).ok().and_then(|n| Number::from_i128(-n))
        } else {
            Number::from_u128(magnitude)
        };
        return number.map(Some).ok_or_else(too_large);
    }
    if radix != 10 || !is_decimal(unsigned) {
        return Ok(None);
    }
    let value: f64 = text.parse().map_err(|_| too_large())?;
    Number::from_f64(value).map(Some).ok_or_else(too_large)
}

/// `1.5`, `.5`, `1.`, `1e3`, `1.5E-3`.
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent
}

/// Nodes to values, with aliases put in.
struct Values {
    written: BTreeMap<String, String>,
    count: usize,
    problems: Problems,
}

impl Values {
    fn value(&mut self, node: &Node, at: &str, path: &str) -> Value {
        self.count += 1;
        if self.count > MAX_VALUES {
            return Value::Null;
        }
        match &node.kind {
            Kind::Scalar(value, written) => {
                if let Some(written) = written {
                    self.written.insert(at.to_owned(), written.clone());
                }
                value.clone()
            }
            Kind::List(items) => {
                let mut list = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    list.push(self.value(item, &format!("{at}/{i}"), &format!("{path}[{i}]")));
                }
                Value::Array(list)
            }
            Kind::Fields(fields) => Value::Object(self.fields(fields, at, path)),
        }
    }

    fn fields(&mut self, fields: &[Field], at: &str, path: &str) -> Map<String, Value> {
        let mut map = Map::new();
        let mut places: BTreeMap<&str, Place> = BTreeMap::new();
        for field in fields.iter().filter(|field| !field.merge) {
            if let Some(first) = places.get(field.name.as_str()) {
                self.problems.push(given_twice(path, &field.name, *first, field.place));
                continue;
            }
            places.insert(&field.name, field.place);
            let value =
                self.value(&field.value, &pointer(at, &field.name), &join(path, &field.name));
            map.insert(field.name.clone(), value);
        }
        for field in fields.iter().filter(|field| field.merge) {
            self.merge(&field.value, &mut map, at, path, 0);
        }
        map
    }

    /// Fields of `from` that are not there yet.
    fn merge(
        &mut self,
        from: &Node,
        map: &mut Map<String, Value>,
        at: &str,
        path: &str,
        depth: usize,
    ) {
        match &from.kind {
            Kind::Fields(fields) if depth <= MAX_DEPTH => {
                for field in fields.iter().filter(|field| !field.merge) {
                    self.count += 1;
                    if self.count < MAX_VALUES && !map.contains_key(&field.name) {
                        let at = pointer(at, &field.name);
                        let value = self.value(&field.value, &at, &join(path, &field.name));
                        map.insert(field.name.clone(), value);
                    }
                }
                for field in fields.iter().filter(|field| field.merge) {
                    self.merge(&field.value, map, at, path, depth + 1);
                }
            }
            Kind::List(items) if depth == 0 => {
                for item in items {
                    self.merge(item, map, at, path, depth + 1);
                }
            }
            _ => {
                let problem = not_yaml(
                    from.place,
                    "<< puts in the fields of an alias; this is no set of fields",
                );
                self.problems.push(problem.remedy("write <<: *name, or put << in quotes"));
            }
        }
    }
}

fn not_yaml(place: Place, what: &str) -> Problem {
    Problem::new("", format!("not YAML: line {}, column {}: {what}", place.line, place.column))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(text: &str) -> Value {
        match documents(text).as_deref() {
            Ok([document]) => document.value.clone(),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn plain_words_mean_what_kubernetes_tools_say() {
        for (text, expected) in [
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("y", json!(true)),
            ("n", json!(false)),
            ("oN", json!("oN")),
            ("'on'", json!("on")),
            ("!!str on", json!("on")),
            ("! 7", json!("7")),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("nil", json!("nil")),
            ("1.10", json!(1.1)),
            ("1.2.3", json!("1.2.3")),
            ("0x10", json!(16)),
            ("0o17", json!(15)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("1__0", json!("1__0")),
            ("012", json!("012")),
            ("-012", json!("-012")),
            ("0", json!(0)),
            ("-0x10", json!(-16)),
            ("+5", json!(5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            (".", json!(".")),
            ("e3", json!("e3")),
            ("1e", json!("1e")),
            ("12:30:45", json!("12:30:45")),
            ("2026-01-31", json!("2026-01-31")),
            ("2026-01-31T12:00:00Z", json!("2026-01-31T12:00:00Z")),
            ("52:54:00:12:34:56", json!("52:54:00:12:34:56")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("fe80::1", json!("fe80::1")),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("infinity", json!("infinity")),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        for bad in [".inf", "-.INF", ".nan", "1e999", "18446744073709551616"] {
            assert!(documents(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn anchors_and_merges_are_put_in() {
        let text =
            "base: &b {a: 1, b: on}\nx: {<<: *b, a: 2}\ny: {<<: [{c: 3, a: 9}, *b]}\nz: *b\n";
        let expected = json!({
            "base": {"a": 1, "b": true}, "x": {"a": 2, "b": true},
            "y": {"c": 3, "a": 9, "b": true}, "z": {"a": 1, "b": true},
        });
        assert_eq!(value(text), expected);
        assert_eq!(documents(text).unwrap()[0].written["/x/b"], "on");
        for bad in ["a: &a [*a]\n", "a: 1\n---\nb: &x 1\n---\nc: *x\n", "<<: 7\n", "<<: [[a]]\n"] {
            assert!(documents(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(value("\"<<\": 7\n"), json!({"<<": 7}));
    }
}
