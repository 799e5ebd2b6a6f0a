//! What the caller's own token allows, by its own words: who can be asked, and what a refusal is about.
//!
//! Nothing is decided here. The bus lets through what policy granted at the connect, whatever this program
//! believes; a question that leaves out what the token does not reach is only a better question.

use crate::failure::{Exit, Failure};
use canopy_api::{
    HostId,
    authority::Authority,
    endpoint::EndpointSpec,
    scope::{HostPattern, Reach},
    subject::Target,
    wire::hosts::{HostRecord, HostState},
};
use std::{collections::BTreeSet, path::Path};

/// Most hosts or patterns that are named in one message.
const NAMED: usize = 8;

/// Role and scope of the caller's token.
#[derive(Clone, Debug)]
pub struct Grant(Authority);

impl Grant {
    /// Of the token in this file; none where it cannot be read: the bus says what is wrong with it.
    pub fn read(token: Option<&Path>) -> Option<Self> {
        let text = canopy_secrets::read_private(token?).ok()?;
        canopy_identity::unverified_authority(&text).map(Self)
    }

    /// Whether it is for some hosts only.
    pub fn is_for_some_hosts(&self) -> bool {
        self.0.scope.hosts.is_some()
    }

    /// The hosts it is for among those that are enrolled, and those that it spells out; `None` where it is
    /// for all.
    ///
    /// # Errors
    /// Where it has patterns or labels, and who is enrolled is not known.
    pub fn hosts(
        &self,
        enrolled: Option<&[HostRecord]>,
    ) -> Result<Option<BTreeSet<HostId>>, Failure> {
        let Some(patterns) = &self.0.scope.hosts else { return Ok(None) };
        let fleet = enrolled.unwrap_or_default().iter();
        // One that was revoked and is still spelled out is asked, and does not answer.
        let fleet = fleet
            .filter(|record| record.state != HostState::Revoked)
            .map(|record| (&record.host, |name: &str| record.labels.get(name).map(String::as_str)));
        let Reach { hosts, .. } = self.0.scope.reach(fleet);
        let spelled = |pattern: &HostPattern| match pattern {
            HostPattern::Id(id) => !id.contains(['*', '?']),
            HostPattern::Label { .. } => false,
        };
        if enrolled.is_some() || patterns.iter().all(spelled) {
            return Ok(hosts);
        }
        let message = format!(
            "the token is for the hosts {}, and which these are is not known: policy does not say who is \
             enrolled",
            listed(patterns)
        );
        Err(Failure::new(Exit::Denied, message).fix("name one of them: --host HOST"))
    }

    /// Why the bus did not let this question through, where the token's scope is the reason and not its
    /// role. `hosts` are those it is for, where they are known.
    pub fn refusal(
        &self,
        spec: &EndpointSpec,
        target: &Target,
        hosts: Option<&BTreeSet<HostId>>,
    ) -> Option<Failure> {
        let (service, verb) = (spec.service, spec.verb);
        if !self.0.role.classes().contains(&spec.class) {
            return None;
        }
        let denied = |message: String| Failure::new(Exit::Denied, message);
        if let Some(services) = self.0.scope.services.as_ref()
            && !services.contains(&service)
        {
            let message = format!(
                "the token does not reach {service}.{verb}: it is for the services {}",
                listed(services)
            );
            return Some(denied(message).fix("ask an administrator for a token that does"));
        }
        let patterns = self.0.scope.hosts.as_ref()?;
        let (Target::Host(_) | Target::AllHosts) = target else { return None };
        let asked = match target {
            Target::Host(host) => format!("host {host}"),
            Target::AllHosts | Target::Central => "all hosts".to_owned(),
        };
        let message =
            format!("the token does not reach {asked}: it is for the hosts {}", listed(patterns));
        let fix = match hosts.map(|hosts| (hosts.first(), hosts)) {
            Some((Some(first), all)) if all.len() > 1 => {
                format!("--host {first}, or another of {}", listed(all))
            }
            Some((Some(first), _)) => format!("--host {first}"),
            _ => "name a host that it is for, or ask an administrator for a token that reaches this one"
                .to_owned(),
        };
        Some(denied(message).fix(fix))
    }
}

