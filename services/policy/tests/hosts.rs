//! Hosts on a real bus: enrolled once, let in with their own certificates, taken back; and what is
//! tried by who is not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use canopy_api::{
    ApiError, Code, HostId, Principal,
    endpoint::{Endpoint, Service, policy},
    permission::{Role, daemon_principal},
    subject::Target,
    wire::{
        ConnectRefused, ExplainRequest,
        hosts::{
            HostEnrolReply, HostEnrolRequest, HostForgetRequest, HostLabelRequest, HostListRequest,
            HostRecord, HostRenewRequest, HostRevokeRequest, HostState,
        },
    },
};
use canopy_bus::{Bus, Events, Link, data::Bucket};
use canopy_test_support::nats::private_file;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::json;
use stack::{Credentials, LIMIT, Stack, uri};
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// A stack whose hosts have to be enrolled, its administrator, and what is heard of refusals.
struct Scene {
    stack: Stack,
    admin: Bus,
    refused: Events,
}

/// A host before it is enrolled: a key and a request for each daemon.
struct NewHost {
    id: HostId,
    keys: BTreeMap<Service, String>,
    requests: BTreeMap<Service, String>,
}

impl NewHost {
    fn new(id: &str) -> Self {
        let id: HostId = id.parse().unwrap();
        let mut new = Self { id, keys: BTreeMap::new(), requests: BTreeMap::new() };
        for service in [Service::Loader, Service::Enforcer] {
            let principal = daemon_principal(service, Some(&new.id)).unwrap();
            let (key, request) = canopy_identity::request(&principal).unwrap();
            new.keys.insert(service, key.to_string());
            new.requests.insert(service, request);
        }
        new
    }

    fn request(&self) -> HostEnrolRequest {
        HostEnrolRequest {
            host: self.id.clone(),
            certificates: self.requests.clone(),
            labels: BTreeMap::new(),
            expires_in: None,
            replace: false,
        }
    }
}

impl Scene {
    async fn new() -> Self {
        let stack = Stack::enrolling();
        let admin = stack.connect("u-admin").await;
        let refused =
            admin.subscribe_events("canopy.v1.security.policy.connect.refused._").await.unwrap();
        admin.flush().await;
        Self { stack, admin, refused }
    }

    async fn ask<E: Endpoint>(&self, request: &E::Request) -> Result<E::Reply, ApiError> {
        let answer = self.admin.call::<E>(&Target::Central, request).await;
        answer.map_err(|error| error.to_api_error())
    }

    async fn enrol(&self, request: &HostEnrolRequest) -> Result<HostEnrolReply, ApiError> {
        self.ask::<policy::HostEnrol>(request).await
    }

    async fn record(&self, host: &str) -> HostRecord {
        let request = HostListRequest { host: Some(host.parse().unwrap()), ..Default::default() };
        self.ask::<policy::HostList>(&request).await.unwrap().hosts.remove(0)
    }

    /// Enrols, and gives what the daemons connect with.
    async fn enrolled(&self, new: &NewHost) -> BTreeMap<Service, Credentials> {
        let reply = self.enrol(&new.request()).await.unwrap();
        self.files(new, &reply)
    }

    fn files(&self, new: &NewHost, reply: &HostEnrolReply) -> BTreeMap<Service, Credentials> {
        let generation = reply.record.generation;
        let one = |(service, pem): (&Service, &String)| {
            let file = |ending: &str| {
                self.stack.path(&format!("{}-{service}-{generation}.{ending}", new.id))
            };
            let (cert, key) = (file("crt"), file("key"));
            fs::write(&cert, pem).unwrap();
            private_file(&key, &new.keys[service]).unwrap();
            (*service, Credentials { cert, key, token: None, nkey: None })
        };
        reply.certificates.iter().map(one).collect()
    }

