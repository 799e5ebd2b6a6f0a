//! What each principal may publish and subscribe to, from the endpoint table.
//!
//! A person's permissions are a handful of wildcards, one for each class their role holds, each
//! ending in the person's own name. A daemon's are templated on (service, host): the loader of one
//! host can neither act, nor listen, nor answer as that of another. Nobody but a responder may
//! publish into an inbox, and only into its own part of it. A daemon subscribes only to the parts of the
//! responders that the table lets it call: no other principal can fill its inbox. A person calls every
//! host and may subscribe to the whole of their own inbox; the client library subscribes to one part for
//! each responder it is waiting for.

use crate::{
    endpoint::{self, Class, Service},
    name::{HostId, NameError, Principal},
    scope::Reach,
    subject::{self, ROOT, Target},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, str::FromStr};

/// What one connection may do. Everything not listed is refused by the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// Subjects it may publish to, wildcards included.
    pub publish: Vec<String>,
    /// Subjects it may subscribe to, wildcards included.
    pub subscribe: Vec<String>,
}

impl Permissions {
    fn of<P, S>(publish: P, subscribe: S) -> Self
    where
        P: IntoIterator<Item = String>,
        S: IntoIterator<Item = String>,
    {
        Self {
            publish: publish.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
            subscribe: subscribe.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
        }
    }

    /// Whether publishing to this subject (without wildcards) is allowed.
    pub fn may_publish(&self, subject: &str) -> bool {
        self.publish.iter().any(|pattern| subject::matches(pattern, subject))
    }

    /// Whether subscribing to this subject or pattern is allowed.
    pub fn may_subscribe(&self, subject: &str) -> bool {
        self.subscribe.iter().any(|pattern| subject::matches(pattern, subject))
    }
}

/// What a person may do: a set of classes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads and changes hosts.
    Operator,
    /// Reads and publishes packages.
    Publisher,
    /// Everything a person may.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Publisher, Self::Admin];

    /// As written in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Publisher => "publisher",
            Self::Admin => "admin",
        }
    }

    /// The classes it holds. [`Class::Internal`] is in none.
    pub fn classes(self) -> &'static [Class] {
        match self {
            Self::Viewer => &[Class::Read],
            Self::Operator => &[Class::Read, Class::Write],
            Self::Publisher => &[Class::Read, Class::Publish],
            Self::Admin => &[Class::Read, Class::Write, Class::Publish, Class::Admin],
        }
    }

    /// Whether a token of it must be bound to a certificate.
    pub fn must_be_bound(self) -> bool {
        match self {
            Self::Publisher | Self::Admin => true,
            Self::Viewer | Self::Operator => false,
        }
    }

    /// Whether it may follow the events that tell whence people connect.
    pub fn may_follow_security(self) -> bool {
        match self {
            Self::Admin => true,
            Self::Viewer | Self::Operator | Self::Publisher => false,
        }
    }

    /// Whether it may ask the services for their inventory and statistics (`$SRV`).
    pub fn may_discover(self) -> bool {
        match self {
            Self::Operator | Self::Admin => true,
            Self::Viewer | Self::Publisher => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            format!("\"{text}\" is not a role: one of viewer, operator, publisher, admin")
        })
    }
}

/// The principal of a daemon: `h-<host>-<service>` beside a host, `s-<service>` otherwise.
///
/// # Errors
/// When the two together are longer than a principal may be (63 characters).
pub fn daemon_principal(service: Service, host: Option<&HostId>) -> Result<Principal, NameError> {
    match host {
        Some(host) => format!("h-{host}-{service}").parse(),
        None => format!("s-{service}").parse(),
    }
}

/// Which daemon a principal is: the other direction of [`daemon_principal`]. `None` for people and
/// for what is no daemon of ours.
pub fn daemon_of(principal: &Principal) -> Option<(Service, Option<HostId>)> {
    if principal.is_person() {
        return None;
    }
    Service::ALL.into_iter().find_map(|service| {
        let host = if service.is_host_local() {
            let text = principal.as_str().strip_prefix("h-")?;
            let host = text.strip_suffix(service.as_str())?.strip_suffix('-')?;
            Some(host.parse().ok()?)
        } else {
            None
        };
        (daemon_principal(service, host.as_ref()).as_ref() == Ok(principal))
            .then_some((service, host))
    })
}

