//! A network to send packets through: an interface pair between here and a namespace, with
//! addresses from the ranges for benchmarks and for documentation (RFC 2544, RFC 5737).

use crate::{shell, tools};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The demonstration's namespace.
pub const DEMO_NAMESPACE: &str = "canopy-demo";
/// This end of the pair; chains go here.
pub const INTERFACE: &str = "cpy0";
/// The namespace's end.
pub const PEER_INTERFACE: &str = "cpy1";
/// Address of this end.
pub const ADDRESS: &str = "198.18.0.1";
/// A source nobody objects to.
pub const ALLOWED: &str = "198.18.0.10";
/// A source that sends far more than the limit.
pub const FLOODING: &str = "198.18.0.20";
/// A source in the prefix that `demo.yaml` blocks.
pub const BLOCKED: &str = "198.51.100.7";

/// The networks all of these are in.
const NETWORKS: [&str; 2] = ["198.18.0.0/24", "198.51.100.0/24"];

/// Interface pair and namespace.
#[derive(Clone, Debug)]
pub struct Network {
    namespace: String,
}

impl Network {
    /// With this name for the namespace; nothing is touched yet.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The file that stands for the namespace.
    pub fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    /// Makes both, from nothing.
    pub fn make(&self) -> Result<()> {
        self.remove()?;
        for network in NETWORKS {
            let routes =
                shell::output(shell::command("ip").args(["route", "show", "root", network]))?;
            if let Some(route) = routes.lines().next() {
                bail!("this machine uses {network}, which is needed here: {}", route.trim());
            }
        }
        ip(&["netns", "add", &self.namespace])?;
        self.add_pair()
    }

    /// Adds the interface pair to a namespace that is there.
    pub fn add_pair(&self) -> Result<()> {
        let namespace = self.namespace.as_str();
        ip(&[
            "link",
            "add",
            INTERFACE,
            "type",
            "veth",
            "peer",
            PEER_INTERFACE,
            "netns",
            namespace,
        ])?;
        ip(&["address", "add", &format!("{ADDRESS}/24"), "dev", INTERFACE])?;
        ip(&["link", "set", INTERFACE, "up"])?;
        // Answers to the blocked source find their way, so that only the chain can stop it.
        ip(&["route", "add", "198.51.100.0/24", "dev", INTERFACE])?;
        let inside = |arguments: &[&str]| ip(&[&["-n", namespace], arguments].concat());
        inside(&["link", "set", "lo", "up"])?;
        for address in [ALLOWED, FLOODING, BLOCKED] {
            inside(&["address", "add", &format!("{address}/24"), "dev", PEER_INTERFACE])?;
        }
        inside(&["link", "set", PEER_INTERFACE, "up"])
    }

    /// Removes the interface pair.
    pub fn remove_pair(&self) -> Result<()> {
        if interface_exists() { ip(&["link", "delete", INTERFACE]) } else { Ok(()) }
    }

    /// Removes both, if they are there.
    pub fn remove(&self) -> Result<()> {
        self.remove_pair()?;
        if self.file().exists() {
            ip(&["netns", "delete", &self.namespace])?;
        }
        Ok(())
    }

    /// Whether both are there.
    pub fn exists(&self) -> bool {
        self.leftovers().len() == 2
    }

    /// What is there of them.
    pub fn leftovers(&self) -> Vec<String> {
        let interface = interface_exists().then(|| format!("interface {INTERFACE}"));
        let namespace = self.file().exists().then(|| format!("namespace {}", self.namespace));
        interface.into_iter().chain(namespace).collect()
    }
}

fn interface_exists() -> bool {
    tools::works(shell::command("ip").args(["link", "show", INTERFACE]))
}

fn ip(arguments: &[&str]) -> Result<()> {
    shell::quiet(shell::root("ip").args(arguments))
}
