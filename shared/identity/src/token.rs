//! People's tokens: JSON web tokens (RFC 7519) signed with Ed25519 (RFC 8037), bound to a
//! certificate (RFC 8705).
//!
//! A token says who somebody is and which role they have. Whether it is still in force is not in
//! it: that is for who keeps the tokens' state.

use crate::Certificate;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use canopy_api::{
    Principal, authority::Authority, permission::Role, scope::Scope, wire::tokens::Binding,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{fmt, time::Duration};

/// Who issues tokens.
pub const ISSUER: &str = "canopy-policy";
/// Whom they are for.
pub const AUDIENCE: &str = "canopy";

/// Longest token that is looked at, bytes: the server's CONNECT line takes 16 KiB.
const LONGEST: usize = 8 * 1024;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// [`AUDIENCE`].
    pub aud: String,
    /// Who.
    pub sub: Principal,
    /// What they may do.
    pub role: Role,
    /// Id of the token.
    pub jti: String,
    /// How many tokens the person has had: a regenerated one counts one more.
    #[serde(rename = "gen")]
    pub generation: u64,
    /// When it was issued, seconds since 1970.
    pub iat: u64,
    /// When it ends, if by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// Which certificate it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Binding>,
    /// Where the role counts, if not everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three pieces of base64, or too long.
    #[error("it is not a token")]
    Malformed,
    /// Another algorithm than Ed25519, `none` included.
    #[error("it is not signed with EdDSA")]
    Algorithm,
    /// Signed with a key that is not trusted (any more).
    #[error("its key \"{0}\" is not trusted")]
    UnknownKey(String),
    /// The signature is not that of the key.
    #[error("its signature is wrong")]
    Signature,
    /// Issued by or for somebody else.
    #[error("it was issued by or for somebody else")]
    Foreign,
    /// Claims are missing, unknown or of the wrong kind.
    #[error("its claims are not those of a token of ours")]
    Claims,
    /// Not of a person.
    #[error("{0} is not a person")]
    NotAPerson(Principal),
    /// Its end has passed.
    #[error("it ended {0} s ago")]
    Expired(u64),
    /// It was issued in the future, by our clock.
    #[error("it was issued {0} s in the future; compare the clocks")]
    Early(u64),
    /// A role that must be bound to a certificate, and is not.
    #[error("a token of the role {0} must be bound to a certificate")]
    Unbound(Role),
    /// The certificate is not one it goes with.
    #[error("it is bound to another certificate")]
    OtherCertificate,
}

impl TokenError {
    /// A word for it, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey(_) => "unknown_key",
            Self::Signature => "signature",
            Self::Foreign => "foreign",
            Self::Claims => "claims",
            Self::NotAPerson(_) => "not_a_person",
            Self::Expired(_) => "expired",
            Self::Early(_) => "early",
            Self::Unbound(_) => "unbound",
            Self::OtherCertificate => "other_certificate",
        }
    }
}

/// A key file is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 private key in PEM (PKCS#8): {0}")]
pub struct KeyError(&'static str);

/// A key that signs tokens. It shows itself to nobody.
pub struct SigningKey {
    id: String,
    public: Vec<u8>,
    key: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads a key as `openssl genpkey -algorithm ed25519` writes it.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let body = pem
            .split_once("-----BEGIN PRIVATE KEY-----")
            .and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"))
            .ok_or(KeyError("there is no PRIVATE KEY in it"))?
            .0;
        let base64: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD.decode(base64).map_err(|_| KeyError("it is not base64"))?;
        Self::from_der(&der)
    }

    /// Reads a key in DER (PKCS#8).
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|_| KeyError("it is a key of another kind"))?;
        let public = pair.public_key().as_ref().to_vec();
        Ok(Self { id: key_id(&public), public, key: EncodingKey::from_ed_der(der) })
    }

    /// Its id: what a token signed by it names.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its public half, base64url.
    pub fn public(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.public)
    }

    /// A token that says this.
    ///
    /// # Errors
    /// [`TokenError::Unbound`] for a role that must be bound and is not, [`TokenError::NotAPerson`]
    /// for a service; [`TokenError::Claims`] for claims no verifier would take.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        sound(claims)?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|_| TokenError::Claims)
    }
}

