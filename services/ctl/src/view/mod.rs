//! What answers look like. Pure: replies in, tables and text out.

pub mod address;
pub mod all;
pub mod audit;
pub mod chains;
pub mod change;
pub mod diff;
pub mod doctor;
pub mod enrolment;
pub mod hosts;
pub mod maps;
pub mod outdated;
pub mod packages;
pub mod policy;
pub mod programs;
pub mod stored_audit;
pub mod tokens;
pub mod top;
pub mod trust;

use canopy_api::wire::MetricValue;
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write as _};

/// `drop=5 pass=10`, or nothing.
pub(crate) fn counts(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name}={n}")).collect();
    parts.join(" ")
}

/// `blocked=5 flow_bytes=9000(3)`: values without labels as they are, series as their sum and
/// number. What is zero is left out, as among verdicts; `describe program` shows everything.
pub(crate) fn metrics(metrics: &[MetricValue]) -> String {
    let mut sums: Vec<(&str, f64, usize)> = Vec::new();
    for metric in metrics {
        let series = usize::from(!metric.labels.is_empty());
        match sums.iter_mut().find(|(name, ..)| *name == metric.name) {
            Some((_, sum, n)) => {
                *sum += metric.value;
                *n += series;
            }
            None => sums.push((&metric.name, metric.value, series)),
        }
    }
    let parts: Vec<String> = sums
        .iter()
        .filter(|(_, sum, _)| *sum != 0.0)
        .map(|(name, sum, series)| match series {
            0 => format!("{name}={sum}"),
            n => format!("{name}={sum}({n})"),
        })
        .collect();
    parts.join(" ")
}

/// A setting on one line, as JSON; plain text without quotes.
pub(crate) fn value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Lines of `name:  value`, values in one column; empty values left out.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Adds a line.
    #[expect(clippy::needless_pass_by_value, reason = "numbers and text alike, without a `&` each")]
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl ToString) -> &mut Self {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// The text, each line indented by that many spaces.
    pub(crate) fn render(&self, indent: usize) -> String {
        let shown = || self.0.iter().filter(|(_, value)| !value.is_empty());
        let width = shown().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for (name, value) in shown() {
            let mut lines = value.lines();
            let first = lines.next().unwrap_or_default();
            let gap = width - name.chars().count();
            let _ = writeln!(out, "{:indent$}{name}:{:gap$}  {first}", "", "");
            for line in lines {
                let _ = writeln!(out, "{:1$}{line}", "", indent + width + 3);
            }
        }
        out
    }
}

/// Every line indented; empty lines stay empty.
pub(crate) fn indent(text: &str, by: usize) -> String {
    text.lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("{:by$}{line}\n", "") })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use canopy_api::wire::{ChainState, ChainStatus, GetReply, ObservedChain, ProgramStatus};
    use canopy_api::{Digest, Hook};

    pub(crate) fn program(name: &str, position: u32, runs: u64, dropped: u64) -> ProgramStatus {
        let verdicts: BTreeMap<String, u64> = [("drop", dropped), ("pass", runs - dropped)]
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(verdict, n)| (verdict.to_owned(), n))
            .collect();
        ProgramStatus {
            name: name.parse().unwrap(),
            position,
            package: "firewall".parse().unwrap(),
            version: "0.1.0".to_owned(),
            digest: Digest::of(b"x"),
            program: "firewall".to_owned(),
            function: "firewall".to_owned(),
            variant: None,
            priority: 10 * (1 + u16::try_from(position).unwrap()),
            proceed_on: vec!["pass".to_owned()],
            config: serde_json::json!({"blocked": ["198.51.100.0/24"]})
                .as_object()
                .unwrap()
                .clone(),
            runs,
            exits: [("drop".to_owned(), dropped)].into_iter().filter(|(_, n)| *n > 0).collect(),
            verdicts,
            metrics: vec![MetricValue {
                name: "blocked".to_owned(),
                help: "packets blocked".to_owned(),
                kind: canopy_api::wire::MetricKind::Counter,
                labels: BTreeMap::new(),
                value: 5.0,
            }],
        }
    }

    pub(crate) fn host() -> GetReply {
        let chain = ChainStatus {
            netns: None,
            interface: "eth0".parse().unwrap(),
            hook: Hook::Xdp,
            selector: None,
            xdp_mode: None,
            tc_mode: None,
            state: ChainState::Active,
            reason: None,
            restored: 1,
            changed: Some("2026-01-01T00:00:00Z".to_owned()),
            changed_by: Some("u-alice".to_owned()),
            programs: vec![program("blocklist", 0, 100, 5), program("limit", 1, 95, 0)],
            observed: Some(ObservedChain {
                program_id: 42,
                link_id: 7,
                tag: "0123456789abcdef".to_owned(),
                ifindex: 3,
                mode: "native".to_owned(),
                generation: 4,
                verified_instructions: 1234,
                jited_bytes: 4096,
                memory_bytes: 8192,
                loaded: 1_767_225_600,
                timed_runs: 200,
                timed_ns: 5000,
                functions: vec!["p1_limit".to_owned()],
                function_bytes: vec![4000, 96],
                native_refused: None,
            }),
            placement: None,
            pin_problem: None,
            device_errors: BTreeMap::new(),
            continues: false,
        };
        let pending = ChainStatus {
            netns: None,
            interface: "eth9".parse().unwrap(),
            hook: Hook::TcIngress,
            selector: None,
            xdp_mode: None,
            tc_mode: None,
            state: ChainState::Pending,
            reason: Some("there is no interface \"eth9\"".to_owned()),
            restored: 0,
            changed: None,
            changed_by: None,
            programs: vec![],
            observed: None,
            placement: None,
            pin_problem: None,
            device_errors: BTreeMap::new(),
            continues: false,
        };
        GetReply {
            host: "web1".parse().unwrap(),
            generation: 4,
            drained: false,
            kernel: "6.18.0".to_owned(),
            version: "0.1.0".to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            chains: vec![chain, pending],
            selectors: vec![],
            stray_pins: vec![],
            next: None,
        }
    }

    #[test]
    fn series_are_summed_and_counted() {
        let value = |name: &str, label: Option<&str>, value: f64| MetricValue {
            name: name.to_owned(),
            help: String::new(),
            kind: canopy_api::wire::MetricKind::Counter,
            labels: label.map(|l| ("src".to_owned(), l.to_owned())).into_iter().collect(),
            value,
        };
        let all = [
            value("z", None, 0.0),
            value("a", None, 5.0),
            value("b", Some("x"), 1.0),
            value("b", Some("y"), 2.5),
        ];
        assert_eq!(metrics(&all), "a=5 b=3.5(2)");
    }

    #[test]
    fn fields_line_up_and_empty_ones_are_left_out() {
        let mut fields = Fields::default();
        fields.add("name", "x").add("none", "").add("kernel", "6.18\nand more");
        assert_eq!(fields.render(2), "  name:    x\n  kernel:  6.18\n           and more\n");
    }
}
