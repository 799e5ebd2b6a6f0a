//! What is wrong with a command line, in our words, and whether it asks for errors as JSON.

use crate::failure::{Exit, Failure};
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{ArgAction, Command};
use std::{error::Error as _, ffi::OsString};

/// Whether the words ask for answers as JSON: also those of a command line that cannot be understood.
pub fn wants_json(words: &[OsString]) -> bool {
    let mut words = words.iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--");
    let mut found = false;
    while let Some(word) = words.next() {
        let value = match word {
            "-o" | "--output" => words.next(),
            _ => word
                .strip_prefix("--output=")
                .or_else(|| word.strip_prefix("-o").map(|value| value.trim_start_matches('='))),
        };
        if let Some(value) = value {
            found = value == "json";
        }
    }
    found
}

/// The error in our words; `None` where help or the version was asked for, which the library prints. `words`
/// are those of the command line, `root` is its grammar.
pub fn failure(error: &Error, root: &Command, words: &[OsString]) -> Option<Failure> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        Some(ContextValue::StyledStr(text)) => text.to_string(),
        Some(ContextValue::StyledStrs(texts)) => {
            texts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        Some(ContextValue::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let (arg, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let prior = text(ContextKind::PriorArg);
    let message = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return None,
        ErrorKind::InvalidValue if value.is_empty() => format!("{arg} needs a value"),
        ErrorKind::InvalidValue => format!("\"{value}\" is not possible as {arg}"),
        ErrorKind::ValueValidation => match error.source() {
            // What our own types say of a value.
            Some(source) => format!("{arg}: {source}"),
            None => format!("\"{value}\" is not possible as {arg}"),
        },
        ErrorKind::UnknownArgument if arg.starts_with('-') => format!("there is no option {arg}"),
        ErrorKind::UnknownArgument => format!("\"{arg}\" is not expected here"),
        ErrorKind::InvalidSubcommand => {
            format!("there is no command \"{}\"", text(ContextKind::InvalidSubcommand))
        }
        ErrorKind::NoEquals => format!("{arg} takes its value behind '='"),
        ErrorKind::TooManyValues => format!("{arg} takes no \"{value}\" beside what it has"),
        ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("{arg} has not as many values as it needs")
        }
        ErrorKind::ArgumentConflict if prior == arg || prior.is_empty() => {
            format!("{arg} can be given once only")
        }
        ErrorKind::ArgumentConflict => format!("{arg} and {prior} do not go together"),
        ErrorKind::MissingRequiredArgument => format!("{arg} is missing"),
        ErrorKind::MissingSubcommand => "a command is missing".to_owned(),
        ErrorKind::InvalidUtf8 => "a word of the command line is not UTF-8".to_owned(),
        _ => "the command line cannot be understood".to_owned(),
    };
    let mistyped =
        if value.is_empty() { text(ContextKind::InvalidSubcommand) } else { value.clone() };
    let mistyped = if mistyped.is_empty() { arg.clone() } else { mistyped };
    let suggested =
        [ContextKind::SuggestedValue, ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg]
            .into_iter()
            .find_map(|kind| match error.get(kind)? {
                ContextValue::String(text) => Some(text.clone()),
                // The one most like it.
                ContextValue::Strings(texts) => {
                    let slips = |text: &&String| strsim::damerau_levenshtein(&mistyped, text);
                    texts.iter().min_by_key(slips).cloned()
                }
                _ => None,
            });
    let valid = text(ContextKind::ValidValue);
    let valid = if valid.is_empty() { text(ContextKind::ValidSubcommand) } else { valid };
    let fix = match suggested {
        Some(near) => format!("did you mean '{near}'?"),
        None if !valid.is_empty() => format!("one of {valid}"),
        None => format!("{} --help shows how it is written", command_path(root, words)),
    };
    Some(Failure::new(Exit::Invalid, message).fix(fix))
}

/// The command that the words name: `canopy get chains` of `canopy get -A chains eth0`.
fn command_path(root: &Command, words: &[OsString]) -> String {
    let mut path = vec![root];
    let mut value_follows = false;
    for word in words.iter().skip(1) {
        let Some(word) = word.to_str() else { break };
        if std::mem::take(&mut value_follows) {
            continue;
        }
        if word == "--" {
            break;
        }
        if word.starts_with('-') && word.len() > 1 {
            value_follows = takes_next_word(&path, word);
            continue;
        }
        match path.last().and_then(|command| command.find_subcommand(word)) {
            Some(command) => path.push(command),
            None => break,
        }
    }
    let names = path.iter().skip(1).map(|command| command.get_name());
    std::iter::once("canopy").chain(names).collect::<Vec<_>>().join(" ")
}

