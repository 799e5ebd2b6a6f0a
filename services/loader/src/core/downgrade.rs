//! Which programs of a request would go back to an older version than the one that runs.

use super::{
    plan::Asked,
    state::{State, WantedProgram},
};
use canopy_api::{ChainKey, PackageName, ProgramName};
use semver::Version;

/// A program that would go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downgrade {
    /// The chain.
    pub key: ChainKey,
    /// The program's name in it.
    pub program: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The version that runs.
    pub from: Version,
    /// The version asked for.
    pub to: Version,
    /// Where the request names the program.
    pub path: String,
}

/// Compares each program with what runs under its name in its chain; and one that is new there with what
/// the chain would lose of the same package, so that another name is no way round.
pub fn downgrades(state: &State, asked: &[Asked]) -> Vec<Downgrade> {
    let mut found = Vec::new();
    for asked in asked {
        let (Some(wanted), Some(chain)) = (&asked.wanted, state.chains.get(&asked.key)) else {
            continue;
        };
        for program in &wanted.programs {
            let old = &chain.wanted.programs;
            let same = |p: &&WantedProgram| p.name == program.name && p.package == program.package;
            let lost = |p: &&WantedProgram| {
                let stays = |new: &WantedProgram| new.name == p.name && new.package == p.package;
                p.package == program.package && !wanted.programs.iter().any(stays)
            };
            let runs = match old.iter().find(same) {
                Some(before) => Some(&before.version),
                None => old.iter().filter(lost).map(|p| &p.version).max(),
            };
            if let Some(from) = runs.filter(|from| **from > program.version) {
                found.push(Downgrade {
                    key: asked.key.clone(),
                    program: program.name.clone(),
                    package: program.package.clone(),
                    from: from.clone(),
                    to: program.version.clone(),
                    path: asked.program_paths.get(&program.name).cloned().unwrap_or_default(),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::{Chain, Wanted};
    use canopy_api::{Digest, Hook, TcMode, VerdictSet, XdpMode};
    use std::collections::BTreeMap;

    fn key() -> ChainKey {
        ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
    }

    fn wanted(programs: &[(&str, &str, &str)]) -> Wanted {
        let programs = programs
            .iter()
            .map(|(name, package, version)| WantedProgram {
                name: name.parse().unwrap(),
                package: package.parse().unwrap(),
                version: version.parse().unwrap(),
                digest: Digest::of(version.as_bytes()),
                program: "main".to_owned(),
                object: "main.o".to_owned(),
                choice: None,
                function: "main".to_owned(),
                priority: 1,
                proceed_on: VerdictSet::from_bits(1),
                frags: false,
                config: serde_json::Map::new(),
            })
            .collect();
        Wanted { xdp_mode: XdpMode::Best, tc_mode: TcMode::Best, programs }
    }

    fn found(runs: &[(&str, &str, &str)], asked: &[(&str, &str, &str)]) -> Vec<(String, String)> {
        let mut state = State::new("web1".parse().unwrap());
        let chain = Chain {
            rule: None,
            wanted: wanted(runs),
            running: 1,
            changed: 0,
            changed_by: "u-test".parse().unwrap(),
            restored: 0,
            since: BTreeMap::new(),
        };
        state.chains.insert(key(), chain);
        let asked = Asked {
            rule: None,
            key: key(),
            wanted: Some(wanted(asked)),
            path: String::new(),
            program_paths: BTreeMap::new(),
            notes: Vec::new(),
        };
        let found = downgrades(&state, &[asked]);
        found.into_iter().map(|one| (one.program.to_string(), one.from.to_string())).collect()
    }

    #[test]
    fn going_back_is_seen_under_the_same_name_and_under_another() {
        let runs = [("a", "wall", "1.10.0"), ("b", "wall", "1.2.0"), ("c", "meter", "1.0.0")];
        let back = |program: &str, from: &str| vec![(program.to_owned(), from.to_owned())];
        assert_eq!(found(&runs, &runs), []);
        assert_eq!(found(&runs, &[("a", "wall", "1.9.0"), runs[1], runs[2]]), back("a", "1.10.0"));
        assert_eq!(found(&runs, &[("new", "wall", "1.9.0"), runs[1]]), back("new", "1.10.0"));
        // Beside the newer one that stays, an older one is nobody's step back.
        assert_eq!(found(&runs, &[runs[0], runs[1], ("new", "wall", "1.0.0")]), []);
        assert_eq!(found(&runs, &[("a", "meter", "0.1.0"), runs[2]]), [], "another package");
        assert_eq!(found(&runs, &[("a", "wall", "1.11.0")]), []);
    }
}
