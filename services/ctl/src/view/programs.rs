//! Programs: the list, and one in full.

use super::{Fields, counts, metrics, value};
use crate::cli::name::ProgramPath;
use crate::output::{Answer, Table, number, text};
use canopy_api::{
    ChainKey, Hook, HostId, InterfaceName, InterfaceSelector, Netns,
    wire::{GetReply, ProgramStatus},
};
use serde::Serialize;
use std::fmt::Write as _;

/// One program of one chain of one host.
#[derive(Debug, Serialize)]
pub struct HostProgram {
    /// The host.
    pub host: HostId,
    /// The network namespace; absent for the loader's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// The selector that the chain comes from.
    #[serde(skip)]
    pub selector: Option<InterfaceSelector>,
    /// The program.
    #[serde(flatten)]
    pub program: ProgramStatus,
}

impl HostProgram {
    fn chain(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }

    fn path(&self) -> String {
        format!("{}/{}", super::chains::name(&self.host, &self.chain()), self.program.name)
    }

    /// Whether a name means it.
    pub fn is(&self, name: &ProgramPath) -> bool {
        name.fits(&self.host, &self.chain(), self.selector.as_ref(), &self.program.name)
    }
}

/// Programs of one or more hosts.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Programs(pub Vec<HostProgram>);

impl Programs {
    /// Every program of every chain of these hosts.
    pub fn of(hosts: Vec<GetReply>) -> Self {
        let mut programs = Vec::new();
        for host in hosts {
            for chain in host.chains {
                programs.extend(chain.programs.into_iter().map(|program| HostProgram {
                    host: host.host.clone(),
                    netns: chain.netns.clone(),
                    interface: chain.interface.clone(),
                    hook: chain.hook,
                    selector: chain.selector.clone(),
                    program,
                }));
            }
        }
        Self(programs)
    }
}

