//! The [`canopy_kernel::Kernel`] port on a real kernel.
//!
//! **Owns:** bpf(2) and everything around it: objects, maps, fused programs, links, pins, reading
//! back. The only crate with `unsafe`, and the only one that knows aya. **Must not know:** the bus,
//! packages' manifests, desired state, who asks.
//!
//! ```no_run
//! use canopy_kernel::Kernel as _;
//! use canopy_kernel_aya::AyaKernel;
//!
//! let kernel = AyaKernel::new("/sys/fs/bpf/canopy")?;
//! for chain in kernel.observe()? {
//!     println!("{}: {:?}", chain.key, chain.state);
//! }
//! # Ok::<(), canopy_kernel::KernelError>(())
//! ```
#![allow(unsafe_code, reason = "the one crate that talks to the kernel by raw system calls")]

mod attach;
mod btf_ext;
mod cells;
mod chain_types;
mod check;
mod clsact;
mod core_relocate;
mod datasec;
mod device_errors;
mod elf;
mod eligibility;
mod externs;
mod facts;
mod held;
mod inventory;
mod kconfig;
mod kernel_btf;
mod layout;
mod link;
mod map_create;
mod map_pages;
mod map_settings;
mod maps;
mod member;
mod member_maps;
mod meta;
mod netif;
mod netlink;
mod netns;
mod object;
mod object_maps;
mod observe;
pub mod pins;
mod placement;
mod prepare;
mod program_names;
mod recover;
mod rings;
mod route;
mod settle;
mod shared_maps;
mod stray;
pub mod sys;
mod times;
mod verified;
mod verifier_log;
mod writes;

pub use check::{check_member, load_member};
pub use facts::missing_capabilities;

