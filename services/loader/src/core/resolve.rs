//! From a checked document and the packages it names to chains with nothing left to look up.

use super::{
    state::{Choice, Wanted, WantedProgram},
    variant::Host,
};
use canopy_api::{
    ApiError, ChainSpec, Code, DesiredState, Digest, Hook, Problem, Problems, ProgramSpec, Target,
    VerdictSet, desired::parse_proceed_on, document,
};
use canopy_package::{Manifest, Package, PublicKey, bind, manifest::ManifestProgram};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// Programs a chain may have. The composer's own limits are lower for most packages; this one
/// bounds the work a request can ask for.
pub const MAX_PROGRAMS: usize = 255;

/// A package found for a reference: which bytes, and what is in them.
#[derive(Clone, Debug)]
pub struct Located {
    /// The exact bytes.
    pub digest: Digest,
    /// What is in them.
    pub package: Arc<Package>,
    /// The key whose signature on them was verified; `None` where signatures do not count.
    pub signed_by: Option<PublicKey>,
}

/// What a request asks for; `None` to have it removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// For which interfaces and hook.
    pub target: Target,
    /// What the chain is to be.
    pub wanted: Option<Wanted>,
    /// Where the request says so: `document.chains[0]`.
    pub path: String,
    /// Where it names each program.
    pub program_paths: BTreeMap<canopy_api::ProgramName, String>,
    /// Worth telling whoever asked.
    pub notes: Vec<String>,
}

/// Checks a document as it came over the wire; paths start with `document`.
pub fn check(value: Value) -> Result<DesiredState, Problems> {
    let parsed = document::check::<DesiredState>(value).and_then(|state| {
        state.check()?;
        Ok(state)
    });
    let state = parsed.map_err(|problems| below("document", problems))?;
    let mut problems = Problems::default();
    for (c, chain) in state.chains.iter().enumerate() {
        if chain.programs.len() > MAX_PROGRAMS {
            problems.push(
                Problem::new(
                    format!("document.chains[{c}].programs"),
                    format!(
                        "{} programs; a chain has at most {MAX_PROGRAMS}",
                        chain.programs.len()
                    ),
                )
                .remedy("put fewer programs on this hook"),
            );
        }
    }
    problems.into_result()?;
    Ok(state)
}

fn below(prefix: &str, problems: Problems) -> Problems {
    let at = |path: String| match path.as_str() {
        "" => prefix.to_owned(),
        _ => format!("{prefix}.{path}"),
    };
    Problems(problems.0.into_iter().map(|p| Problem { path: at(p.path), ..p }).collect())
}

/// Every package reference of a document, with the path of its first use.
pub fn references(state: &DesiredState) -> BTreeMap<String, (canopy_api::PackageRef, String)> {
    let mut out = BTreeMap::new();
    for (c, chain) in state.chains.iter().enumerate() {
        for (p, program) in chain.programs.iter().enumerate() {
            out.entry(program.package.to_string()).or_insert_with(|| {
                let path = format!("document.chains[{c}].programs[{p}].package");
                (program.package.clone(), path)
            });
        }
    }
    out
}

/// Chooses programs, checks settings, puts programs in order. `located` has an entry for each of
/// [`references`], `notes` for those there is something to tell of. Every mistake of the document
/// at once.
pub fn resolve(
    state: &DesiredState,
    located: &BTreeMap<String, Located>,
    notes: &BTreeMap<String, String>,
) -> Result<Vec<Wish>, Problems> {
    let mut problems = Problems::default();
    let mut wishes = Vec::new();
    for (c, chain) in state.chains.iter().enumerate() {
        let path = format!("document.chains[{c}]");
        let mut programs = Vec::new();
        let mut program_paths = BTreeMap::new();
        for (p, spec) in chain.programs.iter().enumerate() {
            let at = format!("{path}.programs[{p}]");
            match located.get(&spec.package.to_string()) {
                Some(found) => match program(chain, spec, found, &at) {
                    Ok(program) => programs.push(program),
                    Err(bad) => problems.0.extend(bad.0),
                },
                None => problems.push(Problem::new(
                    format!("{at}.package"),
                    format!("{} was not looked up", spec.package),
                )),
            }
            program_paths.insert(spec.name.clone(), at);
        }
        // Low runs first, equal ones by name.
        programs.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        let wanted = (!chain.programs.is_empty()).then(|| Wanted {
            xdp_mode: chain.xdp_mode.unwrap_or_default(),
            tc_mode: chain.tc_mode.unwrap_or_default(),
            programs,
        });
        let notes = chain
            .programs
            .iter()
            .filter_map(|program| notes.get(&program.package.to_string()).cloned())
            .collect();
        wishes.push(Wish { target: chain.target(), wanted, path, program_paths, notes });
    }
    problems.into_result()?;
    Ok(wishes)
}

