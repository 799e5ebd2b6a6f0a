//! `canopy map`

use crate::{
    cli::{
        HostArgs, HostsArgs, MapArgs, MapChangeArgs, MapCommand, MapSetArgs, NotFoundArgs,
        name::{ChainName, MapPath, ProgramPath, one_host},
    },
    commands::follow::{self, Follow},
    failure::{Exit, Failure},
    input,
    output::Screen,
    remote::Remote,
    view::{
        address::Declared,
        maps::{Changed, Entries, HostMap, MapInFull, Maps},
    },
    written,
};
use canopy_api::{
    HostId, Netns,
    endpoint::loader,
    near,
    wire::{
        MapDeleteRequest, MapDumpReply, MapDumpRequest, MapGetRequest, MapListReply,
        MapListRequest, MapName, MapSetRequest, MapWrite, MapWriteWhen,
    },
};
use serde_json::Value;
use std::path::Path;

/// Entries asked for at once: few enough that the first are soon there.
const PAGE: u64 = 1024;

/// What a command needs before anything is asked: entries from a file.
pub fn read(command: &MapCommand) -> Result<Vec<MapWrite>, Failure> {
    match command {
        MapCommand::Set(MapSetArgs { file: Some(file), .. }) => input::map_entries(file),
        _ => Ok(Vec::new()),
    }
}

/// Asks and shows. `entries` are those of a file.
pub async fn run(
    command: &MapCommand,
    entries: Vec<MapWrite>,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        MapCommand::List { program, netns, hosts, output } => {
            let (host, request) = wanted(program, netns.as_ref())?;
            let option = if hosts.all_hosts { None } else { hosts.host.as_ref() };
            let host = one_host([host.as_ref()], option)?;
            let hosts = HostsArgs { all_hosts: hosts.all_hosts && host.is_none(), host };
            let (replies, exit) = lists(&hosts, &request, remote, screen).await?;
            screen.show(&Maps::of(replies), output.output)?;
            return Ok(exit);
        }
        MapCommand::Describe { map, host, output } => {
            let map = map.alone()?;
            let found = find(&map, host, remote).await?;
            screen.show(&MapInFull(found), output.output)?;
        }
        MapCommand::Dump { map, limit, host, output } => {
            let map = map.alone()?;
            let mut entries = dump(&map, *limit, host, remote).await?;
            show_addresses(&mut entries, &map, host, remote).await;
            screen.show(&entries, output.output)?;
        }
        MapCommand::Get { map, host, output } => {
            let (map, words) = map.split()?;
            let host = host_of(&map, host, remote).await?;
            let keys = taken_keys(&map, &host, words, remote).await?;
            let request = MapGetRequest { map: map.name.clone(), keys: keys.clone() };
            let reply = remote.ask_host::<loader::MapGet>(&host, &request, "asking").await?;
            let absent = reply.absent.clone();
            let mut entries = Entries::of(reply.host, reply.map, reply.generation, reply.entries);
            let args = HostArgs { host: Some(host) };
            show_addresses(&mut entries, &map, &args, remote).await;
            if !entries.entries.is_empty() {
                screen.show(&entries, output.output)?;
            }
            if let Some(failure) = no_entry(&map.name, &keys, words, &absent) {
                return Err(failure);
            }
        }
        MapCommand::Set(args) => {
            let (map, words) = args.map.split()?;
            let host = host_of(&map, &args.how.host, remote).await?;
            let written = MapSetRequest {
                map: map.name.clone(),
                entries: match (words, &args.file) {
                    ([key, value], None) => {
                        let (key, value) = (json(key), Some(json(value)));
                        vec![MapWrite { key, value, cpus: Vec::new() }]
                    }
                    ([], Some(_)) => entries,
                    (_, Some(_)) => {
                        return Err(Failure::new(Exit::Invalid, "--file has the keys and values")
                            .fix("leave out the key and the value"));
                    }
                    (_, None) => {
                        return Err(Failure::new(
                            Exit::Invalid,
                            "one key and one value are needed",
                        )
                        .fix("canopy map set MAP KEY VALUE, or --file FILE"));
                    }
                },
                when: match (args.if_absent, args.if_present) {
                    (true, _) => MapWriteWhen::Absent,
                    (false, true) => MapWriteWhen::Present,
                    (false, false) => MapWriteWhen::Any,
                },
                dry_run: args.how.dry_run,
            };
            let request = taken_entries(&map, &host, written, remote).await?;
            let id = args.how.request_id.clone();
            let reply =
                remote.ask_host_as::<loader::MapSet>(&host, &request, "writing on", id).await;
            let reply = reply.map_err(|failure| located(failure, args.file.as_deref()))?;
            screen.show(&Changed { reply, done: "written" }, args.how.output.output)?;
        }
        MapCommand::Follow { map, record_type, count, host, output } => {
            let map = map.alone()?;
            let host = host_of(&map, host, remote).await?;
            let (record_type, format) = (record_type.as_deref(), output.output);
            let follow = Follow { map: &map.name, record_type, count: *count, host: &host, format };
            return follow::run(&follow, remote, screen).await;
        }
        MapCommand::Delete { map, absent, how } => {
            return delete(map, *absent, how, remote, screen).await;
        }
    }
    Ok(Exit::Done)
}

