//! Administrators whose token is narrowed, against a real policy service: they give, change and take back
//! what is within their own token, and nothing beyond it.

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
    scope::Scope,
    subject::Target,
    wire::{
        AuditCheckpointsRequest, AuditRequest,
        hosts::{
            HostEnrolRequest, HostForgetRequest, HostLabelRequest, HostListRequest, HostRecord,
            HostRevokeRequest, HostState,
        },
        tokens::{
            TokenIssueRequest, TokenListRequest, TokenRecord, TokenRegenerateRequest,
            TokenRevokeRequest, TokenState,
        },
    },
};
use canopy_bus::Bus;
use serde_json::{Value, json};
use stack::{Credentials, Stack};
use std::collections::BTreeMap;

fn scope(text: Value) -> Scope {
    serde_json::from_value(text).unwrap()
}

async fn ask<E: Endpoint>(bus: &Bus, request: &E::Request) -> Result<E::Reply, ApiError> {
    bus.call::<E>(&Target::Central, request).await.map_err(|error| error.to_api_error())
}

/// Refused at this field, with what to do; nothing else says so.
fn denied<T: std::fmt::Debug>(outcome: Result<T, ApiError>, field: &str) {
    let error = outcome.unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::Denied, field), "{error}");
    assert!(error.remedy.is_some_and(|remedy| !remedy.is_empty()), "{}", error.message);
}

/// The stack, its administrator, and others who are narrowed.
struct GrantsFixture {
    stack: Stack,
    admin: Bus,
}

impl GrantsFixture {
    async fn new() -> Self {
        let stack = Stack::enrolling();
        let admin = stack.connect("u-admin").await;
        let fixture = Self { stack, admin };
        for (host, rack) in [("web1", "7"), ("web2", "8")] {
            let request = enrolment(host, &[("rack", rack)]);
            ask::<policy::HostEnrol>(&fixture.admin, &request).await.unwrap();
        }
        fixture
    }

    fn credentials(&self, name: &str) -> Credentials {
        self.stack.certificate(name, vec![stack::uri(name)])
    }

    fn issue(&self, name: &str, role: Role, narrowed: Option<Value>) -> TokenIssueRequest {
        let credentials = self.credentials(name);
        TokenIssueRequest {
            principal: name.parse().unwrap(),
            role,
            scope: narrowed.map(scope),
            binding: Some(stack::binding_of(&credentials.cert)),
            expires_in: None,
        }
    }

    /// An administrator who is narrowed.
    async fn narrowed(&self, name: &str, narrowed: Value) -> Bus {
        let request = self.issue(name, Role::Admin, Some(narrowed));
        self.connected(name, &request).await
    }

    /// Whoever has the token of this request, which the administrator issues.
    async fn connected(&self, name: &str, request: &TokenIssueRequest) -> Bus {
        let file = |ending: &str| self.stack.path(&format!("{name}.{ending}"));
        let credentials =
            Credentials { cert: file("crt"), key: file("key"), token: None, nkey: None };
        let reply = ask::<policy::TokenIssue>(&self.admin, request).await.unwrap();
        self.stack
            .connect_with(name, &self.stack.with_token(&credentials, name, &reply.token.0))
            .await
    }

    /// An administrator of everything whose token ends by itself.
    async fn ending(&self, name: &str, seconds: u64) -> Bus {
        let request =
            TokenIssueRequest { expires_in: Some(seconds), ..self.issue(name, Role::Admin, None) };
        self.connected(name, &request).await
    }

    async fn token(&self, name: &str) -> Option<TokenRecord> {
        let request =
            TokenListRequest { principal: Some(name.parse().unwrap()), ..Default::default() };
        ask::<policy::TokenList>(&self.admin, &request).await.ok().map(|mut reply| {
            assert_eq!(reply.tokens.len(), 1);
            reply.tokens.remove(0)
        })
    }

    async fn host(&self, name: &str) -> Option<HostRecord> {
        let request = HostListRequest { host: Some(name.parse().unwrap()), ..Default::default() };
        ask::<policy::HostList>(&self.admin, &request).await.ok().map(|mut reply| {
            assert_eq!(reply.hosts.len(), 1);
            reply.hosts.remove(0)
        })
    }
}

fn enrolment(host: &str, labels: &[(&str, &str)]) -> HostEnrolRequest {
    let host: HostId = host.parse().unwrap();
    let certificates = [Service::Loader, Service::Enforcer].map(|service| {
        let principal = daemon_principal(service, Some(&host)).unwrap();
        (service, canopy_identity::request(&principal).unwrap().1)
    });
    HostEnrolRequest {
        host,
        certificates: certificates.into(),
        labels: labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        expires_in: None,
        replace: false,
    }
}

