//! `get chain/eth0/xdp` is `get chain eth0/xdp`.

use clap::{ArgAction, Command};
use std::ffi::OsString;

/// Verbs that take a kind of thing and then names.
const VERBS: [&str; 3] = ["get", "describe", "delete"];

/// The words with the first `KIND/NAME` behind such a verb made two.
pub fn expand(root: &Command, words: Vec<OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::with_capacity(words.len() + 1);
    let mut words = words.into_iter();
    // The program's own name.
    out.extend(words.next());
    let mut verb: Option<&Command> = None;
    let mut done = false;
    let mut value_follows = false;
    for word in words {
        let text = word.to_str().unwrap_or_default();
        if done || value_follows {
            value_follows = false;
        } else if text == "--" {
            done = true;
        } else if text.starts_with('-') && text.len() > 1 {
            value_follows = takes_next_word(root, verb, text);
        } else if let Some(command) = verb {
            done = true;
            if let Some((kind, name)) = text.split_once('/')
                && command.find_subcommand(kind).is_some()
            {
                out.push(kind.into());
                out.push(name.into());
                continue;
            }
        } else {
            verb = root.find_subcommand(text).filter(|command| VERBS.contains(&command.get_name()));
            done = verb.is_none();
        }
        out.push(word);
    }
    out
}

/// Whether an option's value is the word behind it.
fn takes_next_word(root: &Command, verb: Option<&Command>, text: &str) -> bool {
    if text.contains('=') {
        return false;
    }
    let short = text.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
    // `-fweb.yaml` has its value with it.
    if short.is_some_and(|short| short.chars().count() > 1) {
        return false;
    }
    [Some(root), verb].into_iter().flatten().flat_map(Command::get_arguments).any(|arg| {
        let named = match short {
            Some(short) => arg.get_short().is_some_and(|own| short.starts_with(own)),
            None => arg.get_long().is_some_and(|own| text.strip_prefix("--") == Some(own)),
        };
        named && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn a_kind_and_a_name_are_made_two_words() {
        let mut root = Cli::command();
        root.build();
        for (line, expected) in [
            ("canopy get chain/eth0/xdp", "canopy get chain eth0/xdp"),
            (
                "canopy get -w -o wide chains/web1/eth0/xdp",
                "canopy get -w -o wide chains web1/eth0/xdp",
            ),
            ("canopy --context a/b describe host/web1", "canopy --context a/b describe host web1"),
            ("canopy delete program/limit --host web1", "canopy delete program limit --host web1"),
            ("canopy delete -f chain/web.yaml", "canopy delete -f chain/web.yaml"),
            ("canopy delete --file chain/web.yaml", "canopy delete --file chain/web.yaml"),
            ("canopy apply -f chain/web.yaml", "canopy apply -f chain/web.yaml"),
            ("canopy get chains chain/eth0/xdp", "canopy get chains chain/eth0/xdp"),
            ("canopy package check package/x", "canopy package check package/x"),
            ("canopy get what/ever", "canopy get what/ever"),
        ] {
            let words = line.split(' ').map(OsString::from).collect();
            let expanded = expand(&root, words);
            assert_eq!(expanded, expected.split(' ').map(OsString::from).collect::<Vec<_>>());
        }
    }
}
