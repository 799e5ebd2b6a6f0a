//! The port between Canopy and the kernel: what the loader asks of it, the errors, and
//! [`fake::FakeKernel`] for logic that would otherwise need root.
//!
//! **Owns:** the [`Kernel`] trait and its vocabulary. **Must not know:** aya, syscalls, the bus,
//! packages' manifests, desired state on disk.
//!
//! All calls block; callers on an async runtime see to it that nobody waits for them. One chain is changed by one
//! caller at a time (the loader serialises); different chains may be changed in parallel.

pub mod fake;
pub mod maps;

pub use maps::{
    MapAccess, MapEntry, MapKind, MapPage, MapPlace, MapShape, MemberMap, Ring, WriteWhen,
};

use canopy_api::{
    ChainKey, InterfaceName, Netns, ProgramName, TcMode, VerdictSet, XdpMode,
    verdict::CELLS,
    wire::{ChainPlacement, Fact, ObservedChain},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// A chain to be built: everything resolved, nothing left to look up.
#[derive(Clone, Debug)]
pub struct ChainBuild {
    /// Which chain.
    pub key: ChainKey,
    /// The generation being built; unique and rising for this chain.
    pub generation: u64,
    /// How XDP is to be attached; ignored elsewhere.
    pub xdp_mode: XdpMode,
    /// How TC is to be attached, which decides what the program returns; ignored elsewhere.
    pub tc_mode: TcMode,
    /// The members, in the order in which they run.
    pub members: Vec<Member>,
    /// The other chains that change in the same step, each with the generation that is prepared for it
    /// (`None` for one that is removed): a map shared with those only may be replaced.
    pub together: Vec<(ChainKey, Option<u64>)>,
    /// Entries that settings of programs which leave the chain put into maps.
    pub left_entries: Vec<MapContents>,
}

/// One program of a chain to be built.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name in the chain.
    pub name: ProgramName,
    /// The ELF object.
    pub object: Arc<[u8]>,
    /// The function in it.
    pub function: String,
    /// Whether the program declares that it handles multi-buffer (frags) packets.
    pub frags: bool,
    /// Tail calls a packet can take in it at most, where its package says so; else what its object
    /// fills its arrays with decides.
    pub tail_calls: Option<u32>,
    /// Verdicts after which the chain goes on.
    pub proceed_on: VerdictSet,
    /// Values of global variables, by symbol name; lengths must match the symbol's. The generation has
    /// them whether its data sections are new or kept.
    pub globals: Vec<(String, Vec<u8>)>,
    /// Entries of maps. The generation has them whether the map is new, kept or shared; a map whose
    /// settings change is copied, and keeps what the programs themselves put into it.
    pub map_entries: Vec<MapContents>,
    /// What `globals` and `map_entries` do not say of settings.
    pub settings: SettingsDetail,
    /// Which maps of the generation that runs now are kept.
    pub carry: Carry,
    /// `max_entries` by map name, over the object's own (needed where the object says 0).
    pub max_entries: Vec<(String, u32)>,
    /// Maps shared with other members under a scope's name instead of being this member's own.
    pub shared_maps: Vec<SharedMap>,
}

/// What a map holds at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapContents {
    /// The map's name in the object.
    pub map: String,
    /// Key and value bytes as the kernel takes them.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Which bytes of a member's maps are settings, and which were in the running generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsDetail {
    /// Bytes of values in [`Member::map_entries`] that are settings. The rest of such a value is the
    /// program's own. An entry without any here is a setting as a whole.
    pub fields: Vec<MapField>,
    /// Variables that are settings of the running generation, and what it was built with.
    pub old_globals: Vec<(String, Vec<u8>)>,
    /// Entries that are settings of the running generation.
    pub old_entries: Vec<MapContents>,
    /// Bytes of those that are settings.
    pub old_fields: Vec<MapField>,
    /// Arrays whose slots belong to the items of a list that changes.
    pub moved_slots: Vec<MovedSlots>,
}

/// Bytes of a map's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapField {
    /// The map's name in the object.
    pub map: String,
    /// The key of the entry.
    pub key: Vec<u8>,
    /// Where in the value they begin.
    pub offset: usize,
    /// How many they are.
    pub size: usize,
}

/// An array with one slot for each item of a list setting: where the items' contents go when the list
/// changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedSlots {
    /// The map's name in the object.
    pub map: String,
    /// Slots from 0 to this one, exclusive, belong to items before or after the change.
    pub slots: u32,
    /// Old and new slot of each item that stays.
    pub moves: Vec<(u32, u32)>,
}

/// A map that several members use together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMap {
    /// The map's name in the object.
    pub map: String,
    /// Who shares it.
    pub scope: ShareScope,
}

/// Who shares a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShareScope {
    /// The members of this chain and of the interface's other hooks.
    Interface,
    /// Every chain of the host.
    Host,
}

