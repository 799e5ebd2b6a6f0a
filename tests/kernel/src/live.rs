//! Chains on a real interface: a veth pair in namespaces of its own.

use crate::chain::{member, object};
use canopy_api::{ChainKey, Hook, TcMode, XdpMode, wire::ObservedChain};
use canopy_kernel::{
    ChainBuild, Expect, Kernel as _, KernelError, LinkState, Member, MemberCells, Observed,
};
use canopy_kernel_aya::AyaKernel;
use canopy_test_support::{
    bpffs::BpffsDir,
    netns::Netns,
    pair::{HOST_LINK, Pair},
};

/// The port that [`dropper`] drops unless told otherwise.
pub const PORT: u16 = 7;

/// A veth pair, and a kernel with pins of its own that acts in the pair's host namespace.
#[derive(Debug)]
pub struct Live {
    /// The kernel.
    pub kernel: AyaKernel,
    /// Where it pins.
    pub bpffs: BpffsDir,
    /// The interfaces.
    pub pair: Pair,
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}

impl Live {
    /// A new one.
    ///
    /// # Panics
    ///
    /// Without root or a bpffs at `/sys/fs/bpf`.
    pub fn new() -> Self {
        let bpffs = BpffsDir::new().unwrap();
        let kernel = AyaKernel::new(bpffs.path()).unwrap();
        Self { kernel, bpffs, pair: Pair::new().unwrap() }
    }

    /// The chain of the pair's host end.
    pub fn key(hook: Hook) -> ChainKey {
        Self::key_on(HOST_LINK, hook)
    }

    /// The chain of an interface.
    pub fn key_on(interface: &str, hook: Hook) -> ChainKey {
        ChainKey { netns: None, interface: interface.parse().unwrap(), hook }
    }

    /// Calls the kernel in the host namespace.
    pub fn kernel<T: Send>(
        &self,
        call: impl FnOnce(&AyaKernel) -> Result<T, KernelError> + Send,
    ) -> Result<T, KernelError> {
        in_netns(&self.pair.host, || call(&self.kernel))
    }

    /// Prepares a generation, which has to load.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn prepare(&self, key: &ChainKey, generation: u64, members: Vec<Member>) {
        self.prepare_for(TcMode::Best, key, generation, members);
    }

    /// Prepares a generation for a way to attach it, which has to load.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn prepare_for(
        &self,
        tc_mode: TcMode,
        key: &ChainKey,
        generation: u64,
        members: Vec<Member>,
    ) {
        let xdp_mode = XdpMode::Best;
        let build = ChainBuild {
            key: key.clone(),
            generation,
            xdp_mode,
            tc_mode,
            members,
            together: Vec::new(),
            left_entries: Vec::new(),
        };
        self.kernel(|kernel| kernel.prepare(&build)).unwrap_or_else(|error| panic!("{error:?}"));
    }

    /// Switches to a generation, in the best mode.
    pub fn switch(
        &self,
        key: &ChainKey,
        generation: u64,
        expect: Expect,
    ) -> Result<ObservedChain, KernelError> {
        self.kernel(|kernel| kernel.switch(key, generation, XdpMode::Best, expect))
    }

    /// Prepares a first generation and attaches it.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn attach(&self, hook: Hook, members: Vec<Member>) -> ObservedChain {
        let key = Self::key(hook);
        self.prepare(&key, 1, members);
        self.switch(&key, 1, Expect::Nothing).unwrap()
    }

    /// Everything that is observed.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub fn observe(&self) -> Vec<Observed> {
        self.kernel(AyaKernel::observe).unwrap()
    }

    /// How the only chain stands.
    ///
    /// # Panics
    ///
    /// When there is not exactly one.
    pub fn state(&self) -> LinkState {
        let mut seen = self.observe();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0).state
    }

    /// What the generation counted.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    pub fn cells(&self, key: &ChainKey, generation: u64) -> Vec<MemberCells> {
        self.kernel.cells(key, generation).unwrap()
    }

    /// A program in the host namespace; its standard output.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn exec(&self, command: &[&str]) -> String {
        self.pair.host.exec(command).unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// Calls the kernel in a namespace.
pub fn in_netns<T: Send>(
    netns: &Netns,
    call: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    netns.run(|| Ok(call())).unwrap()
}

/// A member that drops UDP to a port.
pub fn dropper(name: &str, hook: Hook, port: u16) -> Member {
    let function = if hook == Hook::Xdp { "xdp_drop_port" } else { "tc_drop_port" };
    Member {
        globals: vec![("port".to_owned(), port.to_ne_bytes().to_vec())],
        ..member(name, hook, &object("drop_port"), function)
    }
}

/// The slot of "let it pass" and of "drop it".
pub fn pass_and_drop(hook: Hook) -> (usize, usize) {
    match hook {
        Hook::Xdp => (2, 1),
        Hook::TcIngress | Hook::TcEgress => (1, 3),
    }
}
