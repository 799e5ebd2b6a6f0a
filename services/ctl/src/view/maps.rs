//! Maps: the list, one in full, entries, and what a change did.

use super::{Fields, address::Declared, value};
use crate::output::{Answer, Cell, Table, Tone, number, text};
use canopy_api::{
    HostId,
    wire::{MapAccess, MapChangeReply, MapEntry, MapInfo, MapListReply, MapName},
};
use serde::Serialize;
use std::fmt::Write as _;

/// One map of one host.
#[derive(Debug, Serialize)]
pub struct HostMap {
    /// The host.
    pub host: HostId,
    /// The map.
    #[serde(flatten)]
    pub info: MapInfo,
}

impl HostMap {
    fn path(&self) -> String {
        let name = &self.info.name;
        format!("{}/{}/{}", super::chains::name(&self.host, &name.key()), name.program, name.map)
    }
}

/// Maps of one or more hosts.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Maps(pub Vec<HostMap>);

impl Maps {
    /// Every map of these hosts.
    pub fn of(replies: Vec<MapListReply>) -> Self {
        let maps = replies.into_iter().flat_map(|reply| {
            let host = reply.host;
            reply.maps.into_iter().map(move |info| HostMap { host: host.clone(), info })
        });
        Self(maps.collect())
    }
}

fn access(access: MapAccess) -> Cell {
    match access {
        MapAccess::ReadWrite => Cell::toned("read-write", Tone::Good),
        MapAccess::Read => Cell::toned("read", Tone::Plain),
        MapAccess::Peek => Cell::toned("peek", Tone::Plain),
        MapAccess::Nothing => Cell::toned("none", Tone::Dim),
    }
}

impl Answer for Maps {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("CHAIN"),
            text("PROGRAM").name(),
            text("MAP").name(),
            text("TYPE"),
            number("KEY").wide(),
            number("VALUE").wide(),
            number("MAX"),
            text("ACCESS"),
            text("SETTINGS").long(),
            number("ID").wide(),
            number("MEMORY").wide(),
            text("FLAGS").wide(),
            text("SHARED-WITH").wide(),
            text("KEY-TYPE").wide(),
            text("VALUE-TYPE").wide(),
        ]);
        for entry in &self.0 {
            let info = &entry.info;
            // What settings fill is read, and not written.
            let access = match info.access {
                MapAccess::ReadWrite if !info.settings.is_empty() && info.variables.is_empty() => {
                    access(MapAccess::Read)
                }
                other => access(other),
            };
            table.row([
                (&entry.host).into(),
                (&info.name.key()).into(),
                (&info.name.program).into(),
                info.name.map.clone().into(),
                info.kind.clone().into(),
                (&info.key_size).into(),
                (&info.value_size).into(),
                (&info.max_entries).into(),
                access,
                info.settings.join(",").into(),
                (&info.id).into(),
                info.memory.map_or_else(Cell::default, |bytes| (&bytes).into()),
                info.flags.join(",").into(),
                info.shared_with.join(",").into(),
                info.key_type.clone().unwrap_or_default().into(),
                info.value_type.clone().unwrap_or_default().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(HostMap::path).collect()
    }

    fn nothing(&self) -> String {
        "no maps; canopy get programs shows what runs".to_owned()
    }
}

/// A map in full.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct MapInFull(pub HostMap);

impl Answer for MapInFull {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let (host, info) = (&self.0.host, &self.0.info);
        let bytes = |ty: &Option<String>, size: u32| match ty {
            Some(ty) => format!("{ty}, {size} bytes"),
            None if size == 0 => String::new(),
            None => format!("{size} bytes"),
        };
        let per_cpu = if info.values > 1 {
            format!(" on each of {} CPUs", info.values)
        } else {
            String::new()
        };
        let access = match info.access {
            MapAccess::ReadWrite if info.settings.is_empty() => "entries are read and written",
            MapAccess::ReadWrite if info.variables.is_empty() => {
                "entries are read; settings fill them"
            }
            MapAccess::ReadWrite => {
                "variables are read and written, but for those that settings fill"
            }
            MapAccess::Read => "entries are read",
            MapAccess::Peek => "the entry that comes next is looked at",
            MapAccess::Nothing => "entries are not read from outside",
        };
        let mut fields = Fields::default();
        fields
            .add("map", &info.name.map)
            .add("host", host)
            .add("program", format!("{} of {}", info.name.program, info.name.key()))
            .add("generation", info.generation)
            .add("type", &info.kind)
            .add("key", bytes(&info.key_type, info.key_size))
            .add("value", bytes(&info.value_type, info.value_size) + &per_cpu)
            .add("entries", format!("{} at most", info.max_entries))
            .add("flags", info.flags.join(", "))
            .add("memory", info.memory.map_or_else(String::new, |bytes| format!("{bytes} bytes")))
            .add("kernel id", info.id)
            .add("access", access)
            .add("settings", info.settings.join(", "))
            .add("shared with", info.shared_with.join("\n"));
        let mut out = fields.render(0);
        if !info.variables.is_empty() {
            let mut table = Table::new([text("VARIABLE"), number("BYTES"), text("TYPE")]);
            for variable in &info.variables {
                table.row([
                    variable.name.clone().into(),
                    (&variable.size).into(),
                    variable.kind.clone().unwrap_or_default().into(),
                ]);
            }
            out.push_str("variables:\n");
            out.push_str(&super::indent(&table.render(true, colour), 2));
        }
        out
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.path()]
    }
}