use crate::{held::Held, map_settings::Deferred, pins::Pins, route::Routes};
use canopy_api::{
    ChainKey, InterfaceName, Netns, ProgramName, XdpMode,
    wire::{ChainPlacement, Fact, ObservedChain},
};
use canopy_kernel::{
    ChainBuild, Expect, Interface, Kernel, KernelError, KnownProgram, MapEntry, MapPage, MapPlace,
    MemberCells, MemberMap, Observed, Prepared, Ring, WriteWhen,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The kernel of this host, with everything of ours pinned under one directory.
///
/// The loader's own network namespace is that of the thread that calls. Links and programs that
/// are attached are pinned and held by descriptor, so that removing the pins detaches nothing.
#[derive(Debug)]
pub struct AyaKernel {
    pins: Pins,
    held: Mutex<BTreeMap<ChainKey, Held>>,
    /// The devices' counters when XDP chains were attached.
    device_baselines: Mutex<BTreeMap<ChainKey, device_errors::Baseline>>,
    routes: Routes,
    /// Of generations that are prepared: what is done to maps only when they are attached.
    deferred: Mutex<BTreeMap<(ChainKey, u64), Deferred>>,
}

impl AyaKernel {
    /// The kernel, with `root` (on bpffs; made when missing) for our pins. Whatever a process left
    /// there that died while it attached a chain is removed; nobody else may be attaching.
    ///
    /// # Errors
    ///
    /// When `root` is not on a bpffs that this process can write to.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, KernelError> {
        let pins = Pins::new(root);
        pins.claim()?;
        link::clean_up(&pins)?;
        Ok(Self {
            pins,
            held: Mutex::default(),
            device_baselines: Mutex::default(),
            routes: Routes::default(),
            deferred: Mutex::default(),
        })
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// How often the routes were listed: once, and whenever links, addresses or routes had changed.
    pub fn route_lists(&self) -> u64 {
        self.routes.lists()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ChainKey, Held>> {
        // Each change is a single insert or remove: a panic elsewhere leaves the map whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deferred(&self) -> MutexGuard<'_, BTreeMap<(ChainKey, u64), Deferred>> {
        // As for `held`.
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies once more into the maps of a generation what they are copies of.
    fn copy_again(&self, key: &ChainKey, generation: u64) -> Result<(), KernelError> {
        let deferred = self.deferred();
        let Some(deferred) = deferred.get(&(key.clone(), generation)) else { return Ok(()) };
        let failed = |error| pins::os(format!("copy the maps of {key}"), error);
        deferred.copy_again().map_err(failed)
    }

    /// Lets go of the maps that a generation's maps are copies of.
    fn forget_copies(&self, key: &ChainKey, generation: u64) {
        if let Some(deferred) = self.deferred().get_mut(&(key.clone(), generation)) {
            deferred.copies.clear();
        }
    }

    fn forget_deferred(&self, key: &ChainKey, generation: u64) {
        self.deferred().remove(&(key.clone(), generation));
    }

    /// The chain's link: the pinned one, else the one we hold.
    fn link(&self, key: &ChainKey, held: Option<&Held>) -> Result<Option<OwnedFd>, KernelError> {
        let pinned = pins::open_kind(&self.pins.link(key), sys::Kind::Link);
        match (pinned, held.and_then(|held| held.link.as_ref())) {
            (Ok(Some(link)), _) => Ok(Some(link)),
            (Err(error), None) => Err(error),
            (Ok(None) | Err(_), Some(link)) => link
                .try_clone()
                .map(Some)
                .map_err(|error| pins::os(format!("duplicate the link of {key}"), error)),
            (Ok(None), None) => Ok(None),
        }
    }
}

/// What this kernel and machine can do, probed. Without a loader's claim on `root`, so that a
/// machine without a bpffs gets an answer too; `root` is made where it can be, and left.
pub fn probe(root: impl Into<PathBuf>) -> Vec<Fact> {
    facts::facts(&Pins::new(root))
}

/// Reads an object file as a chain does, and links each of its functions with what it calls: their
/// names, or why it cannot be used, in one line. The kernel is asked for its types only.
///
/// # Errors
///
/// For whatever is not an object that a chain can have a member from. Any bytes are answered, in memory
/// and time that their length bounds.
pub fn read_object(object: &[u8]) -> Result<Vec<String>, String> {
    object::Object::read_whole(object).map_err(|error| error.to_string())
}

impl Kernel for AyaKernel {
    fn release(&self) -> String {
        facts::release()
    }

    fn facts(&self) -> Vec<Fact> {
        facts::facts(&self.pins)
    }

    fn spent(&self) -> Duration {
        sys::spent()
    }

    fn take_times(&self) -> Result<Box<dyn Send>, KernelError> {
        times::take_times()
    }

    fn interfaces(&self, netns: Option<&Netns>) -> Result<Vec<Interface>, KernelError> {
        netns::within(netns, || netif::interfaces(netns))
    }

    fn default_route(&self, netns: Option<&Netns>) -> Result<Vec<u32>, KernelError> {
        match netns {
            None => self.routes.default_route(),
            // Nobody listens for changes there: a socket that does would keep the namespace alive.
            Some(_) => netns::within(netns, route::default_route),
        }
    }

    fn same_netns(&self, a: Option<&Netns>, b: Option<&Netns>) -> bool {
        a == b || netns::identity_of(a).is_some_and(|of| Some(of) == netns::identity_of(b))
    }

    fn pinned_by_name(&self, object: &[u8]) -> Vec<String> {
        object::Object::pinned_by_name(object).unwrap_or_default()
    }

    fn boot_id(&self) -> String {
        facts::boot_id()
    }

    fn placement(
        &self,
        key: &ChainKey,
        chain: &ObservedChain,
    ) -> Result<Option<ChainPlacement>, KernelError> {
        placement::placement(self, key, chain)
    }

    fn device_errors(&self, key: &ChainKey) -> Result<BTreeMap<String, u64>, KernelError> {
        device_errors::device_errors(self, key)
    }

    fn stray_pins(&self) -> Result<Vec<PathBuf>, KernelError> {
        stray::stray_pins(&self.pins)
    }

    fn recover_pins(
        &self,
        key: &ChainKey,
        known: Option<KnownProgram>,
    ) -> Result<bool, KernelError> {
        recover::recover_pins(self, key, known)
    }

    fn observe(&self) -> Result<Vec<Observed>, KernelError> {
        observe::observe(self)
    }

    fn observe_chains(&self, keys: &BTreeSet<ChainKey>) -> Result<Vec<Observed>, KernelError> {
        observe::observe_chains(self, keys)
    }

    fn generations(&self, key: &ChainKey) -> Result<Vec<u64>, KernelError> {
        self.pins.generations(key)
    }

    fn prepare(&self, build: &ChainBuild) -> Result<Prepared, KernelError> {
        let (prepared, deferred) =
            netns::within(build.key.netns.as_ref(), || prepare::prepare(&self.pins, build))?;
        if !deferred.is_empty() {
            self.deferred().insert((build.key.clone(), build.generation), deferred);
        }
        Ok(prepared)
    }

    fn unmet_setting(&self, build: &ChainBuild) -> Result<Option<String>, KernelError> {
        let running = member_maps::running_shares(&self.pins, build)?;
        member_maps::unmet_setting(&self.pins, build, &running)
    }

    fn lost_setting(&self, build: &ChainBuild) -> Result<Option<String>, KernelError> {
        member_maps::unmet_setting(&self.pins, build, &[])
    }

    fn switch(
        &self,
        key: &ChainKey,
        generation: u64,
        mode: XdpMode,
        expect: Expect,
    ) -> Result<ObservedChain, KernelError> {
        netns::within(key.netns.as_ref(), || link::switch(self, key, generation, mode, expect))
    }

    fn restore_shared_settings(
        &self,
        key: &ChainKey,
        generation: u64,
    ) -> Result<Option<String>, KernelError> {
        match self.deferred().get_mut(&(key.clone(), generation)) {
            Some(deferred) => deferred.restore(),
            None => Ok(None),
        }
    }

    fn keep_restored_settings(&self, key: &ChainKey, generation: u64) {
        // Its copies were let go of at the switch.
        self.forget_deferred(key, generation);
    }

    fn undo_restored_settings(&self, key: &ChainKey, generation: u64) -> Result<(), KernelError> {
        match self.deferred().get_mut(&(key.clone(), generation)) {
            Some(deferred) => deferred.undo_restore(),
            None => Ok(()),
        }
    }

    fn rename(&self, from: &ChainKey, to: &InterfaceName) -> Result<(), KernelError> {
        let mut held = self.held();
        self.pins.rename(from, to)?;
        // It knows its pins by their old paths; looking at the chain holds it anew.
        held.remove(from);
        Ok(())
    }

    fn detach(&self, key: &ChainKey) -> Result<(), KernelError> {
        link::detach(self, key)
    }

    fn discard(&self, key: &ChainKey, generation: u64) -> Result<(), KernelError> {
        link::discard(self, key, generation)
    }

    fn settle(&self) -> Result<(), KernelError> {
        settle::settle()
    }

    fn cells(&self, key: &ChainKey, generation: u64) -> Result<Vec<MemberCells>, KernelError> {
        cells::cells(self, key, generation)
    }

    fn map_entries(
        &self,
        key: &ChainKey,
        generation: u64,
        member: &ProgramName,
        map: &str,
        limit: usize,
    ) -> Result<Vec<MapEntry>, KernelError> {
        cells::map_entries(self, key, generation, member, map, limit)
    }

    fn maps(&self, key: &ChainKey, generation: u64) -> Result<Vec<MemberMap>, KernelError> {
        maps::maps(self, key, generation)
    }

    fn map_lookup(
        &self,
        place: MapPlace<'_>,
        entry: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>, KernelError> {
        maps::lookup(self, place, entry)
    }

    fn map_update(
        &self,
        place: MapPlace<'_>,
        entry: &[u8],
        values: &[Vec<u8>],
        when: WriteWhen,
    ) -> Result<(), KernelError> {
        maps::update(self, place, entry, values, when)
    }

    fn map_delete(&self, place: MapPlace<'_>, entry: &[u8]) -> Result<bool, KernelError> {
        maps::delete(self, place, entry)
    }

    fn map_page(
        &self,
        place: MapPlace<'_>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<MapPage, KernelError> {
        maps::page(self, place, after, limit)
    }

    fn ring(&self, place: MapPlace<'_>) -> Result<Box<dyn Ring>, KernelError> {
        rings::ring(self, place)
    }
}