    async fn refused(&mut self, with: &Credentials, code: &str) -> ConnectRefused {
        let said = self.stack.attempt(with).await.map(drop).unwrap_err();
        assert!(said.contains("AuthorizationViolation"), "{said}");
        let event = timeout(LIMIT, self.refused.next()).await.unwrap().unwrap();
        let event: ConnectRefused = event.decode().unwrap();
        assert_eq!(event.code, code, "{event:?}");
        event
    }
}

async fn ends(bus: &Bus) {
    let begun = Instant::now();
    let mut link = bus.watch_link();
    timeout(LIMIT, link.wait_for(|link| *link == Link::Disconnected)).await.unwrap().unwrap();
    eprintln!("cut after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_enrolled_host_connects_with_its_own_certificates() {
    let scene = Scene::new().await;
    let new = NewHost::new("web9");
    let files = scene.enrolled(&new).await;
    let record = scene.record("web9").await;
    assert_eq!((record.state, record.generation), (HostState::Waiting, 1));
    assert_eq!(record.enrolled_by, "u-admin");
    assert_eq!(record.certificates.len(), 2);
    let loader = scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
    let enforcer = scene.stack.connect_with("h-web9-enforcer", &files[&Service::Enforcer]).await;
    let record = scene.record("web9").await;
    assert_eq!(record.state, HostState::Active);
    assert!(record.connected.is_some());
    // The server trusts what was signed as a client's, and grants a host's permissions and no more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for bus in [loader, enforcer] {
        assert_eq!((bus.link(), bus.statistics().connects), (Link::Connected, 1));
    }
}

/// Whoever has a certificate of the authority, with a host's name, is not that host.
#[tokio::test]
async fn a_certificate_of_the_authority_is_no_enrolment() {
    let mut scene = Scene::new().await;
    let unknown = scene.stack.credentials("h-web1-loader");
    let event = scene.refused(&unknown, "host_not_enrolled").await;
    assert!(event.reason.contains("web1 is not enrolled"), "{event:?}");
    // Nor is a second one beside the enrolled.
    let new = NewHost::new("web1");
    let files = scene.enrolled(&new).await;
    let event = scene.refused(&unknown, "host_other_certificate").await;
    assert!(event.reason.contains("loader of web1"), "{event:?}");
    // What did not connect is not what made the enrolment used.
    assert_eq!(scene.record("web1").await.state, HostState::Waiting);
    scene.stack.connect_with("h-web1-loader", &files[&Service::Loader]).await;
}

/// One that the authority signed elsewhere is enrolled as it is.
#[tokio::test]
async fn certificates_signed_elsewhere_are_enrolled() {
    let mut scene = Scene::new().await;
    let files = scene.stack.credentials("h-web1-loader");
    let pem = fs::read_to_string(&files.cert).unwrap();
    let request = |host: &str, service, pem: &str| HostEnrolRequest {
        certificates: [(service, pem.to_owned())].into(),
        ..NewHost::new(host).request()
    };
    for (host, service) in [("web2", Service::Loader), ("web1", Service::Enforcer)] {
        let refused = scene.enrol(&request(host, service, &pem)).await.unwrap_err();
        assert_eq!(refused.code, Code::Invalid);
        assert!(refused.message.contains("h-web1-loader"), "{refused}");
    }
    scene.enrol(&request("web1", Service::Loader, &pem)).await.unwrap();
    scene.stack.connect_with("h-web1-loader", &files).await;
    let enforcer = scene.stack.credentials("h-web1-enforcer");
    scene.refused(&enforcer, "host_other_certificate").await;
}

/// The key that signs for hosts is of an authority below the bus's own: hosts show the chain.
#[tokio::test]
async fn an_authority_below_the_buss_signs_for_hosts() {
    let mut stack = Stack::without_policy();
    let below = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    };
    let (cert, key) =
        stack.server.authority().issue(stack.dir.path(), "below", vec![], below).unwrap();
    stack.hosts = "enrolled";
    stack.change_auth = Some(Box::new(move |auth| {
        auth["ca"] = json!({ "cert": cert, "key": { "file": key }, "days": 1 });
    }));
    stack.start_policy();
    stack.bootstrap("u-admin");
    let admin = stack.connect("u-admin").await;
    let refused =
        admin.subscribe_events("canopy.v1.security.policy.connect.refused._").await.unwrap();
    let scene = Scene { stack, admin, refused };
    let files = scene.enrolled(&NewHost::new("web9")).await;
    scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
}

