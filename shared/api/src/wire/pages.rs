//! Replies in pages: no reply is longer than one message of the bus, whatever the state is.
//!
//! A page is filled up to a number of bytes. A chain or selector that is longer than a whole page is
//! divided into parts at its programs, settings, items of a list setting, and metrics; [`Divisible::join`]
//! puts the parts together again.

use super::{
    Action, ApplyReply, ChainStatus, DescribeReply, GetReply, GetRequest, ListReply, ListRequest,
    MapDumpReply, MapDumpRequest, MapListReply, MapListRequest, MetricValue, PlannedProgram,
    ProgramStatus, RulesReply, RulesRequest, SearchReply, SearchRequest, SelectorStatus,
    hosts::{HostListReply, HostListRequest},
    tokens::{TokenListReply, TokenListRequest},
};
use crate::{
    endpoint::{Endpoint, loader, policy, registry},
    error::ApiError,
    name::ProgramName,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Bytes of JSON that the items of one page take at most: half of what a message holds by default, because
/// MessagePack writes some values longer than JSON.
pub const PAGE_BYTES: usize = 512 * 1024;

/// Note of the maps' list for clients that do not follow pages.
pub const MORE_MAPS: &str = "there are more maps than these: repeat the request with \"next\" of this reply \
                             as \"cursor\", or name an interface, a hook or a program";

/// An endpoint that is answered in pages.
pub trait Paged: Endpoint {
    /// Turns the request for a page into the request for the page behind it; false on the last page. A
    /// service that knows no pages names no next one.
    fn advance(request: &mut Self::Request, reply: &Self::Reply) -> bool;

    /// Adds the next page.
    fn append(reply: &mut Self::Reply, page: Self::Reply);
}

/// Sets the cursor; false where there is no next page.
fn follow<T: Clone>(cursor: &mut Option<T>, next: Option<&T>) -> bool {
    *cursor = next.cloned();
    cursor.is_some()
}

impl Paged for loader::Get {
    fn advance(request: &mut GetRequest, reply: &GetReply) -> bool {
        follow(&mut request.cursor, reply.next.as_ref())
    }

    fn append(reply: &mut GetReply, page: GetReply) {
        append_parts(&mut reply.chains, page.chains);
        append_parts(&mut reply.selectors, page.selectors);
        reply.stray_pins.extend(page.stray_pins);
        reply.generation = page.generation;
        reply.drained = page.drained;
        reply.next = page.next;
    }
}

impl Paged for loader::MapList {
    fn advance(request: &mut MapListRequest, reply: &MapListReply) -> bool {
        follow(&mut request.cursor, reply.next.as_ref())
    }

    fn append(reply: &mut MapListReply, page: MapListReply) {
        reply.maps.extend(page.maps);
        for note in page.notes {
            if !reply.notes.contains(&note) {
                reply.notes.push(note);
            }
        }
        if page.next.is_none() {
            reply.notes.retain(|note| note != MORE_MAPS);
        }
        reply.next = page.next;
    }
}

impl Paged for loader::MapDump {
    fn advance(request: &mut MapDumpRequest, reply: &MapDumpReply) -> bool {
        follow(&mut request.cursor, reply.next.as_ref())
    }

    fn append(reply: &mut MapDumpReply, page: MapDumpReply) {
        reply.entries.extend(page.entries);
        reply.generation = page.generation;
        reply.next = page.next;
    }
}

impl Paged for registry::List {
    fn advance(request: &mut ListRequest, reply: &ListReply) -> bool {
        follow(&mut request.cursor, reply.next.as_ref())
    }

    fn append(reply: &mut ListReply, page: ListReply) {
        reply.packages.extend(page.packages);
        // Each page says it of all repositories.
        reply.unavailable = page.unavailable;
        reply.next = page.next;
    }
}

impl Paged for registry::Search {
    fn advance(request: &mut SearchRequest, reply: &SearchReply) -> bool {
        follow(&mut request.cursor, reply.next.as_ref())
    }

    fn append(reply: &mut SearchReply, page: SearchReply) {
        reply.packages.extend(page.packages);
        reply.more = page.more;
        reply.unavailable = page.unavailable;
        reply.next = page.next;
    }
}

impl Paged for policy::HostList {
    fn advance(request: &mut HostListRequest, reply: &HostListReply) -> bool {
        follow(&mut request.after, reply.next.as_ref())
    }

    fn append(reply: &mut HostListReply, page: HostListReply) {
        reply.hosts.extend(page.hosts);
        reply.next = page.next;
    }
}

impl Paged for policy::Rules {
    fn advance(request: &mut RulesRequest, reply: &RulesReply) -> bool {
        follow(&mut request.cursor, reply.next.as_ref())
    }

    fn append(reply: &mut RulesReply, page: RulesReply) {
        let text = reply.text.get_or_insert_default();
        text.push_str(page.text.as_deref().unwrap_or_default());
        reply.next = page.next;
        // The last page makes it whole. Text that is no document is left as it is.
        if reply.next.is_none()
            && let Ok(document) = serde_json::from_str(text)
        {
            (reply.document, reply.text) = (document, None);
        }
    }
}

impl Paged for policy::TokenList {
    fn advance(request: &mut TokenListRequest, reply: &TokenListReply) -> bool {
        follow(&mut request.after, reply.next.as_ref())
    }

    fn append(reply: &mut TokenListReply, page: TokenListReply) {
        reply.tokens.extend(page.tokens);
        reply.next = page.next;
    }
}

/// Where in a long item a part begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offset {
    /// The program, by its place in the item.
    pub program: usize,
    /// The setting of the program, by its place among them.
    #[serde(default)]
    pub setting: usize,
    /// The item of the setting, where it is a list.
    #[serde(default)]
    pub item: usize,
    /// The metric of the program.
    #[serde(default)]
    pub metric: usize,
}

