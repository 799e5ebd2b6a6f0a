//! Chains: the list, and one in full.

use super::{Fields, counts, indent, metrics};
use crate::cli::name::ChainName;
use crate::output::{Answer, Cell, Table, Tone, number, text};
use canopy_api::{
    ChainKey, HostId,
    wire::{ChainPlacement, ChainState, ChainStatus, GetReply, ObservedChain, SelectorStatus},
};
use canopy_runtime::clock;
use serde::Serialize;
use std::time::{Duration, UNIX_EPOCH};

/// One chain of one host.
#[derive(Debug, Serialize)]
pub struct HostChain {
    /// The host.
    pub host: HostId,
    /// The chain.
    #[serde(flatten)]
    pub chain: ChainStatus,
}

impl HostChain {
    /// As `-o name` prints it.
    pub fn name(&self) -> String {
        name(&self.host, &self.chain.key())
    }

    /// Whether a name means it.
    pub fn is(&self, name: &ChainName) -> bool {
        name.fits(&self.host, &self.chain.key(), self.chain.selector.as_ref())
    }
}

/// A chain of a host as one word, which every command takes.
pub(crate) fn name(host: &HostId, key: &ChainKey) -> String {
    let ChainKey { netns, interface, hook } = key.clone();
    let name = ChainName {
        host: Some(host.clone()),
        netns,
        interface: interface.into(),
        hook: Some(hook),
    };
    name.to_string()
}

/// Chains of one or more hosts.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Chains(
    pub Vec<HostChain>,
    /// Selectors that no interface fits now.
    #[serde(skip)]
    pub Vec<(HostId, SelectorStatus)>,
);

impl Chains {
    /// Every chain of these hosts.
    pub fn of(hosts: Vec<GetReply>) -> Self {
        let mut chains = Self(Vec::new(), Vec::new());
        for GetReply { host, chains: found, selectors, .. } in hosts {
            let waiting = selectors.into_iter().filter(|selector| selector.interfaces.is_empty());
            chains.1.extend(waiting.map(|selector| (host.clone(), selector)));
            let found = found.into_iter();
            chains.0.extend(found.map(|chain| HostChain { host: host.clone(), chain }));
        }
        chains
    }

    /// Why chains are not as they should be, for the person's eyes.
    pub fn remarks(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|HostChain { host, chain }| {
                let reason = chain.reason.as_ref()?;
                Some(format!("note: {host} {} is {}: {reason}", chain.key(), state(chain.state).0))
            })
            .chain(self.0.iter().flat_map(|HostChain { host, chain }| {
                let key = chain.key();
                warnings(chain).into_iter().map(move |why| format!("note: {host} {key}: {why}"))
            }))
            .chain(self.1.iter().map(|(host, selector)| {
                format!("note: {host} {} waits: no interface fits it now", selector.target())
            }))
            .collect()
    }
}

/// What is attached as it should be and may have no effect all the same.
pub(crate) fn warnings(chain: &ChainStatus) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(placement) = &chain.placement {
        found.extend(placement.before.iter().map(|program| {
            format!(
                "{program} runs before the chain: what it drops or ends does not reach the chain"
            )
        }));
    }
    // Where that is why the chain is not as desired, the reason says so.
    if let Some(problem) = chain.pin_problem.as_ref().filter(|_| chain.reason.is_none()) {
        found.push(format!("its pins are not in their place: {problem}"));
    }
    if let Some(errors) = device_errors(chain) {
        found.push(format!("the device dropped packets that the chain sent: {errors}"));
    }
    found
}

/// `rx_xdp_tx_errors 50, …`
fn device_errors(chain: &ChainStatus) -> Option<String> {
    let counted: Vec<_> =
        chain.device_errors.iter().map(|(name, count)| format!("{name} {count}")).collect();
    (!counted.is_empty()).then(|| counted.join(", "))
}

/// "2 of 3", and the revision of the list that says so.
fn place(placement: &ChainPlacement) -> String {
    let place = format!("{} of {}", placement.position + 1, placement.programs);
    match placement.revision {
        Some(revision) => format!("{place} (revision {revision})"),
        None => place,
    }
}

/// A state in a word, and how much it should worry.
pub(crate) fn state(state: ChainState) -> (&'static str, Tone) {
    match state {
        ChainState::Active => ("active", Tone::Good),
        ChainState::Pending => ("pending", Tone::Warn),
        ChainState::Diverged => ("diverged", Tone::Bad),
        ChainState::Drained => ("drained", Tone::Warn),
    }
}