/// Requests that ask for another's name, or for more than a name, are refused before anything is kept.
#[tokio::test]
async fn a_request_for_another_or_for_more_is_not_signed() {
    let scene = Scene::new().await;
    let asking = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("h-web9-loader")];
        change(&mut params);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    };
    let dns = || SanType::DnsName("localhost".try_into().unwrap());
    let disguised = |kind: fn(rcgen::string::Ia5String) -> SanType| {
        kind("spiffe://canopy/s-policy-data".try_into().unwrap())
    };
    let cases = [
        (asking(&|p| p.subject_alt_names = vec![uri("h-web1-loader")]), "h-web1-loader"),
        (asking(&|p| p.subject_alt_names = vec![uri("s-policy")]), "s-policy"),
        (asking(&|p| p.subject_alt_names = vec![uri("u-admin")]), "u-admin"),
        (asking(&|p| p.subject_alt_names.push(uri("h-web1-loader"))), "no other"),
        // Which would make it a bus server's.
        (asking(&|p| p.subject_alt_names.push(dns())), "DNS:localhost"),
        // Which nats-server's mapping of certificates would take for the policy service's.
        (
            asking(&|p| p.subject_alt_names.push(disguised(SanType::DnsName))),
            "DNS:spiffe://canopy/s-",
        ),
        (
            asking(&|p| p.subject_alt_names.push(disguised(SanType::Rfc822Name))),
            "email:spiffe://canopy/s-policy-data",
        ),
        (asking(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "authority"),
        ("rubbish".to_owned(), "not a certificate signing request"),
    ];
    for (asked, said) in cases {
        let mut request = NewHost::new("web9").request();
        request.certificates.insert(Service::Loader, asked);
        let refused = scene.enrol(&request).await.unwrap_err();
        assert_eq!(refused.code, Code::Invalid, "{refused}");
        assert_eq!(refused.path, "certificates.loader");
        assert!(refused.message.contains(said), "{refused}");
    }
    let mut central = NewHost::new("web9").request();
    central.certificates.insert(Service::Registry, asking(&|_| {}));
    assert_eq!(scene.enrol(&central).await.unwrap_err().code, Code::Invalid);
    let unlabelled = HostEnrolRequest {
        labels: [("env".to_owned(), "a b".to_owned())].into(),
        ..NewHost::new("web9").request()
    };
    assert_eq!(scene.enrol(&unlabelled).await.unwrap_err().path, "labels.env");
    // Signed elsewhere, with a name in it that is no host's.
    for kind in [SanType::DnsName as fn(_) -> _, SanType::Rfc822Name] {
        let sans = vec![uri("h-web9-loader"), disguised(kind)];
        let certificate = scene.stack.certificate("disguised", sans);
        let mut request = NewHost::new("web9").request();
        let pem = fs::read_to_string(certificate.cert).unwrap();
        request.certificates.insert(Service::Loader, pem);
        let refused = scene.enrol(&request).await.unwrap_err();
        assert_eq!((refused.code, refused.path.as_str()), (Code::Invalid, "certificates.loader"));
        assert!(refused.message.contains("s-policy-data"), "{refused}");
    }
    let hosts = scene.ask::<policy::HostList>(&HostListRequest::default()).await.unwrap().hosts;
    assert_eq!(hosts, []);
}

