//! One BTF for a whole chain, where maps ask for it.
//!
//! The kernel compares the type of what is put into a list, a tree or a pointer of a map with the map's
//! own, and takes types of different BTF for different. So such a map is made with the BTF that the
//! chain is loaded with, and each member is loaded alone with the same.

use crate::{
    member::compose_error,
    observe,
    pins::{self, Pins},
    sys,
};
use canopy_api::ChainKey;
use canopy_chain::{self as chain, Attachment, Composed, Shape, Types, alone_in, compose_in};
use canopy_kernel::KernelError;
use std::{
    cell::RefCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Type information that maps are made with: a BTF, and how far an object's numbers are shifted in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapTypes<'a> {
    fd: BorrowedFd<'a>,
    shift: u32,
}

impl<'a> MapTypes<'a> {
    /// Those of an object alone.
    pub(crate) fn alone(fd: BorrowedFd<'a>) -> Self {
        Self { fd, shift: 0 }
    }

    /// The BTF with the numbers of a key's and a value's type in it.
    pub(crate) fn of(self, key: u32, value: u32) -> (BorrowedFd<'a>, u32, u32) {
        let shifted = |id: u32| if id == 0 { 0 } else { id.saturating_add(self.shift) };
        (self.fd, shifted(key), shifted(value))
    }

    /// Whether a map was made with this BTF.
    pub(crate) fn made(self, map: &sys::Map) -> bool {
        sys::btf_info(&self.fd).is_ok_and(|info| info.id == map.info().btf_id)
    }
}

/// The types of a chain, loaded.
#[derive(Debug)]
pub(crate) struct ChainTypes {
    types: RefCell<Types>,
    bytes: Vec<u8>,
    fd: OwnedFd,
}

impl ChainTypes {
    /// Loads the types of a chain of these members and of the programs they jump to. Those of the
    /// generation that runs are taken where they are the same, so that its maps may be kept.
    pub(crate) fn load(
        attachment: Attachment,
        members: &[chain::Member],
        others: &[chain::Member],
        running: Option<OwnedFd>,
    ) -> Result<Self, KernelError> {
        let types = Types::of_chain(attachment, members, others);
        let types = types.map_err(|error| compose_error(&error))?;
        let bytes = types.bytes();
        let same = running.filter(|fd| sys::btf_bytes(fd).is_ok_and(|known| known == bytes));
        let fd = match same {
            Some(fd) => fd,
            None => sys::btf_load(&bytes).map_err(|rejected| KernelError::Os {
                operation: "load the types of the chain".to_owned(),
                source: rejected.error,
            })?,
        };
        Ok(Self { types: RefCell::new(types), bytes, fd })
    }

    /// A member alone.
    pub(crate) fn alone(&self, member: &chain::Member) -> Result<Composed, KernelError> {
        alone_in(&mut self.types.borrow_mut(), member).map_err(|error| compose_error(&error))
    }

    /// The chain.
    pub(crate) fn compose(
        &self,
        members: &[chain::Member],
        shape: Shape,
    ) -> Result<Composed, chain::ComposeError> {
        compose_in(&mut self.types.borrow_mut(), members, shape)
    }

    /// The BTF that a composed program is to be loaded with; `None` where it is not this one.
    pub(crate) fn fd(&self, composed: &Composed) -> Option<BorrowedFd<'_>> {
        (composed.btf == self.bytes).then(|| self.fd.as_fd())
    }

    /// What the maps of a member are made with.
    pub(crate) fn of_maps(&self, member: &chain::Member) -> Option<MapTypes<'_>> {
        let first = self.types.borrow_mut().type_id(member, 1).ok()??;
        Some(MapTypes { fd: self.fd.as_fd(), shift: first.saturating_sub(1) })
    }
}

/// The types of the generation that maps are taken over from: the one that runs, else the newest that
/// is whole.
pub(crate) fn running(pins: &Pins, key: &ChainKey) -> Result<Option<OwnedFd>, KernelError> {
    let running = observe::running(pins, key)?;
    let generations = match running {
        Some(generation) => vec![generation],
        None => pins.generations(key)?,
    };
    for generation in generations.into_iter().rev() {
        if let Some(prog) = pins::open(&pins.prog(key, generation))? {
            let id = sys::prog_info(&prog).map_or(0, |info| info.btf_id);
            return Ok(sys::fd_by_id(sys::Kind::Btf, id).ok());
        }
    }
    Ok(None)
}
