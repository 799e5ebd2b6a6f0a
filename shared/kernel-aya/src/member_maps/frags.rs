//! Program arrays that others have filled decide whether a chain takes multi-buffer packets.

use super::{MapMaker, filling::references, kept, object, scope};
use crate::{map_create::os, member::refused, object_maps::PROG_ARRAY, pins, sys};
use canopy_api::Hook;
use canopy_kernel::KernelError;

impl MapMaker<'_> {
    /// Whether the chain can be loaded for multi-buffer packets, as its members could be. The first
    /// program that uses a program array decides that for all whose programs are in it; so an array that
    /// others have filled decides it for the chain.
    pub(crate) fn settle_frags(&mut self, notes: &mut Vec<String>) -> Result<(), KernelError> {
        let wanted = self.loading.frags;
        let Some((generation, Some(meta))) = &self.old else { return Ok(()) };
        let key = &self.build.key;
        if key.hook != Hook::Xdp || meta.frags == wanted {
            return Ok(());
        }
        for member in &self.build.members {
            let object = object(member)?;
            for (number, def) in object.maps.iter().enumerate() {
                if def.map_type != PROG_ARRAY || !def.values.is_empty() {
                    continue;
                }
                let path = match scope(member, &object, number) {
                    Some(scope) => self.pins.shared_map(key, scope, &def.name),
                    None if kept(&member.carry, def) => {
                        self.pins.map(key, *generation, &member.name, &def.name)
                    }
                    None => continue,
                };
                let Some(fd) = pins::open(&path)? else { continue };
                let failed = |error| os(&member.name, &def.name, "read", error);
                let map = sys::Map::new(fd).map_err(failed)?;
                let filled = references(&map).map_err(failed)?;
                let Some((_, program)) = filled.first() else { continue };
                if wanted {
                    notes.push(format!(
                        "the chain stays without multi-buffer packets (xdp.frags): map \"{}\" of \
                         \"{}\" holds {}, which was loaded without",
                        def.name,
                        member.name,
                        program_name(*program)
                    ));
                    self.loading.frags = false;
                    return Ok(());
                }
                let small = self.build.members.iter().find(|member| !member.frags);
                let small = small.map(|small| small.name.to_string()).unwrap_or_default();
                return Err(refused(
                    &member.name,
                    format!(
                        "its map \"{}\" holds {}, which was loaded for multi-buffer packets \
                         (xdp.frags) and can be called only by programs loaded for them; \
                         \"{small}\" does not handle such packets, so the chain cannot be",
                        def.name,
                        program_name(*program)
                    ),
                    format!(
                        "delete the entries of \"{}\", apply, and fill it with programs that were \
                         loaded without xdp.frags; or leave \"{small}\" out",
                        def.name
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// A program by number and name.
fn program_name(id: u32) -> String {
    let info = sys::fd_by_id(sys::Kind::Prog, id).and_then(|program| sys::prog_info(&program));
    match info {
        Ok(info) => format!("program {id} (\"{}\")", info.name),
        Err(_) => format!("program {id}"),
    }
}