impl Answer for Programs {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("CHAIN"),
            number("POS"),
            text("NAME"),
            text("PACKAGE"),
            number("RUNS"),
            text("VERDICTS").long(),
            text("EXITS").long(),
            text("METRICS").long(),
            number("PRIORITY").wide(),
            text("PROCEED-ON").wide(),
            text("FUNCTION").wide(),
            text("VARIANT").wide(),
            text("DIGEST").wide(),
        ]);
        for entry in &self.0 {
            let program = &entry.program;
            table.row([
                (&entry.host).into(),
                (&entry.chain()).into(),
                (&program.position).into(),
                (&program.name).into(),
                format!("{}@{}", program.package, program.version).into(),
                (&program.runs).into(),
                counts(&program.verdicts).into(),
                counts(&program.exits).into(),
                metrics(&program.metrics).into(),
                (&program.priority).into(),
                program.proceed_on.join(",").into(),
                program.function.clone().into(),
                program.variant.as_ref().map(|v| v.object.clone()).unwrap_or_default().into(),
                (&program.digest).into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(HostProgram::path).collect()
    }

    fn nothing(&self) -> String {
        "no programs; canopy get chains shows what is desired".to_owned()
    }
}

/// Programs in full.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ProgramInFull(pub Vec<HostProgram>);

impl Answer for ProgramInFull {
    fn table(&self) -> Option<Table> {
        None
    }

    fn text(&self, colour: bool) -> String {
        let texts: Vec<String> = self.0.iter().map(|program| describe(program, colour)).collect();
        texts.join("\n")
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(HostProgram::path).collect()
    }
}

fn describe(entry: &HostProgram, colour: bool) -> String {
    let program = &entry.program;
    let mut fields = Fields::default();
    fields
        .add("program", &program.name)
        .add("host", &entry.host)
        .add("chain", format!("{}, position {}", entry.chain(), program.position))
        .add("package", format!("{}@{}", program.package, program.version))
        .add("digest", &program.digest)
        .add("entry", format!("{} ({})", program.program, program.function));
    if let Some(variant) = &program.variant {
        fields.add("variant", format!("{}, for kernel {}", variant.object, variant.kernel));
        for over in &variant.passed_over {
            fields.add("passed over", format!("{}: it needs {}", over.object, over.needs));
        }
    }
    fields
        .add("priority", program.priority)
        .add("proceed on", program.proceed_on.join(", "))
        .add("runs", program.runs)
        .add("verdicts", counts(&program.verdicts))
        .add("exits", counts(&program.exits));
    let mut out = fields.render(0);
    if !program.config.is_empty() {
        let mut fields = Fields::default();
        for (name, setting) in &program.config {
            fields.add(name, value(setting));
        }
        out.push_str("config:\n");
        out.push_str(&fields.render(2));
    }
    if !program.metrics.is_empty() {
        let mut table = Table::new([text("METRIC"), number("VALUE"), text("LABELS"), text("HELP")]);
        for metric in &program.metrics {
            let mut labels = String::new();
            for (name, value) in &metric.labels {
                let gap = if labels.is_empty() { "" } else { " " };
                let _ = write!(labels, "{gap}{name}={value}");
            }
            table.row([
                metric.name.clone().into(),
                (&metric.value).into(),
                labels.into(),
                metric.help.clone().into(),
            ]);
        }
        out.push_str("metrics:\n");
        out.push_str(&super::indent(&table.render(true, colour), 2));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::host;
    use canopy_api::wire::{ChosenVariant, PassedOver};

    #[test]
    fn programs_as_a_table() {
        let programs = Programs::of(vec![host()]);
        assert_eq!(
            programs.table().unwrap().render(false, false),
            "\
HOST  CHAIN     POS  NAME       PACKAGE         RUNS  VERDICTS        EXITS   METRICS
web1  eth0/xdp    0  blocklist  firewall@0.1.0   100  drop=5 pass=95  drop=5  blocked=5
web1  eth0/xdp    1  limit      firewall@0.1.0    95  pass=95         -       blocked=5
"
        );
        assert_eq!(programs.names(), ["web1/eth0/xdp/blocklist", "web1/eth0/xdp/limit"]);
        let wide = programs.table().unwrap().render(true, false);
        assert!(wide.contains("PRIORITY  PROCEED-ON  FUNCTION  VARIANT  DIGEST"), "{wide}");
        assert!(
            wide.contains(
                "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
            )
        );
    }

    #[test]
    fn which_of_several_objects_runs_is_told_with_the_reason() {
        let mut programs = Programs::of(vec![host()]);
        programs.0.truncate(1);
        programs.0[0].program.variant = Some(ChosenVariant {
            object: "plain.o".to_owned(),
            kernel: "5.15.0".to_owned(),
            passed_over: vec![PassedOver {
                object: "loop.o".to_owned(),
                needs: "kernel 6.1 or later; this is 5.15.0".to_owned(),
            }],
        });
        let wide = programs.table().unwrap().render(true, false);
        assert!(wide.contains("  firewall  plain.o  sha256:"), "{wide}");
        let text = ProgramInFull(programs.0).text(false);
        assert!(text.contains("variant:      plain.o, for kernel 5.15.0\n"), "{text}");
        let over = "passed over:  loop.o: it needs kernel 6.1 or later; this is 5.15.0\n";
        assert!(text.contains(over), "{text}");
    }

    #[test]
    fn a_program_in_full() {
        let mut programs = Programs::of(vec![host()]).0;
        programs.truncate(1);
        let text = ProgramInFull(programs).text(false);
        assert!(text.starts_with("program:     blocklist\nhost:        web1\n"), "{text}");
        assert!(text.contains("config:\n  blocked:  [\"198.51.100.0/24\"]\n"), "{text}");
        assert!(
            text.contains(
                "  METRIC   VALUE  LABELS  HELP\n  blocked      5  -       packets blocked\n"
            ),
            "{text}"
        );
    }
}
