//! Which hosts have answered this machine before, so that one that falls silent is still listed.
//!
//! Kept in `$XDG_STATE_HOME/canopy/hosts.json`. A convenience: when it cannot be read or written,
//! only the hosts that answer now are listed.

use crate::{files, view::hosts::HostRow};
use canopy_api::HostId;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// When each host of each bus last answered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    #[serde(skip)]
    path: Option<PathBuf>,
    /// Bus address, host, time.
    buses: BTreeMap<String, BTreeMap<HostId, String>>,
}

impl Seen {
    /// What is on record.
    pub fn read() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = set("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".local/state")));
        base.map_or_else(Self::default, |base| Self::from(base.join("canopy/hosts.json")))
    }

    fn from(path: PathBuf) -> Self {
        let read: Option<Self> =
            files::read_text(&path, 1 << 20).ok().and_then(|text| serde_json::from_str(&text).ok());
        Self { path: Some(path), ..read.unwrap_or_default() }
    }

    /// A host of that bus has answered.
    pub fn saw(&mut self, bus: &str, host: &HostId, now: &str) {
        self.buses.entry(bus.to_owned()).or_default().insert(host.clone(), now.to_owned());
    }

    /// The hosts of that bus which are not among these.
    pub fn others(&self, bus: &str, answered: &[HostRow]) -> Vec<(HostId, String)> {
        let known = self.buses.get(bus).into_iter().flatten();
        known
            .filter(|(host, _)| answered.iter().all(|row| row.host != **host))
            .map(|(host, when)| (host.clone(), when.clone()))
            .collect()
    }

    /// Puts it on record.
    pub fn write(&self) {
        let (Some(path), Ok(bytes)) = (&self.path, serde_json::to_vec(self)) else { return };
        if let Some(parent) = path.parent()
            && files::make_directory(parent).is_ok()
        {
            // Nothing depends on it.
            let _ = files::write_atomic(path, &bytes, files::SECRET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::hosts::HostState;

    #[test]
    fn a_silent_host_is_remembered_by_bus() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("canopy/hosts.json");
        let (web1, web2): (HostId, HostId) = ("web1".parse().unwrap(), "web2".parse().unwrap());
        let mut seen = Seen::from(path.clone());
        seen.saw("tls://a", &web1, "t1");
        seen.saw("tls://a", &web2, "t1");
        seen.saw("tls://b", &web2, "t1");
        seen.write();
        let seen = Seen::from(path.clone());
        let row = HostRow::mute(web1, HostState::Failing, None, "t2".to_owned());
        assert_eq!(seen.others("tls://a", &[row]), [(web2, "t1".to_owned())]);
        std::fs::write(&path, "garbage").unwrap();
        assert!(Seen::from(path).others("tls://a", &[]).is_empty());
    }
}
