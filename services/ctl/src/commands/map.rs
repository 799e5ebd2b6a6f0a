//! `canopy map`

use crate::{
    cli::{HostArgs, HostsArgs, MapArgs, MapChangeArgs, MapCommand, MapSetArgs},
    commands::follow::{self, Follow},
    failure::{Exit, Failure},
    input, near,
    output::Screen,
    remote::Remote,
    view::maps::{Changed, Entries, HostMap, MapInFull, Maps},
};
use canopy_api::{
    endpoint::loader,
    wire::{
        MapDeleteRequest, MapDumpRequest, MapGetRequest, MapListReply, MapListRequest,
        MapSetRequest, MapWrite, MapWriteWhen,
    },
};
use serde_json::Value;

/// Entries asked for at once: few enough that the first are soon there.
const PAGE: u64 = 1024;

/// What a command needs before anything is asked: entries from a file.
pub fn read(command: &MapCommand) -> Result<Vec<MapWrite>, Failure> {
    match command {
        MapCommand::Set(MapSetArgs { file: Some(file), .. }) => input::list(file),
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
        MapCommand::List { interface, hook, program, netns, hosts, output } => {
            let request = MapListRequest {
                netns: netns.clone(),
                interface: interface.clone(),
                hook: *hook,
                program: program.clone(),
            };
            let maps = Maps::of(lists(hosts, &request, remote, screen).await?);
            screen.show(&maps, output.output)?;
        }
        MapCommand::Describe { map, host, output } => {
            let found = find(map, host, remote).await?;
            screen.show(&MapInFull(found), output.output)?;
        }
        MapCommand::Dump { map, limit, host, output } => {
            screen.show(&dump(map, *limit, host, remote).await?, output.output)?;
        }
        MapCommand::Get { map, keys, host, output } => {
            let host = remote.host(host).await?;
            let request =
                MapGetRequest { map: map.name(), keys: keys.iter().map(|key| json(key)).collect() };
            let reply = remote.ask_host::<loader::MapGet>(&host, &request, "asking").await?;
            let absent = reply.absent.clone();
            let entries = Entries::of(reply.host, reply.map, reply.generation, reply.entries);
            if !entries.entries.is_empty() {
                screen.show(&entries, output.output)?;
            }
            if let [first, ..] = absent.as_slice() {
                let more = match absent.len() - 1 {
                    0 => String::new(),
                    n => format!(", nor for {n} more"),
                };
                let message = format!("{} has no entry for {first}{more}", map.name());
                return Err(Failure::new(Exit::NotFound, message)
                    .fix("canopy map dump shows what is there"));
            }
        }
        MapCommand::Set(args) => {
            let host = remote.host(&args.how.host).await?;
            let request = MapSetRequest {
                map: args.map.name(),
                entries: match (&args.key, &args.value) {
                    (Some(key), Some(value)) => {
                        let (key, value) = (json(key), Some(json(value)));
                        vec![MapWrite { key, value, cpus: Vec::new() }]
                    }
                    _ => entries,
                },
                when: match (args.if_absent, args.if_present) {
                    (true, _) => MapWriteWhen::Absent,
                    (false, true) => MapWriteWhen::Present,
                    (false, false) => MapWriteWhen::Any,
                },
                dry_run: args.how.dry_run,
            };
            let id = args.how.request_id.clone();
            let reply =
                remote.ask_host_as::<loader::MapSet>(&host, &request, "writing on", id).await?;
            screen.show(&Changed { reply, done: "written" }, args.how.output.output)?;
        }
        MapCommand::Follow { map, record_type, count, host, output } => {
            let (record_type, format) = (record_type.as_deref(), output.output);
            let follow = Follow { map, record_type, count: *count, host, format };
            return follow::run(&follow, remote, screen).await;
        }
        MapCommand::Delete { map, keys, how } => {
            return delete(map, keys, how, remote, screen).await;
        }
    }
    Ok(Exit::Done)
}