/// Of a person.
pub fn person(me: &Principal, role: Role, reach: &Reach) -> Permissions {
    let requests = role.classes().iter().flat_map(|class| {
        reach
            .places(*class)
            .into_iter()
            .map(move |(service, place)| format!("{ROOT}.rpc.{service}.{class}.*.{place}.{me}"))
    });
    // Discovery tells of every service and host.
    let discovery = (role.may_discover() && reach.is_everywhere()).then(|| "$SRV.>".to_owned());
    // They are of everybody who connects anywhere.
    let security =
        (role.may_follow_security() && reach.is_everywhere()).then(|| format!("{ROOT}.security.>"));
    let events: Vec<String> = if reach.is_everywhere() {
        vec![format!("{ROOT}.event.>")]
    } else {
        reach
            .places(Class::Read)
            .into_iter()
            .map(|(service, place)| format!("{ROOT}.event.{service}.*.*.{place}"))
            .collect()
    };
    Permissions::of(
        requests.chain(discovery).chain([echo(me.as_str())]),
        [format!("_INBOX.{me}.>")].into_iter().chain(events).chain(security),
    )
}

/// Of a service's daemon, on a host where it is host-local.
///
/// # Errors
/// As [`daemon_principal`].
pub fn daemon(service: Service, host: Option<&HostId>) -> Result<Permissions, NameError> {
    let me = daemon_principal(service, host)?;
    let place = host.map_or("_", HostId::as_str);
    let (mut calls, mut inboxes) = (Vec::new(), vec![echo(me.as_str())]);
    for spec in endpoint::all().filter(|spec| spec.callers.contains(&service)) {
        let (target, responder) = match (spec.service.is_host_local(), host) {
            (false, _) => called(&Target::Central, spec.service),
            // A host's daemons call only those of their own host.
            (true, Some(host)) => called(&Target::Host(host.clone()), spec.service),
            // A wildcard cannot tell hosts from people: such a caller hears everybody.
            (true, None) => ("*".to_owned(), "*".to_owned()),
        };
        calls.push(format!(
            "{ROOT}.rpc.{}.{}.{}.{target}.{me}",
            spec.service, spec.class, spec.verb
        ));
        inboxes.push(subject::inbox(me.as_str(), &responder));
    }
    let security = subject::SECURITY_EVENTS
        .into_iter()
        .filter(|(publisher, ..)| *publisher == service)
        .map(|(service, noun, happened)| subject::security_event(service, noun, happened, host));
    let publish = calls.into_iter().chain(security).chain([
        format!("_INBOX.*.{me}.>"),
        format!("{ROOT}.event.{service}.*.*.{place}"),
        format!("{ROOT}.audit.{service}.{place}"),
    ]);
    let mut subscribe = inboxes;
    subscribe.extend([
        format!("{ROOT}.rpc.{service}.*.*.{place}.*"),
        "$SRV.*".to_owned(),
        format!("$SRV.*.{service}"),
        format!("$SRV.*.{service}.*"),
    ]);
    if host.is_some() {
        subscribe.push(format!("{ROOT}.rpc.{service}.*.*.{}.*", Target::AllHosts));
    }
    Ok(Permissions::of(publish, subscribe))
}

/// Target and responder of a call, as tokens of subjects.
fn called(target: &Target, service: Service) -> (String, String) {
    (target.to_string(), target.responder(service))
}

/// Of the policy service's second connection, in the account DATA where JetStream is and requests
/// are not.
pub fn data() -> Permissions {
    let me = Seat::Data.name();
    Permissions::of(
        // Snapshots: backup and restore.
        ["$JS.API.>", "$JS.ACK.>", "$JS.SNAPSHOT.>", "$KV.>", "$O.>"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("{ROOT}.stored.>"), echo(me)]),
        [
            format!("_INBOX.{me}.>"),
            format!("{ROOT}.event.>"),
            format!("{ROOT}.security.>"),
            format!("{ROOT}.audit.>"),
            "$KV.>".to_owned(),
            "$O.>".to_owned(),
        ],
    )
}

/// Of the policy service's third connection, in the account SYS: sees connections come and go,
/// lists them, ends them; nothing else.
pub fn system() -> Permissions {
    let me = Seat::System.name();
    Permissions::of(
        ["$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK"]
            .map(str::to_owned)
            .into_iter()
            .chain([echo(me)]),
        [
            "$SYS.ACCOUNT.APP.CONNECT",
            "$SYS.ACCOUNT.APP.DISCONNECT",
            "$SYS.SERVER.*.CLIENT.AUTH.ERR",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("_INBOX.{me}.>")]),
    )
}

