//! What a loader would say of a package's programs: by its own reader, and on request by this machine's
//! kernel.

use crate::{
    failure::{Exit, Failure},
    output::Screen,
};
use canopy_api::{Hook, Problem, Problems, ProgramName, VerdictSet};
use canopy_kernel::{Carry, KernelError, MapContents, Member};
use canopy_kernel_aya::{check_member, load_member};
use canopy_package::{Package, bind, manifest::ManifestProgram};
use serde_json::Map;
use std::sync::Arc;

/// Refuses what a loader would refuse of any program, each with its place in the manifest; doubts are
/// printed. With `load` the kernel is asked too.
pub(super) fn ask(
    package: &Package,
    place: &str,
    load: bool,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut problems = Problems::default();
    for (number, program) in package.manifest.programs.iter().enumerate() {
        for (field, file) in program.objects() {
            let Some(object) = package.objects.get(file) else { continue };
            let object: Arc<[u8]> = object.as_slice().into();
            for hook in hooks(program) {
                let at = format!("programs[{number}].{field}");
                let member = member(package, program, &object)?;
                let judged = check_member(&member, hook).and_then(|remarks| {
                    for remark in remarks {
                        screen.note(&format!("warning: {at}: {remark}"));
                    }
                    if load { load_member(&member, hook).map(|_| ()) } else { Ok(()) }
                });
                match judged {
                    Ok(()) => {}
                    Err(KernelError::Refused { reason, remedy, log, .. }) => {
                        let message = match log {
                            Some(log) => format!("{file}: {reason}\n{log}"),
                            None => format!("{file}: {reason}"),
                        };
                        problems.push(Problem::new(at, message).remedy(remedy));
                    }
                    Err(error) => return Err(cannot_ask(&error).at(format!("{place}: {at}"))),
                }
            }
        }
    }
    problems.into_result().map_err(|problems| Failure::in_file(place, problems))
}

/// The hooks that make a difference: a program is loaded for both of TC in the same way.
fn hooks(program: &ManifestProgram) -> impl Iterator<Item = Hook> {
    program.hooks.first().copied().into_iter()
}

/// The program as the loader would have it, with the settings' defaults where all have one.
fn member(
    package: &Package,
    program: &ManifestProgram,
    object: &Arc<[u8]>,
) -> Result<Member, Failure> {
    let name: ProgramName = program
        .name
        .parse()
        .map_err(|error| Failure::new(Exit::Invalid, format!("\"{}\": {error}", program.name)))?;
    let maps = &package.manifest.maps;
    let settings = bind(&package.manifest, &Map::new(), "config").ok();
    let (globals, entries) =
        settings.map(|settings| (settings.globals, settings.map_entries)).unwrap_or_default();
    Ok(Member {
        name,
        object: Arc::clone(object),
        function: program.function.clone(),
        frags: program.frags,
        tail_calls: program.tail_calls,
        proceed_on: program
            .hooks
            .first()
            .map_or(VerdictSet::from_bits(0), |hook| VerdictSet::default_for(*hook)),
        globals,
        map_entries: entries
            .into_iter()
            .map(|(map, entries)| MapContents { map, entries })
            .collect(),
        carry: Carry::Nothing,
        max_entries: maps
            .iter()
            .filter_map(|map| map.max_entries.map(|most| (map.name.clone(), most)))
            .collect(),
        shared_maps: Vec::new(),
        settings: canopy_kernel::SettingsDetail::default(),
    })
}

/// It is not the program: this process may not, or this machine cannot.
fn cannot_ask(error: &KernelError) -> Failure {
    match error {
        KernelError::Unsupported { what, remedy } => {
            Failure::new(Exit::Unsupported, what.clone()).fix(remedy.clone())
        }
        KernelError::Os { operation, source } => {
            let exit = match source.kind() {
                std::io::ErrorKind::PermissionDenied => Exit::Denied,
                _ => Exit::Failed,
            };
            Failure::new(exit, format!("{operation} failed: {source}"))
        }
        other => Failure::new(Exit::Failed, other.to_string()),
    }
}