/// Which maps survive from the running generation, where their shape is the same. Constants
/// (`.rodata`) never do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Carry {
    /// None: everything starts fresh.
    #[default]
    Nothing,
    /// All but these. Data sections (`.data`, `.bss`) count as maps by section name; each stands for its
    /// relatives (`.data.x`) as well.
    AllBut(Vec<String>),
    /// Only these.
    Only(Vec<String>),
}

/// A generation that is loaded and pinned, and not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Kernel id of the fused program.
    pub program_id: u32,
    /// Instructions the verifier walked for the whole chain.
    pub verified_instructions: u32,
    /// Worth telling the person: maps kept, maps that could not be kept and why, a licence.
    pub notes: Vec<String>,
}

/// What must be attached now for a switch to go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing of ours: the first generation, or a link that somebody destroyed.
    Nothing,
    /// The program of this generation, compared by the kernel in the same step. A filter of clsact is
    /// compared just before: the kernel has no such step for it.
    Generation(u64),
    /// Whatever is there, through the link we hold. Only to undo a foreign update.
    Anything,
}

/// What ran for a chain, as far as it is remembered without its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownProgram {
    /// Kernel id of the fused program, of this start of the machine.
    pub program_id: u32,
    /// The chain's generation.
    pub generation: u64,
}

/// A chain found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which chain.
    pub key: ChainKey,
    /// How it stands.
    pub state: LinkState,
    /// Every generation that is pinned, oldest first.
    pub generations: Vec<u64>,
    /// Where the interface is that it is attached to, if that is not the one of its name.
    pub away: Option<Away>,
    /// Why its pins are not in their place and cannot be brought back, although it is attached and held.
    pub pin_problem: Option<String>,
}

/// Where an interface went with the chain on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Away {
    /// It has another name now.
    Renamed(InterfaceName),
    /// It is in another network namespace.
    OtherNamespace,
}

/// How a chain's attachment stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Our link, our program.
    Attached(ObservedChain),
    /// Our link, another program in it.
    Replaced {
        /// Kernel id of the program that runs now.
        program_id: u32,
    },
    /// Our link is dead or gone; the interface is there.
    Detached,
    /// The interface is not there.
    InterfaceMissing,
    /// The interface's network namespace is not there, and so neither is the interface.
    NetnsMissing,
    /// Its network namespace cannot be looked into: how it stands is not known.
    Unseen {
        /// Why not, and what to do.
        why: String,
    },
}

/// Per-CPU cells of one member, summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberCells {
    /// The member.
    pub name: ProgramName,
    /// Packets whose way ended at this member, by slot.
    pub exits: [u64; CELLS],
    /// Packets that went on after this member, by slot (zero where it can be derived is not
    /// assumed: these are the counted ones plus, for a single proceed-on verdict, the derived one).
    pub proceeds: [u64; CELLS],
}

impl MemberCells {
    /// Packets the member saw, by verdict slot.
    pub fn verdicts(&self) -> [u64; CELLS] {
        std::array::from_fn(|slot| {
            let at = |cells: &[u64; CELLS]| cells.get(slot).copied().unwrap_or(0);
            at(&self.exits) + at(&self.proceeds)
        })
    }

