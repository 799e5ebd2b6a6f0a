//! What a parser of YAML refuses, in our words. The kinds of its errors are known; their texts are not used.

use super::{Place, not_yaml};
use crate::problem::Problem;
use granit_parser::{ErrorKind, ScanError};

/// What to do about a template that was not filled in, where the line has one.
pub(super) fn placeholder_on(text: &str, line: usize) -> Option<&'static str> {
    let line = text.lines().nth(line.saturating_sub(1))?;
    (line.contains("${") || line.contains("{{")).then_some(
        "placeholders (${…}, {{…}}) are not expanded: do it before, such as with envsubst",
    )
}

/// A text that the parser refuses, in our words.
pub(super) fn problem(error: &ScanError, text: &str) -> Problem {
    let place = Place::from(error.marker());
    let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
    let indent = line.trim_start_matches([' ', '\t']);
    if line.get(..line.len() - indent.len()).is_some_and(|blank| blank.contains('\t')) {
        return not_yaml(place, "the line is indented with a tab").remedy("indent with spaces");
    }
    let rest = text.lines().skip(place.line.saturating_sub(1)).collect::<Vec<_>>().join("\n");
    let rest: String = rest.chars().skip(place.column - 1).collect();
    let directive = text.lines().take(place.line).any(|line| line.starts_with('%'));
    let (what, fix) = match error.kind() {
        // Said where something else stands, too.
        ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping
            if !rest.trim().is_empty() =>
        {
            let found = rest.chars().next().unwrap_or_default();
            (format!("{found:?} is not expected here"), "")
        }
        ErrorKind::ExpectedDocumentStart if directive => (
            "a line that begins with % is not followed by a line ---".to_owned(),
            "text that begins with % needs quotes",
        ),
        kind => told(kind),
    };
    let problem = not_yaml(place, &what);
    match (placeholder_on(text, place.line), fix) {
        (Some(hint), _) => problem.remedy(hint),
        (None, "") => problem,
        (None, fix) => problem.remedy(fix),
    }
}

