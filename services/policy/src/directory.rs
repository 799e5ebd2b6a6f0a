//! Who is who: roles of people and labels of hosts, as rules speak of them.
//!
//! With tokens, a person's role is that of their token in force; without, that of the configuration.

use crate::{
    config::{Config, Host, Person},
    connections::seconds,
    rules::Admission,
    tokens::Tokens,
};
use canopy_admission::Labels;
use canopy_api::{ApiError, HostId, Principal, permission::Role};
use std::collections::BTreeMap;

/// Where roles come from.
#[derive(Clone, Debug)]
pub(crate) enum Roles {
    /// The configuration.
    Configured,
    /// Tokens in force.
    Tokens(Box<Tokens>),
}

impl Roles {
    /// The role of a person now; none for who is unknown.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub(crate) async fn of(
        &self,
        admission: &Admission,
        principal: &Principal,
    ) -> Result<Option<Role>, ApiError> {
        match self {
            Self::Configured => Ok(admission.configured_role(principal)),
            Self::Tokens(tokens) => {
                let stored = tokens.get(principal).await?;
                Ok(stored.and_then(|stored| stored.value.role_in_force(seconds())))
            }
        }
    }
}

/// Answers who is who. Somebody unknown has no role, a host unknown no labels.
pub trait Directory: Send + Sync {
    /// The role of a person.
    fn role(&self, principal: &Principal) -> Option<Role>;
    /// The labels of a host.
    fn labels(&self, host: &HostId) -> Labels;
    /// Every host it knows, with its labels.
    fn hosts(&self) -> Vec<(HostId, Labels)>;
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

    fn hosts(&self) -> Vec<(HostId, Labels)> {
        self.hosts.iter().map(|(id, host)| (id.clone(), host.labels.clone())).collect()
    }
}