/// The same request again, somebody else's for the same host, and an earlier answer, are worth nothing.
#[tokio::test]
async fn an_enrolment_is_made_once() {
    let mut scene = Scene::new().await;
    let new = NewHost::new("web9");
    let first = scene.enrolled(&new).await;
    let live = scene.stack.connect_with("h-web9-loader", &first[&Service::Loader]).await;
    for request in [new.request(), NewHost::new("web9").request()] {
        let refused = scene.enrol(&request).await.unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        assert!(refused.message.contains("web9 is enrolled already"), "{refused}");
    }
    // On purpose: what was before ends.
    let other = NewHost::new("web9");
    let replaced =
        scene.enrol(&HostEnrolRequest { replace: true, ..other.request() }).await.unwrap();
    assert_eq!(replaced.record.generation, 2);
    ends(&live).await;
    scene.refused(&first[&Service::Loader], "host_other_certificate").await;
    let second = scene.files(&other, &replaced);
    let bus = scene.stack.connect_with("h-web9-loader", &second[&Service::Loader]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((bus.link(), bus.statistics().connects), (Link::Connected, 1));
}

/// Several administrators at once, through two instances: one host comes of it.
#[tokio::test]
async fn of_enrolments_at_once_one_counts() {
    let mut scene = Scene::new().await;
    scene.stack.start_policy();
    let hosts: Vec<NewHost> = (0..6).map(|_| NewHost::new("web9")).collect();
    let requests: Vec<HostEnrolRequest> = hosts.iter().map(NewHost::request).collect();
    let answers = futures::future::join_all(requests.iter().map(|one| scene.enrol(one))).await;
    let mut let_in = 0;
    for (host, answer) in hosts.iter().zip(answers) {
        match answer {
            Ok(reply) => {
                let_in += 1;
                let files = scene.files(host, &reply);
                scene.stack.attempt(&files[&Service::Loader]).await.unwrap();
            }
            Err(error) => assert_eq!(error.code, Code::Conflict, "{error}"),
        }
    }
    assert_eq!(let_in, 1);
    assert_eq!(scene.record("web9").await.generation, 1);
}

#[tokio::test]
async fn an_enrolment_that_is_not_used_in_time_is_void() {
    let mut scene = Scene::new().await;
    let new = NewHost::new("web9");
    for bad in [0, 59, 8 * 86_400] {
        let request = HostEnrolRequest { expires_in: Some(bad), ..new.request() };
        assert_eq!(scene.enrol(&request).await.unwrap_err().path, "expires_in");
    }
    let files = scene.enrolled(&new).await;
    // The time passes in what is kept.
    let data = scene.stack.connect("s-policy-data").await;
    let bucket = canopy_bus::data::Bucket::open(&data, "canopy_hosts", 1).await.unwrap();
    let stored = bucket.get::<serde_json::Value>("web9").await.unwrap().unwrap();
    let mut late = stored.value;
    late["connect_before"] = json!(1_700_000_000);
    bucket.replace("web9", &late, stored.revision).await.unwrap();
    assert_eq!(scene.record("web9").await.state, HostState::Expired);
    let event = scene.refused(&files[&Service::Loader], "host_enrolment_expired").await;
    assert!(event.reason.contains("not used in time"), "{event:?}");
    // It does not keep the place.
    let again = scene.enrol(&new.request()).await.unwrap();
    let files = scene.files(&new, &again);
    scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
}

/// Taken back, a host is out at once, of every instance, until it is enrolled again.
#[tokio::test]
async fn a_revoked_host_is_out() {
    let mut scene = Scene::new().await;
    scene.stack.start_policy();
    let (new, other) = (NewHost::new("web9"), NewHost::new("web8"));
    let files = scene.enrolled(&new).await;
    let others = scene.enrolled(&other).await;
    let loader = scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
    let enforcer = scene.stack.connect_with("h-web9-enforcer", &files[&Service::Enforcer]).await;
    let stays = scene.stack.connect_with("h-web8-loader", &others[&Service::Loader]).await;
    let revoke = HostRevokeRequest { host: new.id.clone() };
    let record = scene.ask::<policy::HostRevoke>(&revoke).await.unwrap();
    assert_eq!(
        (record.state, record.revoked.unwrap().by.as_str()),
        (HostState::Revoked, "u-admin")
    );
    ends(&loader).await;
    ends(&enforcer).await;
    for service in [Service::Loader, Service::Enforcer] {
        for _ in 0..3 {
            scene.refused(&files[&service], "host_revoked").await;
        }
    }
    assert_eq!((stays.link(), stays.statistics().connects), (Link::Connected, 1));
    let again = scene.enrol(&new.request()).await.unwrap();
    assert_eq!(again.record.generation, 2);
    let files = scene.files(&new, &again);
    scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
}

/// Each certificate is a write to the store that every instance hears of.
#[tokio::test]
async fn a_daemon_gets_ten_certificates_in_ten_minutes() {
    let scene = Scene::new().await;
    let new = NewHost::new("web9");
    let files = scene.enrolled(&new).await;
    let me: Principal = "h-web9-loader".parse().unwrap();
    let loader = scene.stack.connect_with(me.as_str(), &files[&Service::Loader]).await;
    let request = canopy_identity::request_again(&me, &new.keys[&Service::Loader]).unwrap();
    let request = HostRenewRequest { request };
    for _ in 0..10 {
        loader.call::<policy::HostRenew>(&Target::Central, &request).await.unwrap();
    }
    let refused = loader.call::<policy::HostRenew>(&Target::Central, &request).await.unwrap_err();
    assert_eq!(refused.to_api_error().code, Code::Unavailable, "{refused}");
}

/// A daemon prolongs its own certificate, with its own key, and nobody else's.
#[tokio::test]
async fn a_daemon_renews_its_own_certificate() {
    let mut scene = Scene::new().await;
    let (new, other) = (NewHost::new("web9"), NewHost::new("web8"));
    let files = scene.enrolled(&new).await;
    let _ = scene.enrolled(&other).await;
    let me: Principal = "h-web9-loader".parse().unwrap();
    let loader = scene.stack.connect_with(me.as_str(), &files[&Service::Loader]).await;
    let renew = async |request: &str| {
        let request = HostRenewRequest { request: request.to_owned() };
        let answer = loader.call::<policy::HostRenew>(&Target::Central, &request).await;
        answer.map_err(|error| error.to_api_error())
    };
    for (request, code, said) in [
        // Another host's, and another daemon's.
        (&other.requests[&Service::Loader], Code::Denied, "not enrolled with this key"),
        (&new.requests[&Service::Enforcer], Code::Denied, "not enrolled with this key"),
        // A new key under the own name: whoever was connected when the host was replaced could have it.
        (&NewHost::new("web9").requests[&Service::Loader], Code::Denied, "with this key"),
    ] {
        let refused = renew(request).await.unwrap_err();
        assert_eq!(refused.code, code, "{refused}");
        assert!(refused.message.contains(said), "{refused}");
    }
    let again = canopy_identity::request_again(&me, &new.keys[&Service::Loader]).unwrap();
    let mut last = String::new();
    for _ in 0..6 {
        last = renew(&again).await.unwrap().certificate;
    }
    // The one in use is good until the new one was used.
    let old = files[&Service::Loader].clone();
    scene.stack.attempt(&old).await.unwrap();
    let cert = scene.stack.path("renewed.crt");
    fs::write(&cert, last).unwrap();
    let renewed = Credentials { cert, ..old.clone() };
    scene.stack.attempt(&renewed).await.unwrap();
    scene.refused(&old, "host_other_certificate").await;
    assert_eq!((loader.link(), loader.statistics().connects), (Link::Connected, 1));
    // Who is revoked prolongs nothing.
    let revoke = HostRevokeRequest { host: new.id.clone() };
    scene.ask::<policy::HostRevoke>(&revoke).await.unwrap();
    let refused = scene.stack.attempt(&renewed).await.map(drop).unwrap_err();
    assert!(refused.contains("AuthorizationViolation"), "{refused}");
}

/// What rules and scopes say of labels is said of the enrolment's, on every instance.
#[tokio::test]
async fn labels_of_the_enrolment_are_what_rules_speak_of() {
    let mut scene = Scene::new().await;
    scene.stack.start_policy();
    let new = NewHost::new("web9");
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    scene.enrol(&HostEnrolRequest { labels, ..new.request() }).await.unwrap();
    let explain: ExplainRequest = serde_json::from_value(json!({
        "principal": "u-admin", "host": "web9",
        "item": { "verb": "drain" },
    }))
    .unwrap();
    let wait = async |expected: &[(&str, &str)]| {
        let until = Instant::now() + LIMIT;
        let mut same = 0;
        // Whichever instance answers: several times the same.
        while same < 8 {
            let reply = scene.ask::<policy::Explain>(&explain).await.unwrap();
            let told: Vec<_> =
                reply.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            same = if told == expected { same + 1 } else { 0 };
            assert!(Instant::now() < until, "{told:?}");
        }
    };
    wait(&[("env", "prod")]).await;
    let label = HostLabelRequest {
        host: new.id.clone(),
        labels: [("env".to_owned(), None), ("rack".to_owned(), Some("7".to_owned()))].into(),
    };
    scene.ask::<policy::HostLabel>(&label).await.unwrap();
    wait(&[("rack", "7")]).await;
    // Enrolled anew without labels, it keeps them.
    scene.enrol(&HostEnrolRequest { replace: true, ..new.request() }).await.unwrap();
    wait(&[("rack", "7")]).await;
    let revoke = HostRevokeRequest { host: new.id.clone() };
    scene.ask::<policy::HostRevoke>(&revoke).await.unwrap();
    wait(&[]).await;
}

/// Hosts are a matter of administrators; everybody may look.
#[tokio::test]
async fn who_is_no_administrator_enrols_nobody() {
    let scene = Scene::new().await;
    for (who, role) in [("u-operator", Role::Operator), ("u-viewer", Role::Viewer)] {
        scene.stack.issue(&scene.admin, who, role).await;
        let bus = scene.stack.connect(who).await;
        let request = NewHost::new("web9").request();
        let refused = bus.call::<policy::HostEnrol>(&Target::Central, &request).await;
        assert_eq!(refused.unwrap_err().to_api_error().code, Code::Denied);
        let list = HostListRequest::default();
        bus.call::<policy::HostList>(&Target::Central, &list).await.unwrap();
    }
}

/// Without `enrolled`, revocation counts all the same, and the danger is said.
#[tokio::test]
async fn any_host_is_any_but_a_revoked_one() {
    let mut stack = Stack::without_policy();
    stack.start_policy();
    stack.bootstrap("u-admin");
    assert!(stack.policy[0].log().contains("auth.hosts is `any`"), "{}", stack.policy[0].log());
    let admin = stack.connect("u-admin").await;
    let live = stack.connect("h-web1-loader").await;
    let files = stack.credentials("h-web1-loader");
    let pem = fs::read_to_string(&files.cert).unwrap();
    let enrol = HostEnrolRequest {
        certificates: [(Service::Loader, pem)].into(),
        ..NewHost::new("web1").request()
    };
    admin.call::<policy::HostEnrol>(&Target::Central, &enrol).await.unwrap();
    let revoke = HostRevokeRequest { host: "web1".parse().unwrap() };
    admin.call::<policy::HostRevoke>(&Target::Central, &revoke).await.unwrap();
    ends(&live).await;
    stack.attempt(&files).await.map(drop).unwrap_err();
    // What is kept of it is all that keeps it out.
    let forget = HostForgetRequest { host: "web1".parse().unwrap() };
    let refused = admin.call::<policy::HostForget>(&Target::Central, &forget).await;
    assert_eq!(refused.unwrap_err().to_api_error().code, Code::Conflict);
    stack.connect("h-web2-loader").await;
}

/// What is kept of a revoked host can be removed, which is recorded; it may be enrolled again.
#[tokio::test]
async fn only_a_revoked_host_is_forgotten() {
    let mut scene = Scene::new().await;
    let new = NewHost::new("web9");
    let files = scene.enrolled(&new).await;
    scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
    let forget = HostForgetRequest { host: new.id.clone() };
    let refused = scene.ask::<policy::HostForget>(&forget).await.unwrap_err();
    assert_eq!((refused.code, refused.path.as_str()), (Code::Conflict, "host"));
    assert!(refused.message.contains("web9 is active"), "{refused}");
    scene.ask::<policy::HostRevoke>(&HostRevokeRequest { host: new.id.clone() }).await.unwrap();
    let record = scene.ask::<policy::HostForget>(&forget).await.unwrap();
    assert_eq!((record.host, record.state), (new.id.clone(), HostState::Revoked));
    let again = scene.ask::<policy::HostForget>(&forget).await.unwrap_err();
    assert_eq!(again.code, Code::NotFound);
    assert!(
        scene.ask::<policy::HostList>(&HostListRequest::default()).await.unwrap().hosts.is_empty()
    );
    scene.refused(&files[&Service::Loader], "host_not_enrolled").await;
    let recorded = fs::read_dir(scene.stack.audit_dir(0).join("changes"))
        .unwrap()
        .any(|file| fs::read_to_string(file.unwrap().path()).unwrap().contains("forgot host web9"));
    assert!(recorded, "the audit trail does not say it");
    let reply = scene.enrol(&new.request()).await.unwrap();
    assert_eq!(reply.record.generation, 1);
    scene.refused(&files[&Service::Loader], "host_other_certificate").await;
    let files = scene.files(&new, &reply);
    scene.stack.connect_with("h-web9-loader", &files[&Service::Loader]).await;
}

/// Lists are paged: every host is in one page, whatever the number and the length of the records.
#[tokio::test]
async fn ten_thousand_hosts_are_listed_page_by_page() {
    let scene = Scene::new().await;
    let one = NewHost::new("web9");
    scene.enrolled(&one).await;
    let data = scene.stack.connect("s-policy-data").await;
    let store = Bucket::open(&data, "canopy_hosts", 1).await.unwrap();
    let kept: serde_json::Value = store.get("web9").await.unwrap().unwrap().value;
    let value = |n: usize, labels: usize| {
        let mut value = kept.clone();
        value["host"] = json!(format!("n{n}"));
        for label in 0..labels {
            value["labels"][format!("{label:0>63}")] = json!("x".repeat(63));
        }
        value
    };
    let puts = (0..10_000).map(|n| {
        // Some have as many labels as a host can have.
        let value = value(n, if n % 100 == 0 { 64 } else { 1 });
        let store = store.clone();
        async move { store.create(&format!("n{n}"), &value).await.unwrap() }
    });
    let count =
        futures::StreamExt::count(futures::StreamExt::buffered(futures::stream::iter(puts), 128));
    assert_eq!(count.await, 10_000);

    let list =
        async |request: HostListRequest| scene.ask::<policy::HostList>(&request).await.unwrap();
    let begun = Instant::now();
    let (mut pages, mut hosts, mut after) = (0, Vec::new(), None);
    loop {
        let reply = list(HostListRequest { after: after.take(), ..Default::default() }).await;
        hosts.extend(reply.hosts.into_iter().map(|record| record.host));
        pages += 1;
        after = reply.next;
        if after.is_none() {
            break;
        }
    }
    eprintln!("{} hosts on {pages} pages in {:?}", hosts.len(), begun.elapsed());
    let mut expected: Vec<HostId> =
        (0..10_000).map(|n| format!("n{n}").parse().unwrap()).chain([one.id.clone()]).collect();
    expected.sort();
    assert!(hosts == expected, "{} hosts", hosts.len());
    let first = list(HostListRequest { limit: Some(3), ..Default::default() }).await;
    assert_eq!(first.hosts.len(), 3);
    let next = first.next.unwrap();
    assert_eq!(next, expected[2]);
    let second =
        list(HostListRequest { limit: Some(1), after: Some(next), ..Default::default() }).await;
    assert_eq!(second.hosts[0].host, expected[3]);
}