async fn delete(
    map: &MapArgs,
    keys: &[String],
    how: &MapChangeArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let host = remote.host(&how.host).await?;
    let request = MapDeleteRequest {
        map: map.name(),
        keys: keys.iter().map(|key| json(key)).collect(),
        dry_run: how.dry_run,
    };
    let id = how.request_id.clone();
    let reply = remote.ask_host_as::<loader::MapDelete>(&host, &request, "removing on", id).await?;
    screen.show(&Changed { reply, done: "removed" }, how.output.output)?;
    Ok(Exit::Done)
}

/// Every page, or as many as hold `limit` entries.
async fn dump(
    map: &MapArgs,
    limit: Option<u64>,
    host: &HostArgs,
    remote: &Remote,
) -> Result<Entries, Failure> {
    let host = remote.host(host).await?;
    let mut all: Option<Entries> = None;
    let mut cursor = None;
    loop {
        let had = all.as_ref().map_or(0, |all| all.entries.len() as u64);
        let left = limit.map_or(PAGE, |limit| limit.saturating_sub(had).min(PAGE));
        let request = MapDumpRequest {
            map: map.name(),
            limit: u32::try_from(left).ok(),
            cursor: cursor.take(),
        };
        let mut reply = remote.ask_host::<loader::MapDump>(&host, &request, "asking").await?;
        cursor = reply.next.take();
        match &mut all {
            Some(all) => all.entries.append(&mut reply.entries),
            None => {
                all = Some(Entries::of(reply.host, reply.map, reply.generation, reply.entries));
            }
        }
        let Some(so_far) = &mut all else { continue };
        let full = limit.is_some_and(|limit| so_far.entries.len() as u64 >= limit);
        if cursor.is_none() || full {
            // A page may have a few more than were asked for.
            let most = limit.and_then(|limit| usize::try_from(limit).ok());
            so_far.entries.truncate(most.unwrap_or(usize::MAX));
            return all.take().ok_or_else(|| Failure::new(Exit::Failed, "no answer"));
        }
    }
}

async fn find(map: &MapArgs, host: &HostArgs, remote: &Remote) -> Result<HostMap, Failure> {
    let host = remote.host(host).await?;
    let request = MapListRequest {
        netns: map.netns.clone(),
        interface: Some(map.interface.clone()),
        hook: Some(map.hook),
        program: Some(map.program.clone()),
    };
    let reply = remote.ask_host::<loader::MapList>(&host, &request, "asking").await?;
    let chain = map.name().key();
    let known: Vec<String> = reply
        .maps
        .iter()
        .filter(|info| info.name.key() == chain)
        .map(|info| info.name.map.clone())
        .collect();
    let found = reply.maps.into_iter().find(|info| info.name == map.name());
    found.map(|info| HostMap { host: reply.host, info }).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no map {}", map.name())).fix(near::remedy(
            &map.map,
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
) -> Result<Vec<MapListReply>, Failure> {
    let mut replies = Vec::new();
    if let Some(host) = remote.one_of(hosts) {
        replies.push(remote.ask_host::<loader::MapList>(&host, request, "asking").await?);
    } else {
        for (host, answer) in remote.ask_all::<loader::MapList>(request).await? {
            match answer {
                Ok(reply) => replies.push(reply),
                Err(error) => screen.note(&format!("note: {host} answers with an error: {error}")),
            }
        }
        if replies.is_empty() {
            return Err(super::get::nobody());
        }
    }
    for reply in &replies {
        for note in &reply.notes {
            screen.note(&format!("note: {}: {note}", reply.host));
        }
    }
    Ok(replies)
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
    fn what_is_no_json_is_text() {
        assert_eq!(json("80"), value!(80));
        assert_eq!(json("-1"), value!(-1));
        assert_eq!(json("eth0"), value!("eth0"));
        assert_eq!(json("\"80\""), value!("80"));
        assert_eq!(json("{\"a\": [1]}"), value!({ "a": [1] }));
        assert_eq!(json("de:ad"), value!("de:ad"));
    }
}
