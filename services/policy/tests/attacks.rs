//! Attacks on the way in, one test each, against a real server that asks a real policy service:
//! each is refused, told as an event with its own word, and leaves good clients alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod stack;

use async_nats::ConnectOptions;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_api::{
    nats::spiffe_id,
    permission::Role,
    wire::{ConnectRefused, tokens::Binding},
};
use canopy_bus::{Bus, Events, callout::generate_nkey};
use canopy_identity::{AUDIENCE, Claims, ISSUER, SigningKey};
use canopy_test_support::nats::{Authority, NatsServer, private_file};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, SanType};
use serde_json::{Value, json};
use stack::{Credentials, LIMIT, Stack, binding_of, uri};
use std::{
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};
use tokio::time::timeout;

/// A stack, its administrator, and what the administrator hears of refusals.
struct Scene {
    stack: Stack,
    admin: Bus,
    refused: Events,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Stack::start()).await
    }

    async fn with(stack: Stack) -> Self {
        let admin = stack.connect("u-admin").await;
        let refused =
            admin.subscribe_events("canopy.v1.security.policy.connect.refused._").await.unwrap();
        admin.flush().await;
        Self { stack, admin, refused }
    }

    /// Who tries this is refused, for this reason, and an event says so.
    async fn refused(&mut self, with: &Credentials, code: &str) -> ConnectRefused {
        self.refused_from(with, code, |options| options).await
    }

    async fn refused_from(
        &mut self,
        with: &Credentials,
        code: &str,
        change: impl Fn(ConnectOptions) -> ConnectOptions,
    ) -> ConnectRefused {
        // Not more than 20 a second are told, so that one may have to be heard the second time.
        let mut event = None;
        while event.is_none() {
            let attempt = self.stack.attempt_from(with, &change).await;
            let said = attempt.map(drop).unwrap_err();
            assert!(said.contains("AuthorizationViolation"), "{said}");
            event = timeout(Duration::from_secs(2), self.refused.next()).await.ok();
        }
        let event = event.unwrap().unwrap();
        let event: ConnectRefused = event.decode().unwrap();
        assert_eq!(event.code, code, "{event:?}");
        event
    }

    /// TLS itself refuses: the policy service is not even asked.
    async fn never_asked(&mut self, with: &Credentials) {
        let said = self.stack.attempt(with).await.map(drop).unwrap_err();
        assert!(!said.contains("AuthorizationViolation"), "{said}");
        // The next refusal that is told of is another's.
        let stranger = self.stack.certificate("marker", vec![]);
        self.refused(&stranger, "not_peoples").await;
    }

    fn policy_log(&self) -> String {
        self.stack.policy[0].log()
    }

    fn key(&self) -> SigningKey {
        let pem = fs::read_to_string(self.stack.path("keys/token-signing.pem")).unwrap();
        SigningKey::from_pem(&pem).unwrap()
    }

    /// What a good token of this person says.
    fn claims(&self, principal: &str) -> Claims {
        let token = fs::read_to_string(self.stack.path(&format!("{principal}.token"))).unwrap();
        let payload = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn without_a_certificate() {
    let mut scene = Scene::new().await;
    let ca = scene.stack.server.client("server").ca;
    let token = fs::read_to_string(scene.stack.path("u-admin.token")).unwrap();
    let said = ConnectOptions::new()
        .require_tls(true)
        .tls_first()
        .add_root_certificates(ca)
        .token(token.trim().to_owned())
        .connect(&scene.stack.server.url())
        .await
        .map(drop)
        .unwrap_err();
    assert!(!format!("{said:?}").contains("AuthorizationViolation"), "{said:?}");
    let stranger = scene.stack.certificate("marker", vec![]);
    scene.refused(&stranger, "not_peoples").await;
}

#[tokio::test]
async fn a_certificate_of_another_authority() {
    let mut scene = Scene::new().await;
    let rogue = Authority::new().unwrap();
    let dir = scene.stack.dir.path().to_owned();
    for name in ["u-admin", "s-policy-auth", "s-registry", "h-web1-loader"] {
        let file = format!("rogue-{name}");
        let (cert, key) = rogue.issue(&dir, &file, vec![uri(name)], |_| {}).unwrap();
        let token = Some(scene.stack.path("u-admin.token"));
        scene.never_asked(&Credentials { cert, key, token, nkey: None }).await;
    }
}

#[tokio::test]
async fn a_certificate_that_has_ended_or_not_begun() {
    let mut scene = Scene::new().await;
    let past = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    let future = |params: &mut CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    };
    let ended = scene.stack.certificate_with("ended", vec![uri("s-registry")], past);
    scene.never_asked(&ended).await;
    let early = scene.stack.certificate_with("early", vec![uri("s-registry")], future);
    scene.never_asked(&early).await;
}

