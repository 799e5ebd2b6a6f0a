//! What somebody may do, and whether it is within what another may do: nobody gives more than they have.
//!
//! Compared is what is written, not what it comes to today: a scope is within another when that holds for
//! every fleet there may ever be, whatever labels its hosts have. So a token that was given rightly is not
//! wrong when a host gets another label.

use crate::{
    endpoint::{Class, Service},
    name::HostId,
    permission::Role,
    scope::{HostPattern, HostsBeyond, Scope, ServicesBeyond},
    time,
};
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, UNIX_EPOCH},
};

/// What a token lets its owner do: a role, where it counts, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The role.
    pub role: Role,
    /// Where it counts.
    pub scope: Scope,
    /// When it ends by itself, seconds since 1970; `None` where it does not.
    pub until: Option<u64>,
}

/// How one authority exceeds another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Excess {
    /// By a class of verbs that the other role does not hold.
    Role {
        /// The role that holds more.
        role: Role,
        /// What it holds besides.
        class: Class,
    },
    /// By services.
    Services(ServicesBeyond),
    /// By hosts.
    Hosts(HostsBeyond),
    /// By time.
    Time {
        /// When the other one ends, seconds since 1970.
        own: u64,
        /// When it ends itself; `None` where it does not.
        until: Option<u64>,
    },
}

impl Authority {
    /// A role that counts where `scope` says, everywhere without one, and does not end by itself.
    pub fn new(role: Role, scope: Option<&Scope>) -> Self {
        Self { role, scope: scope.cloned().unwrap_or_default(), until: None }
    }

    /// The same until a moment, seconds since 1970.
    #[must_use]
    pub fn ending(self, until: Option<u64>) -> Self {
        Self { until, ..self }
    }

    /// Whether it counts at a moment, seconds since 1970.
    pub fn is_in_force(&self, now: u64) -> bool {
        self.until.is_none_or(|end| now < end)
    }

    /// An administrator's that is not narrowed: what whoever has the policy service's own keys may do.
    pub fn unlimited() -> Self {
        Self::new(Role::Admin, None)
    }

    /// Whether its owner may use verbs of this class of a central service.
    pub fn may_use(&self, service: Service, class: Class) -> bool {
        self.role.classes().contains(&class) && self.scope.covers_service(service)
    }

    /// How `inner` exceeds this; `None` where everything that it allows is allowed by this too, for as long
    /// as it does.
    pub fn excess_of(&self, inner: &Self) -> Option<Excess> {
        self.excess_in_reach(inner).or_else(|| {
            let own = self.until?;
            let longer = inner.until.is_none_or(|until| until > own);
            longer.then_some(Excess::Time { own, until: inner.until })
        })
    }

    /// The same at this moment: how long either is valid does not matter.
    pub fn excess_in_reach(&self, inner: &Self) -> Option<Excess> {
        let held = self.role.classes();
        if let Some(class) = inner.role.classes().iter().find(|class| !held.contains(class)) {
            return Some(Excess::Role { role: inner.role, class: *class });
        }
        if let Some(beyond) = self.scope.services_beyond(&inner.scope) {
            return Some(Excess::Services(beyond));
        }
        self.scope.hosts_beyond(&inner.scope).map(Excess::Hosts)
    }

    /// How being in charge of a host's daemons exceeds this: of these services, on that host.
    pub fn excess_of_host(
        &self,
        host: &HostId,
        labels: &BTreeMap<String, String>,
        services: impl IntoIterator<Item = Service>,
    ) -> Option<Excess> {
        let mut beyond = services.into_iter().filter(|one| !self.scope.covers_service(*one));
        if let Some(service) = beyond.next() {
            let all = std::iter::once(service).chain(beyond).collect();
            return Some(Excess::Services(ServicesBeyond::These(all)));
        }
        let label = |name: &str| labels.get(name).map(String::as_str);
        if self.scope.covers_host(host, label) {
            return None;
        }
        let this = HostPattern::Id(host.to_string());
        Some(Excess::Hosts(HostsBeyond::These([this].into())))
    }
}

impl Excess {
    /// The field of a request for a token that says too much.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Role { .. } => "role",
            Self::Services(_) => "scope.services",
            Self::Hosts(_) => "scope.hosts",
            Self::Time { .. } => "expires_in",
        }
    }
}

/// What is beyond, as the object of "it reaches …".
impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role { role, class } => write!(f, "verbs of the class {class} (role {role})"),
            Self::Services(ServicesBeyond::All) => f.write_str("every service"),
            Self::Services(ServicesBeyond::These(services)) => {
                write!(f, "the services {}", listed(services))
            }
            Self::Hosts(HostsBeyond::All) => f.write_str("every host"),
            Self::Hosts(HostsBeyond::These(hosts)) => write!(f, "the hosts {}", listed(hosts)),
            Self::Time { own, until: None } => write!(f, "beyond {}", shown(*own)),
            Self::Time { own, until: Some(until) } => {
                write!(f, "to {}, beyond {}", shown(*until), shown(*own))
            }
        }
    }
}

/// `role admin, services policy, hosts web1, until 2026-01-02T03:04:05Z`
impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "role {}", self.role)?;
        if let Some(services) = &self.scope.services {
            write!(f, ", services {}", listed(services))?;
        }
        if let Some(hosts) = &self.scope.hosts {
            write!(f, ", hosts {}", listed(hosts))?;
        }
        if let Some(until) = self.until {
            write!(f, ", until {}", shown(until))?;
        }
        Ok(())
    }
}

fn shown(seconds: u64) -> String {
    time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// At most eight of them.
fn listed<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let mut all = all.into_iter();
    let mut shown: Vec<String> = all.by_ref().take(SHOWN).map(|one| one.to_string()).collect();
    let more = all.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}
