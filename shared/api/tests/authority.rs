//! A grant never exceeds its giver's authority: compared with what the bus server is told to let each of
//! the two publish and hear, for random roles, scopes and fleets, over every verb at every target.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use canopy_api::{
    HostId, Principal,
    authority::Authority,
    endpoint::{self, Service},
    permission::{self, Permissions, Role},
    scope::{HostPattern, Scope},
    subject::{self, Target},
};
use proptest::{collection::btree_set, option, prelude::*, sample::select};
use std::collections::{BTreeMap, BTreeSet};

/// Hosts and the one label that each has: every spelled host of [`pattern`] is one of them.
type Fleet = BTreeMap<HostId, Option<String>>;

const IDS: [&str; 7] = ["a", "b", "ab", "ba", "aa", "abc", "c"];

fn pattern() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        4 => "[abc?*]{1,3}".prop_filter_map("means a host", |text| {
            let spelled = !text.contains(['*', '?']);
            if spelled && !IDS.contains(&text.as_str()) { return None; }
            text.parse().ok()
        }),
        1 => select(vec!["label:rack=7", "label:rack=8"]).prop_map(|text| text.parse().unwrap()),
    ]
}

fn scope() -> impl Strategy<Value = Scope> {
    let services = option::of(btree_set(select(Service::ALL.to_vec()), 1..=5));
    let hosts = option::of(btree_set(pattern(), 1..=3));
    (services, hosts).prop_map(|(services, hosts)| Scope { services, hosts })
}

/// The last moment that matters: authorities end before it, or never.
const END: u64 = 4;

fn authority() -> impl Strategy<Value = Authority> {
    (select(Role::ALL.to_vec()), option::of(scope()), option::of(0..END))
        .prop_map(|(role, scope, until)| Authority::new(role, scope.as_ref()).ending(until))
}

/// Every host that can be spelled, with or without a label.
fn fleet() -> impl Strategy<Value = Fleet> {
    let label = select(vec![None, Some("7".to_owned()), Some("8".to_owned())]);
    proptest::collection::vec(label, IDS.len()).prop_map(|labels| {
        IDS.iter().zip(labels).map(|(id, label)| (id.parse().unwrap(), label)).collect()
    })
}

fn me() -> Principal {
    "u-x".parse().unwrap()
}

/// What the server lets whoever has this do in that fleet, at a moment.
fn permissions_at(authority: &Authority, fleet: &Fleet, now: u64) -> Permissions {
    if authority.is_in_force(now) { permissions(authority, fleet) } else { Permissions::default() }
}

/// What the server lets whoever has this do in that fleet.
fn permissions(authority: &Authority, fleet: &Fleet) -> Permissions {
    let reach = authority.scope.reach(fleet.iter().map(|(host, label)| {
        (host, move |name: &str| label.as_deref().filter(|_| name == "rack"))
    }));
    permission::person(&me(), authority.role, &reach)
}

/// Everything that can be asked of the fleet, and heard from it.
fn subjects(fleet: &Fleet) -> (Vec<String>, Vec<String>) {
    let hosts: BTreeSet<&HostId> = fleet.keys().collect();
    let mut asked = vec!["$SRV.PING".to_owned(), "$SRV.STATS.loader".to_owned()];
    let mut heard = vec!["canopy.v1.event.>".to_owned()];
    for spec in endpoint::all() {
        let targets: Vec<Target> = if spec.service.is_host_local() {
            let each = hosts.iter().map(|host| Target::Host((*host).clone()));
            each.chain([Target::AllHosts]).collect()
        } else {
            vec![Target::Central]
        };
        for target in targets {
            asked.push(subject::request(spec, &target, &me()));
            heard.push(format!("canopy.v1.event.{}.host.alive.{target}", spec.service));
        }
    }
    (asked, heard)
}

/// What the one may do and the other may not.
fn exceeding(giver: &Permissions, grant: &Permissions, fleet: &Fleet) -> Option<String> {
    let (asked, heard) = subjects(fleet);
    asked
        .into_iter()
        .find(|subject| grant.may_publish(subject) && !giver.may_publish(subject))
        .or_else(|| {
            heard
                .into_iter()
                .find(|subject| grant.may_subscribe(subject) && !giver.may_subscribe(subject))
        })
}

