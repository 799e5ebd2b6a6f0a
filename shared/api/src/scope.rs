//! Where a role counts: services and hosts, as people write them, and as the bus server understands
//! them.

use crate::{
    endpoint::{Class, Service},
    name::{self, HostId, NameError},
    subject::Target,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

/// Where a role counts, as a person writes it. What is left out is not narrowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// These services only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<BTreeSet<Service>>,
    /// These hosts only. Who is narrowed to hosts reads central services as others do and changes nothing
    /// there, except that an administrator gives and takes back tokens and enrolments within their own hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<BTreeSet<HostPattern>>,
}

impl Scope {
    /// Reads a scope in a reply: what a newer service narrows by besides is not known here. In a token or
    /// a request it would be refused.
    pub(crate) fn told<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Self>, D::Error> {
        #[derive(Deserialize)]
        struct Told {
            #[serde(default)]
            services: Option<BTreeSet<Service>>,
            #[serde(default)]
            hosts: Option<BTreeSet<HostPattern>>,
        }
        let told = Option::<Told>::deserialize(from)?;
        Ok(told.map(|Told { services, hosts }| Self { services, hosts }))
    }

    /// The services of `inner` beyond this scope; none where it covers all of them.
    pub fn services_beyond(&self, inner: &Self) -> Option<ServicesBeyond> {
        let own = self.services.as_ref()?;
        let Some(services) = &inner.services else { return Some(ServicesBeyond::All) };
        let beyond: BTreeSet<_> = services.difference(own).copied().collect();
        (!beyond.is_empty()).then_some(ServicesBeyond::These(beyond))
    }

    /// The hosts of `inner` beyond this scope, whatever hosts there are now or later and whatever labels
    /// they have: each of its patterns has to be within one of these.
    pub fn hosts_beyond(&self, inner: &Self) -> Option<HostsBeyond> {
        let own = self.hosts.as_ref()?;
        let Some(hosts) = &inner.hosts else { return Some(HostsBeyond::All) };
        let beyond: BTreeSet<_> = hosts
            .iter()
            .filter(|pattern| !own.iter().any(|own| pattern.is_within(own)))
            .cloned()
            .collect();
        (!beyond.is_empty()).then_some(HostsBeyond::These(beyond))
    }

    /// Whether this host with these labels is in it.
    pub fn covers_host<'a>(
        &self,
        host: &HostId,
        labels: impl Fn(&str) -> Option<&'a str> + Copy,
    ) -> bool {
        self.hosts
            .as_ref()
            .is_none_or(|patterns| patterns.iter().any(|pattern| pattern.fits(host, labels)))
    }

    /// Whether this service is in it.
    pub fn covers_service(&self, service: Service) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(&service))
    }

    /// Where it counts, in a fleet of these hosts with their labels.
    pub fn reach<'a, L>(&self, fleet: impl IntoIterator<Item = (&'a HostId, L)>) -> Reach
    where
        L: Fn(&str) -> Option<&'a str>,
    {
        Reach {
            services: self.services.clone(),
            hosts: self.hosts.as_ref().map(|patterns| {
                let mut hosts: BTreeSet<HostId> =
                    patterns.iter().filter_map(HostPattern::id).collect();
                for (host, labels) in fleet {
                    if patterns.iter().any(|pattern| pattern.fits(host, &labels)) {
                        hosts.insert(host.clone());
                    }
                }
                hosts
            }),
        }
    }
}

/// Services of one scope that are not in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServicesBeyond {
    /// It is not narrowed to services, and the other is.
    All,
    /// These.
    These(BTreeSet<Service>),
}

/// Hosts of one scope that are not in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostsBeyond {
    /// It is not narrowed to hosts, and the other is.
    All,
    /// Those that these patterns mean.
    These(BTreeSet<HostPattern>),
}

/// Where a role counts, host by host: what the bus server understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// These services; `None` for all.
    pub services: Option<BTreeSet<Service>>,
    /// These hosts; `None` for all.
    pub hosts: Option<BTreeSet<HostId>>,
}

impl Reach {
    /// Everywhere.
    pub const EVERYWHERE: Self = Self { services: None, hosts: None };

