//! What policy is asked about before a change is made; see [`crate::core::admission`].

use super::{Engine, Options, maps::place};
use crate::{
    core::{
        admission::{self, Signers},
        downgrade::{Downgrade, downgrades},
        resolve::Wish,
    },
    error::LoaderError,
};
use canopy_api::wire::{AdmissionItem, AdmissionVerb, DeleteRequest, MapName};
use canopy_kernel::Kernel;

impl<K: Kernel> Engine<K> {
    /// The parts of an apply, and its programs that would go back to an older version, on whichever
    /// interface.
    pub fn parts_of_apply(
        &self,
        wishes: &[Wish],
        signers: &Signers,
        options: &Options,
    ) -> Result<(Vec<Downgrade>, Vec<AdmissionItem>), LoaderError> {
        let inner = self.lock();
        let (expanded, _) = self.expand(&inner, wishes.to_vec(), options)?;
        let back = downgrades(&inner.state, &expanded.asked);
        let lost = admission::lost(&inner.state, wishes, &expanded.asked);
        let parts = admission::of_apply(wishes, signers, &back, lost);
        Ok((back, parts))
    }

    /// The parts of a delete.
    pub fn parts_of_delete(
        &self,
        request: &DeleteRequest,
        options: &Options,
    ) -> Result<Vec<AdmissionItem>, LoaderError> {
        let wish = self.wish_to_delete(request)?;
        let inner = self.lock();
        let (expanded, _) = self.expand(&inner, vec![wish.clone()], options)?;
        let lost = admission::lost(&inner.state, std::slice::from_ref(&wish), &expanded.asked);
        Ok(admission::of_delete(&wish.target, lost))
    }

    /// The parts of a drain, or of undoing one.
    pub fn parts_of_drain(&self, undo: bool) -> Vec<AdmissionItem> {
        admission::of_drain(&self.lock().state, undo)
    }

    /// The part of a write to a map.
    pub fn part_of_map(
        &self,
        verb: AdmissionVerb,
        name: &MapName,
    ) -> Result<AdmissionItem, LoaderError> {
        let place = place(&self.lock(), name)?;
        Ok(admission::of_map(verb, &place.key, &place.program, &name.map))
    }
}
