//! What a word of the command line may be: from the grammar, and names of what there is. Asked by the
//! scripts of the shells with every press of the key, so the bus has little time to answer.

use crate::{
    cli::{Cli, ConnectionArgs, HostsArgs},
    commands::{get, on_bus},
    context::{ContextFile, Settings, default_path},
    failure::Failure,
    output::Answer as _,
    remote::Remote,
    view::{chains::Chains, maps::Maps, programs::Programs},
};
use canopy_api::{
    Hook, HostId,
    endpoint::loader,
    wire::{GetRequest, MapListRequest},
};
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use std::{path::PathBuf, time::Duration};

/// How long the bus has for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_millis(700);

const BASH: &str = "\
_canopy() {
    local IFS=$'\\n'
    COMPREPLY=($(canopy __complete -- \"${COMP_WORDS[@]:0:COMP_CWORD+1}\" 2>/dev/null))
}
complete -o bashdefault -o default -F _canopy canopy
";

const ZSH: &str = "\
#compdef canopy
_canopy() {
    local -a found
    found=(${(f)\"$(canopy __complete -- \"${(@)words[1,CURRENT]}\" 2>/dev/null)\"})
    if (( ${#found} )); then
        compadd -- $found
    else
        _files
    fi
}
if [[ \"$funcstack[1]\" == _canopy ]]; then
    # Loaded by compinit: the first call completes, too.
    _canopy \"$@\"
else
    compdef _canopy canopy
fi
";

const FISH: &str = "\
function __canopy_complete
    set -l token (commandline -ct)
    set -l found (canopy __complete -- (commandline -opc) $token 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
        return
    end
    # Files, also behind --option=.
    set -l option (string match -r '^--[^=]+=' -- $token)
    for file in (__fish_complete_path (string replace -r '^--[^=]+=' '' -- $token))
        printf '%s%s\\n' \"$option\" $file
    end
end
complete -c canopy -f -a '(__canopy_complete)'
";

/// The script that a shell reads.
pub fn script(shell: &str) -> &'static str {
    match shell {
        "zsh" => ZSH,
        "fish" => FISH,
        _ => BASH,
    }
}

/// What names are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hosts,
    Chains,
    Programs,
    /// Programs by name alone.
    ProgramNames,
    Maps,
    Packages,
    Contexts,
}

/// Where a command line stands.
#[derive(Debug, Default, PartialEq, Eq)]
struct Position {
    /// What the grammar says the word may be.
    fixed: Vec<String>,
    /// What is there.
    names: Option<Kind>,
    /// Only of this chain, or of this program of a chain.
    chain: Option<String>,
    /// `--host`, `--context` and `--context-file`, where they were given.
    host: Option<String>,
    context: Option<String>,
    context_file: Option<PathBuf>,
}

/// Everything that the last word may become.
pub fn candidates(words: &[String], connection: &ConnectionArgs) -> Vec<String> {
    let mut root = Cli::command();
    root.build();
    let words = joined(words);
    let last = words.last().cloned().unwrap_or_default();
    // `--option=value` is completed with the option before it.
    let (before, prefix) = match last.split_once('=') {
        Some((option, value)) if option.starts_with("--") => {
            (format!("{option}="), value.to_owned())
        }
        _ => (String::new(), last),
    };
    let position = position(&root, &words);
    let names = position.names.map(|kind| named(kind, &prefix, &position, connection));
    let names = names.unwrap_or_default();
    let mut found: Vec<String> = position
        .fixed
        .into_iter()
        .chain(names)
        .filter(|candidate| candidate.starts_with(&prefix))
        .map(|candidate| format!("{before}{candidate}"))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A shell may make three words of `--host=web1`.
fn joined(words: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut join = false;
    for word in words {
        match out.last_mut() {
            Some(last) if join || word == "=" && last.starts_with("--") => last.push_str(word),
            _ => out.push(word.clone()),
        }
        join = word == "=";
    }
    out
}

fn position(root: &Command, words: &[String]) -> Position {
    let mut position = Position::default();
    let mut path = vec![root];
    let mut pending: Option<&Arg> = None;
    let mut positionals: Vec<&str> = Vec::new();
    let (last, before) =
        words.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    for word in before.iter().skip(1) {
        if let Some(arg) = pending.take() {
            position.keep(arg, word);
            continue;
        }
        if word.starts_with('-') && word.len() > 1 {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            if let Some(arg) = option(&path, name).filter(|arg| takes_value(arg)) {
                match value {
                    Some(value) => position.keep(arg, value),
                    None => pending = Some(arg),
                }
            }
            continue;
        }
        if let Some(command) = path.last().and_then(|command| command.find_subcommand(word)) {
            path.push(command);
            positionals.clear();
        } else {
            positionals.push(word);
        }
    }
    if pending.is_none()
        && let Some((name, _)) = last.split_once('=')
    {
        pending = option(&path, name).filter(|arg| takes_value(arg));
    }
    let Some(command) = path.last() else { return position };
    if let Some(arg) = pending {
        position.fixed = values(arg);
        position.names = kind(arg, &path);
        position.chain = chain_of(&positionals);
    } else if last.starts_with('-') {
        let all = path.iter().flat_map(|command| command.get_arguments());
        position.fixed = all
            .filter(|arg| !arg.is_hide_set())
            .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
            .collect();
    } else {
        let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
        position.fixed = commands.map(|command| command.get_name().to_owned()).collect();
        let all: Vec<&Arg> = command.get_positionals().collect();
        // The last one may take all that is left.
        if let Some(arg) = all.get(positionals.len()).or_else(|| all.last()) {
            position.fixed.extend(values(arg));
            position.names = kind(arg, &path);
            position.follow(&positionals);
        }
    }
    position
}

/// `eth0/xdp` of the words `eth0 xdp`, or of the name of a chain.
fn chain_of(words: &[&str]) -> Option<String> {
    match words {
        [name, ..] if name.contains('/') => Some((*name).to_owned()),
        [interface, hook, ..] => Some(format!("{interface}/{hook}")),
        _ => None,
    }
}

impl Position {
    /// What comes behind words that name a thing in parts: `INTERFACE HOOK PROGRAM MAP`.
    fn follow(&mut self, words: &[&str]) {
        let in_parts = words.first().is_some_and(|word| !word.contains('/'));
        let hooks = || Hook::ALL.map(|hook| hook.as_str().to_owned());
        match (self.names, words.len()) {
            (Some(Kind::Chains | Kind::Maps), 1) if in_parts => {
                self.fixed.extend(hooks());
                self.names = None;
            }
            (Some(Kind::Maps), 2) if in_parts => {
                self.names = Some(Kind::ProgramNames);
                self.chain = chain_of(words);
            }
            (Some(Kind::Maps), 3) if in_parts => {
                let program = words.get(2).copied().unwrap_or_default();
                self.chain = chain_of(words).map(|chain| format!("{chain}/{program}"));
            }
            // Keys and values.
            (Some(Kind::Maps), number) if number > 0 => self.names = None,
            _ => {}
        }
    }

    fn keep(&mut self, arg: &Arg, value: &str) {
        match arg.get_id().as_str() {
            "host" => self.host = Some(value.to_owned()),
            "context" => self.context = Some(value.to_owned()),
            "context_file" => self.context_file = Some(value.into()),
            _ => {}
        }
    }
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

fn option<'a>(path: &[&'a Command], name: &str) -> Option<&'a Arg> {
    let long = name.strip_prefix("--");
    let short = name.strip_prefix('-').and_then(|rest| rest.chars().next());
    path.iter().rev().flat_map(|command| command.get_arguments()).find(|arg| match long {
        Some(long) => arg.get_long() == Some(long),
        None => short.is_some() && arg.get_short() == short,
    })
}

fn values(arg: &Arg) -> Vec<String> {
    arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()
}

/// Of what the names are that an argument takes.
fn kind(arg: &Arg, path: &[&Command]) -> Option<Kind> {
    let command = path.last().map_or("", |command| command.get_name());
    if path.get(1).is_some_and(|command| command.get_name() == "map") {
        match (arg.get_id().as_str(), command) {
            ("words", _) | ("program", "list") => return Some(Kind::Maps),
            _ => {}
        }
    }
    match (arg.get_id().as_str(), command) {
        ("program", _) if arg.get_long().is_some() => Some(Kind::ProgramNames),
        ("host" | "hosts", _) | ("name", "host" | "drain" | "undrain") => Some(Kind::Hosts),
        ("chains", _) => Some(Kind::Chains),
        ("programs", _) => Some(Kind::Programs),
        ("package", "packages" | "package" | "show" | "list") => Some(Kind::Packages),
        ("context", _) => Some(Kind::Contexts),
        _ => None,
    }
}

/// The names; none where they cannot be had in time.
fn named(
    kind: Kind,
    prefix: &str,
    position: &Position,
    connection: &ConnectionArgs,
) -> Vec<String> {
    let connection = ConnectionArgs {
        context: position.context.clone().or_else(|| connection.context.clone()),
        context_file: position.context_file.clone().or_else(|| connection.context_file.clone()),
        timeout: Some(PATIENCE),
        ..connection.clone()
    };
    if kind == Kind::Contexts {
        let path = connection.context_file.unwrap_or_else(default_path);
        let file = ContextFile::read(&path, false).unwrap_or_default();
        return file.contexts.into_iter().map(|context| context.name).collect();
    }
    let Ok(settings) = Settings::gather(&connection) else { return Vec::new() };
    if settings.complete().is_err() {
        return Vec::new();
    }
    let host = position.host.as_ref().and_then(|host| host.parse().ok());
    let hosts = HostsArgs { host, all_hosts: false };
    on_bus(&settings, connection.timeout, async |remote| {
        from_bus(kind, (prefix, position.chain.as_deref()), &hosts, remote).await
    })
    .unwrap_or_default()
}

async fn from_bus(
    kind: Kind,
    (prefix, within): (&str, Option<&str>),
    hosts: &HostsArgs,
    remote: &Remote,
) -> Result<Vec<String>, Failure> {
    if kind == Kind::Packages {
        let request = canopy_api::wire::ListRequest::default();
        let reply = remote.read_centre::<canopy_api::endpoint::registry::List>(request).await?;
        return Ok(reply.packages.into_iter().map(|package| package.name.to_string()).collect());
    }
    if kind == Kind::Hosts {
        return match remote.enrolled().await {
            Ok(records) => {
                let granted = remote.granted().await?;
                let hosts = records.into_iter().map(|record| record.host);
                let hosts =
                    hosts.filter(|host| granted.as_ref().is_none_or(|all| all.contains(host)));
                Ok(hosts.map(|host| host.to_string()).collect())
            }
            Err(_) => Ok(remote.hosts().await?.iter().map(ToString::to_string).collect()),
        };
    }
    let one = remote.one_of(hosts);
    let with_host =
        |host: &HostId| prefix.split_once('/').is_some_and(|(of, _)| of == host.as_str());
    let one = one.is_some_and(|host| !with_host(&host));
    let shown = |name: String| match name.split_once('/') {
        // The host goes without saying, unless it is written.
        Some((_, rest)) if one => rest.to_owned(),
        _ => name,
    };
    let names = if kind == Kind::Maps {
        let request = MapListRequest::default();
        let replies = match remote.one_of(hosts) {
            Some(host) => {
                vec![remote.read_host::<loader::MapList>(&host, &request, "asking").await?]
            }
            None => get::gathered(remote.read_all::<loader::MapList>(&request).await?)?.0,
        };
        Maps::of(replies).names()
    } else {
        let states = get::states(hosts, &GetRequest::default(), remote).await?.replies;
        if kind == Kind::Chains { Chains::of(states).names() } else { Programs::of(states).names() }
    };
    let names = names.into_iter();
    Ok(match (kind, within) {
        // Behind the words that name the rest.
        (Kind::Maps | Kind::ProgramNames, Some(within)) => {
            names.filter_map(|name| last_within(&name, within)).collect()
        }
        (Kind::ProgramNames, None) => {
            names.filter_map(|name| Some(name.rsplit_once('/')?.1.to_owned())).collect()
        }
        _ => names.map(shown).collect(),
    })
}

/// The last part of `web1/eth0/xdp/limit`, where `eth0/xdp` or `web1/eth0/xdp` stands before it.
fn last_within(name: &str, within: &str) -> Option<String> {
    let (before, last) = name.rsplit_once('/')?;
    let fits =
        before.strip_suffix(within).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    fits.then(|| last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_names_are_completed_behind_the_rest() {
        let last = |name| last_within(name, "eth0/xdp");
        assert_eq!(last("web1/eth0/xdp/limit").as_deref(), Some("limit"));
        assert_eq!(last("eth0/xdp/limit").as_deref(), Some("limit"));
        assert_eq!(last("web1/veth0/xdp/limit"), None);
        assert_eq!(last("web1/eth0/xdp/limit/m"), None);
    }

    fn at(line: &str) -> Position {
        let mut root = Cli::command();
        root.build();
        position(&root, &joined(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()))
    }

    #[test]
    fn words_are_completed_from_the_grammar() {
        let has = |line: &str, word: &str| at(line).fixed.contains(&word.to_owned());
        assert!(has("canopy ", "apply") && has("canopy ap", "apply"));
        assert!(!has("canopy ", "__complete"));
        assert!(has("canopy get ", "chains") && has("canopy get -A ", "chains"));
        assert!(
            has("canopy get chains --", "--document") && has("canopy get chains --", "--context")
        );
        assert!(has("canopy get hosts -o ", "json") && has("canopy get hosts --output=", "json"));
        assert!(has("canopy get programs --hook ", "tc-ingress"));
        assert!(has("canopy completion ", "zsh"));
    }

    #[test]
    fn names_are_completed_where_they_are_taken() {
        for (line, kind) in [
            ("canopy get hosts ", Kind::Hosts),
            ("canopy drain w", Kind::Hosts),
            ("canopy apply -f x --host ", Kind::Hosts),
            ("canopy apply -f x --host=", Kind::Hosts),
            ("canopy apply -f x --host = we", Kind::Hosts),
            ("canopy host show ", Kind::Hosts),
            ("canopy describe host ", Kind::Hosts),
            ("canopy describe chain ", Kind::Chains),
            ("canopy get chains a/b ", Kind::Chains),
            ("canopy delete program ", Kind::Programs),
            ("canopy --context ", Kind::Contexts),
            ("canopy config use ", Kind::Contexts),
            ("canopy describe package ", Kind::Packages),
        ] {
            assert_eq!(at(line).names, Some(kind), "{line}");
        }
        for line in ["get", "set", "dump", "describe", "delete", "follow", "list"] {
            assert_eq!(at(&format!("canopy map {line} ")).names, Some(Kind::Maps), "{line}");
            let hook = at(&format!("canopy maps {line} eth0 "));
            assert!(hook.names.is_none() && hook.fixed.contains(&"xdp".to_owned()), "{line}");
            let program = at(&format!("canopy map {line} eth0 xdp "));
            assert_eq!(
                (program.names, program.chain.as_deref()),
                (Some(Kind::ProgramNames), Some("eth0/xdp")),
                "{line}"
            );
        }
        let map = at("canopy map get eth0 xdp limit ");
        assert_eq!((map.names, map.chain.as_deref()), (Some(Kind::Maps), Some("eth0/xdp/limit")));
        assert_eq!(at("canopy map get web1/eth0/xdp/limit/m ").names, None);
        assert_eq!(at("canopy map get eth0 xdp limit m ").names, None);
        let option = at("canopy delete chain eth0 xdp --program ");
        assert_eq!(
            (option.names, option.chain.as_deref()),
            (Some(Kind::ProgramNames), Some("eth0/xdp"))
        );
        assert_eq!(at("canopy package search ").names, None);
        let given = at("canopy --context prod get chains --host web1 ");
        assert_eq!((given.context.as_deref(), given.host.as_deref()), (Some("prod"), Some("web1")));
        assert_eq!(at("canopy apply -f ").names, None);
        // Behind an interface comes a hook.
        let hook = at("canopy get chains eth0 ");
        assert_eq!(
            (hook.names, hook.fixed),
            (None, ["xdp", "tc-ingress", "tc-egress"].map(str::to_owned).to_vec())
        );
    }
}