/// Entries of a map.
#[derive(Debug, Serialize)]
pub struct Entries {
    /// The host.
    pub host: HostId,
    /// The map.
    pub map: MapName,
    /// The chain's generation.
    pub generation: u64,
    /// The entries.
    pub entries: Vec<MapEntry>,
}

impl Entries {
    /// Of an answer.
    pub fn of(host: HostId, map: MapName, generation: u64, entries: Vec<MapEntry>) -> Self {
        Self { host, map, generation, entries }
    }

    /// Writes addresses as people do wherever the types of key and value have some, in every format. What is
    /// shown so is what `map set` takes.
    pub fn show_addresses(&mut self, key_type: &Declared, value_type: &Declared) {
        for entry in &mut self.entries {
            entry.key = key_type.shown_reversibly(&entry.key);
            let values = entry.value.iter_mut().chain(&mut entry.cpus).chain(&mut entry.sum);
            for value in values {
                *value = value_type.shown_reversibly(value);
            }
        }
    }
}

impl Answer for Entries {
    fn table(&self) -> Option<Table> {
        let per_cpu = self.entries.iter().any(|entry| entry.value.is_none());
        let mut table = if per_cpu {
            Table::new([text("KEY").long(), text("SUM").long(), text("CPUS").wide()])
        } else {
            Table::new([text("KEY").long(), text("VALUE").long()])
        };
        for entry in &self.entries {
            let shown = entry.value.as_ref().or(entry.sum.as_ref()).map(value);
            let mut row: Vec<Cell> =
                vec![value(&entry.key).into(), shown.unwrap_or_default().into()];
            if per_cpu {
                let cpus: Vec<String> = entry.cpus.iter().map(value).collect();
                row.push(cpus.join(" ").into());
            }
            table.row(row);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| value(&entry.key)).collect()
    }

    fn nothing(&self) -> String {
        format!("{} has no entries", self.map)
    }
}

/// What was written or removed.
#[derive(Debug, Serialize)]
pub struct Changed {
    /// The answer.
    #[serde(flatten)]
    pub reply: MapChangeReply,
    /// The word for what was done.
    #[serde(skip)]
    pub done: &'static str,
}

