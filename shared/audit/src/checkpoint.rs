//! How far a stored chain goes, signed: what neither a host nor the store can take back.

use crate::record::{Head, LineHash};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use canopy_api::{Principal, wire::SignedCheckpoint};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// What is signed begins with this, so that no signature for another purpose is one of these.
const PURPOSE: &str = "canopy audit checkpoint 1\n";

/// How far a chain goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Whose chain.
    pub writer: Principal,
    /// Which.
    pub chain: String,
    /// Number of its last record that is stored.
    pub seq: u64,
    /// Hash of that record's line.
    pub hash: LineHash,
    /// Number of that record in the store. What the store removes in order has lower ones.
    pub stored: u64,
    /// When this was signed, RFC 3339.
    pub time: String,
    /// Id of the key.
    pub key: String,
}

impl Checkpoint {
    /// The place of the chain.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

/// Why a checkpoint is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not signed by that key.
    #[error("the signature is not that of the key {0}")]
    Signature(String),
    /// What is signed is no checkpoint.
    #[error("it is no checkpoint: {0}")]
    Malformed(String),
}

/// A key is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckpointKeyError(&'static str);

/// A key that signs checkpoints. It shows itself to nobody.
pub struct CheckpointKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl CheckpointKey {
    /// Reads a key as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// Why it is none, without repeating it.
    pub fn from_pem(pem: &str) -> Result<Self, CheckpointKeyError> {
        let bad = CheckpointKeyError("not an Ed25519 private key in PEM (PKCS#8)");
        let body = pem
            .split_once("-----BEGIN PRIVATE KEY-----")
            .and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"))
            .map(|(body, _)| body.split_whitespace().collect::<String>());
        let der = body.and_then(|body| STANDARD.decode(body).ok());
        let pair = der.and_then(|der| Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok());
        let pair = pair.ok_or(bad)?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref())
            .map_err(|_| CheckpointKeyError("its public half is not 32 bytes"))?;
        Ok(Self { pair, public: PublicKey(public) })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs a checkpoint.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn sign(&self, checkpoint: &Checkpoint) -> Result<SignedCheckpoint, serde_json::Error> {
        let statement = serde_json::to_string(checkpoint)?;
        let signature = self.pair.sign(format!("{PURPOSE}{statement}").as_bytes());
        Ok(SignedCheckpoint { statement, signature: STANDARD.encode(signature.as_ref()) })
    }
}

/// Verifies checkpoints. As text: base64 of its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Its id: the beginning of its SHA-256.
    pub fn id(&self) -> String {
        hex::encode(Sha256::digest(self.0)).chars().take(16).collect()
    }

    /// What a checkpoint says, if this key signed it.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(&self, signed: &SignedCheckpoint) -> Result<Checkpoint, CheckpointError> {
        let whole = format!("{PURPOSE}{}", signed.statement);
        STANDARD
            .decode(&signed.signature)
            .ok()
            .filter(|bytes| {
                UnparsedPublicKey::new(&ED25519, self.0).verify(whole.as_bytes(), bytes).is_ok()
            })
            .ok_or_else(|| CheckpointError::Signature(self.id()))?;
        serde_json::from_str(&signed.statement)
            .map_err(|error| CheckpointError::Malformed(error.to_string()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl FromStr for PublicKey {
    type Err = CheckpointKeyError;

    fn from_str(text: &str) -> Result<Self, CheckpointKeyError> {
        let bytes = STANDARD.decode(text.trim()).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(CheckpointKeyError("a public key is 32 bytes in base64, as in audit.pub"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;

    fn key() -> CheckpointKey {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let body = STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        CheckpointKey::from_pem(&pem).unwrap()
    }

    #[test]
    fn a_checkpoint_is_believed_of_its_own_key_and_unchanged_only() {
        let (ours, other) = (key(), key());
        let checkpoint = Checkpoint {
            writer: "h-web1-loader".parse().unwrap(),
            chain: "0123456789abcdef".to_owned(),
            seq: 7,
            hash: LineHash::of(b"x"),
            stored: 70,
            time: "2026-01-01T00:00:00Z".to_owned(),
            key: ours.public().id(),
        };
        let signed = ours.sign(&checkpoint).unwrap();
        assert_eq!(ours.public().verify(&signed).unwrap(), checkpoint);
        other.public().verify(&signed).unwrap_err();
        let lower = signed.statement.replace("\"seq\":7", "\"seq\":6");
        assert_ne!(lower, signed.statement);
        let lowered = SignedCheckpoint { statement: lower, ..signed.clone() };
        ours.public().verify(&lowered).unwrap_err();
        for signature in ["", "AAAA", "%"] {
            let cut = SignedCheckpoint { signature: signature.to_owned(), ..signed.clone() };
            ours.public().verify(&cut).unwrap_err();
        }
        let text = ours.public().to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap(), ours.public());
    }

    #[test]
    fn a_signature_for_another_purpose_is_none() {
        let ours = key();
        let statement = "{}".to_owned();
        let signature = STANDARD.encode(ours.pair.sign(statement.as_bytes()).as_ref());
        let signed = SignedCheckpoint { statement, signature };
        let refused = ours.public().verify(&signed).unwrap_err();
        assert_eq!(refused, CheckpointError::Signature(ours.public().id()));
    }
}