fn program(
    chain: &ChainSpec,
    spec: &ProgramSpec,
    found: &Located,
    at: &str,
) -> Result<WantedProgram, Problems> {
    let manifest = &found.package.manifest;
    let mut problems = Problems::default();
    let chosen = choose(manifest, chain.hook, spec.program.as_deref(), at);
    if let Err(bad) = bind(manifest, &spec.config, &format!("{at}.config")) {
        problems.0.extend(bad.0);
    }
    let given = spec.proceed_on(chain.hook, &format!("{at}.proceed_on"));
    match (chosen, given) {
        (Ok(chosen), Ok(given)) => {
            let proceed_on = match (given, &chosen.proceed_on) {
                (Some(given), _) => given,
                (None, Some(names)) => parse_proceed_on(names, chain.hook, at).map_err(|bad| {
                    let said = bad.0.first().map_or("", |first| first.message.as_str());
                    Problem::new(
                        format!("{at}.package"),
                        format!("the manifest of {} is wrong: {said}", manifest.name),
                    )
                    .remedy("set proceed_on here, or mend the package")
                })?,
                (None, None) => VerdictSet::default_for(chain.hook),
            };
            problems.into_result()?;
            Ok(WantedProgram {
                name: spec.name.clone(),
                package: manifest.name.clone(),
                version: manifest.version.clone(),
                digest: found.digest.clone(),
                publisher: found.signed_by.as_ref().map(ToString::to_string),
                program: chosen.name.clone(),
                object: chosen.object.clone(),
                choice: (!chosen.variants.is_empty()).then(Choice::default),
                function: chosen.function.clone(),
                priority: spec.priority.unwrap_or(chosen.priority),
                proceed_on,
                frags: chosen.frags,
                config: spec.config.clone(),
            })
        }
        (chosen, given) => {
            problems.0.extend(chosen.err().into_iter().flat_map(|bad| bad.0));
            problems.0.extend(given.err().into_iter().flat_map(|bad| bad.0));
            Err(problems)
        }
    }
}

/// The program of a package that a document means: the one it names, else the only one for the
/// hook.
fn choose<'a>(
    manifest: &'a Manifest,
    hook: Hook,
    named: Option<&str>,
    at: &str,
) -> Result<&'a ManifestProgram, Problems> {
    let list = |programs: &[&ManifestProgram]| {
        programs.iter().map(|program| program.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let fitting: Vec<_> =
        manifest.programs.iter().filter(|program| program.hooks.contains(&hook)).collect();
    let (name, version) = (&manifest.name, &manifest.version);
    if fitting.is_empty() {
        let mut hooks: Vec<_> = manifest
            .programs
            .iter()
            .flat_map(|program| &program.hooks)
            .map(|h| h.as_str())
            .collect();
        hooks.sort_unstable();
        hooks.dedup();
        return Err(Problem::new(
            format!("{at}.package"),
            format!("{name} {version} has no program for {hook}"),
        )
        .remedy(format!("put it on {}, or choose another package", hooks.join(" or ")))
        .into());
    }
    match (named, fitting.as_slice()) {
        (Some(wanted), _) => {
            fitting.iter().find(|program| program.name == wanted).copied().ok_or_else(|| {
                Problem::new(
                    format!("{at}.program"),
                    format!("{name} {version} has no program \"{wanted}\" for {hook}"),
                )
                .remedy(format!("one of {}", list(&fitting)))
                .into()
            })
        }
        (None, [only]) => Ok(*only),
        (None, several) => Err(Problem::new(
            format!("{at}.program"),
            format!("{name} {version} has {} programs for {hook}", several.len()),
        )
        .remedy(format!("say which: one of {}", list(several)))
        .into()),
    }
}

/// Whether this host has what a package asks for.
pub fn check_host(manifest: &Manifest, host: &Host<'_>) -> Result<(), ApiError> {
    match host.lacks(&manifest.requires).first() {
        Some(lack) => {
            let message = format!("{} {} needs {lack}", manifest.name, manifest.version);
            Err(ApiError::new(Code::Unsupported, message).remedy(lack.remedy()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_of_a_document_has_its_path() {
        let value = serde_json::json!({ "chains": [
            { "interface": "eth0", "hook": "xdp", "xdp_mode": "native", "programs": [
                { "name": "a", "package": "p", "proceed_on": ["ok"] },
                { "name": "a", "package": "p" },
            ]},
        ]});
        let paths: Vec<_> = check(value).unwrap_err().0.into_iter().map(|p| p.path).collect();
        assert_eq!(
            paths,
            ["document.chains[0].programs[0].proceed_on[0]", "document.chains[0].programs[1].name"]
        );
        assert_eq!(check(serde_json::json!([])).unwrap_err().0[0].path, "document");
    }
}
