//! Opening a repository's store: the one place that makes clients and reads credentials.

use crate::StoreError;
use crate::{
    config::{Credentials, StoreConfig, Transport},
    location::Location,
};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredentialProvider},
    azure::MicrosoftAzureBuilder,
    http::HttpBuilder,
    local::LocalFileSystem,
    prefix::PrefixStore,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{path::Path, sync::Arc, time::Duration};

/// How often a failing request is tried again.
const RETRIES: usize = 3;

/// Longest file of credentials or certificates, bytes.
const FILE_LIMIT: u64 = 64 * 1024;

/// A file of credentials for S3.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct S3Keys {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

/// Opens the store; `limit` is how long one read may take.
pub(super) fn open(
    location: &Location,
    config: &StoreConfig,
    limit: Duration,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match location {
        Location::Directory(root) => LocalFileSystem::new_with_prefix(root)
            .map(|store| {
                // What is written is to stay, and of what is removed nothing.
                Arc::new(store.with_fsync(true).with_automatic_cleanup(true)) as _
            })
            .map_err(|source| StoreError::of(&root.display().to_string(), source)),
        Location::Web(url) => HttpBuilder::new()
            .with_url(url.as_str())
            .with_client_options(client(config, limit)?)
            .with_retry(retry(limit))
            .build()
            .map(|store| Arc::new(store) as _)
            .map_err(|source| StoreError::of(url.as_str(), source)),
        Location::S3 { bucket, prefix } => Ok(in_folder(s3(bucket, config, limit)?, prefix)),
        Location::Azure { container, prefix } => {
            Ok(in_folder(azure(container, config, limit)?, prefix))
        }
    }
}

fn in_folder(store: impl ObjectStore, prefix: &str) -> Arc<dyn ObjectStore> {
    if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) }
}

/// Credentials for another of Amazon's services.
pub(super) fn aws_credentials(
    config: &StoreConfig,
    limit: Duration,
) -> Result<AwsCredentialProvider, StoreError> {
    // They come with a bucket, which nobody is asked about.
    Ok(Arc::clone(s3("none", config, limit)?.credentials()))
}

fn s3(
    bucket: &str,
    config: &StoreConfig,
    limit: Duration,
) -> Result<object_store::aws::AmazonS3, StoreError> {
    let mut builder = match &config.credentials {
        Credentials::Environment => AmazonS3Builder::from_env(),
        Credentials::Instance | Credentials::Anonymous | Credentials::File(_) => {
            AmazonS3Builder::new()
        }
    };
    if config.credentials == Credentials::Anonymous {
        builder = builder.with_skip_signature(true);
    }
    if let Credentials::File(path) = &config.credentials {
        let keys: S3Keys = keys(
            path,
            "write {\"access_key_id\": …, \"secret_access_key\": …} and, if there is one, \
             \"session_token\"",
        )?;
        builder = builder
            .with_access_key_id(keys.access_key_id)
            .with_secret_access_key(keys.secret_access_key);
        if let Some(token) = keys.session_token {
            builder = builder.with_token(token);
        }
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder
        .with_config(AmazonS3ConfigKey::Bucket, bucket)
        .with_client_options(client(config, limit)?)
        .with_retry(retry(limit))
        .build()
        .map_err(|source| StoreError::of(bucket, source))
}

/// A file of credentials for Azure.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AzureKeys {
    account_key: String,
}

fn azure(
    container: &str,
    config: &StoreConfig,
    limit: Duration,
) -> Result<object_store::azure::MicrosoftAzure, StoreError> {
    let mut builder = match &config.credentials {
        Credentials::Environment => MicrosoftAzureBuilder::from_env(),
        Credentials::Instance | Credentials::Anonymous | Credentials::File(_) => {
            MicrosoftAzureBuilder::new()
        }
    };
    if config.credentials == Credentials::Anonymous {
        builder = builder.with_skip_signature(true);
    }
    if let Credentials::File(path) = &config.credentials {
        let keys: AzureKeys = keys(path, "write {\"account_key\": …}")?;
        builder = builder.with_access_key(keys.account_key);
    }
    if let Some(account) = &config.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    builder
        .with_container_name(container)
        .with_client_options(client(config, limit)?)
        .with_retry(retry(limit))
        .build()
        .map_err(|source| StoreError::of(container, source))
}

/// What stands in a file of credentials. The parser's message may repeat what it met; only the place
/// is told.
fn keys<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T, StoreError> {
    serde_json::from_str(&secret(path)?).map_err(|error| StoreError::Credentials {
        path: path.to_owned(),
        reason: format!("line {}, column {} is not as it should be", error.line(), error.column()),
        remedy: remedy.to_owned(),
    })
}

fn retry(limit: Duration) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            base: 2.,
        },
        max_retries: RETRIES,
        retry_timeout: limit,
    }
}

pub(super) fn client(config: &StoreConfig, limit: Duration) -> Result<ClientOptions, StoreError> {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut options = ClientOptions::new()
        .with_timeout(limit)
        .with_connect_timeout(limit)
        .with_allow_http(config.transport == Transport::Plaintext);
    if let Some(ca) = &config.ca {
        let bad = |reason: String| StoreError::Credentials {
            path: ca.clone(),
            reason,
            remedy: "name a readable file of certificates in PEM".to_owned(),
        };
        canopy_files::check_protected(ca).map_err(|open| StoreError::Credentials {
            path: open.path,
            reason: open.reason,
            remedy: open.remedy,
        })?;
        let text =
            canopy_files::read_text(ca, FILE_LIMIT).map_err(|error| bad(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(text.as_bytes())
            .map_err(|error| bad(error.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("there is no certificate in it".to_owned()));
        }
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

/// Reads a file that only its owner, who is this process's user, may read.
fn secret(path: &Path) -> Result<canopy_secrets::Secret, StoreError> {
    canopy_secrets::read_private(path).map_err(|error| StoreError::Credentials {
        path: path.to_owned(),
        reason: error.reason,
        remedy: error.remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_stands_in_a_file_of_credentials_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3.json");
        fs::write(&path, "{\"access_key_id\": \"a\", \"secret_accesskey\": \"hunter2\"}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let config = StoreConfig {
            credentials: Credentials::File(path),
            region: Some("eu-north-1".to_owned()),
            ..StoreConfig::default()
        };
        let error = s3("b", &config, Duration::from_secs(1)).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