fn state_cell(chain: &ChainStatus) -> Cell {
    let (word, tone) = state(chain.state);
    Cell::toned(word, tone)
}

fn opt<T: ToString>(value: Option<T>) -> Cell {
    value.map(|value| value.to_string()).unwrap_or_default().into()
}

impl Answer for Chains {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("NETNS").where_given(),
            text("INTERFACE"),
            text("HOOK"),
            text("STATE"),
            text("MODE"),
            number("BEFORE").where_given(),
            number("PROGRAMS"),
            number("RESTORED"),
            number("GENERATION").wide(),
            number("PROGRAM-ID").wide(),
            number("LINK-ID").wide(),
            text("TAG").wide(),
            number("VERIFIED").wide(),
            number("JITED").wide(),
            text("SELECTOR").wide(),
            text("CHANGED").wide(),
            text("BY").wide(),
        ]);
        for HostChain { host, chain } in &self.0 {
            let seen = chain.observed.as_ref();
            table.row([
                host.into(),
                opt(chain.netns.as_ref()),
                (&chain.interface).into(),
                (&chain.hook).into(),
                state_cell(chain),
                opt(seen.map(|o| &o.mode)),
                opt(chain.placement.as_ref().map(|p| p.before.len()).filter(|n| *n != 0)),
                (&chain.programs.len()).into(),
                (&chain.restored).into(),
                opt(seen.map(|o| o.generation)),
                opt(seen.map(|o| o.program_id)),
                opt(seen.map(|o| o.link_id).filter(|id| *id != 0)),
                opt(seen.map(|o| &o.tag)),
                opt(seen.map(|o| o.verified_instructions)),
                opt(seen.map(|o| o.jited_bytes)),
                opt(chain.selector.as_ref()),
                opt(chain.changed.as_ref()),
                opt(chain.changed_by.as_ref()),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(HostChain::name).collect()
    }

    fn nothing(&self) -> String {
        "no chains; canopy apply -f FILE makes some".to_owned()
    }
}

/// One chain in full.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ChainInFull(pub Vec<HostChain>);

impl Answer for ChainInFull {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        self.0.iter().map(|chain| describe(chain, colour)).collect::<Vec<_>>().join("\n")
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(HostChain::name).collect()
    }
}

fn describe(HostChain { host, chain }: &HostChain, colour: bool) -> String {
    let (word, tone) = state(chain.state);
    let mut fields = Fields::default();
    fields
        .add("chain", chain.key())
        .add("host", host)
        .add("selector", chain.selector.as_ref().map(ToString::to_string).unwrap_or_default())
        .add("state", tone.paint(word, colour))
        .add("reason", chain.reason.as_deref().unwrap_or_default())
        .add("pins", chain.pin_problem.as_deref().unwrap_or_default())
        .add("restored", chain.restored);
    if let Some(changed) = &chain.changed {
        let by = chain.changed_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        fields.add("changed", format!("{changed}{by}"));
    }
    let mut out = fields.render(0);
    if let Some(seen) = &chain.observed {
        let mut fields = Fields::default();
        fields
            .add("program id", format!("{} (tag {})", seen.program_id, seen.tag))
            .add(
                "link id",
                if seen.link_id == 0 { "none".to_owned() } else { seen.link_id.to_string() },
            )
            .add("interface index", seen.ifindex)
            .add("mode", &seen.mode)
            .add("native refused", seen.native_refused.as_deref().unwrap_or_default())
            .add("place", chain.placement.as_ref().map(place).unwrap_or_default())
            .add("before it", before(chain))
            .add("device drops", device_errors(chain).unwrap_or_default())
            .add("generation", seen.generation)
            .add("verified", format!("{} instructions", seen.verified_instructions))
            .add("native code", format!("{} bytes", seen.jited_bytes))
            .add("memory", format!("{} bytes, without maps", seen.memory_bytes))
            .add("loaded", clock::rfc3339(UNIX_EPOCH + Duration::from_secs(seen.loaded)))
            .add("functions", functions(seen));
        if let Some(mean) = seen.timed_ns.checked_div(seen.timed_runs) {
            fields.add("time", format!("{mean} ns a packet, of {} timed", seen.timed_runs));
        }
        out.push_str("kernel:\n");
        out.push_str(&fields.render(2));
    }
    if !chain.programs.is_empty() {
        let mut table = Table::new([
            number("POS"),
            text("NAME"),
            text("PACKAGE"),
            number("PRIORITY"),
            text("PROCEED-ON"),
            number("RUNS"),
            text("VERDICTS"),
            text("EXITS"),
            text("METRICS"),
        ]);
        for program in &chain.programs {
            table.row([
                (&program.position).into(),
                (&program.name).into(),
                format!("{}@{}", program.package, program.version).into(),
                (&program.priority).into(),
                program.proceed_on.join(",").into(),
                (&program.runs).into(),
                counts(&program.verdicts).into(),
                counts(&program.exits).into(),
                metrics(&program.metrics).into(),
            ]);
        }
        out.push_str("programs:\n");
        out.push_str(&indent(&table.render(true, colour), 2));
    }
    out
}

