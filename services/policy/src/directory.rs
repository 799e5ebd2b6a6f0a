//! Who is who: roles of people and labels of hosts, as rules speak of them.

use crate::config::{Config, Host, Person};
use canopy_admission::Labels;
use canopy_api::{HostId, Principal, permission::Role};
use std::collections::BTreeMap;

/// Answers who is who. Somebody unknown has no role, a host unknown no labels.
pub trait Directory: Send + Sync {
    /// The role of a person.
    fn role(&self, principal: &Principal) -> Option<Role>;
    /// The labels of a host.
    fn labels(&self, host: &HostId) -> Labels;
}

/// What the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Table {
    people: BTreeMap<Principal, Person>,
    hosts: BTreeMap<HostId, Host>,
}

impl From<&Config> for Table {
    fn from(config: &Config) -> Self {
        Self { people: config.people.clone(), hosts: config.hosts.clone() }
    }
}

impl Directory for Table {
    fn role(&self, principal: &Principal) -> Option<Role> {
        self.people.get(principal).map(|person| person.role)
    }

    fn labels(&self, host: &HostId) -> Labels {
        self.hosts.get(host).map(|host| host.labels.clone()).unwrap_or_default()
    }
}