#[tokio::test]
async fn names_that_are_nobodys() {
    let mut scene = Scene::new().await;
    for (i, name) in [
        "*",
        ">",
        "u-*",
        "a.b",
        "u-a.b",
        "u-a/b",
        "root",
        "U-ADMIN",
        "s-loader",
        "h-web1-registry",
        "s-root",
    ]
    .into_iter()
    .enumerate()
    {
        let with = scene.stack.certificate(&format!("nobody{i}"), vec![uri(name)]);
        let token = fs::read_to_string(scene.stack.path("u-admin.token")).unwrap();
        scene.refused(&with, "nobody").await;
        let with = scene.stack.with_token(&with, "stolen", &token);
        scene.refused(&with, "nobody").await;
    }
    let two = scene.stack.certificate("two", vec![uri("u-admin"), uri("u-viewer")]);
    scene.refused(&two, "several_names").await;
    let dns = SanType::DnsName("u-admin.example".try_into().unwrap());
    let other = scene.stack.certificate("dns", vec![dns]);
    let event = scene.refused(&other, "not_peoples").await;
    assert_eq!(event.names, ["u-admin.example"]);
}

/// The policy service's names do not come by the way of strangers, whatever follows them.
#[tokio::test]
async fn names_like_the_policy_services() {
    let mut scene = Scene::new().await;
    for (i, name) in ["s-policy-auth2", "s-policy-x", "s-policyx"].into_iter().enumerate() {
        let with = scene.stack.certificate(&format!("policy{i}"), vec![uri(name)]);
        scene.refused(&with, "our_own").await;
    }
}

/// One attempt with a certificate and the means of `options` beside.
async fn connects(server: &NatsServer, with: &Credentials, options: ConnectOptions) -> bool {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = options
        .require_tls(true)
        .tls_first()
        .connection_timeout(LIMIT)
        .add_root_certificates(server.client("server").ca)
        .add_client_certificate(with.cert.clone(), with.key.clone());
    options.connect(server.url()).await.is_ok()
}

/// Certificates of people's authority that read like this principal's, one for each place a name can be in.
fn disguised(people: &Authority, dir: &Path, principal: &str) -> Vec<(&'static str, Credentials)> {
    let name = || spiffe_id(principal).as_str().try_into().unwrap();
    let subject = |params: &mut CertificateParams| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, spiffe_id(principal));
    };
    let files = |place, sans, change: &dyn Fn(&mut CertificateParams)| {
        let file = format!("{place}-{principal}");
        let (cert, key) = people.issue(dir, &file, sans, change).unwrap();
        (place, Credentials { cert, key, token: None, nkey: None })
    };
    vec![
        files("email", vec![SanType::Rfc822Name(name())], &|_| {}),
        files("dns", vec![SanType::DnsName(name())], &|_| {}),
        files("uri", vec![SanType::URI(name())], &|_| {}),
        files("subject", vec![], &subject),
    ]
}