/// Cases of each property; more in the long run.
fn cases() -> ProptestConfig {
    let full = std::env::var_os("CANOPY_TEST_FULL").is_some_and(|value| value == "1");
    ProptestConfig::with_cases(if full { 50_000 } else { 2_000 })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_grant_within_an_authority_allows_nothing_beyond(
        giver in authority(), grant in authority(), fleet in fleet(),
    ) {
        if giver.excess_of(&grant).is_none() {
            for now in 0..=END {
                let giver_may = permissions_at(&giver, &fleet, now);
                let grant_may = permissions_at(&grant, &fleet, now);
                let beyond = exceeding(&giver_may, &grant_may, &fleet);
                prop_assert_eq!(beyond, None, "{} within {} at {}", grant, giver, now);
            }
        }
    }

    /// What reaches no further is within exactly when it ends no later.
    #[test]
    fn an_excess_by_time_is_a_real_one(giver in authority(), grant in authority()) {
        use canopy_api::authority::Excess;
        let later = (0..=END).any(|now| grant.is_in_force(now) && !giver.is_in_force(now));
        match (giver.excess_in_reach(&grant), giver.excess_of(&grant)) {
            (None, excess) => {
                prop_assert_eq!(matches!(excess, Some(Excess::Time { .. })), later);
                prop_assert_eq!(excess.is_some(), later);
            }
            (reach, excess) => prop_assert_eq!(reach, excess),
        }
    }

    /// What is narrowed further is always within: a refusal is never for nothing.
    #[test]
    fn an_authority_narrowed_further_is_within(giver in authority(), further in scope()) {
        prop_assert_eq!(giver.excess_of(&giver), None);
        let narrow = |own: &Scope| Scope {
            services: match (&own.services, &further.services) {
                (Some(own), Some(further)) => Some(own & further),
                (own, further) => own.clone().or_else(|| further.clone()),
            },
            hosts: own.hosts.clone().or_else(|| further.hosts.clone()),
        };
        let grant = Authority { scope: narrow(&giver.scope), ..giver.clone() };
        prop_assert_eq!(giver.excess_of(&grant), None);
        let viewer = Authority { role: Role::Viewer, ..grant };
        prop_assert_eq!(giver.excess_of(&viewer), None);
    }

    /// An excess by role or service is a real one: some subject shows it.
    #[test]
    fn an_excess_by_role_or_service_is_a_real_one(
        giver in authority(), grant in authority(), fleet in fleet(),
    ) {
        use canopy_api::authority::Excess;
        let whole = |authority: &Authority| {
            let scope = Scope { hosts: None, ..authority.scope.clone() };
            Authority { scope, ..authority.clone() }
        };
        let (giver, grant) = (whole(&giver), whole(&grant));
        if let Some(Excess::Services(_)) = giver.excess_of(&grant) {
            let (giver, grant) = (permissions(&giver, &fleet), permissions(&grant, &fleet));
            prop_assert!(exceeding(&giver, &grant, &fleet).is_some());
        }
    }

    #[test]
    fn a_host_is_covered_as_the_server_is_told(
        giver in authority(), fleet in fleet(), index in 0..IDS.len(), service in select(vec![
            Service::Loader, Service::Enforcer,
        ]),
    ) {
        let host: HostId = IDS[index].parse().unwrap();
        let labels: BTreeMap<String, String> =
            fleet[&host].iter().map(|rack| ("rack".to_owned(), rack.clone())).collect();
        let health = endpoint::all()
            .find(|spec| spec.service == service && spec.verb == "health")
            .unwrap();
        let subject = subject::request(health, &Target::Host(host.clone()), &me());
        let may = permissions(&giver, &fleet).may_publish(&subject);
        prop_assert_eq!(giver.excess_of_host(&host, &labels, [service]).is_none(), may);
    }
}

#[test]
fn hosts_by_id_and_by_label_are_not_taken_for_each_other() {
    let admin = |hosts: &[&str]| {
        let hosts = Some(hosts.iter().map(|one| one.parse().unwrap()).collect());
        Authority::new(Role::Admin, Some(&Scope { services: None, hosts }))
    };
    let within = |grant: &[&str], giver: &[&str]| admin(giver).excess_of(&admin(grant)).is_none();
    for (grant, giver) in [
        (["web1"].as_slice(), ["web1"].as_slice()),
        (&["web1"], &["web*"]),
        (&["web1", "db1"], &["db?", "web*"]),
        (&["label:rack=7"], &["label:rack=7"]),
        (&["label:rack=7"], &["*"]),
        (&["web?*"], &["web*?"]),
    ] {
        assert!(within(grant, giver), "{grant:?} within {giver:?}");
    }
    for (grant, giver) in [
        (["web*"].as_slice(), ["web1"].as_slice()),
        (&["*"], &["web*"]),
        (&["web1", "db1"], &["web*"]),
        (&["label:rack=8"], &["label:rack=7"]),
        (&["label:rack=7"], &["web*"]),
        (&["web1"], &["label:rack=7"]),
    ] {
        assert!(!within(grant, giver), "{grant:?} not within {giver:?}");
    }
    // Narrowed to all hosts there are is less than not narrowed.
    assert!(admin(&["*"]).excess_of(&Authority::unlimited()).is_some());
}

