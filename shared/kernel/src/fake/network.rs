//! Interfaces and network namespaces that come, go, move and change.

use super::FakeKernel;
use crate::Interface;
use canopy_api::{InterfaceName, Netns};

impl FakeKernel {
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
}

#[cfg(test)]
mod tests {
    use super::super::test_builds::{build, key};
    use super::*;
    use crate::{Expect, Kernel as _};
    use canopy_api::XdpMode;

    #[test]
    fn an_interface_that_is_made_anew_has_no_chain() {
        let kernel = FakeKernel::default();
        let first = kernel.add_interface(&key().interface);
        kernel.prepare(&build(1, &["a"])).unwrap();
        kernel.switch(&key(), 1, XdpMode::Best, Expect::Nothing).unwrap();
        let to = "lan0".parse().unwrap();
        kernel.rename_interface(&key().interface, &to);
        kernel.rename_interface(&to, &key().interface);
        assert_eq!(kernel.running(&key()), Some(1));
        assert_ne!(kernel.add_interface(&key().interface), first);
        assert_eq!(kernel.running(&key()), None);
    }
}
