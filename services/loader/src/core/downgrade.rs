//! Which programs of a request would go back to an older version than the one that is described there.

use super::{
    handover::Handover,
    plan::Asked,
    state::{State, Wanted, WantedProgram},
};
use canopy_api::{InterfaceSelector, PackageName, ProgramName, Target};
use semver::Version;

/// A program that would go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downgrade {
    /// Where: the interfaces of this target,
    pub target: Target,
    /// that this selector stands for too.
    pub within: Option<InterfaceSelector>,
    /// The program's name there.
    pub program: ProgramName,
    /// Its package.
    pub package: PackageName,
    /// The version that is there.
    pub from: Version,
    /// The version it would be.
    pub to: Version,
    /// Who signed that.
    pub publisher: Option<String>,
    /// Where the request names the program.
    pub path: String,
}

/// Compares what is described now with what would be, on every interface that there may be; and each
/// chain with what it would become.
pub fn downgrades(state: &State, handovers: &[Handover<'_>], asked: &[Asked]) -> Vec<Downgrade> {
    let mut found: Vec<Downgrade> = Vec::new();
    let mut note =
        |place: (&Target, Option<&InterfaceSelector>), program: &WantedProgram, from, path| {
            let (target, within) = place;
            let same = |one: &Downgrade| {
                (&one.target, &one.program, &one.from) == (target, &program.name, &from)
                    && (one.within.as_ref() == within || one.within.is_none())
            };
            if !found.iter().any(same) {
                found.push(Downgrade {
                    target: target.clone(),
                    within: within.cloned(),
                    program: program.name.clone(),
                    package: program.package.clone(),
                    from,
                    to: program.version.clone(),
                    publisher: program.publisher.clone(),
                    path,
                });
            }
        };
    for one in handovers {
        let Some(after) = one.after else { continue };
        for (program, from) in steps_back(one.before, after) {
            let path = super::handover::path_of(one.wish, &program.name);
            note((&one.place, one.within.as_ref()), program, from.clone(), path);
        }
    }
    for asked in asked {
        let (Some(wanted), Some(chain)) = (&asked.wanted, state.chains.get(&asked.key)) else {
            continue;
        };
        for (program, from) in steps_back(&chain.wanted, wanted) {
            let path = asked.program_paths.get(&program.name).cloned().unwrap_or_default();
            note((&asked.key.clone().into(), None), program, from.clone(), path);
        }
    }
    found
}

/// Compares each program with what has its name; and one that is new with what would be lost of the same
/// package, so that another name is no way round.
fn steps_back<'a>(
    before: &'a Wanted,
    after: &'a Wanted,
) -> impl Iterator<Item = (&'a WantedProgram, &'a Version)> {
    after.programs.iter().filter_map(move |program| {
        let old = &before.programs;
        let same = |p: &&WantedProgram| p.name == program.name && p.package == program.package;
        let lost = |p: &&WantedProgram| {
            let stays = |new: &WantedProgram| new.name == p.name && new.package == p.package;
            p.package == program.package && !after.programs.iter().any(stays)
        };
        let from = match old.iter().find(same) {
            Some(before) => Some(&before.version),
            None => old.iter().filter(lost).map(|p| &p.version).max(),
        };
        Some((program, from.filter(|from| **from > program.version)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::tests;

    fn wanted(programs: &[(&str, &str, &str)]) -> Wanted {
        let mut wanted = tests::wanted(&programs.iter().map(|one| one.0).collect::<Vec<_>>());
        for (program, (_, package, version)) in wanted.programs.iter_mut().zip(programs) {
            program.package = package.parse().unwrap();
            program.version = version.parse().unwrap();
        }
        wanted
    }

    fn found(runs: &[(&str, &str, &str)], asked: &[(&str, &str, &str)]) -> Vec<(String, String)> {
        let (before, after) = (wanted(runs), wanted(asked));
        let found = steps_back(&before, &after);
        found.map(|(program, from)| (program.name.to_string(), from.to_string())).collect()
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