fn key_id(public: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(public)).chars().take(16).collect()
}

/// The keys whose tokens are believed: the one that signs, and those that signed before.
#[derive(Clone)]
pub struct VerifyingKeys(Vec<(String, DecodingKey)>);

impl fmt::Debug for VerifyingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| id)).finish()
    }
}

/// What a token is measured by.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Now, seconds since 1970.
    pub now: u64,
    /// By how much clocks may differ.
    pub skew: Duration,
    /// The certificate its bearer has shown.
    pub certificate: &'a Certificate,
}

impl VerifyingKeys {
    /// The public halves of these.
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Self {
        Self(
            keys.into_iter()
                .map(|key| (key.id.clone(), DecodingKey::from_ed_der(&key.public)))
                .collect(),
        )
    }

    /// What a token says, if it is to be believed: signed by one of these keys, in its time, borne
    /// by who has the certificate it is bound to. Whether it is still in force is another question.
    pub fn verify(&self, token: &str, wanted: Wanted<'_>) -> Result<Claims, TokenError> {
        use jsonwebtoken::errors::ErrorKind;
        if token.len() > LONGEST {
            return Err(TokenError::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
            // An algorithm the library does not know, `none` among them, fails as JSON.
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
            _ => TokenError::Malformed,
        })?;
        if header.alg != Algorithm::EdDSA {
            return Err(TokenError::Algorithm);
        }
        let id = header.kid.unwrap_or_default();
        let (_, key) = self
            .0
            .iter()
            .find(|(known, _)| *known == id)
            .ok_or_else(|| TokenError::UnknownKey(id.chars().take(64).collect()))?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["iss", "aud", "sub"]);
        // By our own clock, below.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::InvalidAudience
                | ErrorKind::InvalidIssuer
                | ErrorKind::MissingRequiredClaim(_) => TokenError::Foreign,
                ErrorKind::Base64(_) | ErrorKind::InvalidToken => TokenError::Malformed,
                ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
                _ => TokenError::Claims,
            })?
            .claims;
        sound(&claims)?;
        let skew = wanted.skew.as_secs();
        if let Some(end) = claims.exp
            && wanted.now >= end.saturating_add(skew)
        {
            return Err(TokenError::Expired(wanted.now.saturating_sub(end)));
        }
        if claims.iat > wanted.now.saturating_add(skew) {
            return Err(TokenError::Early(claims.iat.saturating_sub(wanted.now)));
        }
        match &claims.cnf {
            Some(binding) if !wanted.certificate.goes_with(binding) => {
                Err(TokenError::OtherCertificate)
            }
            _ => Ok(claims),
        }
    }
}

/// What a token says that its owner may do, without a look at its signature: for the owner, who wants to
/// know what to ask for. It decides nothing; whoever is asked verifies the token. `None` for what is not a
/// token, or one of a newer version.
pub fn unverified_authority(token: &str) -> Option<Authority> {
    #[derive(Deserialize)]
    struct Claimed {
        role: Role,
        #[serde(default)]
        scope: Option<Scope>,
    }
    let token = token.trim();
    if token.len() > LONGEST {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claimed { role, scope } = serde_json::from_slice(&claims).ok()?;
    Some(Authority::new(role, scope.as_ref()))
}

/// What is wrong with claims however they are signed.
fn sound(claims: &Claims) -> Result<(), TokenError> {
    if !claims.sub.is_person() {
        return Err(TokenError::NotAPerson(claims.sub.clone()));
    }
    if claims.role.must_be_bound() && claims.cnf.is_none() {
        return Err(TokenError::Unbound(claims.role));
    }
    Ok(())
}