/// An error about entries that were written, with the file or the word in place of the request's field.
fn located(mut failure: Failure, file: Option<&Path>) -> Failure {
    for problem in &mut failure.problems {
        let Some(path) = problem.path.strip_prefix("entries") else { continue };
        problem.path = match file {
            Some(file) => format!("{}: {path}", file.display()),
            None if path.contains("].key") => "KEY".to_owned(),
            None if path.contains("].value") => "VALUE".to_owned(),
            None => continue,
        };
    }
    failure
}

/// Keys, at least one.
fn keys_of(words: &[String]) -> Result<Vec<Value>, Failure> {
    if words.is_empty() {
        return Err(Failure::new(Exit::Invalid, "a key is missing").fix("write it behind the map"));
    }
    Ok(words.iter().map(|key| json(key)).collect())
}

/// Keys as the host takes them: addresses by the type of the map's keys.
async fn taken_keys(
    map: &MapPath,
    host: &HostId,
    words: &[String],
    remote: &Remote,
) -> Result<Vec<Value>, Failure> {
    let keys = keys_of(words)?;
    if !keys.iter().any(written::has_address) {
        return Ok(keys);
    }
    let info = find(map, &HostArgs { host: Some(host.clone()) }, remote).await?.info;
    keys.iter().map(|key| written::key(&info, key)).collect()
}

/// The same of entries to write.
async fn taken_entries(
    map: &MapPath,
    host: &HostId,
    mut request: MapSetRequest,
    remote: &Remote,
) -> Result<MapSetRequest, Failure> {
    let values = |entry: &MapWrite| entry.value.iter().chain(&entry.cpus).any(written::has_address);
    if !request.entries.iter().any(|entry| written::has_address(&entry.key) || values(entry)) {
        return Ok(request);
    }
    let info = find(map, &HostArgs { host: Some(host.clone()) }, remote).await?.info;
    for entry in &mut request.entries {
        entry.key = written::key(&info, &entry.key)?;
        for value in entry.value.iter_mut().chain(&mut entry.cpus) {
            *value = written::value(&info, value);
        }
    }
    Ok(request)
}

/// The host that the map's name or the option speaks of.
async fn host_of(map: &MapPath, args: &HostArgs, remote: &Remote) -> Result<HostId, Failure> {
    let host = one_host([map.host.as_ref()], args.host.as_ref())?;
    remote.host(&HostArgs { host }).await
}

/// Of which interface, hook and program maps are listed.
fn wanted(
    words: &[String],
    netns: Option<&Netns>,
) -> Result<(Option<HostId>, MapListRequest), Failure> {
    let (chain, program) = match words {
        [] => (None, None),
        [path] if path.contains('/') => match ChainName::parse(path) {
            Ok(chain) => (Some(chain), None),
            Err(failure) => {
                let path = ProgramPath::parse(path).map_err(|_| failure)?;
                (path.chain, Some(path.program))
            }
        },
        [interface] => (Some(ChainName::parse(interface)?), None),
        [interface, hook] => {
            (ChainName::list(&[interface.clone(), hook.clone()], None)?.pop(), None)
        }
        [interface, hook, program, ..] => {
            let program = program.parse().map_err(|error: canopy_api::name::NameError| {
                Failure::new(Exit::Invalid, error.to_string())
            })?;
            (ChainName::list(&[interface.clone(), hook.clone()], None)?.pop(), Some(program))
        }
    };
    let request = MapListRequest {
        netns: chain.as_ref().and_then(|chain| chain.netns.clone()).or_else(|| netns.cloned()),
        interface: chain.as_ref().and_then(|chain| chain.interface.name().cloned()),
        hook: chain.as_ref().and_then(|chain| chain.hook),
        program,
        cursor: None,
    };
    Ok((chain.and_then(|chain| chain.host), request))
}

async fn delete(
    map: &MapArgs,
    not_found: NotFoundArgs,
    how: &MapChangeArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let (map, words) = map.split()?;
    let host = host_of(&map, &how.host, remote).await?;
    let keys = taken_keys(&map, &host, words, remote).await?;
    let request = MapDeleteRequest { keys, map: map.name, dry_run: how.dry_run };
    let id = how.request_id.clone();
    let reply = remote.ask_host_as::<loader::MapDelete>(&host, &request, "removing on", id).await?;
    let failure = no_entry(&request.map, &request.keys, words, &reply.absent);
    screen.show(&Changed { reply, done: "removed" }, how.output.output)?;
    match failure.filter(|_| !not_found.ignore_not_found) {
        Some(failure) => Err(failure),
        None => Ok(Exit::Done),
    }
}

