//! Hosts: the list, and one in full.

use super::Fields;
use crate::output::{Answer, Cell, Table, Tone, number, text};
use canopy_api::{
    HostId,
    wire::{
        ChainState, FactsReply, GetReply,
        hosts::{self, HostRecord},
    },
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How a host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Answers, and every chain is as desired.
    Ready,
    /// Answers, and some chain is not.
    Degraded,
    /// Answers, and was drained.
    Drained,
    /// Answers with an error.
    Failing,
    /// Does not answer now.
    Silent,
    /// Enrolled, and has not connected yet.
    Waiting,
    /// Did not connect in time: it may not any more.
    Expired,
    /// May not connect any more.
    Revoked,
}

/// One host of the list.
#[derive(Clone, Debug, Serialize)]
pub struct HostRow {
    /// The host.
    pub host: HostId,
    /// How it stands.
    pub state: HostState,
    /// Whether it is enrolled, where policy says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolled: Option<bool>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Why it is failing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Kernel release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Version of the loader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Generation of what is desired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Number of chains by state.
    pub chains: BTreeMap<String, u32>,
    /// When the loader started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When this machine last had an answer from it; empty for never.
    pub last_seen: String,
}

impl HostRow {
    /// A host that answered, now.
    pub fn answered(reply: &GetReply, now: String) -> Self {
        let mut chains = BTreeMap::new();
        for chain in &reply.chains {
            *chains.entry(super::chains::state(chain.state).0.to_owned()).or_insert(0) += 1;
        }
        let active = reply.chains.iter().all(|chain| chain.state == ChainState::Active);
        let state = match (reply.drained, active) {
            (true, _) => HostState::Drained,
            (false, true) => HostState::Ready,
            (false, false) => HostState::Degraded,
        };
        Self {
            host: reply.host.clone(),
            state,
            enrolled: None,
            labels: BTreeMap::new(),
            reason: None,
            kernel: Some(reply.kernel.clone()),
            version: Some(reply.version.clone()),
            generation: Some(reply.generation),
            chains,
            started: Some(reply.started.clone()),
            last_seen: now,
        }
    }

    /// An enrolled host that does not answer.
    pub fn enrolled(record: &HostRecord, last_seen: Option<String>) -> Self {
        let state = match record.state {
            hosts::HostState::Active => HostState::Silent,
            hosts::HostState::Waiting => HostState::Waiting,
            hosts::HostState::Expired => HostState::Expired,
            hosts::HostState::Revoked => HostState::Revoked,
        };
        let mut row = Self::mute(record.host.clone(), state, None, last_seen.unwrap_or_default());
        row.is_enrolled(record);
        row
    }

    /// What policy has of it.
    pub fn is_enrolled(&mut self, record: &HostRecord) {
        self.enrolled = Some(record.revoked.is_none());
        self.labels.clone_from(&record.labels);
    }

    /// A host that says nothing, or nothing good.
    pub fn mute(host: HostId, state: HostState, reason: Option<String>, last_seen: String) -> Self {
        Self {
            host,
            state,
            enrolled: None,
            labels: BTreeMap::new(),
            reason,
            kernel: None,
            version: None,
            generation: None,
            chains: BTreeMap::new(),
            started: None,
            last_seen,
        }
    }
}

/// Hosts.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Hosts(pub Vec<HostRow>);