/// Where the instances of the policy service tell each other, in AUTH, that they are well.
pub const CALLOUT_ALIVE: &str = "canopy.v1.callout.alive";

/// Of the policy service's fourth connection, in the account AUTH: answers the server when somebody
/// connects, and tells its other instances that it is well; nothing else.
pub fn callout() -> Permissions {
    let me = Seat::Callout.name();
    let alive = || CALLOUT_ALIVE.to_owned();
    Permissions::of(
        // Where the server waits for the answer.
        ["$SYS._INBOX.>".to_owned(), echo(me), alive()],
        ["$SYS.REQ.USER.AUTH".to_owned(), format!("_INBOX.{me}.>"), alive()],
    )
}

/// Its own part of its own inbox: how a client finds out that the connection really works.
fn echo(me: &str) -> String {
    subject::inbox(me, me)
}

/// The connections of the policy service that are not in APP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// In DATA, where JetStream is.
    Data,
    /// In SYS, the server's own account.
    System,
    /// In AUTH, where the server asks who may connect.
    Callout,
}

impl Seat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Data, Self::System, Self::Callout];

    /// Its principal, as text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "s-policy-data",
            Self::System => "s-policy-system",
            Self::Callout => "s-policy-auth",
        }
    }

    /// Its account.
    pub fn account(self) -> &'static str {
        match self {
            Self::Data => "DATA",
            Self::System => "SYS",
            Self::Callout => "AUTH",
        }
    }

    /// What it may do.
    pub fn permissions(self) -> Permissions {
        match self {
            Self::Data => data(),
            Self::System => system(),
            Self::Callout => callout(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{endpoint::Endpoint, scope::Scope};

    fn host(name: &str) -> HostId {
        name.parse().unwrap()
    }

    fn principal(name: &str) -> Principal {
        name.parse().unwrap()
    }

    fn targets(service: Service) -> Vec<Target> {
        if service.is_host_local() {
            vec![Target::Host(host("web1")), Target::AllHosts]
        } else {
            vec![Target::Central]
        }
    }

    /// Every endpoint by every role: allowed exactly when the role holds the class.
    #[test]
    fn people_reach_exactly_the_classes_of_their_role() {
        for role in Role::ALL {
            let me = principal(&format!("u-{role}"));
            let permissions = person(&me, role, &Reach::EVERYWHERE);
            for spec in endpoint::all() {
                for target in targets(spec.service) {
                    let subject = subject::request(spec, &target, &me);
                    assert_eq!(
                        permissions.may_publish(&subject),
                        role.classes().contains(&spec.class),
                        "{role}: {subject}"
                    );
                    let other = subject::request(spec, &target, &principal("u-other"));
                    assert!(!permissions.may_publish(&other), "{role} as another: {other}");
                    let listen = subject::subscription(spec, &target);
                    assert!(!permissions.may_subscribe(&listen), "{role} listens: {listen}");
                }
            }
        }
    }

    /// Who is narrowed reaches what is both in the role and in the scope, and no `all`.
    #[test]
    fn a_scope_narrows_to_services_and_hosts() {
        let me = principal("u-x");
        let fleet = [host("web1"), host("web2"), host("db1")];
        let labels = |name: &str| (name == "rack").then_some("7");
        let hosts = |patterns: &[&str]| {
            let scope = Scope {
                services: Some(BTreeSet::from([Service::Loader, Service::Registry])),
                hosts: Some(patterns.iter().map(|p| p.parse().unwrap()).collect()),
            };
            scope.reach(fleet.iter().map(|host| (host, labels))).hosts.unwrap()
        };
        assert_eq!(hosts(&["web*"]), BTreeSet::from([host("web1"), host("web2")]));
        assert_eq!(hosts(&["label:rack=7"]).len(), 3);
        assert_eq!(hosts(&["label:rack=8"]).len(), 0);
        // A host that is spelled is meant before anybody has heard of it.
        assert_eq!(hosts(&["new9"]), BTreeSet::from([host("new9")]));
        let reach = Reach {
            services: Some(BTreeSet::from([Service::Loader, Service::Registry])),
            hosts: Some(hosts(&["web*"])),
        };
        let narrow = person(&me, Role::Operator, &reach);
        for spec in endpoint::all() {
            for target in [
                Target::Host(host("web1")),
                Target::Host(host("db1")),
                Target::AllHosts,
                Target::Central,
            ] {
                let in_scope = match spec.service {
                    Service::Loader => target == Target::Host(host("web1")),
                    Service::Registry => target == Target::Central,
                    _ => false,
                };
                if spec.service.is_host_local() == (target == Target::Central) {
                    continue;
                }
                assert_eq!(
                    narrow.may_publish(&subject::request(spec, &target, &me)),
                    in_scope && Role::Operator.classes().contains(&spec.class),
                    "{}.{} at {target}",
                    spec.service,
                    spec.verb
                );
            }
        }
        assert!(narrow.may_subscribe("canopy.v1.event.loader.chain.changed.web1"));
        for event in ["canopy.v1.event.>", "canopy.v1.event.loader.chain.changed.db1"] {
            assert!(!narrow.may_subscribe(event), "{event}");
        }
        assert!(!narrow.may_publish("$SRV.PING"));
    }

    #[test]
    fn a_daemon_is_known_by_its_principal() {
        for service in Service::ALL {
            let place = service.is_host_local().then(|| host("web-1"));
            let me = daemon_principal(service, place.as_ref()).unwrap();
            assert_eq!(daemon_of(&me), Some((service, place)));
        }
        for other in
            ["u-alice", "u-registry", "s-loader", "h-web1-registry", "s-policy-data", "h-loader"]
        {
            assert_eq!(daemon_of(&principal(other)), None, "{other}");
        }
    }

    #[test]
    fn nobody_but_daemons_holds_internal() {
        for role in Role::ALL {
            assert!(!role.classes().contains(&Class::Internal), "{role}");
        }
    }

    #[test]
    fn people_cannot_answer_nor_listen_to_others() {
        for role in Role::ALL {
            let me = principal(&format!("u-{role}"));
            let permissions = person(&me, role, &Reach::EVERYWHERE);
            for subject in
                ["_INBOX.u-other.s-registry.x", "_INBOX.u-other.x", "_INBOX.u-other.u-viewer.x"]
            {
                assert!(!permissions.may_publish(subject), "{role}: {subject}");
            }
            for subject in [
                "_INBOX.>",
                "_INBOX.u-other.>",
                "canopy.v1.rpc.>",
                "canopy.v1.audit.>",
                "canopy.v1.>",
                "canopy.v1.*.policy.connect.refused._",
                ">",
                "$SRV.>",
            ] {
                assert!(!permissions.may_subscribe(subject), "{role}: {subject}");
            }
            for subject in ["$JS.API.STREAM.MSG.GET.events", "$SYS.REQ.SERVER.PING.CONNZ"] {
                assert!(!permissions.may_publish(subject), "{role}: {subject}");
            }
            assert_eq!(permissions.may_publish("$SRV.PING"), role.may_discover(), "{role}");
        }
    }

    #[test]
    fn only_admins_hear_whence_people_connect() {
        let web1 = Reach { hosts: Some(BTreeSet::from([host("web1")])), ..Reach::EVERYWHERE };
        let refused = subject::security_event(Service::Policy, "connect", "refused", None);
        for role in Role::ALL {
            let me = principal("u-x");
            let everywhere = person(&me, role, &Reach::EVERYWHERE);
            assert_eq!(everywhere.may_subscribe(&refused), role == Role::Admin, "{role}");
            assert!(!person(&me, role, &web1).may_subscribe(&refused), "{role} of one host");
            assert!(!everywhere.may_publish(&refused), "{role}");
        }
        for service in Service::ALL {
            let place = service.is_host_local().then(|| host("web1"));
            let daemon = daemon(service, place.as_ref()).unwrap();
            assert_eq!(daemon.may_publish(&refused), service == Service::Policy, "{service}");
            assert!(!daemon.may_subscribe(&refused), "{service}");
        }
    }

    #[test]
    fn a_hosts_loader_is_nobody_elses() {
        let mine = daemon(Service::Loader, Some(&host("web1"))).unwrap();
        let apply = endpoint::loader::Apply::SPEC;
        assert!(mine.may_subscribe(&subject::subscription(apply, &Target::Host(host("web1")))));
        assert!(mine.may_subscribe(&subject::subscription(apply, &Target::AllHosts)));
        assert!(mine.may_publish("_INBOX.u-alice.h-web1-loader.abc"));
        assert!(mine.may_publish("canopy.v1.event.loader.host.alive.web1"));
        let resolve = endpoint::registry::Resolve::SPEC;
        assert!(mine.may_publish(&subject::request(
            resolve,
            &Target::Central,
            &principal("h-web1-loader")
        )));

        for subject in [
            subject::subscription(apply, &Target::Host(host("web2"))),
            "canopy.v1.rpc.loader.>".to_owned(),
            "canopy.v1.rpc.*.*.*.web1.*".to_owned(),
            "_INBOX.h-web2-loader.>".to_owned(),
            "_INBOX.h-web1-loader.>".to_owned(),
            "_INBOX.h-web1-loader.h-web2-loader.>".to_owned(),
            "_INBOX.>".to_owned(),
        ] {
            assert!(!mine.may_subscribe(&subject), "listens: {subject}");
        }
        for subject in [
            "_INBOX.u-alice.h-web2-loader.abc",
            "_INBOX.u-alice.s-registry.abc",
            "canopy.v1.event.loader.host.alive.web2",
            "canopy.v1.event.registry.package.published._",
            "canopy.v1.audit.loader.web2",
            "canopy.v1.rpc.registry.read.resolve._.h-web2-loader",
            "canopy.v1.rpc.registry.read.list._.h-web1-loader",
            "canopy.v1.rpc.loader.write.apply.web2.h-web1-loader",
            "canopy.v1.rpc.loader.write.apply.web1.h-web1-loader",
        ] {
            assert!(!mine.may_publish(subject), "acts: {subject}");
        }
    }

    #[test]
    fn daemons_call_only_what_the_table_says() {
        for service in Service::ALL {
            let place = service.is_host_local().then(|| host("web1"));
            let me = daemon_principal(service, place.as_ref()).unwrap();
            let permissions = daemon(service, place.as_ref()).unwrap();
            for spec in endpoint::all() {
                for target in targets(spec.service) {
                    if target == Target::AllHosts {
                        continue;
                    }
                    let subject = subject::request(spec, &target, &me);
                    assert_eq!(
                        permissions.may_publish(&subject),
                        spec.callers.contains(&service),
                        "{service}: {subject}"
                    );
                }
            }
        }
    }

    /// For every pair of daemons: what one may publish reaches the other's inbox only where the table
    /// says that the other calls it, or where a host's daemon is itself.
    #[test]
    fn daemon_inboxes_hear_only_responders_they_call() {
        let hosts = [host("web1"), host("web2")];
        let daemons: Vec<(Service, Option<HostId>)> = Service::ALL
            .into_iter()
            .flat_map(|service| {
                if service.is_host_local() {
                    hosts.iter().map(|host| (service, Some(host.clone()))).collect()
                } else {
                    vec![(service, None)]
                }
            })
            .collect();
        for (service, place) in &daemons {
            let me = daemon_principal(*service, place.as_ref()).unwrap();
            let mine = daemon(*service, place.as_ref()).unwrap();
            for (other_service, other_place) in &daemons {
                let other = daemon_principal(*other_service, other_place.as_ref()).unwrap();
                let theirs = daemon(*other_service, other_place.as_ref()).unwrap();
                let answer = format!("_INBOX.{me}.{other}.x");
                assert!(theirs.may_publish(&answer), "{answer}");
                let calls = endpoint::all().any(|spec| {
                    let there = other_place.is_none() || other_place == place;
                    spec.service == *other_service && spec.callers.contains(service) && there
                });
                assert_eq!(mine.may_subscribe(&answer), calls || me == other, "{answer}");
            }
            for everything in [format!("_INBOX.{me}.>"), format!("_INBOX.{me}.*.*")] {
                assert!(!mine.may_subscribe(&everything), "{everything}");
            }
        }
    }

    #[test]
    fn only_the_data_account_has_jetstream() {
        let app = Role::ALL
            .map(|role| person(&principal("u-x"), role, &Reach::EVERYWHERE))
            .into_iter()
            .chain(Service::ALL.map(|service| {
                let place = service.is_host_local().then(|| host("web1"));
                daemon(service, place.as_ref()).unwrap()
            }));
        for permissions in app {
            for subject in permissions.publish.iter().chain(&permissions.subscribe) {
                assert!(!subject.starts_with("$JS") && !subject.starts_with('>'), "{subject}");
            }
        }
        let data = data();
        assert!(data.publish.iter().chain(&data.subscribe).all(|s| !s.contains(".rpc.")));
    }
}
