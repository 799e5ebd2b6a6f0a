//! What the fake remembers: interfaces, chains with their generations, and packets on their way.

use super::{
    contents::Contents,
    faults::{Call, Fault},
    member_maps,
};
use crate::{Away, Interface, KernelError, LinkState, MapKind, MapPlace, MapShape, MemberCells};
use canopy_api::{
    ChainKey, InterfaceName, Netns, ProgramName, TcMode, VerdictSet,
    verdict::OTHER,
    wire::{Fact, ForeignProgram, ObservedChain},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

#[derive(Debug)]
pub(super) struct Generation {
    pub(super) program_id: u32,
    pub(super) tc_mode: TcMode,
    pub(super) members: Vec<(ProgramName, String, VerdictSet)>,
    pub(super) objects: Vec<Arc<[u8]>>,
    pub(super) cells: Vec<MemberCells>,
    pub(super) maps: member_maps::Maps,
    pub(super) shares: member_maps::Shares,
}

#[derive(Debug)]
pub(super) enum Runs {
    Generation(u64),
    Foreign(u32),
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: u32,
    pub(super) ifindex: u32,
    pub(super) mode: &'static str,
    pub(super) runs: Runs,
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) link: Option<Link>,
    pub(super) generations: BTreeMap<u64, Generation>,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) key: ChainKey,
    pub(super) generation: u64,
    pub(super) verdicts: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// By where they are; a number is one interface's, in whichever namespace.
    pub(super) interfaces: BTreeMap<(Option<Netns>, InterfaceName), Interface>,
    /// Those besides the loader's own.
    pub(super) namespaces: BTreeSet<Netns>,
    /// Whether the loader may not enter other namespaces.
    pub(super) confined: bool,
    pub(super) chains: BTreeMap<ChainKey, Chain>,
    pub(super) default_route: Vec<u32>,
    pub(super) ids: u32,
    pub(super) log: Vec<Call>,
    pub(super) faults: Vec<(Call, usize, Fault)>,
    /// Whether maps lose their settings when they are made.
    pub(super) forgetful: bool,
    pub(super) refused: Vec<String>,
    pub(super) refused_objects: Vec<Vec<u8>>,
    pub(super) in_flight: Vec<InFlight>,
    pub(super) facts: Vec<Fact>,
    pub(super) release: Option<String>,
    pub(super) shapes: BTreeMap<String, MapShape>,
    /// Chains that are attached and whose pins are hidden.
    pub(super) hidden: BTreeMap<ChainKey, Chain>,
    /// Whether what is hidden can be brought back by its program's id.
    pub(super) may_ask_by_id: bool,
    pub(super) boots: u32,
    pub(super) before: BTreeMap<ChainKey, Vec<ForeignProgram>>,
    pub(super) device_errors: BTreeMap<ChainKey, BTreeMap<String, u64>>,
    pub(super) strays: Vec<PathBuf>,
    /// Maps that were read whole, since somebody asked.
    pub(super) map_reads: Vec<(ChainKey, ProgramName, String)>,
}

impl Inner {
    pub(super) fn id(&mut self) -> u32 {
        self.ids += 1;
        self.ids
    }