/// The policy service's own connections prove a key. A certificate, whatever names it has and whichever of
/// the trusted authorities signed it, makes nobody one of them.
#[tokio::test]
async fn no_certificate_makes_anybody_the_policy_service() {
    let people = Authority::new().unwrap();
    let mut stack = Stack::without_policy();
    stack.server.trust(&people).unwrap();
    stack.start_policy();
    stack.bootstrap("u-admin");
    let mut scene = Scene::with(stack).await;
    let keys = fs::read_to_string(scene.stack.path("keys/nkeys.json")).unwrap();
    let keys: Value = serde_json::from_str(&keys).unwrap();
    for (principal, seat) in [
        ("s-policy", "app"),
        ("s-policy-data", "data"),
        ("s-policy-system", "system"),
        ("s-policy-auth", "callout"),
    ] {
        for (place, with) in disguised(&people, scene.stack.dir.path(), principal) {
            let code = if place == "uri" { "our_own" } else { "misplaced_name" };
            scene.refused(&with, code).await;
        }
        // Its own certificate, without the key that is proved beside.
        let own = Credentials { nkey: None, ..scene.stack.credentials(principal) };
        scene.refused(&own, "our_own").await;
        // A key of one's own; the right key's name with a signature that is none.
        let (_, seed) = generate_nkey().unwrap();
        scene
            .refused_from(&own, "other_credentials", |options| options.nkey(seed.to_string()))
            .await;
        let public = keys[seat].as_str().unwrap().to_owned();
        let forged = ConnectOptions::with_auth_callback(move |_| {
            let public = public.clone();
            async move {
                let mut auth = async_nats::Auth::new();
                (auth.nkey, auth.signature) = (Some(public), Some(vec![0; 64]));
                Ok(auth)
            }
        });
        assert!(!connects(&scene.stack.server, &own, forged).await, "{principal}");
        // What counts is the key, whoever's certificate is shown beside.
        let nkey = scene.stack.credentials(principal).nkey;
        let host = Credentials { nkey, ..scene.stack.credentials("h-web1-loader") };
        scene.stack.attempt(&host).await.unwrap();
    }
}

/// What the test above would let through: a server that maps certificates to users takes each of these
/// names, of either authority.
#[tokio::test]
async fn a_server_that_maps_certificates_takes_any_name() {
    let people = Authority::new().unwrap();
    let mut server = NatsServer::start(&[]).unwrap();
    server.trust(&people).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (place, with) in disguised(&people, dir.path(), "s-policy-data") {
        let taken = connects(&server, &with, ConnectOptions::new()).await;
        assert_eq!(taken, place != "subject", "{place}");
    }
}

#[tokio::test]
async fn no_token_or_an_empty_one() {
    let mut scene = Scene::new().await;
    let without = Credentials { token: None, ..scene.stack.credentials("u-admin") };
    scene.refused(&without, "no_token").await;
    scene.refused_from(&without, "no_token", |options| options.token(String::new())).await;
}

#[tokio::test]
async fn anothers_token() {
    let mut scene = Scene::new().await;
    // Bound to nothing, so that only the names are against it.
    scene.stack.issue_for(&scene.admin, "u-viewer", Role::Viewer, None, None).await;
    let token = fs::read_to_string(scene.stack.path("u-viewer.token")).unwrap();
    let with = scene.stack.with_token(&scene.stack.credentials("u-operator"), "x", &token);
    let event = scene.refused(&with, "others_token").await;
    assert!(event.reason.contains("u-viewer") && event.reason.contains("u-operator"), "{event:?}");
    // The administrator's is bound beside.
    let token = fs::read_to_string(scene.stack.path("u-admin.token")).unwrap();
    let with = scene.stack.with_token(&scene.stack.credentials("u-operator"), "x", &token);
    scene.refused(&with, "token_other_certificate").await;
}

