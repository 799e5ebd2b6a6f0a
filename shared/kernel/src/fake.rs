//! A kernel in memory: [`FakeKernel`] keeps the promises of the [`Kernel`] port (nothing attached by
//! `prepare`, compare-and-swap in `switch`, cells and maps by generation) without root, and can be
//! tampered with, made to fail and made to crash at any call.
//!
//! What it does **not** do: read objects, verify instructions, derive anything from BPF code. A
//! packet's verdicts are given by the test.
//!
//! ```
//! use canopy_kernel::{Kernel, fake::FakeKernel};
//!
//! let kernel = FakeKernel::default();
//! kernel.add_interface(&"eth0".parse()?);
//! assert_eq!(kernel.interfaces(None)?.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod member_maps;

use crate::{
    Away, ChainBuild, Expect, Interface, Kernel, KernelError, KnownProgram, LinkState, MapEntry,
    MapKind, MapPage, MapPlace, MapShape, MemberCells, MemberMap, Observed, Prepared, Ring,
    WriteWhen,
};
use canopy_api::{
    ChainKey, Hook, InterfaceName, Netns, ProgramName, TcMode, VerdictSet, XdpMode,
    verdict::{CELLS, OTHER},
    wire::{ChainPlacement, Fact, ForeignProgram, ObservedChain},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A call of the port that can be counted, or made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// [`Kernel::observe`].
    Observe,
    /// [`Kernel::prepare`].
    Prepare,
    /// [`Kernel::switch`].
    Switch,
    /// [`Kernel::rename`].
    Rename,
    /// [`Kernel::detach`].
    Detach,
    /// [`Kernel::discard`].
    Discard,
    /// [`Kernel::settle`].
    Settle,
    /// [`Kernel::cells`].
    Cells,
    /// [`Kernel::map_update`] and [`Kernel::map_delete`].
    MapWrite,
}

