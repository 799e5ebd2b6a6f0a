//! Chains that the tests of the fake build.

use crate::{Carry, ChainBuild, Member, SettingsDetail};
use canopy_api::{ChainKey, Hook, TcMode, VerdictSet, XdpMode};
use std::sync::Arc;

/// Of eth0, XDP.
pub(super) fn key() -> ChainKey {
    ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
}

/// A chain of members of these names on it.
pub(super) fn build(generation: u64, names: &[&str]) -> ChainBuild {
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