/// Certificate and token are each good, and do not belong together.
#[tokio::test]
async fn a_good_token_with_another_certificate_of_the_same_person() {
    let mut scene = Scene::new().await;
    let token = fs::read_to_string(scene.stack.path("u-admin.token")).unwrap();
    let second = scene.stack.certificate("second", vec![uri("u-admin")]);
    let with = scene.stack.with_token(&second, "x", &token);
    scene.refused(&with, "token_other_certificate").await;
}

#[tokio::test]
async fn a_persons_token_on_a_services_certificate() {
    let mut scene = Scene::new().await;
    scene.stack.issue_for(&scene.admin, "u-viewer", Role::Viewer, None, None).await;
    for token in ["u-viewer.token", "u-admin.token"] {
        let token = fs::read_to_string(scene.stack.path(token)).unwrap();
        for name in ["h-web1-loader", "s-registry"] {
            let with = scene.stack.with_token(&scene.stack.credentials(name), "x", &token);
            scene.refused(&with, "daemon_with_token").await;
        }
    }
}

#[tokio::test]
async fn tokens_that_are_not_ours_to_believe() {
    let mut scene = Scene::new().await;
    let admin = scene.stack.credentials("u-admin");
    let good = fs::read_to_string(scene.stack.path("u-admin.token")).unwrap();
    let parts: Vec<&str> = good.trim().split('.').collect();
    let (key, claims) = (scene.key(), scene.claims("u-admin"));
    let header = |alg: &str| {
        URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT", "kid": key.id()}).to_string())
    };
    let mallory =
        SigningKey::from_pem(&KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem())
            .unwrap();
    let raised = Claims { sub: "u-viewer".parse().unwrap(), ..claims.clone() };
    let raised = URL_SAFE_NO_PAD.encode(serde_json::to_string(&raised).unwrap());
    let cases = [
        ("rubbish".to_owned(), "token_bad"),
        (format!("{}.{raised}.{}", parts[0], parts[2]), "token_signature"),
        (format!("{}.{}.", header("none"), parts[1]), "token_algorithm"),
        (format!("{}.{}.{}", header("HS256"), parts[1], parts[2]), "token_algorithm"),
        (mallory.sign(&claims).unwrap(), "token_unknown_key"),
        (key.sign(&Claims { exp: Some(now() - 31), ..claims.clone() }).unwrap(), "token_expired"),
        (key.sign(&Claims { iat: now() + 60, ..claims.clone() }).unwrap(), "token_bad"),
        (key.sign(&Claims { aud: "other".into(), ..claims.clone() }).unwrap(), "token_bad"),
        // Signed by us, and never issued.
        (key.sign(&Claims { jti: "0".into(), ..claims.clone() }).unwrap(), "token_unknown"),
        (key.sign(&Claims { generation: 9, ..claims.clone() }).unwrap(), "token_unknown"),
        (key.sign(&Claims { generation: 0, ..claims.clone() }).unwrap(), "token_regenerated"),
    ];
    for (token, code) in cases {
        let with = scene.stack.with_token(&admin, "forged", &token);
        scene.refused(&with, code).await;
    }
    // Who was never issued one.
    let binding = binding_of(&scene.stack.server.client("u-viewer").cert);
    let ghost = Claims { sub: "u-viewer".parse().unwrap(), cnf: Some(binding), ..claims };
    let with = scene.stack.with_token(
        &scene.stack.credentials("u-viewer"),
        "ghost",
        &key.sign(&ghost).unwrap(),
    );
    scene.refused(&with, "token_unknown").await;
    assert_eq!(ISSUER, ghost.iss);
    assert_eq!(AUDIENCE, ghost.aud);
}

#[tokio::test]
async fn other_ways_to_say_who_one_is() {
    let mut scene = Scene::new().await;
    let registry = scene.stack.credentials("s-registry");
    scene
        .refused_from(&registry, "other_credentials", |options| {
            options.user_and_password("spiffe://canopy/s-policy".into(), "x".into())
        })
        .await;
    let admin = scene.stack.credentials("u-admin");
    scene
        .refused_from(&Credentials { token: None, ..admin }, "other_credentials", |options| {
            options.user_and_password("u-admin".into(), "x".into())
        })
        .await;
}