/// A part of an item, and how much of the page it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<T> {
    /// The part.
    pub part: T,
    /// Its length in JSON, bytes.
    pub bytes: usize,
    /// Where the next part begins; absent for the last one.
    pub rest: Option<Offset>,
}

/// A program inside an item that may be divided.
pub trait Divided {
    /// Its name.
    fn name(&self) -> &ProgramName;
    /// Its settings.
    fn config(&mut self) -> &mut Map<String, Value>;
    /// Its metrics, where it has some.
    fn metrics(&mut self) -> Option<&mut Vec<MetricValue>>;
}

impl Divided for ProgramStatus {
    fn name(&self) -> &ProgramName {
        &self.name
    }

    fn config(&mut self) -> &mut Map<String, Value> {
        &mut self.config
    }

    fn metrics(&mut self) -> Option<&mut Vec<MetricValue>> {
        Some(&mut self.metrics)
    }
}

impl Divided for PlannedProgram {
    fn name(&self) -> &ProgramName {
        &self.name
    }

    fn config(&mut self) -> &mut Map<String, Value> {
        &mut self.config
    }

    fn metrics(&mut self) -> Option<&mut Vec<MetricValue>> {
        None
    }
}

/// An item that is divided where it is longer than a page.
pub trait Divisible: Serialize + Sized {
    /// What it consists of.
    type Program: Divided + Serialize;

    /// Its programs.
    fn programs(&mut self) -> &mut Vec<Self::Program>;

    /// Whether its rest is on the next page.
    fn continues(&mut self) -> &mut bool;

    /// Whether both are parts of one item.
    fn is_same(&self, other: &Self) -> bool;

    /// The part that begins at `from` and takes at most `room` bytes. A part always has something of the
    /// item, so that whoever goes on reading comes to its end.
    fn divide(mut self, from: Offset, room: usize) -> Part<Self> {
        let bytes = json_length(&self);
        if from == Offset::default() && bytes <= room {
            return Part { part: self, bytes, rest: None };
        }
        let programs = std::mem::take(self.programs());
        let head = json_length(&self).saturating_add(NAMES);
        let mut budget = Budget { left: room.saturating_sub(head), used: head, any: false };
        let mut rest = None;
        for (index, program) in programs.into_iter().enumerate().skip(from.program) {
            let from = if index == from.program {
                from
            } else {
                Offset { program: index, ..Offset::default() }
            };
            let (part, behind) = divide_program(program, from, &mut budget);
            self.programs().extend(part);
            if behind.is_some() {
                rest = behind;
                break;
            }
        }
        *self.continues() = rest.is_some();
        Part { part: self, bytes: budget.used, rest }
    }

