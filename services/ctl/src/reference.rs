//! `docs/cli.md`, from the grammar.

use crate::cli::Cli;
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use std::fmt::Write as _;

/// The command line reference as Markdown. The same on every machine: the environment and the
/// terminal have no say in it.
pub fn cli_markdown() -> String {
    let mut root = Cli::command();
    root.build();
    let mut out = String::from(
        "# Command line reference\n\n\
         Generated from the grammar of `canopy` by `cargo xtask gen-docs`; do not edit.\n\n\
         Answers go to standard output; progress, remarks and errors to standard error. \
         Every command takes the connection options below.\n\n",
    );
    out.push_str("## Exit codes\n\n| Code | Meaning |\n|---|---|\n");
    for line in crate::cli::EXIT_CODES.lines().skip(1) {
        if let Some((code, meaning)) = line.trim().split_once(' ') {
            let _ = writeln!(out, "| {code} | {} |", meaning.trim_start());
        }
    }
    let global: Vec<&Arg> =
        root.get_arguments().filter(|arg| arg.is_global_set() && listed(arg)).collect();
    out.push_str("\n## Connection\n\n");
    table(&mut out, &global);
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        section(&mut out, command, "canopy", 2);
    }
    out
}

fn listed(arg: &Arg) -> bool {
    !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version")
}

fn section(out: &mut String, command: &Command, parent: &str, level: usize) {
    if command.get_name() == "help" {
        return;
    }
    let path = format!("{parent} {}", command.get_name());
    let _ = writeln!(out, "\n{} `{path}`\n", "#".repeat(level));
    if let Some(about) = command.get_about() {
        let _ = writeln!(out, "{about}.\n");
    }
    let aliases: Vec<String> = command.get_visible_aliases().map(|a| format!("`{a}`")).collect();
    if !aliases.is_empty() {
        let _ = writeln!(out, "Also: {}.\n", aliases.join(", "));
    }
    let usage = command.clone().bin_name(path.clone()).render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let usage: Vec<&str> = usage.lines().map(str::trim).collect();
    let _ = writeln!(out, "```text\n{}\n```\n", usage.join("\n"));
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| listed(arg) && arg.get_help_heading() != Some("Connection"))
        .collect();
    table(out, &own);
    if let Some(help) = command.get_after_help() {
        let _ = writeln!(out, "\n```text\n{}\n```", help.to_string().trim_end());
    }
    for sub in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        section(out, sub, &path, level + 1);
    }
}

fn table(out: &mut String, args: &[&Arg]) {
    if args.is_empty() {
        return;
    }
    out.push_str("| Option | Environment | Meaning |\n|---|---|---|\n");
    for arg in args {
        let environment =
            arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
        let mut meaning = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<String> = match arg.get_action() {
            ArgAction::Set | ArgAction::Append => arg
                .get_possible_values()
                .iter()
                .map(|value| format!("`{}`", value.get_name()))
                .collect(),
            _ => Vec::new(),
        };
        if !values.is_empty() {
            let _ = write!(meaning, ": {}", values.join(", "));
        }
        let defaults: Vec<_> =
            arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !defaults.is_empty() && matches!(arg.get_action(), ArgAction::Set) {
            let _ = write!(meaning, " (default `{}`)", defaults.join(" "));
        }
        let meaning = meaning.replace('|', "\\|").replace('<', "&lt;");
        let _ = writeln!(out, "| `{}` | {environment} | {meaning} |", spelling(arg));
    }
}

fn spelling(arg: &Arg) -> String {
    let names = arg.get_value_names().map(|names| {
        names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>().join(" ")
    });
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let value = match (takes_value, names) {
        (true, Some(names)) => format!(" <{names}>"),
        _ => String::new(),
    };
    match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}{value}"),
        (None, Some(long)) => format!("--{long}{value}"),
        (Some(short), None) => format!("-{short}{value}"),
        (None, None) => value.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_and_exit_code_is_in_the_reference() {
        let page = cli_markdown();
        for heading in
            ["## `canopy apply`", "### `canopy package publish`", "### `canopy get chains`"]
        {
            assert!(page.contains(&format!("\n{heading}\n")), "{heading} missing:\n{page}");
        }
        assert!(page.contains("| 7 | unavailable or timed out; trying again may help |"));
        for code in 0..=11 {
            assert!(page.contains(&format!("\n| {code} | ")), "exit code {code} missing:\n{page}");
        }
        assert!(page.contains("`-o, --output <FORMAT>`"));
        assert!(!page.contains("canopy generate"), "hidden commands stay hidden");
        assert!(!page.contains('\x1b'));
    }
}
