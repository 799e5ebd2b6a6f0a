//! How a web server or a bucket is reached.

use crate::location::Location;
use canopy_api::{Problem, Problems};
use canopy_runtime::NamedFiles;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// How a web server or a bucket is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Address of a store that speaks the protocol of S3 or Azure, such as
    /// `https://minio.internal:9000`. Without it: the provider's own. Only for buckets.
    pub endpoint: Option<String>,
    /// The bucket's region, such as `eu-north-1`. Needed for Amazon's store. Only for `s3:`.
    pub region: Option<String>,
    /// The storage account. Only for `az:`, and needed there.
    pub account: Option<String>,
    /// Where the credentials are; they never stand here. Only for buckets. Default `instance`.
    pub credentials: Credentials,
    /// A file of certificates (PEM) that are trusted besides the system's, for a store of one's own.
    pub ca: Option<PathBuf>,
    /// What protects the way to the store. Default `tls`.
    pub transport: Transport,
}

/// Where a store's credentials are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// What the machine has been given: the instance's role or identity.
    #[default]
    Instance,
    /// The variables that the provider's own tools read (`AWS_ACCESS_KEY_ID`,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`, `AZURE_STORAGE_ACCOUNT_KEY`, …), set by the service manager.
    Environment,
    /// None: the bucket is public.
    Anonymous,
    /// A JSON file of the reader's user, mode 0600. For `s3:` with `access_key_id`,
    /// `secret_access_key` and, if there is one, `session_token`; for `az:` with `account_key`.
    File(PathBuf),
}

/// What protects the way to a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TLS, with the system's authorities and those of `ca`.
    #[default]
    Tls,
    /// DANGER: nothing. Signatures still decide what runs; but anybody on the way can read what is
    /// fetched, see the requests and withhold new versions until the index expires.
    Plaintext,
}

impl StoreConfig {
    /// Looks at the files that it names, as `--check` does.
    pub fn check_files(&self, at: &str, files: &mut NamedFiles) {
        crate::secrets::check_access_files(at, &self.credentials, self.ca.as_deref(), files);
    }

    /// Fields that mean nothing for this kind of place, and ways without protection that were not
    /// asked for. `at` is where the repository stands in the configuration; empty for none.
    pub fn check(&self, location: &Location, at: &str, problems: &mut Problems) {
        let at = if at.is_empty() { String::new() } else { format!("{at}.") };
        let mut problem = |field: &str, message: String, remedy: &str| {
            problems.push(Problem::new(format!("{at}{field}"), message).remedy(remedy));
        };
        let is_s3 = matches!(location, Location::S3 { .. });
        let is_azure = matches!(location, Location::Azure { .. });
        let is_bucket = is_s3 || is_azure;
        let only_there = [
            ("store.endpoint", self.endpoint.is_some(), is_bucket, "buckets"),
            ("store.region", self.region.is_some(), is_s3, "s3:"),
            ("store.account", self.account.is_some(), is_azure, "az:"),
            ("store.credentials", self.credentials != Credentials::default(), is_bucket, "buckets"),
        ];
        for (field, set, means, kind) in only_there {
            if set && !means {
                problem(field, format!("means something for {kind} only"), "remove it");
            }
        }
        if location.is_directory() {
            let only_remote = [
                ("store.ca", self.ca.is_some()),
                ("store.transport", self.transport != Transport::default()),
            ];
            for (field, set) in only_remote {
                if set {
                    problem(field, "means nothing for a directory".to_owned(), "remove it");
                }
            }
        }
        // The service manager's environment can name a region and an account too.
        let from_environment = self.credentials == Credentials::Environment;
        if is_s3 && self.region.is_none() && self.endpoint.is_none() && !from_environment {
            problem(
                "store.region",
                "the bucket's region is not said".to_owned(),
                "write it, such as eu-north-1; or the endpoint of another store",
            );
        }
        if is_azure && self.account.is_none() && !from_environment {
            problem(
                "store.account",
                "the storage account is not said".to_owned(),
                "write its name",
            );
        }
        let addresses = match location {
            Location::Web(url) => Some(("url", url.as_str())),
            Location::S3 { .. } | Location::Azure { .. } => {
                self.endpoint.as_deref().map(|url| ("store.endpoint", url))
            }
            Location::Directory(_) => None,
        };
        if let Some((field, address)) = addresses {
            if !matches!(Location::parse(address), Ok(Location::Web(_))) {
                problem(
                    field,
                    format!("\"{address}\" is not the address of a web server"),
                    "write it as https://minio.internal:9000",
                );
            } else if address.starts_with("http:") && self.transport == Transport::Tls {
                problem(
                    field,
                    "http: has no protection on the way".to_owned(),
                    "write https:, or accept the danger with store.transport: plaintext",
                );
            }
        }
    }
}
