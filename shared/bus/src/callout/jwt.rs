//! The server's questions and our answers: JSON web tokens in the form of NATS
//! (`ed25519-nkey`), which no library for JWTs knows.

use super::{CalloutKeys, ConnectRequest, Grant};
use async_nats::Message;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use canopy_secrets::Secret;
use nkeys::{KeyPair, XKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Header with the server's key for encryption.
const XKEY_HEADER: &str = "Nats-Server-Xkey";

/// Ten years, seconds.
const FAR: u64 = 10 * 366 * 86_400;

/// The server's question, read.
pub(super) struct Question {
    claims: Claims,
    /// The server's key for encryption.
    server: XKey,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: Option<u64>,
    nats: Asked,
}

#[derive(Deserialize)]
struct Asked {
    user_nkey: String,
    server_id: ServerId,
    client_info: ClientInfo,
    connect_opts: ConnectOpts,
    client_tls: Option<ClientTls>,
}

#[derive(Deserialize)]
struct ServerId {
    id: String,
    xkey: Option<String>,
}

#[derive(Deserialize)]
struct ClientInfo {
    #[serde(default)]
    host: String,
    #[serde(default)]
    id: u64,
}

#[derive(Deserialize)]
struct ConnectOpts {
    auth_token: Option<Secret>,
    user: Option<String>,
    pass: Option<String>,
    nkey: Option<String>,
    jwt: Option<String>,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct ClientTls {
    #[serde(default)]
    verified_chains: Vec<Vec<String>>,
}

impl Question {
    pub(super) fn read(keys: &CalloutKeys, message: &Message) -> Result<Self, String> {
        let header = message.headers.as_ref().and_then(|headers| headers.get(XKEY_HEADER));
        // Without encryption whoever reads along in AUTH has everybody's tokens.
        let server = header.ok_or("it is not encrypted; the server's configuration has no xkey")?;
        let server = XKey::from_public_key(server.as_str()).map_err(|error| error.to_string())?;
        let text = keys.xkey.open(&message.payload, &server).map_err(|error| error.to_string())?;
        let claims = verified(&text)?;
        if claims.aud != "nats-authorization-request" {
            return Err(format!("it is for {}", claims.aud));
        }
        if claims.exp.is_some_and(|end| now() > end.saturating_add(5)) {
            return Err("its time has passed; compare the clocks".to_owned());
        }
        if claims.nats.server_id.xkey.as_deref() != Some(server.public_key().as_str()) {
            return Err("it was encrypted by another server than it names".to_owned());
        }
        Ok(Self { claims, server })
    }

    pub(super) fn request(&self) -> ConnectRequest {
        let asked = &self.claims.nats;
        let given = &asked.connect_opts;
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        ConnectRequest {
            server: asked.server_id.id.clone(),
            address: asked.client_info.host.clone(),
            connection: asked.client_info.id,
            name: given.name.chars().filter(|c| !c.is_control()).take(128).collect(),
            certificate: asked
                .client_tls
                .as_ref()
                .and_then(|tls| tls.verified_chains.first()?.first().cloned()),
            token: given.auth_token.clone().filter(|token| !token.is_empty()),
            other_credentials: [&given.user, &given.pass, &given.nkey, &given.jwt]
                .into_iter()
                .any(some),
        }
    }

    /// The answer, signed and encrypted.
    pub(super) fn answer(
        &self,
        keys: &CalloutKeys,
        decided: Result<Grant, String>,
    ) -> Result<Vec<u8>, String> {
        let asked = &self.claims.nats;
        let mut nats = match decided {
            Ok(grant) => {
                let user = Issued {
                    sub: &asked.user_nkey,
                    // The account it is put into.
                    aud: "APP",
                    name: Some(&grant.user),
                    // The server counts in nanoseconds: what is centuries ahead overflows there, and
                    // counts as past.
                    exp: grant.until.map(|until| until.min(now().saturating_add(FAR))),
                    nats: json!({
                        "type": "user", "version": 2,
                        "pub": { "allow": grant.permissions.publish },
                        "sub": { "allow": grant.permissions.subscribe },
                        "subs": -1, "data": -1, "payload": -1,
                    }),
                    ..Issued::default()
                };
                json!({ "jwt": user.signed(&keys.issuer)? })
            }
            Err(reason) => json!({ "error": reason }),
        };
        if let Some(nats) = nats.as_object_mut() {
            nats.insert("type".to_owned(), json!("authorization_response"));
            nats.insert("version".to_owned(), json!(2));
        }
        let response =
            Issued { sub: &asked.user_nkey, aud: &asked.server_id.id, nats, ..Issued::default() };
        keys.xkey
            .seal(response.signed(&keys.issuer)?.as_bytes(), &self.server)
            .map_err(|error| error.to_string())
    }
}

/// Claims of ours.
#[derive(Default, Serialize)]
struct Issued<'a> {
    iss: String,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    nats: Value,
}

impl Issued<'_> {
    fn signed(mut self, issuer: &KeyPair) -> Result<String, String> {
        self.iss = issuer.public_key();
        self.iat = now();
        self.jti = crate::connection::random_token();
        let claims = serde_json::to_vec(&self).map_err(|error| error.to_string())?;
        let header = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
        let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = issuer.sign(text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The claims of a JWT that its issuer has signed.
fn verified(jwt: &[u8]) -> Result<Claims, String> {
    let text = std::str::from_utf8(jwt).map_err(|_| "it is not text")?;
    let (signed, signature) = text.rsplit_once('.').ok_or("it is not a JWT")?;
    let (_, payload) = signed.split_once('.').ok_or("it is not a JWT")?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|error| error.to_string());
    let claims: Claims =
        serde_json::from_slice(&decode(payload)?).map_err(|error| error.to_string())?;
    KeyPair::from_public_key(&claims.iss)
        .and_then(|issuer| issuer.verify(signed.as_bytes(), &decode(signature).unwrap_or_default()))
        .map_err(|_| "its signature is wrong")?;
    Ok(claims)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