    /// Adds the part that follows.
    fn join(&mut self, mut rest: Self) {
        let continues = *rest.continues();
        for mut program in std::mem::take(rest.programs()) {
            match self.programs().last_mut().filter(|last| last.name() == program.name()) {
                Some(last) => {
                    join_config(last.config(), std::mem::take(program.config()));
                    let metrics = program.metrics().map(std::mem::take).unwrap_or_default();
                    if let Some(all) = last.metrics() {
                        all.extend(metrics);
                    }
                }
                None => self.programs().push(program),
            }
        }
        *self.continues() = continues;
    }
}

impl Divisible for ChainStatus {
    type Program = ProgramStatus;

    fn programs(&mut self) -> &mut Vec<ProgramStatus> {
        &mut self.programs
    }

    fn continues(&mut self) -> &mut bool {
        &mut self.continues
    }

    fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Divisible for SelectorStatus {
    type Program = PlannedProgram;

    fn programs(&mut self) -> &mut Vec<PlannedProgram> {
        &mut self.programs
    }

    fn continues(&mut self) -> &mut bool {
        &mut self.continues
    }

    fn is_same(&self, other: &Self) -> bool {
        self.target() == other.target()
    }
}

/// What is left of a page.
struct Budget {
    left: usize,
    used: usize,
    /// Whether anything is on the page: the first thing is, whatever its length.
    any: bool,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> bool {
        if self.any && bytes > self.left {
            return false;
        }
        self.spend(bytes);
        self.any = true;
        true
    }

    fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        self.used = self.used.saturating_add(bytes);
    }
}

/// What fits of a program from `from` on, and where the rest begins; no part where nothing fits.
fn divide_program<P: Divided + Serialize>(
    mut program: P,
    from: Offset,
    budget: &mut Budget,
) -> (Option<P>, Option<Offset>) {
    let config = std::mem::take(program.config());
    let metrics = program.metrics().map(std::mem::take).unwrap_or_default();
    let settings = config.len();
    let head = json_length(&program).saturating_add(NAMES);
    if config.is_empty() && metrics.is_empty() {
        if !budget.take(head) {
            return (None, Some(from));
        }
    } else if budget.any && head > budget.left {
        return (None, Some(from));
    } else {
        budget.spend(head);
    }
    for (setting, (name, value)) in config.into_iter().enumerate().skip(from.setting) {
        let first = if setting == from.setting { from.item } else { 0 };
        let at = Offset { setting, item: 0, ..from };
        let label = name.len() + QUOTES;
        match value {
            Value::Array(items) if !items.is_empty() => {
                let mut part = Vec::new();
                let mut behind = None;
                for (item, value) in items.into_iter().enumerate().skip(first) {
                    let label = if part.is_empty() { label } else { 0 };
                    if !budget.take(json_length(&value).saturating_add(1 + label)) {
                        behind = Some(Offset { item, ..at });
                        break;
                    }
                    part.push(value);
                }
                if !part.is_empty() {
                    program.config().insert(name, Value::Array(part));
                }
                if behind.is_some() {
                    return (Some(program), behind);
                }
            }
            value => {
                if !budget.take(json_length(&value).saturating_add(label)) {
                    return (Some(program), Some(at));
                }
                program.config().insert(name, value);
            }
        }
    }
    for (metric, value) in metrics.into_iter().enumerate().skip(from.metric) {
        if !budget.take(json_length(&value).saturating_add(1)) {
            return (Some(program), Some(Offset { setting: settings, item: 0, metric, ..from }));
        }
        if let Some(all) = program.metrics() {
            all.push(value);
        }
    }
    (Some(program), None)
}

/// Settings of the next part: what is given of a list continues it.
fn join_config(config: &mut Map<String, Value>, rest: Map<String, Value>) {
    for (name, value) in rest {
        match (config.get_mut(&name), value) {
            (Some(Value::Array(items)), Value::Array(more)) => items.extend(more),
            (_, value) => {
                config.insert(name, value);
            }
        }
    }
}

/// Adds the items of a page; the first may continue the last one before it.
fn append_parts<T: Divisible>(items: &mut Vec<T>, page: Vec<T>) {
    for item in page {
        let last = items.last_mut().filter(|last| last.is_same(&item));
        match last.and_then(|last| (*last.continues()).then_some(last)) {
            Some(last) => last.join(item),
            None => items.push(item),
        }
    }
}

/// Bytes of a name in JSON beside itself: quotes, colon, comma.
const QUOTES: usize = 4;
/// Bytes of the names of fields that are absent while they are empty: `"config":{},"metrics":[],` of a program,
/// `"continues":true,` of a chain.
const NAMES: usize = 32;

