//! What a generation does to maps only when it is attached: a preparation changes nothing that runs, and
//! may come to nothing.

use super::{MapSettings, entry_error, is_array, read_all};
use crate::sys::Map;
use canopy_api::ProgramName;
use canopy_kernel::KernelError;
use std::io;

/// Bytes of a map that is copied once more in the instant of the switch.
const SMALL: usize = 256 << 10;
/// `BPF_F_RDONLY` and `BPF_F_WRONLY`: who made the map can do only one of the two.
const ONE_WAY: u32 = 1 << 3 | 1 << 4;
/// How often settings are written that a running program writes over at once.
const ATTEMPTS: usize = 3;

/// What is to be done for a prepared generation.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    /// Maps that are copies of running ones.
    pub(crate) copies: Vec<Copied>,
    /// Settings that shared maps lack which stay in use.
    pub(crate) restores: Vec<Restore>,
}

impl Deferred {
    /// Whether nothing is left to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.copies.is_empty() && self.restores.is_empty()
    }

    /// Copies once more what the running programs have written since.
    pub(crate) fn copy_again(&self) -> io::Result<()> {
        self.copies.iter().try_for_each(Copied::again)
    }

    /// Writes the settings that shared maps lack; a map that does not have them even then, in words.
    pub(crate) fn restore(&mut self) -> Result<Option<String>, KernelError> {
        for restore in &mut self.restores {
            if !restore.apply().map_err(|error| restore.failed(error))? {
                return Ok(Some(format!("map \"{}\" of \"{}\"", restore.name, restore.member)));
            }
        }
        Ok(None)
    }

    /// Takes that back.
    pub(crate) fn undo_restore(&mut self) -> Result<(), KernelError> {
        for restore in self.restores.iter_mut().rev() {
            restore.undo().map_err(|error| restore.failed(error))?;
        }
        Ok(())
    }
}

/// Settings that a shared map lacks, although all who use it say them. Chains that do not change use it
/// too, so that it stays and they are written into it.
#[derive(Debug)]
pub(crate) struct Restore {
    member: ProgramName,
    name: String,
    map: Map,
    settings: MapSettings,
    /// What was there before, in the order in which it was written over.
    before: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Restore {
    pub(crate) fn new(member: &ProgramName, name: &str, map: Map, settings: &MapSettings) -> Self {
        let (member, name, settings) = (member.clone(), name.to_owned(), settings.clone());
        Self { member, name, map, settings, before: Vec::new() }
    }

    fn failed(&self, error: io::Error) -> KernelError {
        entry_error(&self.member, &self.name, self.map.info().max_entries, error)
    }

    /// Whether the map has the settings afterwards.
    fn apply(&mut self) -> io::Result<bool> {
        let Self { map, settings, before, .. } = self;
        for _ in 0..ATTEMPTS {
            settings.restore(map, |key, value| before.push((key.to_vec(), value)))?;
            if settings.missing(map)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn undo(&mut self) -> io::Result<()> {
        while let Some((key, value)) = self.before.pop() {
            match value {
                Some(value) => self.map.update(&key, &value, 0)?,
                None => {
                    self.map.delete(&key)?;
                }
            }
        }
        Ok(())
    }
}

/// A map that was made of one that runs, to be made of it once more in the instant of the switch.
#[derive(Debug)]
pub(crate) struct Copied {
    from: Map,
    to: Map,
    settings: MapSettings,
}

impl Copied {
    /// Of two maps of the same shape; `None` for large ones, for which there is no time then.
    pub(crate) fn new(from: Map, to: &Map, settings: &MapSettings) -> Option<Self> {
        let each = from.info().key_size as usize
            + (from.info().value_size as usize).saturating_mul(from.parts());
        let bytes = each.saturating_mul(from.info().max_entries as usize);
        let open = from.info().flags & ONE_WAY == 0;
        let to = to.try_clone().ok().filter(|_| bytes <= SMALL && open)?;
        Some(Self { from, to, settings: settings.clone() })
    }

    /// Copies what the running programs have written since.
    fn again(&self) -> io::Result<()> {
        let Self { from, to, settings } = self;
        settings.copy(from, to, false)?;
        if !is_array(from.info().map_type) {
            let (now, set) = (read_all(from)?, read_all(to)?);
            for key in set.keys().filter(|key| {
                !now.contains_key(*key) && !settings.entries.iter().any(|entry| entry.key == **key)
            }) {
                to.delete(key)?;
            }
        }
        Ok(())
    }
}
