//! What the audit record and the events of a change say: which chains, from which programs to which, by
//! whom, with which result.

use crate::engine::Programs;
use canopy_api::{
    ApiError, DesiredState, HostId, Target,
    endpoint::Service,
    wire::{
        Action, ApplyReply, ChainChanged, DeleteRequest, MapChangeReply, MapChanged, MapName,
        ProgramVersion,
    },
};
use canopy_bus::{Bus, Caller};
use canopy_runtime::clock;
use serde_json::Value;
use std::{fmt::Write as _, time::SystemTime};

/// Characters of a description; an audit record holds a thousand.
const LONGEST: usize = 900;
/// Characters of the keys that are named of a write to a map.
const KEYS: usize = 300;

/// What an apply asks for: `eth0/xdp: a firewall@^0.1, b ratelimit; eth1/xdp: nothing`.
pub(crate) fn apply_request(document: &DesiredState) -> String {
    joined(document.chains.iter().map(|chain| {
        let programs = chain.programs.iter();
        let programs = programs.map(|one| format!("{} {}", one.name, one.package));
        format!("{}: {}", chain.target(), list(programs))
    }))
}

/// What a delete asks for: `eth0/xdp`, or `program a of eth0/xdp`.
pub(crate) fn delete_request(request: &DeleteRequest) -> String {
    let target = Target {
        netns: request.netns.clone(),
        interface: request.interface.clone(),
        hook: request.hook,
    };
    match &request.program {
        Some(program) => format!("program {program} of {target}"),
        None => target.to_string(),
    }
}

/// A chain, or what is described for a selector, with what was done to it.
struct Changed<'a> {
    target: Target,
    action: Action,
    /// Whether it is a selector.
    selector: bool,
    error: Option<&'a ApiError>,
    before: Vec<ProgramVersion>,
    after: Vec<ProgramVersion>,
}

/// Each chain and selector of a reply.
fn changed<'a>(before: &Programs, reply: &'a ApplyReply) -> Vec<Changed<'a>> {
    let of = |target: &Target| before.get(target).cloned().unwrap_or_default();
    let selectors = reply.selectors.iter().map(|one| {
        let target = one.target();
        Changed {
            action: one.action,
            selector: true,
            error: None,
            before: of(&target),
            // What each of its interfaces has stands beside it.
            after: Vec::new(),
            target,
        }
    });
    let chains = reply.chains.iter().map(|one| {
        let target = Target::from(one.key());
        let programs = one.programs.iter().map(|program| ProgramVersion {
            name: program.name.clone(),
            package: program.package.clone(),
            version: program.version.clone(),
        });
        Changed {
            action: one.action,
            selector: false,
            error: one.error.as_ref(),
            before: of(&target),
            after: programs.collect(),
            target,
        }
    });
    selectors.chain(chains).collect()
}

/// What a change did: `eth0/xdp updated: a firewall 0.1.0, b ratelimit 0.1.0 → a firewall 0.2.0`.
pub(crate) fn describe(before: &Programs, reply: &ApplyReply) -> String {
    let mut all = changed(before, reply);
    if all.iter().any(|one| one.action != Action::Unchanged) {
        all.retain(|one| one.action != Action::Unchanged);
    }
    let told = joined(all.iter().map(Changed::describe));
    let told = if told.is_empty() { "there was nothing to change".to_owned() } else { told };
    if reply.dry_run { format!("dry run: {told}") } else { told }
}

impl Changed<'_> {
    fn describe(&self) -> String {
        let of = if self.selector { "selector " } else { "" };
        let head = format!("{of}{} {}", self.target, word(self.action));
        let programs = |all: &[ProgramVersion]| list(all.iter().map(ToString::to_string));
        match (self.action, self.error) {
            (Action::Failed, Some(error)) => format!("{head}: {}", error.message),
            (Action::Failed | Action::Unchanged, _) => head,
            (Action::Removed, _) => format!("{head}: {} → nothing", programs(&self.before)),
            (Action::Created | Action::Updated, _) if self.selector => head,
            (Action::Created, _) if self.before == self.after => {
                format!("{head}: {} again", programs(&self.after))
            }
            (Action::Updated, _) if self.before == self.after => {
                format!("{head}: settings or attachment of {}", programs(&self.after))
            }
            (Action::Created | Action::Updated, _) => {
                format!("{head}: {} → {}", programs(&self.before), programs(&self.after))
            }
        }
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Created => "created",
        Action::Updated => "updated",
        Action::Unchanged => "unchanged",
        Action::Removed => "removed",
        Action::Failed => "failed",
    }
}