/// What a verb of a central service is to somebody who is narrowed to hosts.
enum Central {
    /// Allowed to whoever reads: nothing is changed by it.
    Read,
    /// Allowed to administrators; the service compares each request with the token of who asks, as this test
    /// of it shows.
    Compared(&'static str),
    /// Refused: it is done to every host.
    Everywhere,
    /// People have no such verbs.
    Daemons,
}

/// Every verb of central services. A new one is decided on here.
#[rustfmt::skip]
const CENTRAL: [(Service, &str, Central); 35] = [
    (Service::Registry, "health", Central::Read),
    (Service::Registry, "version", Central::Read),
    (Service::Registry, "list", Central::Read),
    (Service::Registry, "describe", Central::Read),
    (Service::Registry, "resolve", Central::Read),
    (Service::Registry, "artifact", Central::Daemons),
    (Service::Registry, "search", Central::Read),
    (Service::Registry, "refresh", Central::Everywhere),
    (Service::Registry, "publish-index", Central::Everywhere),
    (Service::Registry, "publish-upload", Central::Everywhere),
    (Service::Registry, "publish", Central::Everywhere),
    (Service::Registry, "yank", Central::Everywhere),
    (Service::Registry, "reset-index", Central::Everywhere),
    (Service::Policy, "health", Central::Read),
    (Service::Policy, "version", Central::Read),
    (Service::Policy, "token-issue", Central::Compared("a_narrowed_admin_gives_no_token_beyond_its_own")),
    (Service::Policy, "token-regenerate", Central::Compared("a_narrowed_admin_changes_no_token_that_reaches_further")),
    (Service::Policy, "token-revoke", Central::Compared("a_narrowed_admin_changes_no_token_that_reaches_further")),
    (Service::Policy, "token-list", Central::Read),
    (Service::Policy, "host-enrol", Central::Compared("a_narrowed_admin_changes_no_host_beyond_its_own")),
    (Service::Policy, "host-label", Central::Compared("a_narrowed_admin_changes_no_host_beyond_its_own")),
    (Service::Policy, "host-revoke", Central::Compared("a_narrowed_admin_changes_no_host_beyond_its_own")),
    (Service::Policy, "host-forget", Central::Compared("a_narrowed_admin_changes_no_host_beyond_its_own")),
    (Service::Policy, "host-list", Central::Read),
    (Service::Policy, "host-renew", Central::Daemons),
    (Service::Policy, "admit", Central::Daemons),
    (Service::Policy, "explain", Central::Read),
    (Service::Policy, "rules", Central::Read),
    (Service::Policy, "audit-append", Central::Daemons),
    (Service::Policy, "audit", Central::Compared("a_narrowed_admin_reads_the_trail_of_its_own_hosts")),
    (Service::Policy, "audit-checkpoints", Central::Compared("a_narrowed_admin_reads_the_trail_of_its_own_hosts")),
    (Service::CertMonitor, "health", Central::Read),
    (Service::CertMonitor, "version", Central::Read),
    (Service::CertMonitor, "certs", Central::Read),
    (Service::CertMonitor, "report", Central::Daemons),
];

#[test]
fn narrowed_to_hosts_nothing_central_is_changed() {
    let all: BTreeSet<_> = endpoint::all()
        .filter(|spec| !spec.service.is_host_local())
        .map(|spec| (spec.service, spec.verb))
        .collect();
    assert_eq!(all, CENTRAL.iter().map(|(service, verb, _)| (*service, *verb)).collect());
    let compared_by = include_str!("../../../services/policy/tests/grants.rs");
    let fleet: Fleet = [("a".parse().unwrap(), Some("7".to_owned()))].into();
    let to_a = || Some(["a".parse().unwrap()].into());
    for hosts in [
        to_a(),
        Some(["*".parse().unwrap()].into()),
        Some(["label:rack=7".parse().unwrap()].into()),
    ] {
        let services = [None, Some(Service::ALL.into_iter().collect())];
        for (role, services) in
            Role::ALL.into_iter().flat_map(|role| services.clone().map(|services| (role, services)))
        {
            let scope = Scope { services, hosts: hosts.clone() };
            let narrowed = permissions(&Authority::new(role, Some(&scope)), &fleet);
            for (service, verb, central) in &CENTRAL {
                let spec =
                    endpoint::all().find(|s| s.service == *service && s.verb == *verb).unwrap();
                let may = match central {
                    Central::Read => true,
                    Central::Compared(test) => {
                        assert!(compared_by.contains(&format!("async fn {test}()")), "{test}");
                        role == Role::Admin
                    }
                    Central::Everywhere | Central::Daemons => false,
                };
                let subject = subject::request(spec, &Target::Central, &me());
                assert_eq!(narrowed.may_publish(&subject), may, "{role} {scope:?}: {subject}");
            }
        }
    }
    // Who is not narrowed to hosts is an administrator of all of it; narrowed to a service, of that one.
    let registry = Scope { services: Some([Service::Registry].into()), hosts: None };
    let admin = permissions(&Authority::new(Role::Admin, Some(&registry)), &fleet);
    for (service, verb, _) in &CENTRAL {
        let spec = endpoint::all().find(|s| s.service == *service && s.verb == *verb).unwrap();
        let subject = subject::request(spec, &Target::Central, &me());
        let internal = spec.class == endpoint::Class::Internal;
        assert_eq!(admin.may_publish(&subject), *service == Service::Registry && !internal);
    }
}