/// Neither a token nor a key is in any log, nor in what a refused connection leaves behind.
#[tokio::test]
async fn nothing_secret_is_said() {
    let mut scene = Scene::new().await;
    let token = fs::read_to_string(scene.stack.path("u-admin.token")).unwrap();
    let with = scene.stack.with_token(&scene.stack.credentials("u-operator"), "x", &token);
    let event = scene.refused(&with, "token_other_certificate").await;
    scene.stack.issue(&scene.admin, "u-viewer", Role::Viewer).await;
    scene.stack.connect("u-viewer").await;
    let bus_log = fs::read_to_string(scene.stack.server.dir().join("nats.log")).unwrap();
    let said = format!("{event:?}{}{bus_log}", scene.policy_log());
    for file in [
        "u-admin.token",
        "u-viewer.token",
        "keys/issuer.seed",
        "keys/xkey.seed",
        "keys/nkey-app.seed",
        "keys/nkey-callout.seed",
        "keys/nkey-data.seed",
        "keys/nkey-system.seed",
        "keys/token-signing.pem",
    ] {
        let secret = fs::read_to_string(scene.stack.path(file)).unwrap();
        for line in secret.lines().filter(|line| line.len() > 20 && !line.starts_with("--")) {
            // The signature of a token as well as the whole.
            for part in [line, line.rsplit('.').next().unwrap()] {
                assert!(!said.contains(part), "{file} is in a log");
            }
        }
    }
}

/// A key or token that others may read is not used.
#[tokio::test]
async fn loose_files_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new().await;
    let credentials = scene.stack.credentials("u-admin");
    for file in [credentials.key.clone(), credentials.token.clone().unwrap()] {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let config = scene.stack.config_of(&credentials);
        let error = Bus::connect(&config, "u-admin".parse().unwrap()).await.unwrap_err();
        assert!(format!("{error}").contains("0640"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    private_file(&scene.stack.path("u-admin.token"), "x").unwrap();
    let seed = scene.stack.path("keys/issuer.seed");
    fs::set_permissions(&seed, fs::Permissions::from_mode(0o644)).unwrap();
    let started = canopy_test_support::service::ServiceProcess::start(
        std::path::Path::new(stack::PROGRAM),
        scene.stack.config(),
    );
    // It says so and ends; whether it wrote its address before is a matter of luck.
    let said = match started {
        Ok(process) => {
            let until = std::time::Instant::now() + LIMIT;
            while !process.log().contains("0644") && std::time::Instant::now() < until {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            process.log()
        }
        Err(error) => error.to_string(),
    };
    assert!(said.contains("mode 0644") && said.contains("chmod 600"), "{said}");
}

/// A name pattern instead of a fingerprint: the person's renewed certificate goes with it.
#[tokio::test]
async fn a_binding_by_name_takes_a_renewed_certificate_and_no_others() {
    let mut scene = Scene::new().await;
    let binding: Binding =
        serde_json::from_value(json!({"san": {"uri": {"exact": "spiffe://canopy/u-publisher"}}}))
            .unwrap();
    scene.stack.issue_for(&scene.admin, "u-publisher", Role::Publisher, None, Some(binding)).await;
    scene.stack.connect("u-publisher").await;
    let token = fs::read_to_string(scene.stack.path("u-publisher.token")).unwrap();
    let renewed = scene.stack.certificate("renewed", vec![uri("u-publisher")]);
    let renewed = scene.stack.with_token(&renewed, "renewed", &token);
    scene.stack.connect_with("u-publisher", &renewed).await;
    let other = scene.stack.with_token(&scene.stack.credentials("u-operator"), "x", &token);
    scene.refused(&other, "token_other_certificate").await;
}