    /// Whether it is everywhere.
    pub fn is_everywhere(&self) -> bool {
        self.services.is_none() && self.hosts.is_none()
    }

    /// Service and place tokens of the subjects of a class that it covers.
    ///
    /// Who is narrowed to hosts reads central services, as events there are read. What verbs of the other
    /// classes do there is done to every host, so that they are not among them, but for those of policy: it
    /// compares each request with the token of who asks.
    pub(crate) fn places(&self, class: Class) -> Vec<(&str, &str)> {
        let services: Vec<&str> = match &self.services {
            None => vec!["*"],
            Some(services) => services.iter().map(|service| service.as_str()).collect(),
        };
        let Some(hosts) = &self.hosts else {
            return services.into_iter().map(|service| (service, "*")).collect();
        };
        // Without `all`: every host would answer.
        let at_hosts = services
            .iter()
            .flat_map(|service| hosts.iter().map(move |host| (*service, host.as_str())));
        let central = match class {
            Class::Read => services.clone(),
            Class::Admin if self.covers_service(Service::Policy) => vec![Service::Policy.as_str()],
            Class::Admin | Class::Write | Class::Publish | Class::Internal => Vec::new(),
        };
        at_hosts.chain(central.into_iter().map(|service| (service, Target::CENTRAL))).collect()
    }

    fn covers_service(&self, service: Service) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(&service))
    }
}

/// Which hosts are meant: an id (`web1`), a pattern of ids (`web*`; `?` is one character), or a
/// label (`label:rack=7`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Ids that fit; without `*` and `?` the one host.
    Id(String),
    /// Hosts with this label.
    Label {
        /// Name of the label.
        name: String,
        /// Its value.
        value: String,
    },
}

impl HostPattern {
    /// Whether this host is meant; `labels` tells its labels.
    pub fn fits<'a>(&self, host: &HostId, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Id(pattern) => name::fits(pattern.as_bytes(), host.as_str().as_bytes()),
            Self::Label { name, value } => labels(name) == Some(value),
        }
    }

    /// Whether every host that this means is meant by `outer` too, whatever hosts and labels there are.
    pub fn is_within(&self, outer: &Self) -> bool {
        match (self, outer) {
            (Self::Id(inner), Self::Id(outer)) => {
                name::is_within(inner.as_bytes(), outer.as_bytes())
            }
            // Only what means every host means those of a label.
            (Self::Label { .. }, Self::Id(outer)) => name::is_within(b"*", outer.as_bytes()),
            (Self::Label { .. }, Self::Label { .. }) => self == outer,
            // Whether a host has a label is not for good.
            (Self::Id(_), Self::Label { .. }) => false,
        }
    }

    /// The host, of a pattern that means exactly one.
    fn id(&self) -> Option<HostId> {
        match self {
            Self::Id(id) => id.parse().ok(),
            Self::Label { .. } => None,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const RULE: &str = "an id (web1), a pattern (web*) or a label (label:rack=7)";
        if let Some(label) = text.strip_prefix("label:") {
            return match label.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    Ok(Self::Label { name: name.to_owned(), value: value.to_owned() })
                }
                _ => Err(format!("\"{text}\" means no host: {RULE}")),
            };
        }
        let filled = text.replace(['*', '?'], "x");
        let id: Result<HostId, NameError> = filled.parse();
        id.map_err(|error| format!("\"{text}\" means no host: {RULE}; {}", error.rule))?;
        Ok(Self::Id(text.to_owned()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(pattern) => f.write_str(pattern),
            Self::Label { name, value } => write!(f, "label:{name}={value}"),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for HostPattern {
    fn schema_name() -> Cow<'static, str> {
        "HostPattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "minLength": 1,
            "description": "A host id (web1), a pattern of ids (web*), or a label (label:rack=7)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_no_host_is_refused() {
        for bad in ["", "a.b", "label:", "label:=7", "all", ">", "WEB*", "a b"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
        for good in ["*", "web*", "w?b1", "label:rack=", "label:a=b=c"] {
            assert_eq!(good.parse::<HostPattern>().unwrap().to_string(), good);
        }
    }
}
