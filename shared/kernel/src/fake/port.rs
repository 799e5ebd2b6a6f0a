//! The promises of the port, kept in memory.

use super::{
    FakeKernel,
    contents::FakeRing,
    faults::{Call, leave},
    member_maps, no_such, observed_chain, running,
    state::{Generation, Link, Runs},
};
use crate::{
    ChainBuild, Expect, Interface, Kernel, KernelError, KnownProgram, MapEntry, MapPage, MapPlace,
    MemberCells, MemberMap, Observed, Prepared, Ring, WriteWhen,
};
use canopy_api::{
    ChainKey, Hook, InterfaceName, Netns, ProgramName, TcMode, XdpMode,
    verdict::CELLS,
    wire::{ChainPlacement, Fact, ObservedChain},
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

impl Kernel for FakeKernel {
    fn release(&self) -> String {
        self.lock().release.clone().unwrap_or_else(|| "6.18.0-fake".to_owned())
    }

    fn facts(&self) -> Vec<Fact> {
        self.lock().facts.clone()
    }

    fn spent(&self) -> Duration {
        Duration::ZERO
    }

    fn take_times(&self) -> Result<Box<dyn Send>, KernelError> {
        Ok(Box::new(Arc::clone(&self.times)))
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.lock().boots)
    }

    fn placement(
        &self,
        key: &ChainKey,
        chain: &ObservedChain,
    ) -> Result<Option<ChainPlacement>, KernelError> {
        let inner = self.lock();
        let link = inner.chains.get(key).and_then(|found| found.link.as_ref());
        if link.is_none_or(|link| link.id != chain.link_id) {
            return Ok(None);
        }
        let before = inner.before.get(key).cloned().unwrap_or_default();
        let position = u32::try_from(before.len()).unwrap_or(u32::MAX);
        let programs = position.saturating_add(1);
        Ok(Some(ChainPlacement { position, programs, revision: None, before }))
    }

    fn device_errors(&self, key: &ChainKey) -> Result<BTreeMap<String, u64>, KernelError> {
        Ok(self.lock().device_errors.get(key).cloned().unwrap_or_default())
    }

    fn stray_pins(&self) -> Result<Vec<PathBuf>, KernelError> {
        Ok(self.lock().strays.clone())
    }

    fn recover_pins(
        &self,
        key: &ChainKey,
        known: Option<KnownProgram>,
    ) -> Result<bool, KernelError> {
        let mut inner = self.lock();
        let Some(chain) = inner.hidden.get(key) else { return Ok(false) };
        let runs = match chain.link.as_ref().map(|link| &link.runs) {
            Some(Runs::Generation(generation)) => chain.generations.get(generation),
            Some(Runs::Foreign(_)) | None => None,
        };
        let recognised =
            known.is_some_and(|known| runs.is_some_and(|runs| runs.program_id == known.program_id));
        if !inner.may_ask_by_id && !recognised {
            return Ok(false);
        }
        if !inner.may_ask_by_id || !recognised {
            return Err(KernelError::PinsHidden {
                what: format!("{key}: it is attached, and its pins are hidden"),
                remedy: "unmount what hides them".to_owned(),
            });
        }
        if let Some(chain) = inner.hidden.remove(key) {
            inner.chains.insert(key.clone(), chain);
        }
        Ok(true)
    }

    fn interfaces(&self, netns: Option<&Netns>) -> Result<Vec<Interface>, KernelError> {
        let inner = self.lock();
        inner.within(netns)?;
        let here = inner.interfaces.values().filter(|one| one.netns.as_ref() == netns);
        Ok(here.cloned().collect())
    }

    fn default_route(&self, netns: Option<&Netns>) -> Result<Vec<u32>, KernelError> {
        let inner = self.lock();
        inner.within(netns)?;
        // It leads out of the loader's own only.
        Ok(if netns.is_none() { inner.default_route.clone() } else { Vec::new() })
    }

    fn observe(&self) -> Result<Vec<Observed>, KernelError> {
        let die = self.enter(Call::Observe)?;
        let inner = self.lock();
        let seen = inner
            .chains
            .iter()
            .filter(|(_, chain)| chain.link.is_some() || !chain.generations.is_empty())
            .map(|(key, chain)| Observed {
                key: key.clone(),
                state: inner.state(key, chain),
                generations: chain.generations.keys().copied().collect(),
                away: inner.away(key, chain),
                pin_problem: None,
            })
            .collect();
        drop(inner);
        leave(die, Ok(seen))
    }

    fn prepare(&self, build: &ChainBuild) -> Result<Prepared, KernelError> {
        let die = self.enter(Call::Prepare)?;
        let mut inner = self.lock();
        inner.ifindex(&build.key)?;
        if let Some(member) = build.members.iter().find(|member| {
            inner.refused.contains(&member.function)
                || inner.refused_objects.iter().any(|object| **object == *member.object)
        }) {
            return Err(KernelError::Refused {
                member: Some(member.name.clone()),
                reason: "the verifier refuses it".to_owned(),
                remedy: "read the log".to_owned(),
                log: Some("R0 !read_ok".to_owned()),
            });
        }
        let pinned = inner.chains.get(&build.key);
        if pinned.is_some_and(|chain| chain.generations.contains_key(&build.generation)) {
            return Err(KernelError::Os {
                operation: format!("pin generation {} of {}", build.generation, build.key),
                source: std::io::Error::from(std::io::ErrorKind::AlreadyExists),
            });
        }
        let old = running(&inner, &build.key)
            .or_else(|| pinned.and_then(|chain| chain.generations.keys().next_back().copied()));
        let (maps, shares, notes) = member_maps::make(&mut inner, build, old)?;
        let program_id = inner.id();
        let members: Vec<_> = build
            .members
            .iter()
            .map(|member| (member.name.clone(), member.function.clone(), member.proceed_on))
            .collect();
        let cells = members
            .iter()
            .map(|(name, _, _)| MemberCells {
                name: name.clone(),
                exits: [0; CELLS],
                proceeds: [0; CELLS],
            })
            .collect();
        let objects = build.members.iter().map(|member| Arc::clone(&member.object)).collect();
        let tc_mode = build.tc_mode;
        let generation = Generation { program_id, tc_mode, members, objects, cells, maps, shares };
        inner
            .chains
            .entry(build.key.clone())
            .or_default()
            .generations
            .insert(build.generation, generation);
        drop(inner);
        let verified_instructions = 100 * u32::try_from(build.members.len()).unwrap_or(u32::MAX);
        leave(die, Ok(Prepared { program_id, verified_instructions, notes }))
    }

    fn switch(
        &self,
        key: &ChainKey,
        generation: u64,
        mode: XdpMode,
        expect: Expect,
    ) -> Result<ObservedChain, KernelError> {
        let die = self.enter(Call::Switch)?;
        let mut inner = self.lock();
        let ifindex = inner.ifindex(key)?;
        let tc_mode = inner.generation(key, generation)?.tc_mode;
        let id = inner.id();
        // A link of another chain there is taken over: its interface was renamed.
        let stray = inner
            .chains
            .iter_mut()
            .filter(|(other, _)| other.hook == key.hook && *other != key)
            .find_map(|(_, other)| other.link.take_if(|link| link.ifindex == ifindex));
        let id = stray.map_or(id, |link| link.id);
        let Some(chain) = inner.chains.get_mut(key) else {
            return Err(no_such(&format!("open {key}")));
        };
        // A link on another interface is as good as dead to this chain.
        chain.link.take_if(|link| link.ifindex != ifindex);
        let conflict = |what: &str| KernelError::Conflict {
            what: format!("{key}: {what}"),
            remedy: "look who else changes this interface, then try again".to_owned(),
        };
        let mode = match (key.hook, mode) {
            (Hook::Xdp, XdpMode::Generic) => "generic",
            (Hook::Xdp, XdpMode::Native | XdpMode::Best) => "native",
            (Hook::TcIngress | Hook::TcEgress, _) => match tc_mode {
                TcMode::Best | TcMode::Tcx => "tcx",
                TcMode::Clsact => "clsact",
            },
        };
        match (&mut chain.link, expect) {
            (None, Expect::Nothing) => {
                chain.link = Some(Link { id, ifindex, mode, runs: Runs::Generation(generation) });
            }
            (None, Expect::Generation(_) | Expect::Anything) => {
                return Err(conflict("nothing is attached"));
            }
            (Some(_), Expect::Nothing) => return Err(conflict("something is attached already")),
            (Some(link), Expect::Anything) => link.runs = Runs::Generation(generation),
            (Some(link), Expect::Generation(old)) => match link.runs {
                Runs::Generation(now) if now == old => link.runs = Runs::Generation(generation),
                Runs::Generation(_) | Runs::Foreign(_) => {
                    return Err(conflict("another program is attached"));
                }
            },
        }
        if let Some(link) = &mut chain.link {
            link.mode = mode;
        }
        let result = match (&chain.link, chain.generations.get(&generation)) {
            (Some(link), Some(found)) => Ok(observed_chain(link, generation, found)),
            _ => Err(no_such(&format!("read back {key}"))),
        };
        drop(inner);
        leave(die, result)
    }

    fn rename(&self, from: &ChainKey, to: &InterfaceName) -> Result<(), KernelError> {
        let die = self.enter(Call::Rename)?;
        let mut inner = self.lock();
        let to = from.on(to.clone());
        if inner.chains.contains_key(&to) {
            return Err(KernelError::Conflict {
                what: format!("there is a chain on {to} already"),
                remedy: "remove it".to_owned(),
            });
        }
        if let Some(chain) = inner.chains.remove(from) {
            inner.chains.insert(to.clone(), chain);
        }
        for late in &mut inner.in_flight {
            if late.key == *from {
                late.key = to.clone();
            }
        }
        drop(inner);
        leave(die, Ok(()))
    }

    fn detach(&self, key: &ChainKey) -> Result<(), KernelError> {
        let die = self.enter(Call::Detach)?;
        if let Some(chain) = self.lock().chains.get_mut(key) {
            chain.link = None;
        }
        leave(die, Ok(()))
    }

    fn discard(&self, key: &ChainKey, generation: u64) -> Result<(), KernelError> {
        let die = self.enter(Call::Discard)?;
        let mut inner = self.lock();
        if let Some(chain) = inner.chains.get_mut(key) {
            chain.generations.remove(&generation);
            if chain.generations.is_empty() && chain.link.is_none() {
                inner.chains.remove(key);
            }
        }
        drop(inner);
        leave(die, Ok(()))
    }

    fn settle(&self) -> Result<(), KernelError> {
        let die = self.enter(Call::Settle)?;
        let mut inner = self.lock();
        for late in std::mem::take(&mut inner.in_flight) {
            inner.count(&late.key, late.generation, &late.verdicts);
        }
        drop(inner);
        leave(die, Ok(()))
    }

    fn cells(&self, key: &ChainKey, generation: u64) -> Result<Vec<MemberCells>, KernelError> {
        let die = self.enter(Call::Cells)?;
        let cells = self.lock().generation(key, generation).map(|found| found.cells.clone());
        leave(die, cells)
    }

    fn map_entries(
        &self,
        key: &ChainKey,
        generation: u64,
        member: &ProgramName,
        map: &str,
        limit: usize,
    ) -> Result<Vec<MapEntry>, KernelError> {
        let mut inner = self.lock();
        inner.map_reads.push((key.clone(), member.clone(), map.to_owned()));
        let (contents, _) = inner.map(MapPlace { key, generation, member, map })?;
        drop(inner);
        let contents = contents.lock();
        Ok(contents.iter().take(limit).map(|(key, values)| (key.clone(), values.clone())).collect())
    }

    fn maps(&self, key: &ChainKey, generation: u64) -> Result<Vec<MemberMap>, KernelError> {
        let inner = self.lock();
        let found = inner.generation(key, generation)?;
        let told = found.maps.iter().map(|((member, name), contents)| MemberMap {
            member: member.clone(),
            name: name.clone(),
            id: contents.id,
            shape: inner.shape(name),
            memory: None,
        });
        Ok(told.collect())
    }

    fn map_lookup(
        &self,
        place: MapPlace<'_>,
        entry: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>, KernelError> {
        let (contents, _) = self.lock().map(place)?;
        let values = contents.lock().get(entry).cloned();
        Ok(values)
    }

    fn unmet_setting(&self, build: &ChainBuild) -> Result<Option<String>, KernelError> {
        let inner = self.lock();
        let generation = inner.generation(&build.key, build.generation)?;
        for member in &build.members {
            for given in &member.map_entries {
                let at = (member.name.clone(), given.map.clone());
                let map = generation.maps.get(&at);
                if !map.is_some_and(|map| member_maps::hold(member, &given.map, map)) {
                    return Ok(Some(format!("map \"{}\" of \"{}\"", given.map, member.name)));
                }
            }
        }
        Ok(None)
    }

    fn lost_setting(&self, build: &ChainBuild) -> Result<Option<String>, KernelError> {
        self.unmet_setting(build)
    }

    fn map_update(
        &self,
        place: MapPlace<'_>,
        entry: &[u8],
        values: &[Vec<u8>],
        when: WriteWhen,
    ) -> Result<(), KernelError> {
        let die = self.enter(Call::MapWrite)?;
        let (contents, shape) = self.lock().map(place)?;
        let mut contents = contents.lock();
        let conflict = |what: &str| KernelError::Conflict {
            what: what.to_owned(),
            remedy: "read the map, then decide anew".to_owned(),
        };
        let there = contents.contains_key(entry);
        match when {
            WriteWhen::Absent if there => return Err(conflict("the entry is there already")),
            WriteWhen::Present if !there => return Err(conflict("there is no such entry")),
            WriteWhen::Any | WriteWhen::Absent | WriteWhen::Present => {}
        }
        if !there && contents.len() >= shape.max_entries as usize {
            return Err(conflict("it is full"));
        }
        contents.insert(entry.to_vec(), values.to_vec());
        drop(contents);
        leave(die, Ok(()))
    }

    fn map_delete(&self, place: MapPlace<'_>, entry: &[u8]) -> Result<bool, KernelError> {
        let die = self.enter(Call::MapWrite)?;
        let (contents, _) = self.lock().map(place)?;
        let there = contents.lock().remove(entry).is_some();
        leave(die, Ok(there))
    }

    fn map_page(
        &self,
        place: MapPlace<'_>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<MapPage, KernelError> {
        let (contents, _) = self.lock().map(place)?;
        let contents = contents.lock();
        let mut rest =
            contents.iter().filter(|(key, _)| after.is_none_or(|last| key.as_slice() > last));
        let entries: Vec<MapEntry> = rest
            .by_ref()
            .take(limit.max(1))
            .map(|(key, values)| (key.clone(), values.clone()))
            .collect();
        let last = entries.last().map(|(key, _)| key.clone());
        let more = rest.next().is_some();
        Ok(MapPage { entries, next: last.filter(|_| more) })
    }

    fn ring(&self, place: MapPlace<'_>) -> Result<Box<dyn Ring>, KernelError> {
        let (contents, _) = self.lock().map(place)?;
        Ok(Box::new(FakeRing(contents)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_builds::{build, key};
    use super::*;

    #[test]
    fn a_switch_compares_before_it_swaps() {
        let kernel = FakeKernel::default();
        kernel.add_interface(&key().interface);
        kernel.prepare(&build(1, &["a"])).unwrap();
        assert_eq!(kernel.running(&key()), None, "prepare attaches nothing");
        kernel.switch(&key(), 1, XdpMode::Best, Expect::Nothing).unwrap();
        kernel.prepare(&build(2, &["a"])).unwrap();
        for wrong in [Expect::Nothing, Expect::Generation(2)] {
            assert!(kernel.switch(&key(), 2, XdpMode::Best, wrong).is_err());
            assert_eq!(kernel.running(&key()), Some(1));
        }
        kernel.switch(&key(), 2, XdpMode::Best, Expect::Generation(1)).unwrap();
        assert_eq!(kernel.running(&key()), Some(2));
    }
}