    /// Enters a namespace.
    pub(super) fn within(&self, netns: Option<&Netns>) -> Result<(), KernelError> {
        match netns {
            Some(netns) if !self.namespaces.contains(netns) => Err(KernelError::NetnsNotFound {
                netns: netns.clone(),
                why: "there is none".to_owned(),
            }),
            Some(_) if self.confined => Err(KernelError::Unsupported {
                what: "other network namespaces cannot be entered".to_owned(),
                remedy: "give the loader cap_sys_admin".to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn ifindex(&self, key: &ChainKey) -> Result<u32, KernelError> {
        self.within(key.netns.as_ref())?;
        self.interfaces
            .get(&(key.netns.clone(), key.interface.clone()))
            .map(|interface| interface.index)
            .ok_or_else(|| KernelError::no_interface(key))
    }

    pub(super) fn generation(
        &self,
        key: &ChainKey,
        generation: u64,
    ) -> Result<&Generation, KernelError> {
        self.chains
            .get(key)
            .and_then(|chain| chain.generations.get(&generation))
            .ok_or_else(|| no_such(&format!("open generation {generation} of {key}")))
    }

    /// The shape of maps of this name; for one that nobody described, that of a small hash map.
    pub(super) fn shape(&self, map: &str) -> MapShape {
        self.shapes.get(map).copied().unwrap_or(MapShape {
            kind: MapKind::HASH,
            key_size: 4,
            value_size: 8,
            max_entries: 1024,
            flags: 0,
            frozen: false,
            values: 1,
        })
    }

    pub(super) fn map(&self, place: MapPlace<'_>) -> Result<(Contents, MapShape), KernelError> {
        let MapPlace { key, generation, member, map } = place;
        let found = self.generation(key, generation)?;
        match found.maps.get(&(member.clone(), map.to_owned())) {
            Some(contents) => Ok((Arc::clone(contents), self.shape(map))),
            None => Err(no_such(&format!("open map {map} of {member}"))),
        }
    }

    pub(super) fn state(&self, key: &ChainKey, chain: &Chain) -> LinkState {
        let ifindex = match self.ifindex(key) {
            Ok(ifindex) => ifindex,
            Err(KernelError::InterfaceNotFound { .. }) => return LinkState::InterfaceMissing,
            Err(KernelError::NetnsNotFound { .. }) => return LinkState::NetnsMissing,
            Err(error) => return LinkState::Unseen { why: error.to_string() },
        };
        let Some(link) = chain.link.as_ref().filter(|link| link.ifindex == ifindex) else {
            return LinkState::Detached;
        };
        match link.runs {
            Runs::Foreign(program_id) => LinkState::Replaced { program_id },
            Runs::Generation(generation) => match chain.generations.get(&generation) {
                Some(found) => LinkState::Attached(observed_chain(link, generation, found)),
                None => LinkState::Replaced { program_id: 0 },
            },
        }
    }

    pub(super) fn away(&self, key: &ChainKey, chain: &Chain) -> Option<Away> {
        let link = chain.link.as_ref()?;
        let now = self.interfaces.values().find(|interface| interface.index == link.ifindex)?;
        if now.netns != key.netns {
            return Some(Away::OtherNamespace);
        }
        (now.name != key.interface).then(|| Away::Renamed(now.name.clone()))
    }

    pub(super) fn count(&mut self, key: &ChainKey, generation: u64, verdicts: &[u8]) {
        let Some(found) =
            self.chains.get_mut(key).and_then(|chain| chain.generations.get_mut(&generation))
        else {
            return;
        };
        for (i, (_, _, proceed_on)) in found.members.iter().enumerate() {
            let slot = verdicts.get(i).copied().unwrap_or(0).min(OTHER);
            let goes_on = slot < OTHER && proceed_on.bits() & (1 << slot) != 0;
            let last = i + 1 == found.members.len();
            let Some(cells) = found.cells.get_mut(i) else { return };
            let cells = if goes_on && !last { &mut cells.proceeds } else { &mut cells.exits };
            if let Some(cell) = cells.get_mut(usize::from(slot)) {
                *cell += 1;
            }
            if !goes_on {
                return;
            }
        }
    }
}

pub(super) fn no_such(operation: &str) -> KernelError {
    KernelError::Os {
        operation: operation.to_owned(),
        source: std::io::Error::from(std::io::ErrorKind::NotFound),
    }
}

pub(super) fn running(inner: &Inner, key: &ChainKey) -> Option<u64> {
    match inner.chains.get(key)?.link.as_ref()?.runs {
        Runs::Generation(generation) => Some(generation),
        Runs::Foreign(_) => None,
    }
}

pub(super) fn observed_chain(link: &Link, generation: u64, found: &Generation) -> ObservedChain {
    ObservedChain {
        program_id: found.program_id,
        link_id: link.id,
        tag: format!("{:016x}", found.program_id),
        ifindex: link.ifindex,
        mode: link.mode.to_owned(),
        generation,
        verified_instructions: 100 * u32::try_from(found.members.len()).unwrap_or(u32::MAX),
        jited_bytes: 0,
        memory_bytes: 0,
        loaded: 0,
        timed_runs: 0,
        timed_ns: 0,
        function_bytes: Vec::new(),
        native_refused: None,
        functions: found.members.iter().map(|(_, function, _)| function.clone()).collect(),
    }
}
