//! What chains did between two looks.

use crate::output::{Answer, Cell, Table, Tone, number, text};
use canopy_api::{
    ChainKey, Hook, HostId, InterfaceName, Netns, ProgramName,
    wire::{ChainState, ChainStatus, GetReply, ProgramStatus},
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Counts a second, by verdict.
type Rates = BTreeMap<String, f64>;

/// Chains by what they did, the busiest first.
#[derive(Debug, Serialize)]
pub struct Top {
    /// Time between the looks, seconds.
    pub seconds: f64,
    /// The chains.
    pub chains: Vec<BusyChain>,
}

/// What one chain did.
#[derive(Debug, Serialize)]
pub struct BusyChain {
    /// The host.
    pub host: HostId,
    /// The network namespace; absent for the loader's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// As `get` tells it.
    pub state: ChainState,
    /// Packets a second.
    pub packets: f64,
    /// What became of them, a second.
    pub verdicts: Rates,
    /// Nanoseconds a packet, where the kernel took times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_per_packet: Option<f64>,
    /// Time spent in the chain, as a part of one CPU's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Time spent in the chain, as a part of that in all chains of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Its programs, in order.
    pub programs: Vec<BusyProgram>,
}

impl BusyChain {
    fn key(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

/// What one program did.
#[derive(Debug, Serialize)]
pub struct BusyProgram {
    /// Its name.
    pub name: ProgramName,
    /// Packets that it saw, a second.
    pub packets: f64,
    /// Its verdicts, a second.
    pub verdicts: Rates,
}

impl Top {
    /// What happened between two looks.
    pub fn between(before: &[GetReply], after: &[GetReply], elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        let mut chains = Vec::new();
        for now in after {
            let old = before.iter().find(|old| old.host == now.host);
            let old = |chain: &ChainStatus| old?.chains.iter().find(|old| old.key() == chain.key());
            let mut mine: Vec<_> = now
                .chains
                .iter()
                .map(|chain| busy(&now.host, old(chain), chain, seconds))
                .collect();
            let all: f64 = mine.iter().filter_map(|chain| chain.cpu).sum();
            for chain in &mut mine {
                chain.share = chain.cpu.filter(|_| all > 0.0).map(|cpu| cpu / all);
            }
            chains.append(&mut mine);
        }
        chains.sort_by(|a, b| b.packets.total_cmp(&a.packets));
        Self { seconds, chains }
    }
}

fn busy(host: &HostId, old: Option<&ChainStatus>, now: &ChainStatus, seconds: f64) -> BusyChain {
    let before =
        |program: &ProgramStatus| old?.programs.iter().find(|before| before.name == program.name);
    let programs: Vec<_> = now
        .programs
        .iter()
        .map(|program| {
            let was = before(program);
            BusyProgram {
                name: program.name.clone(),
                packets: rate(was.map_or(0, |was| was.runs), program.runs, seconds),
                verdicts: rates(was.map(|was| &was.verdicts), &program.verdicts, seconds),
            }
        })
        .collect();
    // Every packet ends at exactly one program.
    let mut verdicts = Rates::new();
    for program in &now.programs {
        let exits = rates(before(program).map(|was| &was.exits), &program.exits, seconds);
        for (verdict, rate) in exits {
            *verdicts.entry(verdict).or_default() += rate;
        }
    }
    let (runs, ns) = timed(old, now);
    BusyChain {
        host: host.clone(),
        netns: now.netns.clone(),
        interface: now.interface.clone(),
        hook: now.hook,
        state: now.state,
        // A sum of no numbers would be -0.
        packets: verdicts.values().fold(0.0, |all, one| all + one),
        verdicts,
        ns_per_packet: (runs > 0).then(|| float(ns) / float(runs)),
        cpu: (runs > 0 && seconds > 0.0).then(|| float(ns) / 1e9 / seconds),
        share: None,
        programs,
    }
}

/// Runs that were timed, and how long they took. A program that was loaded meanwhile began at 0.
fn timed(old: Option<&ChainStatus>, now: &ChainStatus) -> (u64, u64) {
    let Some(seen) = &now.observed else { return (0, 0) };
    let same = old
        .and_then(|old| old.observed.as_ref())
        .filter(|old| (old.program_id, old.loaded) == (seen.program_id, seen.loaded));
    let (runs, ns) = same.map_or((0, 0), |old| (old.timed_runs, old.timed_ns));
    (seen.timed_runs.saturating_sub(runs), seen.timed_ns.saturating_sub(ns))
}

fn rates(
    before: Option<&BTreeMap<String, u64>>,
    after: &BTreeMap<String, u64>,
    seconds: f64,
) -> Rates {
    let was = |verdict: &String| before.and_then(|b| b.get(verdict)).copied().unwrap_or(0);
    let all = after.iter().map(|(verdict, n)| (verdict.clone(), rate(was(verdict), *n, seconds)));
    all.filter(|(_, rate)| *rate > 0.0).collect()
}

fn rate(before: u64, after: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { float(after.saturating_sub(before)) / seconds } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "rates are rounded for people")]
fn float(value: u64) -> f64 {
    value as f64
}

fn told(rates: &Rates) -> Cell {
    let parts: Vec<String> = rates.iter().map(|(verdict, n)| format!("{verdict}={n:.0}")).collect();
    parts.join(" ").into()
}

fn percent(part: Option<f64>) -> Cell {
    part.map(|part| format!("{:.1}%", part * 100.0)).unwrap_or_default().into()
}

impl Answer for Top {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("CHAIN"),
            text("PROGRAM"),
            number("PACKETS/S"),
            text("VERDICTS/S").long(),
            number("NS/PACKET"),
            number("CPU"),
            number("SHARE"),
        ]);
        for chain in &self.chains {
            let key = chain.key();
            let tone = if chain.state == ChainState::Active { Tone::Plain } else { Tone::Warn };
            let ns = chain.ns_per_packet.map(|ns| format!("{ns:.0}")).unwrap_or_default();
            table.row([
                (&chain.host).into(),
                Cell::toned(key.to_string(), tone),
                "(all)".into(),
                format!("{:.0}", chain.packets).into(),
                told(&chain.verdicts),
                ns.into(),
                percent(chain.cpu),
                percent(chain.share),
            ]);
            for program in &chain.programs {
                table.row([
                    (&chain.host).into(),
                    Cell::toned(key.to_string(), Tone::Dim),
                    (&program.name).into(),
                    format!("{:.0}", program.packets).into(),
                    told(&program.verdicts),
                ]);
            }
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        let name = |chain: &BusyChain| format!("{}/{}", chain.host, chain.key());
        self.chains.iter().map(name).collect()
    }

    fn nothing(&self) -> String {
        "no chains".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::host;

    fn later() -> GetReply {
        let mut later = host();
        let chain = &mut later.chains[0];
        for (program, packets) in chain.programs.iter_mut().zip([300, 200]) {
            program.runs += packets;
            *program.verdicts.entry("pass".to_owned()).or_default() += 200;
        }
        let (first, second) = chain.programs.split_at_mut(1);
        for verdicts in [&mut first[0].verdicts, &mut first[0].exits] {
            *verdicts.entry("drop".to_owned()).or_default() += 100;
        }
        *second[0].exits.entry("pass".to_owned()).or_default() += 200;
        later
    }

    #[test]
    fn what_happened_in_between_is_told_a_second() {
        let mut now = later();
        let seen = now.chains[0].observed.as_mut().unwrap();
        seen.timed_runs += 300;
        seen.timed_ns += 30_000;
        let top = Top::between(&[host()], &[now], Duration::from_secs(2));
        assert_eq!(
            top.table().unwrap().render(false, false),
            "HOST  CHAIN            PROGRAM    PACKETS/S  VERDICTS/S        NS/PACKET   CPU   SHARE\n\
             web1  eth0/xdp         (all)            150  drop=50 pass=100        100  0.0%  100.0%\n\
             web1  eth0/xdp         blocklist        150  drop=50 pass=100          -     -       -\n\
             web1  eth0/xdp         limit            100  pass=100                  -     -       -\n\
             web1  eth9/tc-ingress  (all)              0  -                         -     -       -\n"
        );
    }

    #[test]
    fn a_program_that_was_exchanged_has_times_of_its_own() {
        let mut now = later();
        let seen = now.chains[0].observed.as_mut().unwrap();
        (seen.program_id, seen.timed_runs, seen.timed_ns) = (43, 10, 500);
        let top = Top::between(&[host()], &[now], Duration::from_secs(1));
        assert!((top.chains[0].ns_per_packet.unwrap() - 50.0).abs() < 1e-9);
        // Nothing was timed: nothing is told.
        let top = Top::between(&[host()], &[later()], Duration::from_secs(1));
        assert_eq!(top.chains[0].ns_per_packet, None);
        let json = serde_json::to_value(&top).unwrap();
        assert!(json["chains"][0].get("cpu").is_none(), "{json}");
    }
}