/// The first of them, and how many more.
fn listed<T: std::fmt::Display>(all: &BTreeSet<T>) -> String {
    let names: Vec<String> = all.iter().take(NAMED).map(T::to_string).collect();
    match all.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::{
        endpoint::{Endpoint as _, Service, loader, registry},
        permission::Role,
        scope::Scope,
    };
    use serde_json::json;

    fn grant(role: Role, hosts: &[&str], services: Option<&[Service]>) -> Grant {
        let hosts = hosts.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let services = services.map(|services| services.iter().copied().collect());
        Grant(Authority::new(role, Some(&Scope { services, hosts: Some(hosts) })))
    }

    fn record(host: &str, rack: &str, revoked: bool) -> HostRecord {
        let at = "2030-01-01T00:00:00Z";
        let state = if revoked { "revoked" } else { "active" };
        serde_json::from_value(json!({
            "host": host, "state": state, "labels": { "rack": rack }, "generation": 1,
            "certificates": {}, "enrolled": at, "enrolled_by": "u-a", "connect_before": at,
        }))
        .unwrap()
    }

    #[test]
    fn patterns_and_labels_are_looked_up_among_enrolled_hosts() {
        let fleet = [
            record("web1", "7", false),
            record("web2", "8", true),
            record("db1", "7", false),
            record("db2", "8", false),
        ];
        let names = |patterns: &[&str], fleet: Option<&[HostRecord]>| {
            let hosts = grant(Role::Viewer, patterns, None).hosts(fleet)?;
            Ok::<_, Failure>(
                hosts.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            )
        };
        assert_eq!(names(&["web*", "label:rack=7"], Some(&fleet)).unwrap(), "db1 web1");
        assert_eq!(names(&["new9"], Some(&fleet)).unwrap(), "new9");
        assert_eq!(names(&["web1", "db1"], None).unwrap(), "db1 web1");
        for unknown in [&["web*"][..], &["web1", "label:rack=7"]] {
            let failure = names(unknown, None).unwrap_err();
            assert_eq!(failure.exit, Exit::Denied);
            assert!(failure.problems[0].message.contains("label:rack=7") || unknown.len() == 1);
            assert!(failure.problems[0].remedy.as_ref().unwrap().contains("--host HOST"));
        }
        let everywhere = Grant(Authority::new(Role::Viewer, None));
        assert_eq!(everywhere.hosts(None).unwrap(), None);
    }

    #[test]
    fn a_refusal_names_hosts_services_or_leaves_it_to_the_role() {
        let hosts: BTreeSet<HostId> = ["web1", "web2"].map(|host| host.parse().unwrap()).into();
        let away = Target::Host("db1".parse().unwrap());
        let narrowed = grant(Role::Viewer, &["web*"], Some(&[Service::Loader]));
        let failure = narrowed.refusal(loader::Get::SPEC, &away, Some(&hosts)).unwrap();
        assert_eq!(
            failure.render("error"),
            "error: the token does not reach host db1: it is for the hosts web*\n  \
             fix: --host web1, or another of web1, web2\n"
        );
        let failure = narrowed.refusal(registry::List::SPEC, &Target::Central, None).unwrap();
        assert!(failure.render("error").contains("for the services loader"), "{failure:?}");
        // What the role does not hold is not a matter of hosts.
        assert_eq!(narrowed.refusal(loader::Apply::SPEC, &away, Some(&hosts)), None);
        let all = grant(Role::Viewer, &["web*"], None);
        assert_eq!(all.refusal(registry::List::SPEC, &Target::Central, None), None);
    }
}