impl Answer for Changed {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let (reply, done) = (&self.reply, self.done);
        let noun = if reply.changed == 1 { "entry" } else { "entries" };
        let would = if reply.dry_run { "would be " } else { "" };
        let mut out =
            format!("{}: {} {noun} of {} {would}{done}", reply.host, reply.changed, reply.map);
        if !reply.absent.is_empty() {
            let absent: Vec<String> = reply.absent.iter().map(value).collect();
            let _ = write!(out, "; not there: {}", absent.join(", "));
        }
        if reply.dry_run {
            out.push_str("; nothing was changed");
        }
        out.push('\n');
        for note in &reply.notes {
            let _ = writeln!(out, "  {} {note}", Tone::Warn.paint("note:", colour));
        }
        out
    }

    fn names(&self) -> Vec<String> {
        vec![format!("{}/{}", self.reply.host, self.reply.map)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list() -> Maps {
        let info = |map: &str, kind: &str, access: &str| {
            json!({ "interface": "eth0", "hook": "xdp", "program": "limit", "map": map,
                    "generation": 4, "id": 7, "type": kind, "key_size": 4, "value_size": 8,
                    "max_entries": 16, "values": 1, "access": access, "memory": 4096 })
        };
        let mut settings = info("rl_settings", "array", "read_write");
        settings["settings"] = json!(["rate", "burst"]);
        settings["value_type"] = json!("struct settings { __u32 rate; __u32 burst; }");
        let mut data = info(".data", "array", "read_write");
        data["variables"] = json!([{ "name": "level", "size": 4, "type": "__u32" }]);
        let reply = json!({ "host": "web1", "maps": [
            data, settings, info("events", "ringbuf", "nothing"),
        ]});
        Maps::of(vec![serde_json::from_value(reply).unwrap()])
    }

    #[test]
    fn maps_as_a_table() {
        assert_eq!(
            list().table().unwrap().render(false, false),
            "\
HOST  CHAIN     PROGRAM  MAP          TYPE     MAX  ACCESS      SETTINGS
web1  eth0/xdp  limit    .data        array     16  read-write  -
web1  eth0/xdp  limit    rl_settings  array     16  read        rate,burst
web1  eth0/xdp  limit    events       ringbuf   16  none        -
"
        );
        assert_eq!(list().names()[1], "web1/eth0/xdp/limit/rl_settings");
    }

    #[test]
    fn a_map_in_full() {
        let mut all = list().0;
        let settings = MapInFull(all.remove(1)).text(false);
        assert!(
            settings
                .contains("\nvalue:       struct settings { __u32 rate; __u32 burst; }, 8 bytes\n"),
            "{settings}"
        );
        assert!(settings.contains("\nsettings:    rate, burst\n"), "{settings}");
        let data = MapInFull(all.remove(0)).text(false);
        assert!(
            data.ends_with("variables:\n  VARIABLE  BYTES  TYPE\n  level         4  __u32\n"),
            "{data}"
        );
    }

    fn entries(entries: serde_json::Value) -> Entries {
        let map = json!({ "interface": "eth0", "hook": "xdp", "program": "a", "map": "m" });
        Entries::of(
            "web1".parse().unwrap(),
            serde_json::from_value(map).unwrap(),
            4,
            serde_json::from_value(entries).unwrap(),
        )
    }

    #[test]
    fn entries_as_a_table() {
        let plain = entries(json!([{ "key": 80, "value": { "act": "DROP", "n": 1 } }]));
        assert_eq!(
            plain.table().unwrap().render(false, false),
            "KEY  VALUE\n80   {\"act\":\"DROP\",\"n\":1}\n"
        );
        let cpus = entries(json!([{ "key": "eth0", "cpus": [1, 2], "sum": 3 }]));
        assert_eq!(cpus.table().unwrap().render(true, false), "KEY   SUM  CPUS\neth0  3    1 2\n");
        assert_eq!(entries(json!([])).nothing(), "eth0/xdp/a/m has no entries");
    }

    #[test]
    fn addresses_are_shown_in_every_format() {
        let mapped = json!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1]);
        let mut all = entries(json!([
            { "key": { "addr": { "bytes": mapped }, "port": 80 }, "value": { "peer": 167_772_161 } },
            { "key": { "addr": { "bytes": mapped }, "port": 81 },
              "cpus": [{ "peer": 1 }, { "peer": 2 }], "sum": { "peer": 3 } },
        ]));
        all.show_addresses(
            &Declared::parse(
                "struct k { union canopy_address { __u8 bytes[16]; } addr; __u16 port; }",
            ),
            &Declared::parse("struct v { __be32 peer_ip; __be32 peer; }"),
        );
        // `peer` is not named as an address is: a number.
        let shown = serde_json::to_value(&all).unwrap();
        assert_eq!(shown["entries"][0]["key"], json!({ "addr": "192.0.2.1", "port": 80 }));
        assert_eq!(shown["entries"][0]["value"], json!({ "peer": 167_772_161 }));
        assert_eq!(all.names()[0], r#"{"addr":"192.0.2.1","port":80}"#);
        assert!(all.table().unwrap().render(false, false).contains("192.0.2.1"));
        let mut ips = entries(json!([
            { "key": 1, "cpus": [{ "peer_ip": 1 }, { "peer_ip": 2 }], "sum": { "peer_ip": 3 } },
        ]));
        ips.show_addresses(&Declared::default(), &Declared::parse("struct v { __be32 peer_ip; }"));
        assert_eq!(
            serde_json::to_value(&ips.entries[0].cpus).unwrap(),
            json!([{ "peer_ip": "0.0.0.1" }, { "peer_ip": "0.0.0.2" }])
        );
    }

    #[test]
    fn a_change_in_words() {
        let reply = json!({ "host": "web1", "generation": 4, "dry_run": true, "changed": 1,
            "map": { "interface": "eth0", "hook": "xdp", "program": "a", "map": "m" },
            "absent": [7, "x"], "notes": ["eth1/xdp/a/m is the same map"] });
        let changed = Changed { reply: serde_json::from_value(reply).unwrap(), done: "removed" };
        assert_eq!(
            changed.text(false),
            "web1: 1 entry of eth0/xdp/a/m would be removed; not there: 7, x; nothing was changed\n  \
             note: eth1/xdp/a/m is the same map\n"
        );
    }
}
