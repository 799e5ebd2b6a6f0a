//! What hosts run, against what is published.

use crate::output::{Answer, Cell, Table, Tone, text};
use canopy_api::{
    ChainKey, Hook, HostId, Netns, PackageName, ProgramName,
    name::InterfaceName,
    wire::{GetReply, ListReply, PackageSummary},
};
use semver::Version;
use serde::Serialize;

/// A program whose version is not the newest, or was withdrawn.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct OutdatedProgram {
    /// The host.
    pub host: HostId,
    /// The network namespace; absent for the loader's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// The interface.
    pub interface: InterfaceName,
    /// The hook.
    pub hook: Hook,
    /// The program's name in the chain.
    pub program: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The version that runs.
    pub runs: String,
    /// The newest that is published and not withdrawn; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// What runs was withdrawn by its publisher.
    pub withdrawn: bool,
}

impl OutdatedProgram {
    fn chain(&self) -> ChainKey {
        ChainKey { netns: self.netns.clone(), interface: self.interface.clone(), hook: self.hook }
    }
}

/// Programs that are behind.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Outdated(pub Vec<OutdatedProgram>);

impl Outdated {
    /// Compares what hosts run with what the repositories offer; of one package, or of all. What no
    /// repository offers cannot be behind.
    pub fn of(states: &[GetReply], offered: &ListReply, only: Option<&PackageName>) -> Self {
        let mut found = Vec::new();
        for state in states {
            for chain in &state.chains {
                for program in &chain.programs {
                    let package = offered.packages.iter().find(|p| p.name == program.package);
                    let Some(package) =
                        package.filter(|_| only.is_none_or(|o| *o == program.package))
                    else {
                        continue;
                    };
                    let withdrawn =
                        package.versions.iter().any(|v| v.yanked && v.version == program.version);
                    let newest = newer(package, &program.version);
                    if newest.is_none() && !withdrawn {
                        continue;
                    }
                    found.push(OutdatedProgram {
                        host: state.host.clone(),
                        netns: chain.netns.clone(),
                        interface: chain.interface.clone(),
                        hook: chain.hook,
                        program: program.name.clone(),
                        package: program.package.clone(),
                        runs: program.version.clone(),
                        newest,
                        withdrawn,
                    });
                }
            }
        }
        Self(found)
    }
}

/// The newest version above this one. A pre-release is newer only for who runs one.
fn newer(package: &PackageSummary, runs: &str) -> Option<String> {
    let runs: Version = runs.parse().ok()?;
    let offered = package.versions.iter().filter(|version| !version.yanked);
    let newest = offered
        .filter_map(|version| version.version.parse::<Version>().ok())
        .filter(|version| version.pre.is_empty() || !runs.pre.is_empty())
        .max()?;
    (newest > runs).then(|| newest.to_string())
}

impl Answer for Outdated {
    fn table(&self) -> Option<Table> {
        let mut table = Table::new([
            text("HOST"),
            text("CHAIN"),
            text("PROGRAM"),
            text("PACKAGE"),
            text("RUNS"),
            text("NEWEST"),
        ]);
        for one in &self.0 {
            let runs = if one.withdrawn {
                Cell::toned(format!("{} (yanked)", one.runs), Tone::Warn)
            } else {
                one.runs.clone().into()
            };
            table.row([
                (&one.host).into(),
                one.chain().to_string().into(),
                (&one.program).into(),
                (&one.package).into(),
                runs,
                one.newest.clone().unwrap_or_default().into(),
            ]);
        }
        Some(table)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|one| format!("{}@{}", one.package, one.runs)).collect()
    }

    fn nothing(&self) -> String {
        "nothing is outdated".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::{Digest, wire::VersionSummary};
    use serde_json::json;

    fn offered(versions: &[(&str, bool)]) -> ListReply {
        let versions = versions
            .iter()
            .map(|(version, yanked)| VersionSummary {
                version: (*version).to_owned(),
                digest: Digest::of(version.as_bytes()),
                length: 1,
                yanked: *yanked,
            })
            .collect();
        ListReply {
            packages: vec![PackageSummary {
                name: "wall".parse().unwrap(),
                description: String::new(),
                hooks: Vec::new(),
                keywords: Vec::new(),
                repository: "main".to_owned(),
                versions,
                older: 0,
            }],
            ..ListReply::default()
        }
    }

    fn running(version: &str) -> Vec<GetReply> {
        let program = |name: &str, package: &str| {
            json!({ "name": name, "position": 0, "package": package, "version": version,
                    "digest": Digest::of(b""), "program": "p", "function": "p", "priority": 1,
                    "proceed_on": [], "runs": 0, "verdicts": {}, "exits": {} })
        };
        serde_json::from_value(json!([{
            "host": "web1", "generation": 1, "drained": false, "kernel": "6", "version": "0",
            "started": "", "chains": [{ "interface": "eth0", "hook": "xdp", "state": "active",
            "restored": 0, "programs": [program("a", "wall"), program("b", "loose")] }],
        }]))
        .unwrap()
    }

    fn behind(runs: &str, versions: &[(&str, bool)]) -> Vec<(Option<String>, bool)> {
        let found = Outdated::of(&running(runs), &offered(versions), None);
        found.0.into_iter().map(|one| (one.newest, one.withdrawn)).collect()
    }

    #[test]
    fn only_what_is_behind_or_withdrawn_is_outdated() {
        let newer = |version: &str| vec![(Some(version.to_owned()), false)];
        assert_eq!(behind("1.0.0", &[("1.0.0", false)]), []);
        assert_eq!(behind("1.9.0", &[("1.10.0", false), ("1.9.0", false)]), newer("1.10.0"));
        assert_eq!(behind("1.0.0", &[("2.0.0", true), ("1.0.0", false)]), []);
        assert_eq!(behind("1.0.0", &[("2.0.0-rc.1", false), ("1.0.0", false)]), []);
        assert_eq!(behind("2.0.0-rc.1", &[("2.0.0-rc.2", false)]), newer("2.0.0-rc.2"));
        assert_eq!(behind("1.0.0", &[("1.0.0", true)]), [(None, true)]);
        let other = "other".parse().unwrap();
        let found = Outdated::of(&running("1.0.0"), &offered(&[("2.0.0", false)]), Some(&other));
        assert_eq!(found.0, []);
    }

    #[test]
    fn as_a_table() {
        let found =
            Outdated::of(&running("1.0.0"), &offered(&[("2.0.0", false), ("1.0.0", true)]), None);
        assert_eq!(
            found.table().unwrap().render(false, false),
            "\
HOST  CHAIN     PROGRAM  PACKAGE  RUNS            NEWEST
web1  eth0/xdp  a        wall     1.0.0 (yanked)  2.0.0
"
        );
    }
}