/// Whether an option's value is the word behind it.
fn takes_next_word(path: &[&Command], word: &str) -> bool {
    if word.contains('=') {
        return false;
    }
    let mut arguments = path.iter().rev().flat_map(|command| command.get_arguments());
    let found = if let Some(long) = word.strip_prefix("--") {
        arguments.find(|arg| arg.get_long() == Some(long))
    } else {
        // The last of several letters may take a value; one with its value behind it takes no word.
        let mut letters = word.chars().skip(1);
        match (letters.next(), letters.next()) {
            (Some(letter), None) => arguments.find(|arg| arg.get_short() == Some(letter)),
            _ => None,
        }
    };
    found.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::{CommandFactory as _, Parser as _};

    fn told(line: &str) -> String {
        let mut root = Cli::command();
        root.build();
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        match Cli::try_parse_from(&words) {
            Ok(_) => "fine".to_owned(),
            Err(error) => failure(&error, &root, &words)
                .map_or("help".to_owned(), |failure| failure.render("error")),
        }
    }

    #[test]
    fn mistakes_of_the_command_line_are_told_in_our_own_words() {
        for (line, expected) in [
            (
                "canopy aply -f x",
                "error: there is no command \"aply\"\n  fix: did you mean 'apply'?\n",
            ),
            (
                "canopy apply",
                "error: --file <FILE>... is missing\n  fix: canopy apply --help shows how it is written\n",
            ),
            (
                "canopy apply -f",
                "error: --file <FILE>... needs a value\n  fix: canopy apply --help shows how it is written\n",
            ),
            (
                "canopy apply -f x --atomc",
                "error: there is no option --atomc\n  fix: did you mean '--atomic'?\n",
            ),
            (
                "canopy apply -f x --host Web1",
                "error: --host <HOST>: \"Web1\" is not a host id: 1 to 48 of a-z, 0-9, '_' and '-', starting with a letter or digit; \"all\" is reserved\n  fix: canopy apply --help shows how it is written\n",
            ),
            (
                "canopy get chains -o jsn",
                "error: \"jsn\" is not possible as --output <FORMAT>\n  fix: did you mean 'json'?\n",
            ),
            (
                "canopy get chians",
                "error: there is no command \"chians\"\n  fix: did you mean 'chains'?\n",
            ),
            ("canopy get chains eth0 tc-ingres", "fine"),
            (
                "canopy get audit --limit 0",
                "error: --limit <LIMIT>: \"0\" is not a number above 0\n  fix: canopy get audit --help shows how it is written\n",
            ),
            (
                "canopy get audit --limit x",
                "error: --limit <LIMIT>: \"x\" is not a number above 0\n  fix: canopy get audit --help shows how it is written\n",
            ),
            (
                "canopy apply -f x --expected-generation x",
                "error: --expected-generation <N>: \"x\" is not a whole number\n  fix: canopy apply --help shows how it is written\n",
            ),
            (
                "canopy --timeout 1 get hosts",
                "error: --timeout <DURATION>: \"1\" is not a duration: a number and ms, s, m, h or d, such as 10s\n  fix: canopy get hosts --help shows how it is written\n",
            ),
            (
                "canopy map set eth0 xdp p m 1 2 --if-absent --if-present",
                "error: --if-absent and --if-present do not go together\n  fix: canopy map set --help shows how it is written\n",
            ),
            (
                "canopy completion tcsh",
                "error: \"tcsh\" is not possible as <SHELL>\n  fix: did you mean 'zsh'?\n",
            ),
            (
                "canopy map --context a dump eth0 xdp p m --limit x",
                "error: --limit <N>: \"x\" is not a number above 0\n  fix: canopy map dump --help shows how it is written\n",
            ),
            ("canopy --help", "help"),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
    }

    #[test]
    fn errors_are_json_where_answers_are() {
        let asks =
            |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in [
            "canopy get hosts -o json",
            "canopy -ojson x",
            "canopy x --output=json",
            "c --output json",
            "c -o=json",
        ] {
            assert!(asks(line), "{line}");
        }
        for line in [
            "canopy get hosts",
            "canopy get hosts -o yaml",
            "c -o json -o table",
            "c -- -o json",
            "c json",
        ] {
            assert!(!asks(line), "{line}");
        }
    }
}