fn list(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

/// As many as there is room for, and how many more.
fn joined(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    let mut told = String::new();
    for (at, part) in parts.iter().enumerate() {
        let room = LONGEST.saturating_sub(told.chars().count());
        if at > 0 && part.chars().count() + 2 > room {
            let _ = write!(told, "; and {} more", parts.len() - at);
            break;
        }
        if at > 0 {
            told.push_str("; ");
        }
        told.extend(part.chars().take(room));
    }
    told
}

/// What is written to a map: `eth0/xdp/fw/blocked: 2 entries written: "10.0.0.0/8", "192.0.2.0/24"`.
pub(crate) fn map_request<'a>(
    map: &MapName,
    done: &str,
    keys: impl ExactSizeIterator<Item = &'a Value>,
) -> String {
    let count = keys.len();
    let mut names = String::new();
    for (at, key) in keys.enumerate() {
        if names.chars().count() > KEYS {
            names.push_str(", …");
            break;
        }
        names.push_str(if at > 0 { ", " } else { "" });
        names.extend(key.to_string().chars().take(KEYS));
    }
    format!("{map}: {count} entries {done}: {names}")
}

/// Publishes what a change did, chain by chain.
pub(crate) async fn publish(
    bus: &Bus,
    (caller, verb, now): (&Caller, &str, SystemTime),
    before: &Programs,
    reply: &ApplyReply,
) {
    if reply.dry_run {
        return;
    }
    for one in changed(before, reply) {
        if one.action == Action::Unchanged {
            continue;
        }
        let noun = if one.selector { "selector" } else { "chain" };
        let event = ChainChanged {
            host: reply.host.clone(),
            netns: one.target.netns,
            interface: one.target.interface,
            hook: one.target.hook,
            verb: verb.to_owned(),
            action: one.action,
            error: one.error.map(|error| error.message.clone()),
            before: one.before,
            after: one.after,
            generation: reply.generation,
            by: caller.principal.clone(),
            request_id: caller.request_id.clone(),
            time: clock::rfc3339(now),
        };
        send(bus, &reply.host, noun, &event).await;
    }
}

/// Publishes what was written to a map.
pub(crate) async fn publish_map(
    bus: &Bus,
    (caller, verb, now): (&Caller, &str, SystemTime),
    reply: &MapChangeReply,
) {
    if reply.dry_run || reply.changed == 0 {
        return;
    }
    let event = MapChanged {
        host: reply.host.clone(),
        map: reply.map.clone(),
        verb: verb.to_owned(),
        entries: reply.changed,
        generation: reply.generation,
        by: caller.principal.clone(),
        request_id: caller.request_id.clone(),
        time: clock::rfc3339(now),
    };
    send(bus, &reply.host, "map", &event).await;
}

async fn send<T: serde::Serialize + Sync>(bus: &Bus, host: &HostId, noun: &str, event: &T) {
    if let Err(error) = bus.publish_event(Service::Loader, noun, "changed", Some(host), event).await
    {
        tracing::warn!(noun, %error, "the bus was not told of a change; the audit trail has it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_bounded_and_counts_the_rest() {
        let told = joined((0..100).map(|n| format!("eth{n}/xdp created: nothing → a wall 1.0.0")));
        assert!(told.chars().count() <= 1000, "{}", told.len());
        assert!(told.starts_with("eth0/xdp created") && told.contains("; and "), "{told}");
        assert!(joined(std::iter::once("x".repeat(5000))).chars().count() <= LONGEST);
    }
}