/// What is told of keys that have no entry, the first of them as it was written.
fn no_entry(map: &MapName, keys: &[Value], words: &[String], absent: &[Value]) -> Option<Failure> {
    let first = absent.first()?;
    let word = keys.iter().position(|key| key == first).and_then(|index| words.get(index));
    let first = word.map_or_else(|| first.to_string(), Clone::clone);
    let more = match absent.len() - 1 {
        0 => String::new(),
        n => format!(", nor for {n} more"),
    };
    let message = format!("{map} has no entry for {first}{more}");
    Some(Failure::new(Exit::NotFound, message).fix("canopy map dump shows what is there"))
}

/// Every page, or as many as hold `limit` entries.
async fn dump(
    map: &MapPath,
    limit: Option<u64>,
    host: &HostArgs,
    remote: &Remote,
) -> Result<Entries, Failure> {
    let host = host_of(map, host, remote).await?;
    let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let request = MapDumpRequest {
        map: map.name.clone(),
        limit: u32::try_from(limit.map_or(PAGE, |limit| limit.min(PAGE))).ok(),
        cursor: None,
    };
    let enough = |reply: &MapDumpReply| reply.entries.len() >= most;
    let mut reply =
        remote.read_host_until::<loader::MapDump>(&host, &request, "asking", enough).await?;
    // A page may have a few more than were asked for.
    reply.entries.truncate(most);
    Ok(Entries::of(reply.host, reply.map, reply.generation, reply.entries))
}

/// Addresses as people write them; as the host tells them where the types of key and value cannot be had.
async fn show_addresses(entries: &mut Entries, map: &MapPath, host: &HostArgs, remote: &Remote) {
    let Ok(found) = find(map, host, remote).await else { return };
    let declared = |ty: Option<String>| Declared::parse(ty.as_deref().unwrap_or_default());
    entries.show_addresses(&declared(found.info.key_type), &declared(found.info.value_type));
}

async fn find(map: &MapPath, host: &HostArgs, remote: &Remote) -> Result<HostMap, Failure> {
    let host = host_of(map, host, remote).await?;
    let name = &map.name;
    let request = MapListRequest {
        netns: name.netns.clone(),
        interface: Some(name.interface.clone()),
        hook: Some(name.hook),
        program: Some(name.program.clone()),
        cursor: None,
    };
    let reply = remote.read_host::<loader::MapList>(&host, &request, "asking").await?;
    let chain = name.key();
    let known: Vec<String> = reply
        .maps
        .iter()
        .filter(|info| info.name.key() == chain)
        .map(|info| info.name.map.clone())
        .collect();
    let found = reply.maps.into_iter().find(|info| info.name == *name);
    found.map(|info| HostMap { host: reply.host, info }).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no map {name}")).fix(near::hint(
            &name.map,
            known.iter().map(String::as_str),
            "canopy map list -A lists them",
        ))
    })
}

/// The maps of one host, or of all that answer.
async fn lists(
    hosts: &HostsArgs,
    request: &MapListRequest,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<(Vec<MapListReply>, Exit), Failure> {
    let mut exit = Exit::Done;
    let replies = if let Some(host) = remote.one_of(hosts) {
        vec![remote.read_host::<loader::MapList>(&host, request, "asking").await?]
    } else {
        let all = remote.read_all::<loader::MapList>(request).await?;
        let (replies, trouble) = super::get::gathered(all)?;
        for failure in &trouble {
            screen.fail(failure);
            exit = Exit::Partly;
        }
        replies
    };
    for reply in &replies {
        for note in &reply.notes {
            screen.note(&format!("note: {}: {note}", reply.host));
        }
    }
    Ok((replies, exit))
}

/// JSON; what is none is text.
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    #[test]
    fn errors_about_entries_name_the_file_or_the_word() {
        let at = |path: &str, file: Option<&str>| {
            let failure = Failure::new(Exit::Invalid, "no").at(path);
            located(failure, file.map(Path::new)).problems[0].path.clone()
        };
        assert_eq!(at("entries[0].key.port", None), "KEY");
        assert_eq!(at("entries[0].value", None), "VALUE");
        assert_eq!(at("entries[7].cpus[1]", Some("a.yaml")), "a.yaml: [7].cpus[1]");
        assert_eq!(at("MAP", Some("a.yaml")), "MAP");
    }

    #[test]
    fn what_is_no_json_is_text() {
        assert_eq!(json("80"), value!(80));
        assert_eq!(json("-1"), value!(-1));
        assert_eq!(json("eth0"), value!("eth0"));
        assert_eq!(json("\"80\""), value!("80"));
        assert_eq!(json("{\"a\": [1]}"), value!({ "a": [1] }));
        assert_eq!(json("de:ad"), value!("de:ad"));
    }
}