/// The programs that packets meet first, a line each.
fn before(chain: &ChainStatus) -> String {
    let programs = chain.placement.iter().flat_map(|placement| &placement.before);
    programs.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// `p1_limit (96 bytes), …`
fn functions(seen: &ObservedChain) -> String {
    let sizes = seen.function_bytes.iter().skip(1).map(Some).chain(std::iter::repeat(None));
    let told = seen.functions.iter().zip(sizes).map(|(name, size)| match size {
        Some(size) => format!("{name} ({size} bytes)"),
        None => name.clone(),
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::host;

    #[test]
    fn chains_as_a_table() {
        let chains = Chains::of(vec![host()]);
        assert_eq!(
            chains.table().unwrap().render(false, false),
            "\
HOST  INTERFACE  HOOK        STATE    MODE    PROGRAMS  RESTORED
web1  eth0       xdp         active   native         2         1
web1  eth9       tc-ingress  pending  -              0         0
"
        );
        assert_eq!(chains.names(), ["web1/eth0/xdp", "web1/eth9/tc-ingress"]);
        assert_eq!(
            chains.remarks(),
            ["note: web1 eth9/tc-ingress is pending: there is no interface \"eth9\""]
        );
    }

    #[test]
    fn a_chain_in_full() {
        let mut chains = Chains::of(vec![host()]).0;
        chains.truncate(1);
        let text = ChainInFull(chains).text(false);
        let want = "\
chain:     eth0/xdp
host:      web1
state:     active
restored:  1
changed:   2026-01-01T00:00:00Z by u-alice
kernel:
  program id:       42 (tag 0123456789abcdef)
  link id:          7
  interface index:  3
  mode:             native
  generation:       4
  verified:         1234 instructions
  native code:      4096 bytes
  memory:           8192 bytes, without maps
  loaded:           2026-01-01T00:00:00.000Z
  functions:        p1_limit (96 bytes)
  time:             25 ns a packet, of 200 timed
programs:
  POS  NAME       PACKAGE         PRIORITY  PROCEED-ON  RUNS  VERDICTS        EXITS   METRICS
    0  blocklist  firewall@0.1.0        10  pass         100  drop=5 pass=95  drop=5  blocked=5
    1  limit      firewall@0.1.0        20  pass          95  pass=95         -       blocked=5
";
        assert_eq!(text, want);
    }

    #[test]
    fn a_column_of_namespaces_is_there_where_a_chain_is_in_one() {
        let mut state = host();
        state.chains[1].netns = Some("blue".parse().unwrap());
        let chains = Chains::of(vec![state]);
        let text = chains.table().unwrap().render(false, false);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
        assert_eq!(rows[0], ["HOST", "NETNS", "INTERFACE", "HOOK"]);
        assert_eq!(rows[1], ["web1", "-", "eth0", "xdp"]);
        assert_eq!(rows[2], ["web1", "blue", "eth9", "tc-ingress"]);
        let want = "web1/netns:blue/eth9/tc-ingress";
        assert_eq!(chains.names(), ["web1/eth0/xdp", want]);
    }

    #[test]
    fn json_names_the_host_beside_the_chain() {
        let value = serde_json::to_value(Chains::of(vec![host()])).unwrap();
        assert_eq!(value[0]["host"], "web1");
        assert_eq!(value[0]["interface"], "eth0");
        assert_eq!(value[0]["observed"]["program_id"], 42);
    }
}
