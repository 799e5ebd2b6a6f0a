//! JSON text to values in which no field is given twice, with our own words for what is wrong.

use super::{
    Document, MAX_VALUES,
    strict::{Lenient, Strict},
    yaml,
};
use crate::problem::{Problem, Problems};
use serde_json::error::Category;
use std::collections::BTreeMap;

/// Every document of the text, one behind the other.
pub(super) fn documents(text: &str) -> Result<Vec<Document>, Problems> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    loop {
        let from = values.byte_offset();
        let Some(value) = values.next() else { return Ok(documents) };
        let Strict(value) = value.map_err(|error| problems(text, &error, !documents.is_empty()))?;
        let before = text.get(..from).unwrap_or_default();
        let blank = text.get(from..).unwrap_or_default();
        let blank = blank.len() - blank.trim_start().len();
        let line = 1
            + before.matches('\n').count()
            + text.get(from..from + blank).unwrap_or_default().matches('\n').count();
        documents.push(Document { value, written: BTreeMap::new(), line });
        if documents.len() > MAX_VALUES {
            return Err(Problem::new("", "there are too many documents").into());
        }
    }
}

/// Why bytes are no JSON, in our words; `None` where they are.
pub fn not_json(bytes: &[u8]) -> Option<Problem> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            return Some(Problem::new("", format!("not JSON: byte {at} is not UTF-8 text")));
        }
    };
    let error = serde_json::from_str::<Lenient>(text).err()?;
    problems(text, &error, error.to_string().starts_with("trailing")).0.into_iter().next()
}

/// Why the text cannot be read, in our words.
fn problems(text: &str, error: &serde_json::Error, behind: bool) -> Problems {
    let (line, column) = match (error.line(), error.column()) {
        // A line break that should not be there.
        (line @ 2.., 0) => {
            let before = text.lines().nth(line - 2).unwrap_or_default();
            (line - 1, before.chars().count() + 1)
        }
        place => place,
    };
    let at =
        |what: &str| Problem::new("", format!("not JSON: line {line}, column {column}: {what}"));
    let said = error.to_string();
    let said = said
        .strip_suffix(&format!(" at line {} column {}", error.line(), error.column()))
        .unwrap_or(&said);
    if error.classify() == Category::Data {
        // A field given twice. Only the reader of YAML, of which JSON is a part, knows both places.
        return match yaml::documents(text) {
            Err(problems) if problems.0.iter().all(|problem| !problem.path.is_empty()) => problems,
            _ => at(said).remedy("keep one of the two").into(),
        };
    }
    let found = text
        .lines()
        .nth(line.saturating_sub(1))
        .and_then(|line| line.chars().nth(column.saturating_sub(1)))
        .map_or_else(|| "this".to_owned(), |found| format!("{found:?}"));
    // The library tells its kinds by their text alone.
    let problem = match said {
        "EOF while parsing a list" => at("[ is not closed").remedy("close it with ]"),
        "EOF while parsing an object" => at("{ is not closed").remedy("close it with }"),
        "EOF while parsing a string" => {
            at("a quoted text is not closed").remedy("close the quotes")
        }
        "EOF while parsing a value" => at("a value is expected here"),
        "expected `:`" => at(&format!("{found} is not expected; a ':' is")),
        "expected `,` or `]`" => at(&format!("{found} is not expected; a ',' or ']' is")),
        "expected `,` or `}`" => at(&format!("{found} is not expected; a ',' or '}}' is")),
        "expected value" | "trailing characters" if behind => {
            at(&format!("{found} is not expected behind the document"))
        }
        "expected value" => at(&format!("{found} is not expected; a value is")),
        "key must be a string" => at("the name of a field has to be in double quotes"),
        "trailing comma" => at("a comma before a closing bracket").remedy("remove the comma"),
        "recursion limit exceeded" => at("too many levels within each other"),
        "number out of range" => at("the number is too large"),
        "invalid number" => at("this is not how a number is written")
            .remedy("no leading zero, no '+', digits on both sides of a '.'"),
        "expected ident" => {
            at("a word that is not true, false or null").remedy("put a text in double quotes")
        }
        "invalid escape"
        | "lone leading surrogate in hex escape"
        | "unexpected end of hex escape" => {
            at("a backslash is not followed by what it can be followed by")
                .remedy("write the backslash twice")
        }
        "control character (\\u0000-\\u001F) found while parsing a string" => {
            at("a line break, a tab or another control character within a text")
                .remedy("write it as \\n, \\t or \\u0000")
        }
        _ => at(&format!("{found} is not expected here")),
    };
    problem.into()
}
