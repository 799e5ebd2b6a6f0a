//! Where a secret comes from.

use crate::{
    Secret,
    file::{SecretError, read_credential, read_private},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// Where a secret is: never itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// A file of the service's user, or of root, mode 0600 or less.
    File(PathBuf),
    /// A credential of the service manager: the name in `LoadCredential=` of the systemd unit.
    Credential(String),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

impl SecretRef {
    /// Reads it now.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            Self::File(path) => read_private(path),
            Self::Credential(name) => {
                if name.is_empty() || name.contains('/') || name.starts_with('.') {
                    return Err(SecretError::new(
                        self.to_string(),
                        "it is not the name of a credential",
                        "give the name in LoadCredential= of the unit",
                    ));
                }
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    SecretError::new(
                        self.to_string(),
                        "the service manager handed over no credentials",
                        format!("add LoadCredential={name}:/path/to/the/file to the unit"),
                    )
                })?;
                read_credential(&PathBuf::from(dir).join(name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_written_as_one_field() {
        let read = |text: &str| serde_json::from_str::<SecretRef>(text);
        assert_eq!(read(r#"{"file": "/k"}"#).unwrap(), SecretRef::File("/k".into()));
        assert_eq!(read(r#"{"credential": "k"}"#).unwrap(), SecretRef::Credential("k".into()));
        // A secret written where its reference belongs.
        assert!(read(r#""-----BEGIN PRIVATE KEY-----""#).is_err());
        assert!(read(r#"{"inline": "x"}"#).is_err());
    }

    #[test]
    fn a_credential_is_a_plain_name() {
        for name in ["", "../k", "/etc/shadow", ".hidden"] {
            let error = SecretRef::Credential(name.into()).read().unwrap_err();
            assert!(error.reason.contains("not the name"), "{error}");
        }
    }
}