impl Call {
    /// Whether the call changes the kernel.
    pub fn changes(self) -> bool {
        match self {
            Self::Prepare
            | Self::Switch
            | Self::Rename
            | Self::Detach
            | Self::Discard
            | Self::MapWrite => true,
            Self::Observe | Self::Settle | Self::Cells => false,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with an operating system error and has done nothing.
    Fail,
    /// The process dies before the call has done anything: unwinds with [`Crashed`].
    CrashBefore,
    /// The process dies after the call took effect: unwinds with [`Crashed`].
    CrashAfter,
}

/// The payload of the unwinding that stands for the death of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashed;

/// A map, shared by the generations that carry it.
type Contents = Arc<FakeMap>;

#[derive(Debug, Default)]
struct FakeMap {
    id: u32,
    entries: Mutex<BTreeMap<Vec<u8>, Vec<Vec<u8>>>>,
    /// Of a ring buffer.
    records: Mutex<VecDeque<Vec<u8>>>,
    /// There is a record.
    arrived: Condvar,
}

/// A ring buffer, open.
struct FakeRing(Contents);

impl Ring for FakeRing {
    fn take(&mut self, most: usize, wait: Duration) -> Result<Vec<Vec<u8>>, KernelError> {
        let records = self.0.records.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut records, _) = self
            .0
            .arrived
            .wait_timeout_while(records, wait, |records| records.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let count = records.len().min(most);
        Ok(records.drain(..count).collect())
    }
}

impl FakeMap {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<Vec<u8>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Generation {
    program_id: u32,
    tc_mode: TcMode,
    members: Vec<(ProgramName, String, VerdictSet)>,
    objects: Vec<Arc<[u8]>>,
    cells: Vec<MemberCells>,
    maps: member_maps::Maps,
    shares: member_maps::Shares,
}

#[derive(Debug)]
enum Runs {
    Generation(u64),
    Foreign(u32),
}

#[derive(Debug)]
struct Link {
    id: u32,
    ifindex: u32,
    mode: &'static str,
    runs: Runs,
}

#[derive(Debug, Default)]
struct Chain {
    link: Option<Link>,
    generations: BTreeMap<u64, Generation>,
}

#[derive(Debug)]
struct InFlight {
    key: ChainKey,
    generation: u64,
    verdicts: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By where they are; a number is one interface's, in whichever namespace.
    interfaces: BTreeMap<(Option<Netns>, InterfaceName), Interface>,
    /// Those besides the loader's own.
    namespaces: BTreeSet<Netns>,
    /// Whether the loader may not enter other namespaces.
    confined: bool,
    chains: BTreeMap<ChainKey, Chain>,
    default_route: Vec<u32>,
    ids: u32,
    log: Vec<Call>,
    faults: Vec<(Call, usize, Fault)>,
    /// Whether maps lose their settings when they are made.
    forgetful: bool,
    refused: Vec<String>,
    refused_objects: Vec<Vec<u8>>,
    in_flight: Vec<InFlight>,
    facts: Vec<Fact>,
    release: Option<String>,
    shapes: BTreeMap<String, MapShape>,
    /// Chains that are attached and whose pins are hidden.
    hidden: BTreeMap<ChainKey, Chain>,
    /// Whether what is hidden can be brought back by its program's id.
    may_ask_by_id: bool,
    boots: u32,
    before: BTreeMap<ChainKey, Vec<ForeignProgram>>,
    device_errors: BTreeMap<ChainKey, BTreeMap<String, u64>>,
    strays: Vec<PathBuf>,
}

impl Inner {
    fn id(&mut self) -> u32 {
        self.ids += 1;
        self.ids
    }

    /// Enters a namespace.
    fn within(&self, netns: Option<&Netns>) -> Result<(), KernelError> {
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

    fn ifindex(&self, key: &ChainKey) -> Result<u32, KernelError> {
        self.within(key.netns.as_ref())?;
        self.interfaces
            .get(&(key.netns.clone(), key.interface.clone()))
            .map(|interface| interface.index)
            .ok_or_else(|| KernelError::no_interface(key))
    }

    fn generation(&self, key: &ChainKey, generation: u64) -> Result<&Generation, KernelError> {
        self.chains
            .get(key)
            .and_then(|chain| chain.generations.get(&generation))
            .ok_or_else(|| no_such(&format!("open generation {generation} of {key}")))
    }

    /// The shape of maps of this name; for one that nobody described, that of a small hash map.
    fn shape(&self, map: &str) -> MapShape {
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

    fn map(&self, place: MapPlace<'_>) -> Result<(Contents, MapShape), KernelError> {
        let MapPlace { key, generation, member, map } = place;
        let found = self.generation(key, generation)?;
        match found.maps.get(&(member.clone(), map.to_owned())) {
            Some(contents) => Ok((Arc::clone(contents), self.shape(map))),
            None => Err(no_such(&format!("open map {map} of {member}"))),
        }
    }

    fn state(&self, key: &ChainKey, chain: &Chain) -> LinkState {
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

    fn away(&self, key: &ChainKey, chain: &Chain) -> Option<Away> {
        let link = chain.link.as_ref()?;
        let now = self.interfaces.values().find(|interface| interface.index == link.ifindex)?;
        if now.netns != key.netns {
            return Some(Away::OtherNamespace);
        }
        (now.name != key.interface).then(|| Away::Renamed(now.name.clone()))
    }

    fn count(&mut self, key: &ChainKey, generation: u64, verdicts: &[u8]) {
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

fn no_such(operation: &str) -> KernelError {
    KernelError::Os {
        operation: operation.to_owned(),
        source: std::io::Error::from(std::io::ErrorKind::NotFound),
    }
}

/// A kernel in memory. Shared by reference: what outlives a crashed loader is what is in here.
#[derive(Debug, Default)]
pub struct FakeKernel {
    inner: Mutex<Inner>,
    /// Held by whoever has run times taken.
    times: Arc<()>,
}

impl FakeKernel {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An interface appears; a name that is there is re-created with a new index, which kills the
    /// links of the old one.
    pub fn add_interface(&self, name: &InterfaceName) -> u32 {
        self.add_interface_in(None, name)
    }

    /// The same, in a namespace.
    pub fn add_interface_in(&self, netns: Option<&Netns>, name: &InterfaceName) -> u32 {
        self.remove_interface_in(netns, name);
        let mut inner = self.lock();
        let index = inner.id();
        let [.., a, b] = index.to_be_bytes();
        let interface = Interface {
            netns: netns.cloned(),
            name: name.clone(),
            index,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, a, b]),
            altnames: Vec::new(),
        };
        inner.interfaces.insert((netns.cloned(), name.clone()), interface);
        index
    }

    /// An interface disappears, and with it its links.
    pub fn remove_interface(&self, name: &InterfaceName) {
        self.remove_interface_in(None, name);
    }

    /// The same, in a namespace.
    pub fn remove_interface_in(&self, netns: Option<&Netns>, name: &InterfaceName) {
        let mut inner = self.lock();
        let Some(gone) = inner.interfaces.remove(&(netns.cloned(), name.clone())) else { return };
        for chain in inner.chains.values_mut() {
            chain.link.take_if(|link| link.ifindex == gone.index);
        }
    }

    /// A network namespace appears, without interfaces. One of that name that is there goes first.
    pub fn add_netns(&self, netns: &Netns) {
        self.remove_netns(netns);
        self.lock().namespaces.insert(netns.clone());
    }

    /// A network namespace disappears, and with it its interfaces.
    pub fn remove_netns(&self, netns: &Netns) {
        let names: Vec<_> = self.lock().interfaces.keys().cloned().collect();
        for (_, name) in names.iter().filter(|(of, _)| of.as_ref() == Some(netns)) {
            self.remove_interface_in(Some(netns), name);
        }
        self.lock().namespaces.remove(netns);
    }

    /// Whether the loader may not enter other namespaces from now on.
    pub fn confine(&self, confined: bool) {
        self.lock().confined = confined;
    }

    /// An interface goes to another namespace; what is attached to it stays.
    pub fn move_interface(&self, name: &InterfaceName, from: Option<&Netns>, to: Option<&Netns>) {
        let mut inner = self.lock();
        if let Some(interface) = inner.interfaces.remove(&(from.cloned(), name.clone())) {
            let moved = Interface { netns: to.cloned(), ..interface };
            inner.interfaces.insert((to.cloned(), name.clone()), moved);
        }
    }

    /// An interface gets another name; what is attached to it stays.
    pub fn rename_interface(&self, from: &InterfaceName, to: &InterfaceName) {
        let mut inner = self.lock();
        if let Some(interface) = inner.interfaces.remove(&(None, from.clone())) {
            let renamed = Interface { name: to.clone(), ..interface };
            inner.interfaces.insert((None, to.clone()), renamed);
        }
    }

    /// Where the default route leads from now on.
    pub fn set_default_route(&self, to: &[&InterfaceName]) {
        let mut inner = self.lock();
        let index = |name: &&InterfaceName| {
            inner.interfaces.get(&(None, (*name).clone())).map(|one| one.index)
        };
        inner.default_route = to.iter().filter_map(index).collect();
    }

    /// Changes what is told of an interface.
    pub fn change_interface(&self, name: &InterfaceName, change: impl FnOnce(&mut Interface)) {
        if let Some(interface) = self.lock().interfaces.get_mut(&(None, name.clone())) {
            change(interface);
        }
    }

    /// Somebody detaches the chain's link.
    pub fn tamper_detach(&self, key: &ChainKey) {
        if let Some(chain) = self.lock().chains.get_mut(key) {
            chain.link = None;
        }
    }

    /// Somebody puts a program of theirs into the chain's link; returns its id.
    pub fn tamper_replace(&self, key: &ChainKey) -> u32 {
        let mut inner = self.lock();
        let id = inner.id();
        if let Some(link) = inner.chains.get_mut(key).and_then(|chain| chain.link.as_mut()) {
            link.runs = Runs::Foreign(id);
        }
        id
    }

    /// Somebody removes every pin of the chain's generations; what is attached stays attached.
    pub fn tamper_unpin(&self, key: &ChainKey) {
        if let Some(chain) = self.lock().chains.get_mut(key) {
            chain.generations.clear();
        }
    }

    /// Somebody mounts a file system over the pins of a chain; what is attached stays attached.
    pub fn tamper_hide(&self, key: &ChainKey) {
        let mut inner = self.lock();
        if let Some(chain) = inner.chains.remove(key) {
            inner.hidden.insert(key.clone(), chain);
        }
    }

    /// Somebody unmounts it again.
    pub fn uncover(&self, key: &ChainKey) {
        let mut inner = self.lock();
        if let Some(chain) = inner.hidden.remove(key) {
            inner.chains.insert(key.clone(), chain);
        }
    }

    /// Whether the loader may ask for programs by their ids from now on.
    pub fn allow_ids(&self, allowed: bool) {
        self.lock().may_ask_by_id = allowed;
    }

    /// Programs of others come before a chain, instead of those that were there.
    pub fn put_before(&self, key: &ChainKey, programs: Vec<ForeignProgram>) {
        self.lock().before.insert(key.clone(), programs);
    }

    /// What a chain's device has dropped of what the chain sent.
    pub fn set_device_error(&self, key: &ChainKey, counter: &str, count: u64) {
        let mut inner = self.lock();
        inner.device_errors.entry(key.clone()).or_default().insert(counter.to_owned(), count);
    }

    /// Something that is nothing of ours lies among the pins.
    pub fn add_stray(&self, path: impl Into<PathBuf>) {
        self.lock().strays.push(path.into());
    }

    /// The host restarts: interfaces come back, everything else is gone.
    pub fn reboot(&self) {
        let mut inner = self.lock();
        inner.boots += 1;
        inner.hidden.clear();
        inner.chains.clear();
        inner.in_flight.clear();
    }

    /// The verifier refuses this function from now on.
    pub fn refuse_function(&self, function: &str) {
        self.lock().refused.push(function.to_owned());
    }

    /// Every member that is built from now on has a map of this name and shape. What is not said of
    /// a map is not checked either: keys and values may have any length.
    pub fn shape_map(&self, map: &str, shape: MapShape) {
        self.lock().shapes.insert(map.to_owned(), shape);
    }

    /// Who has run times taken at the moment.
    pub fn takes_times(&self) -> usize {
        Arc::strong_count(&self.times) - 1
    }

    /// What [`Kernel::facts`] answers.
    pub fn set_facts(&self, facts: Vec<Fact>) {
        self.lock().facts = facts;
    }

    /// What [`Kernel::release`] answers.
    pub fn set_release(&self, release: &str) {
        self.lock().release = Some(release.to_owned());
    }

    /// `fault` happens at the call of this kind that follows `skip` others of its kind.
    pub fn inject(&self, call: Call, skip: usize, fault: Fault) {
        self.lock().faults.push((call, skip, fault));
    }

    /// Somebody takes the settings out of every map as soon as it is made, from now on.
    pub fn forget_settings(&self) {
        self.lock().forgetful = true;
    }

    /// Forgets every fault not yet met.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Every call since the last time this was asked.
    pub fn take_log(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().log)
    }

    /// A packet goes through whatever is attached: one verdict slot a member, in chain order.
    /// Returns whether a generation of ours saw it.
    pub fn packet(&self, key: &ChainKey, verdicts: &[u8]) -> bool {
        let mut inner = self.lock();
        let Some(generation) = running(&inner, key) else { return false };
        inner.count(key, generation, verdicts);
        true
    }

    /// A packet enters what is attached now and is counted there only at the next
    /// [`Kernel::settle`], whatever is attached by then.
    pub fn packet_in_flight(&self, key: &ChainKey, verdicts: &[u8]) {
        let mut inner = self.lock();
        if let Some(generation) = running(&inner, key) {
            inner.in_flight.push(InFlight {
                key: key.clone(),
                generation,
                verdicts: verdicts.to_vec(),
            });
        }
    }

    /// A program writes an entry of its map in the generation that runs.
    pub fn write_map(
        &self,
        key: &ChainKey,
        member: &ProgramName,
        map: &str,
        entry_key: &[u8],
        value: &[u8],
    ) {
        let mut inner = self.lock();
        let Some(generation) = running(&inner, key) else { return };
        let Some(found) =
            inner.chains.get_mut(key).and_then(|chain| chain.generations.get_mut(&generation))
        else {
            return;
        };
        let contents = found.maps.entry((member.clone(), map.to_owned())).or_default();
        contents.lock().insert(entry_key.to_vec(), vec![value.to_vec()]);
    }

    /// A program puts a record into its ring buffer in the generation that runs. Returns whether
    /// there is such a buffer.
    pub fn put_record(
        &self,
        key: &ChainKey,
        member: &ProgramName,
        map: &str,
        record: &[u8],
    ) -> bool {
        let inner = self.lock();
        let Some(generation) = running(&inner, key) else { return false };
        let Ok((contents, _)) = inner.map(MapPlace { key, generation, member, map }) else {
            return false;
        };
        contents.records.lock().unwrap_or_else(PoisonError::into_inner).push_back(record.to_vec());
        contents.arrived.notify_all();
        true
    }

    /// Records of a ring buffer of the running generation that nobody took.
    pub fn waiting_records(&self, key: &ChainKey, member: &ProgramName, map: &str) -> usize {
        let inner = self.lock();
        let Some(generation) = running(&inner, key) else { return 0 };
        let place = MapPlace { key, generation, member, map };
        inner.map(place).map_or(0, |(contents, _)| {
            contents.records.lock().unwrap_or_else(PoisonError::into_inner).len()
        })
    }

    /// The generation of ours that runs on a chain.
    pub fn running(&self, key: &ChainKey) -> Option<u64> {
        running(&self.lock(), key)
    }

    /// The verifier refuses this object from now on.
    pub fn refuse_object(&self, object: &[u8]) {
        self.lock().refused_objects.push(object.to_vec());
    }

    /// The objects of the members of what is attached, in order.
    pub fn objects(&self, key: &ChainKey) -> Vec<Arc<[u8]>> {
        let inner = self.lock();
        let generation =
            running(&inner, key).and_then(|running| inner.generation(key, running).ok());
        generation.map(|generation| generation.objects.clone()).unwrap_or_default()
    }

    /// The generations pinned for a chain.
    pub fn pinned(&self, key: &ChainKey) -> Vec<u64> {
        self.lock()
            .chains
            .get(key)
            .map(|chain| chain.generations.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Logs the call; meets a fault that is due before the effect. Returns whether the process is
    /// to die after it.
    fn enter(&self, call: Call) -> Result<bool, KernelError> {
        let mut inner = self.lock();
        inner.log.push(call);
        let due = inner.faults.iter_mut().position(|(of, skip, _)| {
            if *of != call {
                return false;
            }
            let now = *skip == 0;
            *skip = skip.saturating_sub(1);
            now
        });
        let Some(due) = due else { return Ok(false) };
        let (_, _, fault) = inner.faults.remove(due);
        drop(inner);
        match fault {
            Fault::Fail => Err(KernelError::Os {
                operation: format!("{call:?}"),
                source: std::io::Error::from_raw_os_error(5),
            }),
            Fault::CrashBefore => std::panic::resume_unwind(Box::new(Crashed)),
            Fault::CrashAfter => Ok(true),
        }
    }
}

fn leave<T>(die: bool, result: Result<T, KernelError>) -> Result<T, KernelError> {
    if die {
        std::panic::resume_unwind(Box::new(Crashed));
    }
    result
}

fn running(inner: &Inner, key: &ChainKey) -> Option<u64> {
    match inner.chains.get(key)?.link.as_ref()?.runs {
        Runs::Generation(generation) => Some(generation),
        Runs::Foreign(_) => None,
    }
}

fn observed_chain(link: &Link, generation: u64, found: &Generation) -> ObservedChain {
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
        let (contents, _) = self.lock().map(MapPlace { key, generation, member, map })?;
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
    use super::*;
    use crate::{Carry, Member, SettingsDetail};

    fn key() -> ChainKey {
        ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
    }

    fn build(generation: u64, names: &[&str]) -> ChainBuild {
        let members = names
            .iter()
            .map(|name| Member {
                name: name.parse().unwrap(),
                object: Arc::from(&b"elf"[..]),
                function: (*name).to_owned(),
                frags: false,
                tail_calls: None,
                proceed_on: VerdictSet::default_for(Hook::Xdp),
                globals: Vec::new(),
                map_entries: Vec::new(),
                settings: SettingsDetail::default(),
                carry: Carry::Nothing,
                max_entries: Vec::new(),
                shared_maps: Vec::new(),
            })
            .collect();
        ChainBuild {
            key: key(),
            generation,
            xdp_mode: XdpMode::Best,
            tc_mode: TcMode::Best,
            members,
            together: Vec::new(),
            left_entries: Vec::new(),
        }
    }

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

    #[test]
    fn exits_account_for_every_packet() {
        const DROP: u8 = 1;
        const PASS: u8 = 2;
        let kernel = FakeKernel::default();
        kernel.add_interface(&key().interface);
        kernel.prepare(&build(1, &["a", "b"])).unwrap();
        kernel.switch(&key(), 1, XdpMode::Best, Expect::Nothing).unwrap();
        kernel.packet(&key(), &[DROP]);
        kernel.packet(&key(), &[PASS, PASS]);
        kernel.packet_in_flight(&key(), &[PASS, DROP]);
        let runs = |kernel: &FakeKernel| {
            let cells = kernel.cells(&key(), 1).unwrap();
            cells.iter().map(MemberCells::runs).collect::<Vec<_>>()
        };
        assert_eq!(runs(&kernel), [2, 1]);
        kernel.settle().unwrap();
        assert_eq!(runs(&kernel), [3, 2]);
    }
}