/// Length in JSON, bytes.
pub fn json_length(value: &impl Serialize) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    match serde_json::to_writer(&mut counter, value) {
        Ok(()) => counter.0,
        Err(_) => usize::MAX,
    }
}

/// What an [`ApplyReply`] leaves out where it would be longer than the bus carries.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Omitted {
    /// The settings of the programs.
    Settings,
    /// The steps, and the chains as the kernel has them.
    Details,
    /// The programs of chains, and all but the first line of long errors.
    Programs,
    /// Chains that are unchanged, then others: `get` has all of them.
    Chains,
}

impl Omitted {
    /// As a person reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings of programs",
            Self::Details => "steps and observed chains",
            Self::Programs => "programs and the details of errors",
            Self::Chains => "chains",
        }
    }
}

impl ApplyReply {
    /// The reply with as much left out as it takes to be at most `room` bytes long in JSON. What a change
    /// did cannot be asked for page by page: it is done by then.
    #[must_use]
    pub fn within(mut self, room: usize) -> Self {
        for part in [Omitted::Settings, Omitted::Details, Omitted::Programs, Omitted::Chains] {
            let length = json_length(&self);
            if length <= room {
                break;
            }
            self.omitted.push(part);
            match part {
                Omitted::Settings => {
                    for program in self.chains.iter_mut().flat_map(|chain| &mut chain.programs) {
                        program.config = Map::new();
                    }
                }
                Omitted::Details => {
                    for chain in &mut self.chains {
                        chain.steps = Vec::new();
                        chain.observed = None;
                    }
                }
                Omitted::Programs => {
                    for chain in &mut self.chains {
                        chain.programs = Vec::new();
                        chain.error = chain.error.take().map(briefly);
                    }
                }
                Omitted::Chains => self.omit_chains(room),
            }
        }
        self
    }

    /// Leaves out chains: those that are unchanged first, those that failed last.
    fn omit_chains(&mut self, room: usize) {
        let mut left = {
            let chains = std::mem::take(&mut self.chains);
            let head = json_length(self);
            self.chains = chains;
            room.saturating_sub(head)
        };
        let rank = |action| match action {
            Action::Failed => 0,
            Action::Created | Action::Updated | Action::Removed => 1,
            Action::Unchanged => 2,
        };
        let mut order: Vec<usize> = (0..self.chains.len()).collect();
        order.sort_by_key(|at| self.chains.get(*at).map(|chain| rank(chain.action)));
        let mut kept = BTreeSet::new();
        for at in order {
            let length = self.chains.get(at).map_or(0, json_length).saturating_add(1);
            if length > left {
                break;
            }
            left -= length;
            kept.insert(at);
        }
        let mut at = 0;
        self.chains.retain(|_| {
            at += 1;
            kept.contains(&(at - 1))
        });
    }
}

impl DescribeReply {
    /// The description with as much left out as it takes to be at most `room` bytes long in JSON: the end of
    /// the README first, the parts of the manifest last.
    #[must_use]
    pub fn within(mut self, room: usize) -> Self {
        let over = |reply: &Self| json_length(reply).checked_sub(room).filter(|over| *over > 0);
        if let Some(over) = over(&self)
            && !self.readme.is_empty()
        {
            self.omitted.push("readme".to_owned());
            // Of a text that JSON has to escape, more goes than has to.
            let keep = self.readme.len().saturating_sub(over.saturating_add(64));
            let keep = (0..=keep).rev().find(|at| self.readme.is_char_boundary(*at));
            self.readme.truncate(keep.unwrap_or_default());
            if json_length(&self) > room {
                self.readme = String::new();
            }
        }
        if over(&self).is_some() {
            self.omitted.push("config_schema".to_owned());
            self.config_schema = Value::Null;
        }
        if over(&self).is_some() {
            self.omitted.push("maps".to_owned());
            self.maps = Vec::new();
        }
        while over(&self).is_some() {
            let Some(fields) = self.manifest.as_object_mut() else { break };
            let longest = fields.iter().max_by_key(|(_, value)| json_length(value));
            let Some(name) = longest.map(|(name, _)| name.clone()) else { break };
            fields.remove(&name);
            self.omitted.push(format!("manifest.{name}"));
        }
        self
    }
}

