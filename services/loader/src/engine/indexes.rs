//! The highest index versions that were verified on this host: an older index is refused, whichever package
//! of its repository is asked for, until an administrator resets them.

use super::Engine;
use crate::{core::state::State, error::LoaderError};
use canopy_api::{
    PackageName,
    wire::{ResetHostRequest, ResetIndexReply},
};
use canopy_kernel::Kernel;
use canopy_package::{IndexSource, PackageError, TrustedKey, trusted_versions::Reset};
use std::collections::BTreeSet;

impl<K: Kernel> Engine<K> {
    /// The version that an index must have at least: of those seen for the package, and of those of the
    /// repository that it is of. `repository` is the registry's name for that, `keys` are those whose indexes
    /// count for the package.
    pub fn index_at_least(
        &self,
        package: &PackageName,
        source: &IndexSource,
        repository: &str,
        keys: &[TrustedKey],
    ) -> Result<u64, PackageError> {
        let inner = self.lock();
        let of_package = inner.state.index_versions.get(package).copied().unwrap_or(0);
        let of_repository = inner.state.trusted_versions.at_least(source, repository, keys)?;
        Ok(of_repository.max(of_package))
    }

    /// Remembers an index version, durably, so that an older index is refused from now on.
    pub fn remember_index(
        &self,
        package: &PackageName,
        source: &IndexSource,
        repository: &str,
        version: u64,
    ) -> Result<(), LoaderError> {
        self.change_indexes(|state| {
            state.trusted_versions.remember(source, repository, Some(package), version);
            let known = state.index_versions.entry(package.clone()).or_default();
            *known = version.max(*known);
        })
    }

    /// Accepts indexes of a repository again that are older than one seen before, down to a version. Packages
    /// of which it is not known which repository they are from are taken for this one's.
    pub fn reset_index(&self, request: &ResetHostRequest) -> Result<ResetIndexReply, LoaderError> {
        let ResetHostRequest { repository, id, to } = request;
        let mut from = 0;
        self.change_indexes(|state| {
            let elsewhere: BTreeSet<_> = state.trusted_versions.packages().cloned().collect();
            let Reset { from: highest, packages } =
                state.trusted_versions.reset(repository, id.as_deref(), *to);
            from = highest.unwrap_or(0);
            for (package, known) in &mut state.index_versions {
                if packages.contains(package) || !elsewhere.contains(package) {
                    from = from.max(*known);
                    *known = (*known).min(*to);
                }
            }
        })?;
        Ok(ResetIndexReply {
            repository: repository.clone(),
            id: id.clone(),
            from,
            to: from.min(*to),
        })
    }

    /// Makes a change once it is on disk.
    fn change_indexes(&self, change: impl FnOnce(&mut State)) -> Result<(), LoaderError> {
        let mut inner = self.lock();
        let mut next = inner.state.clone();
        change(&mut next);
        if next != inner.state {
            self.parts.store.save(&next)?;
            inner.state = next;
        }
        Ok(())
    }
}