fn label(host: &str, labels: &[(&str, Option<&str>)]) -> HostLabelRequest {
    let labels: BTreeMap<String, Option<String>> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
    HostLabelRequest { host: host.parse().unwrap(), labels }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_admin_gives_no_token_beyond_its_own() {
    let fixture = GrantsFixture::new().await;
    let mallory = fixture.narrowed("u-mallory", json!({ "hosts": ["web1"] })).await;
    let clerk = fixture.narrowed("u-clerk", json!({ "services": ["policy"] })).await;
    let rack = fixture.narrowed("u-rack", json!({ "hosts": ["label:rack=7", "db*"] })).await;
    for (giver, role, narrowed, field) in [
        (&mallory, Role::Admin, None, "scope.hosts"),
        (&mallory, Role::Viewer, None, "scope.hosts"),
        (&mallory, Role::Admin, Some(json!({})), "scope.hosts"),
        (&mallory, Role::Admin, Some(json!({ "services": ["policy"] })), "scope.hosts"),
        (&mallory, Role::Admin, Some(json!({ "hosts": ["*"] })), "scope.hosts"),
        (&mallory, Role::Admin, Some(json!({ "hosts": ["web?"] })), "scope.hosts"),
        (&mallory, Role::Admin, Some(json!({ "hosts": ["web1", "web2"] })), "scope.hosts"),
        // Which hosts have the label is another's to say.
        (&mallory, Role::Admin, Some(json!({ "hosts": ["label:rack=7"] })), "scope.hosts"),
        (&rack, Role::Operator, Some(json!({ "hosts": ["web1"] })), "scope.hosts"),
        (&rack, Role::Operator, Some(json!({ "hosts": ["label:rack=8"] })), "scope.hosts"),
        (&clerk, Role::Operator, None, "scope.services"),
        (&clerk, Role::Viewer, Some(json!({ "hosts": ["web1"] })), "scope.services"),
        (&clerk, Role::Admin, Some(json!({ "services": ["policy", "loader"] })), "scope.services"),
    ] {
        let request = fixture.issue("u-sock", role, narrowed.clone());
        denied(ask::<policy::TokenIssue>(giver, &request).await, field);
        assert_eq!(fixture.token("u-sock").await, None, "{narrowed:?}");
    }
    for (giver, name, role, narrowed) in [
        (&mallory, "u-one", Role::Admin, json!({ "hosts": ["web1"] })),
        (&mallory, "u-two", Role::Viewer, json!({ "hosts": ["web1"], "services": ["loader"] })),
        (&rack, "u-three", Role::Operator, json!({ "hosts": ["label:rack=7"] })),
        (&rack, "u-four", Role::Operator, json!({ "hosts": ["db1", "db?b*"] })),
        (&clerk, "u-five", Role::Admin, json!({ "services": ["policy"], "hosts": ["web2"] })),
    ] {
        let request = fixture.issue(name, role, Some(narrowed.clone()));
        let reply = ask::<policy::TokenIssue>(giver, &request).await;
        assert_eq!(reply.unwrap().record.scope, Some(scope(narrowed)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_admin_changes_no_token_that_reaches_further() {
    let fixture = GrantsFixture::new().await;
    let mallory = fixture.narrowed("u-mallory", json!({ "hosts": ["web1"] })).await;
    let peer = fixture.issue("u-peer", Role::Operator, Some(json!({ "hosts": ["web2"] })));
    ask::<policy::TokenIssue>(&fixture.admin, &peer).await.unwrap();
    let before = fixture.token("u-admin").await.unwrap();
    // With her own certificate she would be everybody she regenerates.
    let binding = Some(stack::binding_of(&fixture.credentials("u-mallory").cert));
    for other in ["u-admin", "u-peer"] {
        let principal: Principal = other.parse().unwrap();
        for binding in [binding.clone(), None] {
            let principal = principal.clone();
            let request = TokenRegenerateRequest { principal, binding, expires_in: None };
            denied(ask::<policy::TokenRegenerate>(&mallory, &request).await, "principal");
        }
        let request = TokenRevokeRequest { principal: other.parse().unwrap() };
        denied(ask::<policy::TokenRevoke>(&mallory, &request).await, "principal");
    }
    // Nor is a name taken over whose token has ended.
    let revoke = TokenRevokeRequest { principal: "u-peer".parse().unwrap() };
    ask::<policy::TokenRevoke>(&fixture.admin, &revoke).await.unwrap();
    let again = fixture.issue("u-peer", Role::Viewer, Some(json!({ "hosts": ["web1"] })));
    denied(ask::<policy::TokenIssue>(&mallory, &again).await, "principal");
    assert_eq!(fixture.token("u-admin").await, Some(before));
    assert_eq!(fixture.token("u-peer").await.unwrap().state, TokenState::Revoked);
    // Her own, and one within it.
    let own = TokenRegenerateRequest {
        principal: "u-mallory".parse().unwrap(),
        binding,
        expires_in: None,
    };
    ask::<policy::TokenRegenerate>(&mallory, &own).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_gives_no_token_that_outlives_its_own() {
    let fixture = GrantsFixture::new().await;
    let temporary = fixture.ending("u-temp", 3600).await;
    let end = fixture.token("u-temp").await.unwrap().expires;
    assert!(end.is_some());
    let issue = |name: &str, role| fixture.issue(name, role, None);
    let regenerate = |name: &str, expires_in| TokenRegenerateRequest {
        principal: name.parse().unwrap(),
        binding: None,
        expires_in,
    };
    for role in Role::ALL {
        let request = TokenIssueRequest { expires_in: Some(7200), ..issue("u-longer", role) };
        denied(ask::<policy::TokenIssue>(&temporary, &request).await, "expires_in");
    }
    assert_eq!(fixture.token("u-longer").await, None);
    // Her own, and others', whose role and scope she has.
    let lasting = issue("u-lasting", Role::Operator);
    ask::<policy::TokenIssue>(&fixture.admin, &lasting).await.unwrap();
    let before = (fixture.token("u-lasting").await, fixture.token("u-temp").await);
    for name in ["u-temp", "u-lasting", "u-admin"] {
        let request = regenerate(name, Some(7200));
        denied(ask::<policy::TokenRegenerate>(&temporary, &request).await, "expires_in");
    }
    assert_eq!((fixture.token("u-lasting").await, fixture.token("u-temp").await), before);

    // Without a time it ends as hers does; with one, at it.
    for (name, expires_in) in [("u-same", None), ("u-sooner", Some(60))] {
        let request = TokenIssueRequest { expires_in, ..issue(name, Role::Admin) };
        let reply = ask::<policy::TokenIssue>(&temporary, &request).await.unwrap();
        assert_eq!(reply.record.expires == end, expires_in.is_none(), "{name}");
        assert!(reply.record.expires <= end && reply.record.expires.is_some());
    }
    let request = regenerate("u-lasting", None);
    let reply = ask::<policy::TokenRegenerate>(&temporary, &request).await.unwrap();
    assert_eq!(reply.record.expires, end);
    // A name whose token has ended is not given for longer either.
    let revoke = TokenRevokeRequest { principal: "u-lasting".parse().unwrap() };
    ask::<policy::TokenRevoke>(&temporary, &revoke).await.unwrap();
    let again = TokenIssueRequest { expires_in: Some(7200), ..lasting };
    denied(ask::<policy::TokenIssue>(&temporary, &again).await, "expires_in");
    // At last her own, without a time: it does not grow longer.
    let reply = ask::<policy::TokenRegenerate>(&temporary, &regenerate("u-temp", None)).await;
    assert_eq!(reply.unwrap().record.expires, end);

    // Who has a token that does not end gives one that does not, in its place too.
    let request = regenerate("u-temp", None);
    let reply = ask::<policy::TokenRegenerate>(&fixture.admin, &request).await;
    assert_eq!(reply.unwrap().record.expires, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_waits_no_longer_than_its_givers_token() {
    let fixture = GrantsFixture::new().await;
    let temporary = fixture.ending("u-temp", 600).await;
    let end = fixture.token("u-temp").await.unwrap().expires.unwrap();
    for replace in [false, true] {
        let host = if replace { "web1" } else { "web3" };
        let before = fixture.host(host).await;
        let longer = HostEnrolRequest { expires_in: Some(3600), replace, ..enrolment(host, &[]) };
        denied(ask::<policy::HostEnrol>(&temporary, &longer).await, "expires_in");
        assert_eq!(fixture.host(host).await, before);
        let request = HostEnrolRequest { expires_in: None, ..longer.clone() };
        let reply = ask::<policy::HostEnrol>(&temporary, &request).await.unwrap();
        assert_eq!(reply.record.connect_before, end, "{host}");
        let request = HostEnrolRequest { expires_in: Some(60), replace: true, ..longer };
        let reply = ask::<policy::HostEnrol>(&temporary, &request).await.unwrap();
        assert!(reply.record.connect_before < end, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_is_not_narrowed_to_hosts() {
    let fixture = GrantsFixture::new().await;
    let request = fixture.issue("u-pub", Role::Publisher, Some(json!({ "hosts": ["web1"] })));
    let error = ask::<policy::TokenIssue>(&fixture.admin, &request).await.unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "scope.hosts"), "{error}");
    assert_eq!(fixture.token("u-pub").await, None);
    let registry =
        fixture.issue("u-pub", Role::Publisher, Some(json!({ "services": ["registry"] })));
    ask::<policy::TokenIssue>(&fixture.admin, &registry).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_admin_changes_no_host_beyond_its_own() {
    let fixture = GrantsFixture::new().await;
    let mallory = fixture.narrowed("u-mallory", json!({ "hosts": ["web1"] })).await;
    let clerk = fixture.narrowed("u-clerk", json!({ "services": ["policy"] })).await;
    let rack = fixture.narrowed("u-rack", json!({ "hosts": ["label:rack=7"] })).await;
    let before = fixture.host("web2").await.unwrap();
    for giver in [&mallory, &clerk, &rack] {
        // A label of one's own brings nothing into one's reach.
        let request = label("web2", &[("rack", Some("7"))]);
        denied(ask::<policy::HostLabel>(giver, &request).await, "host");
        let request = HostEnrolRequest { replace: true, ..enrolment("web2", &[("rack", "7")]) };
        denied(ask::<policy::HostEnrol>(giver, &request).await, "host");
        let request = HostRevokeRequest { host: "web2".parse().unwrap() };
        denied(ask::<policy::HostRevoke>(giver, &request).await, "host");
        let request = enrolment("web3", &[("rack", "8")]);
        denied(ask::<policy::HostEnrol>(giver, &request).await, "host");
        assert_eq!(fixture.host("web3").await, None);
    }
    assert_eq!(fixture.host("web2").await, Some(before));

    // What is theirs.
    ask::<policy::HostEnrol>(&rack, &enrolment("web4", &[("rack", "7")])).await.unwrap();
    let labelled = label("web1", &[("env", Some("test"))]);
    ask::<policy::HostLabel>(&mallory, &labelled).await.unwrap();
    let revoke = HostRevokeRequest { host: "web1".parse().unwrap() };
    ask::<policy::HostRevoke>(&mallory, &revoke).await.unwrap();
    assert_eq!(fixture.host("web1").await.unwrap().state, HostState::Revoked);

    // A revoked host is still somebody's.
    let revoke = HostRevokeRequest { host: "web2".parse().unwrap() };
    ask::<policy::HostRevoke>(&fixture.admin, &revoke).await.unwrap();
    let forget = HostForgetRequest { host: "web2".parse().unwrap() };
    for giver in [&mallory, &clerk, &rack] {
        denied(ask::<policy::HostForget>(giver, &forget).await, "host");
        let request = enrolment("web2", &[("rack", "7")]);
        denied(ask::<policy::HostEnrol>(giver, &request).await, "host");
    }
    ask::<policy::HostForget>(&fixture.admin, &forget).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_admin_reads_the_trail_of_its_own_hosts() {
    let fixture = GrantsFixture::new().await;
    let mallory = fixture.narrowed("u-mallory", json!({ "hosts": ["web1"] })).await;
    let of = |host: Option<&str>, writer: Option<&str>| AuditRequest {
        host: host.map(|host| host.parse().unwrap()),
        writer: writer.map(|writer| writer.parse().unwrap()),
        ..AuditRequest::default()
    };
    for request in [
        of(None, None),
        of(Some("web2"), None),
        of(None, Some("h-web2-loader")),
        of(Some("web1"), Some("h-web2-loader")),
        of(None, Some("s-policy")),
    ] {
        denied(ask::<policy::Audit>(&mallory, &request).await, "host");
    }
    ask::<policy::Audit>(&mallory, &of(Some("web1"), None)).await.unwrap();
    ask::<policy::Audit>(&fixture.admin, &of(None, None)).await.unwrap();
    let all = AuditCheckpointsRequest::default();
    denied(ask::<policy::AuditCheckpoints>(&mallory, &all).await, "host");
    ask::<policy::AuditCheckpoints>(&fixture.admin, &all).await.unwrap();
}