impl Answer for Hosts {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("STATE"),
            text("LABELS").where_given().long(),
            text("CHAINS"),
            text("KERNEL").long(),
            text("LAST-SEEN"),
            number("GENERATION").wide(),
            text("VERSION").wide(),
            text("STARTED").wide(),
            text("REASON").wide(),
        ]);
        for host in &self.0 {
            let (word, tone) = match host.state {
                HostState::Ready => ("ready", Tone::Good),
                HostState::Degraded => ("degraded", Tone::Warn),
                HostState::Drained => ("drained", Tone::Warn),
                HostState::Failing => ("failing", Tone::Bad),
                HostState::Silent => ("silent", Tone::Bad),
                HostState::Waiting => ("waiting", Tone::Warn),
                HostState::Expired => ("expired", Tone::Bad),
                HostState::Revoked => ("revoked", Tone::Dim),
            };
            let word = if host.enrolled == Some(false) && host.state != HostState::Revoked {
                format!("{word} (not enrolled)")
            } else {
                word.to_owned()
            };
            let labels: Vec<String> =
                host.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let chains: Vec<String> =
                host.chains.iter().map(|(state, n)| format!("{n} {state}")).collect();
            let some = |value: &Option<String>| Cell::from(value.clone().unwrap_or_default());
            table.row([
                (&host.host).into(),
                Cell::toned(word, tone),
                labels.join(",").into(),
                chains.join(", ").into(),
                some(&host.kernel),
                host.last_seen.clone().into(),
                host.generation.map(|n| n.to_string()).unwrap_or_default().into(),
                some(&host.version),
                some(&host.started),
                some(&host.reason),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|host| host.host.to_string()).collect()
    }

    fn nothing(&self) -> String {
        "no host answers; canopy doctor says why".to_owned()
    }
}

/// One host in full.
#[derive(Debug, Serialize)]
pub struct HostInFull {
    /// Its state.
    #[serde(flatten)]
    pub state: GetReply,
    /// What it can do.
    pub facts: FactsReply,
}

impl Answer for HostInFull {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let mut fields = Fields::default();
        fields
            .add("host", &self.state.host)
            .add("kernel", format!("{} ({})", self.state.kernel, self.facts.arch))
            .add("loader", format!("{}, started {}", self.state.version, self.state.started))
            .add("generation", self.state.generation)
            .add("drained", if self.state.drained { "yes" } else { "no" })
            .add("clock", &self.facts.time);
        let mut out = fields.render(0);
        let chains = super::chains::Chains::of(vec![self.state.clone()]);
        if let Some(table) = chains.table().filter(|table| !table.is_empty()) {
            out.push_str("chains:\n");
            out.push_str(&super::indent(&table.render(false, colour), 2));
        }
        let mut table = Table::new([text("ABILITY"), text("HAS"), text("DETAIL")]);
        for fact in &self.facts.facts {
            let has = match (fact.ok, fact.required) {
                (true, _) => Cell::toned("yes", Tone::Good),
                (false, true) => Cell::toned("no", Tone::Bad),
                (false, false) => Cell::toned("no", Tone::Dim),
            };
            table.row([fact.name.clone().into(), has, fact.detail.clone().into()]);
        }
        out.push_str("abilities:\n");
        out.push_str(&super::indent(&table.render(false, colour), 2));
        out
    }

    fn names(&self) -> Vec<String> {
        vec![self.state.host.to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::host;
    use canopy_api::wire::Fact;

    #[test]
    fn hosts_as_a_table() {
        let now = "2026-01-02T00:00:00Z".to_owned();
        let silent = "2026-01-01T12:00:00Z".to_owned();
        let hosts = Hosts(vec![
            HostRow::answered(&host(), now),
            HostRow::mute("web2".parse().unwrap(), HostState::Silent, None, silent),
        ]);
        assert_eq!(
            hosts.table().unwrap().render(false, false),
            "\
HOST  STATE     CHAINS               KERNEL  LAST-SEEN
web1  degraded  1 active, 1 pending  6.18.0  2026-01-02T00:00:00Z
web2  silent    -                    -       2026-01-01T12:00:00Z
"
        );
        assert_eq!(hosts.names(), ["web1", "web2"]);
    }

    #[test]
    fn a_host_in_full() {
        let fact = |name: &str, ok: bool| Fact {
            name: name.to_owned(),
            ok,
            required: true,
            detail: "probed".to_owned(),
            remedy: None,
        };
        let full = HostInFull {
            state: host(),
            facts: FactsReply {
                host: "web1".parse().unwrap(),
                kernel: "6.18.0".to_owned(),
                arch: "x86_64".to_owned(),
                time: "2026-01-02T00:00:00Z".to_owned(),
                facts: vec![fact("btf", true), fact("tcx", false)],
            },
        };
        let text = full.text(false);
        assert!(text.contains("kernel:      6.18.0 (x86_64)\n"), "{text}");
        assert!(
            text.contains(
                "  ABILITY  HAS  DETAIL\n  btf      yes  probed\n  tcx      no   probed\n"
            ),
            "{text}"
        );
    }
}