/// An error without what follows its first line.
fn briefly(error: ApiError) -> ApiError {
    const LONGEST: usize = 512;
    let line = error.message.lines().next().unwrap_or_default();
    let message = line.chars().take(LONGEST).collect();
    ApiError { message, problems: Vec::new(), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(programs: &[(&str, Value, usize)]) -> ChainStatus {
        let programs: Vec<Value> = programs
            .iter()
            .enumerate()
            .map(|(position, (name, config, metrics))| {
                let metrics: Vec<Value> = (0..*metrics)
                    .map(|n| {
                        json!({ "name": "dropped", "help": "Packets", "kind": "counter",
                                "labels": { "item": n.to_string() }, "value": 1.0 })
                    })
                    .collect();
                json!({ "name": name, "position": position, "package": "firewall",
                        "version": "0.1.0", "program": "firewall", "function": "firewall",
                        "digest": format!("sha256:{}", "0".repeat(64)), "priority": 1,
                        "proceed_on": [], "config": config, "runs": 0, "verdicts": {},
                        "exits": {}, "metrics": metrics })
            })
            .collect();
        serde_json::from_value(json!({ "interface": "eth0", "hook": "xdp", "state": "active",
                                       "restored": 0, "programs": programs }))
        .unwrap()
    }

    /// Cut into parts of at most `room` bytes and joined again, with the longest part.
    fn joined(whole: &ChainStatus, room: usize) -> (ChainStatus, usize, usize) {
        let mut offset = Offset::default();
        let mut all: Vec<ChainStatus> = Vec::new();
        let (mut parts, mut longest) = (0, 0);
        loop {
            let Part { part, bytes, rest } = whole.clone().divide(offset, room);
            assert!(bytes >= json_length(&part), "{bytes} for {}", json_length(&part));
            assert_eq!(part.continues, rest.is_some());
            longest = longest.max(json_length(&part));
            parts += 1;
            append_parts(&mut all, vec![part]);
            let Some(next) = rest else { break };
            assert_ne!(next, offset, "a part without anything in it");
            offset = next;
        }
        assert_eq!(all.len(), 1);
        (all.remove(0), parts, longest)
    }

    #[test]
    fn parts_of_a_chain_make_the_chain_again() {
        let prefixes: Vec<String> = (0..80).map(|n| format!("10.0.{n}.0/24")).collect();
        let text = "x".repeat(300);
        for programs in [
            vec![],
            vec![("a", json!({}), 0)],
            vec![("a", json!({}), 60)],
            vec![("a", json!({ "empty": [], "list": prefixes, "n": 1, "text": text }), 30)],
            vec![
                ("a", json!({ "list": prefixes }), 10),
                ("b", json!({}), 0),
                ("c", json!({ "a": 1, "b": [], "c": [1, 2], "d": text }), 0),
                ("d", json!({ "list": prefixes, "more": prefixes }), 90),
            ],
        ] {
            let whole = chain(&programs);
            let length = json_length(&whole);
            for room in [1, 600, 1_000, 1_500, 3_000, 20_000, length - 1, length] {
                let (again, parts, longest) = joined(&whole, room);
                assert_eq!(again, whole, "{room}");
                assert!(parts == 1 || room < length, "{parts} parts of {room}");
                assert!(parts > 1 || room >= length || programs.len() < 3, "{room}");
                // The head of chain and program stands on every part, and one item always does.
                assert!(longest <= room.max(1_500), "{longest} in {room}");
            }
        }
    }

    #[test]
    fn a_reply_of_a_change_fits_and_says_what_is_missing() {
        let outcome = |n: usize, action: &str| {
            let prefixes: Vec<String> = (0..50).map(|n| format!("10.0.{n}.0/24")).collect();
            let mut outcome = json!({
                "interface": format!("eth{n}"), "hook": "xdp", "action": action,
                "steps": ["prepare", "switch"],
                "programs": [{ "name": "a", "package": "firewall", "version": "0.1.0",
                               "digest": format!("sha256:{}", "0".repeat(64)), "program": "f",
                               "priority": 1, "proceed_on": [], "config": { "list": prefixes } }],
            });
            if action == "failed" {
                outcome["error"] = json!({ "code": "invalid", "retryable": false, "message": "bad\nlog",
                                           "problems": [{ "path": "", "message": "x".repeat(900) }] });
            }
            outcome
        };
        let mut chains: Vec<Value> = (0..90).map(|n| outcome(n, "unchanged")).collect();
        chains.extend((90..99).map(|n| outcome(n, "updated")));
        chains.push(outcome(99, "failed"));
        let whole: ApplyReply = serde_json::from_value(json!({
            "host": "web1", "generation": 2, "dry_run": false, "chains": chains,
        }))
        .unwrap();
        let length = json_length(&whole);
        assert_eq!(whole.clone().within(length), whole);
        let mut seen = Vec::new();
        for room in [length - 1, length / 4, length / 8, length / 14, 2_000] {
            let reply = whole.clone().within(room);
            assert!(json_length(&reply) <= room, "{} in {room}", json_length(&reply));
            let failed: Vec<_> = reply.failed().collect();
            assert_eq!(failed.len(), 1, "what failed is told in {room}");
            assert!(failed[0].1.message.starts_with("bad"));
            assert_eq!(reply.omitted.contains(&Omitted::Chains), reply.chains.len() < 100);
            seen.extend(reply.omitted);
        }
        for part in [Omitted::Settings, Omitted::Details, Omitted::Programs, Omitted::Chains] {
            assert!(seen.contains(&part), "{part:?} is not tried");
        }
    }

    #[test]
    fn a_description_of_a_package_fits_and_names_what_is_missing() {
        let whole: DescribeReply = serde_json::from_value(json!({
            "repository": "main",
            "version": { "version": "0.1.0", "length": 1, "yanked": false,
                         "digest": format!("sha256:{}", "0".repeat(64)) },
            "manifest": { "name": "a", "metrics": ["m".repeat(3_000)], "config": ["c".repeat(9_000)] },
            "config_schema": { "x": "s".repeat(2_000) },
            "maps": [{ "name": "x".repeat(1_000), "object": "o", "kind": "hash" }],
            "readme": "ä ".repeat(4_000),
        }))
        .unwrap();
        let length = json_length(&whole);
        assert_eq!(whole.clone().within(length), whole);
        for (room, omitted) in [
            (length - 1, "readme"),
            (16_000, "readme"),
            (14_000, "readme, config_schema"),
            (12_700, "readme, config_schema, maps"),
            (5_000, "readme, config_schema, maps, manifest.config"),
            (1_000, "readme, config_schema, maps, manifest.config, manifest.metrics"),
        ] {
            let cut = whole.clone().within(room);
            assert!(json_length(&cut) <= room, "{} in {room}", json_length(&cut));
            assert_eq!(cut.omitted.join(", "), omitted, "{room}");
        }
        assert!(whole.within(length - 1).readme.len() > 10_000);
    }

    #[test]
    fn pages_of_rules_make_the_document_again() {
        let document = json!({ "rules": [{ "name": "a", "reason": "\"ä\" \\ b" }] });
        let text: Vec<char> = document.to_string().chars().collect();
        let page = |text: Option<String>, next: Option<&str>| -> RulesReply {
            serde_json::from_value(json!({
                "basis": "rules", "since": "", "digest": "sha256:1", "text": text, "next": next,
            }))
            .unwrap()
        };
        for length in 1..text.len() {
            let parts: Vec<String> = text.chunks(length).map(String::from_iter).collect();
            let mut request = RulesRequest { cursor: Some(String::new()) };
            let mut all: Option<RulesReply> = None;
            for (i, part) in parts.iter().enumerate() {
                let next = (i + 1 < parts.len()).then_some("more");
                let page = page(Some(part.clone()), next);
                match &mut all {
                    Some(all) => policy::Rules::append(all, page),
                    None => all = Some(page),
                }
                let more = policy::Rules::advance(&mut request, all.as_ref().unwrap());
                assert_eq!(more, next.is_some());
            }
            let all = all.unwrap();
            assert_eq!((all.document, all.text), (document.clone(), None), "{length}");
        }
    }

    #[test]
    fn pages_end_where_a_service_names_no_next_one() {
        let mut request = GetRequest::default();
        let mut reply: GetReply = serde_json::from_value(json!({
            "host": "web1", "generation": 1, "drained": false, "kernel": "", "version": "",
            "started": "", "chains": [],
        }))
        .unwrap();
        assert!(!loader::Get::advance(&mut request, &reply));
        reply.next = Some("x".to_owned());
        assert!(loader::Get::advance(&mut request, &reply));
        assert_eq!(request.cursor.as_deref(), Some("x"));
    }
}