/// What is wrong, and what to do about it where that is certain.
#[allow(clippy::too_many_lines, reason = "a table")]
fn told(kind: &ErrorKind) -> (String, &'static str) {
    const QUOTES: &str = "text with ': ' or ' #' in it needs quotes";
    let (what, fix) = match kind {
        ErrorKind::UnclosedFlowCollection { open } => {
            let fix = if *open == '[' { "close it with ]" } else { "close it with }" };
            return (format!("{open} is not closed"), fix);
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            return (format!("{open} is closed by {close}"), "close what was opened last, first");
        }
        ErrorKind::UnexpectedCharacter { character } if character.is_control() => {
            let code = u32::from(*character);
            return (format!("the character U+{code:04X} is not allowed"), "remove it");
        }
        ErrorKind::UnexpectedCharacter { character } => {
            let what = format!("a text cannot begin with {}", character.escape_debug());
            return (what, "put it in quotes");
        }
        ErrorKind::UnexpectedEofFlowSequence => ("[ is not closed", "close it with ]"),
        ErrorKind::UnexpectedEofFlowMapping | ErrorKind::UnexpectedEofImplicitFlowMapping => {
            ("{ is not closed", "close it with }")
        }
        ErrorKind::UnexpectedEofBlockSequence
        | ErrorKind::UnexpectedEofBlockMapping
        | ErrorKind::UnexpectedEof => ("the document ends too early", ""),
        ErrorKind::UnclosedQuotedScalar => ("a quoted text is not closed", "close the quotes"),
        ErrorKind::DocumentIndicatorInQuotedScalar => {
            ("a quoted text is not closed before --- or ...", "close the quotes")
        }
        ErrorKind::UnknownAnchor => (
            "an alias (*name) names nothing that is marked (&name) above it",
            "text that begins with * needs quotes",
        ),
        ErrorKind::MissingAnchorOrAliasName => {
            ("* or & has no name behind it", "text that begins with * or & needs quotes")
        }
        ErrorKind::ExpectedNodeContent => ("a value is expected here", ""),
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::InvalidIndentation
        | ErrorKind::SimpleKeyExpected
        | ErrorKind::InvalidSimpleKey => (
            "this does not fit what stands above it",
            "check the indentation, and that each field is written as name: value",
        ),
        ErrorKind::MappingValueNotAllowed | ErrorKind::MappingKeyNotAllowed => (
            "': ' is not expected here",
            "check the indentation, and the ':' of the lines above; text with ': ' in it needs quotes",
        ),
        ErrorKind::InvalidColonPlacement
        | ErrorKind::InvalidMappingValueWhitespace
        | ErrorKind::FlowMappingValueAdjacentCollection => {
            ("':' is not expected here", "put a space behind the ':' of name: value")
        }
        ErrorKind::ExpectedFlowMappingSeparator => ("a ',' or '}' is expected here", ""),
        ErrorKind::ExpectedFlowSequenceSeparator => ("a ',' or ']' is expected here", ""),
        ErrorKind::MisplacedFlowCollectionEnd => ("a bracket is closed that was not opened", ""),
        ErrorKind::RecursionLimitExceeded => ("too many levels within each other", ""),
        ErrorKind::BlockEntryInFlowCollection => {
            ("'- ' is not expected within brackets", "separate the items with commas")
        }
        ErrorKind::BlockSequenceEntryNotAllowed => {
            ("'- ' is not expected here", "begin a list on the line below its name")
        }
        ErrorKind::InvalidBlockEntryWhitespace => {
            ("'-' is not followed by a space", "put a space behind it")
        }
        ErrorKind::PlainScalarStartsWithDashFlowIndicator => {
            ("a text cannot begin with '-' and a bracket or comma", "put it in quotes")
        }
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => ("a tab is not allowed here", "use spaces"),
        ErrorKind::CommentNotSeparated => (
            "# stands directly behind a value",
            "put a space before a comment, or the text in quotes",
        ),
        ErrorKind::CommentInterceptedScalar => {
            ("a comment stands within a text of several lines", "put the text in quotes")
        }
        ErrorKind::InvalidTrailingSingleQuotedScalar
        | ErrorKind::InvalidTrailingDoubleQuotedScalar => {
            ("something follows the closing quote", "put the whole text in quotes")
        }
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidLowSurrogateHexEscape
        | ErrorKind::InvalidLowSurrogate
        | ErrorKind::MissingLowSurrogate
        | ErrorKind::UnpairedLowSurrogate
        | ErrorKind::InvalidUnicodeEscape => (
            "a backslash in double quotes is not followed by what it can be followed by",
            "use single quotes, or write the backslash twice",
        ),
        ErrorKind::ZeroBlockScalarIndent
        | ErrorKind::InvalidBlockScalarHeader
        | ErrorKind::InvalidBlockScalarIndent => {
            ("a text of several lines (| or >) is not indented as its first line", "")
        }
        ErrorKind::InvalidQuotedScalarIndent | ErrorKind::InvalidFlowScalarIndent => {
            ("the line is not indented further than what it belongs to", "indent it")
        }
        ErrorKind::ExpectedDocumentStart | ErrorKind::InvalidDocumentEnd => (
            "this begins another document without a line --- before it",
            "check the indentation, or begin another document with ---",
        ),
        ErrorKind::BomInsideDocument => {
            ("a byte order mark stands within the document", "remove it")
        }
        ErrorKind::ExpectedTagBang
        | ErrorKind::InvalidTagTerminator
        | ErrorKind::InvalidTagEscape
        | ErrorKind::MissingTagUri
        | ErrorKind::UnclosedVerbatimTag
        | ErrorKind::UndeclaredTagHandle
        | ErrorKind::InvalidGlobalTagCharacter => {
            ("a tag (!name) cannot be read", "text that begins with ! needs quotes")
        }
        ErrorKind::InvalidDirectiveTerminator
        | ErrorKind::DirectiveDisallowed
        | ErrorKind::MissingDirectiveName
        | ErrorKind::InvalidDirectiveName
        | ErrorKind::MissingYamlVersion
        | ErrorKind::MissingYamlVersionSeparator
        | ErrorKind::YamlVersionTooLong
        | ErrorKind::UnsupportedYamlMajorVersion
        | ErrorKind::DuplicateVersionDirective
        | ErrorKind::DuplicateTagDirective
        | ErrorKind::ExpectedTagDirectiveBang
        | ErrorKind::InvalidTagDirectiveTerminator
        | ErrorKind::MissingDocumentEndBeforeDirective => {
            ("a line that begins with % cannot be read", "text that begins with % needs quotes")
        }
        // What another version of the parser may say.
        _ => ("this cannot be read", QUOTES),
    };
    (what.to_owned(), fix)
}