    /// Packets the member saw.
    pub fn runs(&self) -> u64 {
        self.verdicts().iter().sum()
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The network namespace it was found in; `None` for the loader's own.
    pub netns: Option<Netns>,
    /// Its name.
    pub name: InterfaceName,
    /// Its index.
    pub index: u32,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Its hardware address, where that has six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its alternative names.
    pub altnames: Vec<String>,
}

/// Why the kernel (or the composer in front of it) did not do it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No such interface.
    #[error("there is no interface \"{name}\"{}", within(netns.as_ref()))]
    InterfaceNotFound {
        /// The network namespace in which there is none.
        netns: Option<Netns>,
        /// Its name.
        name: InterfaceName,
    },
    /// No such network namespace.
    #[error("there is no network namespace \"{netns}\": {why}")]
    NetnsNotFound {
        /// What should lead to it.
        netns: Netns,
        /// What was found instead.
        why: String,
    },
    /// A program, or the whole chain, cannot run as asked.
    #[error("{}{reason}", member.as_ref().map(|name| format!("program \"{name}\": ")).unwrap_or_default())]
    Refused {
        /// The member to blame, where it is one.
        member: Option<ProgramName>,
        /// Why, in one line.
        reason: String,
        /// What to do, in one line.
        remedy: String,
        /// The end of the verifier's log, where it spoke.
        log: Option<String>,
    },
    /// A map that a program shares has to be replaced, and chains that do not change with it use it.
    #[error("program \"{member}\": {reason}")]
    SharedMap {
        /// The member to blame.
        member: ProgramName,
        /// Why, in one line.
        reason: String,
        /// What to do, in one line.
        remedy: String,
        /// The chains that use the map and do not change with it.
        users: Vec<ChainKey>,
    },
    /// This kernel cannot.
    #[error("{what}")]
    Unsupported {
        /// What it cannot do.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// Somebody else changed it at the same time, or holds the hook.
    #[error("{what}")]
    Conflict {
        /// What is in the way.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A chain is attached, and its pins cannot be reached.
    #[error("{what}")]
    PinsHidden {
        /// What is attached, and where its pins should be.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A call failed for another reason.
    #[error("{operation} failed")]
    Os {
        /// The call, with its object: "pin /sys/fs/bpf/canopy/…".
        operation: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl KernelError {
    /// The interface of a chain is not there.
    pub fn no_interface(key: &ChainKey) -> Self {
        Self::InterfaceNotFound { netns: key.netns.clone(), name: key.interface.clone() }
    }

    /// Whether it says that the interface is not there, by itself or with its namespace.
    pub fn interface_missing(&self) -> bool {
        matches!(self, Self::InterfaceNotFound { .. } | Self::NetnsNotFound { .. })
    }
}

/// " in network namespace blue", or nothing for the loader's own.
fn within(netns: Option<&Netns>) -> String {
    netns.map(|netns| format!(" in network namespace {netns}")).unwrap_or_default()
}

/// The kernel of this host.
pub trait Kernel: Send + Sync + 'static {
    /// Kernel release, as in `uname -r`.
    fn release(&self) -> String;

    /// What this kernel and machine can do, probed.
    fn facts(&self) -> Vec<Fact>;

    /// Time this process has spent inside the kernel for its chains since it started, all threads
    /// together.
    fn spent(&self) -> Duration;

    /// Has the kernel take the time of every run of every program of the machine, for as long as what is
    /// returned lives. Costs each run some tens of nanoseconds. Unsupported where the process may not.
    fn take_times(&self) -> Result<Box<dyn Send>, KernelError>;

    /// Every interface of a network namespace: the loader's own, or another one.
    fn interfaces(&self, netns: Option<&Netns>) -> Result<Vec<Interface>, KernelError>;

    /// The indices of the interfaces that a namespace's default route leads to: IPv4's of the lowest metric, or
    /// IPv6's where there is none. Costs what listing the routes costs, where something changed.
    fn default_route(&self, netns: Option<&Netns>) -> Result<Vec<u32>, KernelError>;

    /// Whether two names lead to one network namespace, as far as can be seen. What leads nowhere now, and
    /// what cannot be looked at, is no other's.
    fn same_netns(&self, a: Option<&Netns>, b: Option<&Netns>) -> bool {
        a == b
    }

    /// The maps of an object that it asks itself to be pinned by name: they are shared on its interface,
    /// whatever the package says of other maps.
    fn pinned_by_name(&self, _object: &[u8]) -> Vec<String> {
        Vec::new()
    }

    /// A name that this start of the machine has and no other: kernel ids mean something only beside it.
    /// Empty where the kernel does not say.
    fn boot_id(&self) -> String {
        String::new()
    }

    /// Where an attached chain stands among what else handles the same packets; `None` when it is not
    /// attached any more. A few system calls: for whoever asks, not for each round of a check.
    fn placement(
        &self,
        _key: &ChainKey,
        _chain: &ObservedChain,
    ) -> Result<Option<ChainPlacement>, KernelError> {
        Ok(None)
    }

    /// Packets that an XDP chain sent or redirected and its device dropped, by the device's own
    /// counter, since the chain was attached; zero ones are left out.
    fn device_errors(&self, _key: &ChainKey) -> Result<BTreeMap<String, u64>, KernelError> {
        Ok(BTreeMap::new())
    }

    /// What lies among our pins and is nothing of ours.
    fn stray_pins(&self) -> Result<Vec<PathBuf>, KernelError> {
        Ok(Vec::new())
    }

    /// Looks for a chain that is attached while its pins are not in their place, and puts them back
    /// where that is possible; `known` is what runs, if somebody remembers. Whether anything was
    /// brought back: then the chain is to be observed again.
    ///
    /// # Errors
    ///
    /// [`KernelError::PinsHidden`] when it is attached and out of reach: attaching it again would have
    /// packets meet it twice.
    fn recover_pins(
        &self,
        _key: &ChainKey,
        _known: Option<KnownProgram>,
    ) -> Result<bool, KernelError> {
        Ok(false)
    }

    /// Every chain whose pins exist, compared with what is attached.
    fn observe(&self) -> Result<Vec<Observed>, KernelError>;

    /// The same of these chains only, as far as they have pins.
    fn observe_chains(&self, keys: &BTreeSet<ChainKey>) -> Result<Vec<Observed>, KernelError> {
        let mut seen = self.observe()?;
        seen.retain(|seen| keys.contains(&seen.key));
        Ok(seen)
    }

    /// The generations of a chain that are pinned, oldest first.
    fn generations(&self, key: &ChainKey) -> Result<Vec<u64>, KernelError> {
        let seen = self.observe_chains(&BTreeSet::from([key.clone()]))?;
        Ok(seen.into_iter().next().map(|seen| seen.generations).unwrap_or_default())
    }

    /// Verifies each member alone, creates or carries over the maps, composes, loads and pins the
    /// generation. Attaches nothing; a failure leaves nothing behind.
    fn prepare(&self, build: &ChainBuild) -> Result<Prepared, KernelError>;

    /// A setting that the generation of a build does not have in its maps and variables, in words: read
    /// from the kernel. `None` when it has all of them.
    fn unmet_setting(&self, build: &ChainBuild) -> Result<Option<String>, KernelError>;

    /// The same for a generation that was built a while ago: shared maps are read as well, which others
    /// may have changed since.
    fn lost_setting(&self, build: &ChainBuild) -> Result<Option<String>, KernelError>;

    /// Attaches a prepared generation, atomically, and reads back what is attached. A TC chain is
    /// attached as its generation was prepared for: where that changes, the new attachment is made
    /// before the old one goes.
    fn switch(
        &self,
        key: &ChainKey,
        generation: u64,
        mode: XdpMode,
        expect: Expect,
    ) -> Result<ObservedChain, KernelError>;

    /// Writes back the settings of an attached generation that maps lack which it shares with chains that
    /// do not change, and reads them back: a map that does not have them even then, in words. The last
    /// thing before a change is committed, for a preparation changes nothing that runs.
    fn restore_shared_settings(
        &self,
        _key: &ChainKey,
        _generation: u64,
    ) -> Result<Option<String>, KernelError> {
        Ok(None)
    }

    /// The change of a generation is committed: what [`Self::restore_shared_settings`] wrote stays.
    fn keep_restored_settings(&self, _key: &ChainKey, _generation: u64) {}

    /// Takes back what [`Self::restore_shared_settings`] wrote for a generation whose change failed.
    fn undo_restored_settings(&self, _key: &ChainKey, _generation: u64) -> Result<(), KernelError> {
        Ok(())
    }

    /// Gives a chain the name that its interface has now. What is attached stays attached, and what is
    /// pinned pinned; a chain of the new name must not be there.
    fn rename(&self, from: &ChainKey, to: &InterfaceName) -> Result<(), KernelError>;

    /// Detaches the chain and removes its link; its generations stay pinned.
    fn detach(&self, key: &ChainKey) -> Result<(), KernelError>;

    /// Removes a generation's pins. What is attached stays attached.
    fn discard(&self, key: &ChainKey, generation: u64) -> Result<(), KernelError>;

    /// Returns when no packet is still inside a program that was detached or replaced before.
    fn settle(&self) -> Result<(), KernelError>;

    /// Exact accounting of a pinned generation, in chain order.
    fn cells(&self, key: &ChainKey, generation: u64) -> Result<Vec<MemberCells>, KernelError>;

    /// The entries of a member's map, at most `limit`.
    fn map_entries(
        &self,
        key: &ChainKey,
        generation: u64,
        member: &ProgramName,
        map: &str,
        limit: usize,
    ) -> Result<Vec<MapEntry>, KernelError>;

    /// The maps of a generation's members, in order of member and name.
    fn maps(&self, key: &ChainKey, generation: u64) -> Result<Vec<MemberMap>, KernelError>;

    /// The values under a key, one for each CPU in a per-CPU map; `None` when there is no such
    /// entry. The length of `entry` must be the map's.
    fn map_lookup(
        &self,
        place: MapPlace<'_>,
        entry: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>, KernelError>;

    /// Writes one entry: a value for each CPU in a per-CPU map, else one. A conflict when the entry
    /// is (not) there against `when`, or when the map is full.
    fn map_update(
        &self,
        place: MapPlace<'_>,
        entry: &[u8],
        values: &[Vec<u8>],
        when: WriteWhen,
    ) -> Result<(), KernelError>;

    /// Removes one entry; whether there was one.
    fn map_delete(&self, place: MapPlace<'_>, entry: &[u8]) -> Result<bool, KernelError>;

    /// About `limit` entries from where the last page ended; from the beginning for `None`. Of a map
    /// that changes meanwhile, an entry that is there all the time is on one page exactly, and one
    /// that comes or goes is on one or on none. A conflict when it changes faster than it is read.
    fn map_page(
        &self,
        place: MapPlace<'_>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<MapPage, KernelError>;

    /// Opens a ring buffer, as its reader. The buffer lives on while it is open, also when its
    /// generation is discarded.
    fn ring(&self, place: MapPlace<'_>) -> Result<Box<dyn Ring>, KernelError>;
}
