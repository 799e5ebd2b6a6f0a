//! Secrets that a cloud keeps, beside files and credentials of the service manager.

use crate::{
    StoreError,
    config::{Credentials, StoreConfig, Transport},
    location::Location,
    open,
};
use canopy_api::{Problem, Problems};
use canopy_runtime::NamedFiles;
use canopy_secrets::{Secret, SecretError, SecretRef};
use object_store::{
    aws::AwsAuthorizer,
    client::{HttpConnector as _, HttpRequest, HttpRequestBody, ReqwestConnector},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use zeroize::Zeroizing;

/// How long a store has for its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest answer, bytes: a secret has at most 64 KiB there.
const LONGEST: usize = 256 * 1024;

/// Where a secret is: never itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// A file of the service's user, mode 0600 or less.
    File(PathBuf),
    /// A credential of the service manager: the name in `LoadCredential=` of the systemd unit.
    Credential(String),
    /// AWS Secrets Manager.
    AwsSecretsManager(AwsSecret),
}

/// A secret of AWS Secrets Manager.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsSecret {
    /// Its name or ARN.
    pub secret_id: String,
    /// Which of its versions: `AWSCURRENT` (default), `AWSPREVIOUS`, or a label of one's own.
    #[serde(default)]
    pub version_stage: Option<String>,
    /// The field with the secret, where the value is a JSON object; without it the value is the secret.
    #[serde(default)]
    pub field: Option<String>,
    /// Its region, such as `eu-north-1`.
    pub region: String,
    /// Address of the service, where it is not Amazon's own.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Where the credentials for it are: `instance` (default), `environment` or a `file` with
    /// `access_key_id`, `secret_access_key` and, if there is one, `session_token`.
    #[serde(default)]
    pub credentials: Credentials,
    /// A file of certificates (PEM) that are trusted besides the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// What protects the way there. Default `tls`.
    #[serde(default)]
    pub transport: Transport,
}

/// A place that keeps secrets and gives one away over the network. Another kind of cloud is another
/// implementation, and another variant of [`SecretSource`].
pub trait SecretStore {
    /// Fetches the secret as it is now.
    fn fetch(&self) -> impl Future<Output = Result<Secret, SecretError>> + Send;
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => SecretRef::File(path.clone()).fmt(f),
            Self::Credential(name) => SecretRef::Credential(name.clone()).fmt(f),
            Self::AwsSecretsManager(secret) => secret.fmt(f),
        }
    }
}

impl fmt::Display for AwsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AWS secret {} in {}", self.secret_id, self.region)?;
        self.version_stage.as_ref().map_or(Ok(()), |stage| write!(f, " ({stage})"))
    }
}

impl SecretSource {
    /// Reads it now. Waits for a disk or a network: not for a thread that others wait for.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            Self::File(path) => SecretRef::File(path.clone()).read(),
            Self::Credential(name) => SecretRef::Credential(name.clone()).read(),
            Self::AwsSecretsManager(secret) => wait_for(secret),
        }
    }

    /// Looks at it as `--check` does; the content, where it is a file's. A cloud is not called.
    pub fn check_file(&self, field: &str, files: &mut NamedFiles) -> Option<Secret> {
        match self {
            Self::File(path) => files.secret(field, &SecretRef::File(path.clone())),
            Self::Credential(name) => files.secret(field, &SecretRef::Credential(name.clone())),
            Self::AwsSecretsManager(secret) => {
                files.remark(format!(
                    "{field}: {secret} is not looked at: it is not on this machine"
                ));
                let at = format!("{field}.aws_secrets_manager");
                check_access_files(&at, &secret.credentials, secret.ca.as_deref(), files);
                None
            }
        }
    }

    /// Whether it can change without a file changing.
    pub fn is_remote(&self) -> bool {
        match self {
            Self::File(_) | Self::Credential(_) => false,
            Self::AwsSecretsManager(_) => true,
        }
    }

    /// What the schema cannot check. `at` is its place in the configuration.
    pub fn check(&self, at: &str, problems: &mut Problems) {
        let Self::AwsSecretsManager(secret) = self else { return };
        let at = format!("{at}.aws_secrets_manager");
        if secret.credentials == Credentials::Anonymous {
            problems.push(
                Problem::new(
                    format!("{at}.credentials"),
                    "nobody is given a secret without credentials",
                )
                .remedy("leave it out for the instance's role"),
            );
        }
        let Some(endpoint) = &secret.endpoint else { return };
        if !matches!(Location::parse(endpoint), Ok(Location::Web(_))) {
            problems.push(
                Problem::new(
                    format!("{at}.endpoint"),
                    format!("\"{endpoint}\" is not the address of a web server"),
                )
                .remedy("write it as https://secrets.internal"),
            );
        } else if endpoint.starts_with("http:") && secret.transport == Transport::Tls {
            problems.push(
                Problem::new(format!("{at}.endpoint"), "http: has no protection on the way")
                    .remedy("write https:, or accept the danger with transport: plaintext"),
            );
        }
    }
}

/// The files by which a store is reached.
pub(crate) fn check_access_files(
    at: &str,
    credentials: &Credentials,
    ca: Option<&Path>,
    files: &mut NamedFiles,
) {
    if let Credentials::File(path) = credentials {
        files.secret(&format!("{at}.credentials.file"), &SecretRef::File(path.clone()));
    }
    if let Some(ca) = ca {
        files.authorities(&format!("{at}.ca"), ca);
    }
}

/// From threads that belong to a runtime as from others.
fn wait_for(
    store: &(impl SecretStore + Clone + Send + fmt::Display + 'static),
) -> Result<Secret, SecretError> {
    let (what, store) = (store.to_string(), store.clone());
    let failed = |reason: String| SecretError {
        what: what.clone(),
        reason,
        remedy: "start the service again".to_owned(),
    };
    let fetching = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(store.fetch()))
    });
    match fetching.join() {
        Ok(Ok(fetched)) => fetched,
        Ok(Err(error)) => Err(failed(std::io::Error::to_string(&error))),
        Err(_) => Err(failed("the library panicked".to_owned())),
    }
}

/// What the service is asked.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct GetSecretValue<'a> {
    secret_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_stage: Option<&'a str>,
}

/// What it answers.
#[derive(Deserialize)]
struct SecretValue {
    #[serde(rename = "SecretString")]
    text: Option<Secret>,
}

/// Why it does not.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refused {
    #[serde(rename = "__type")]
    kind: String,
    #[serde(rename = "Message", alias = "message")]
    message: String,
}

impl AwsSecret {
    fn failed(&self, reason: impl Into<String>, remedy: &str) -> SecretError {
        SecretError { what: self.to_string(), reason: reason.into(), remedy: remedy.to_owned() }
    }

    fn store(&self) -> StoreConfig {
        StoreConfig {
            region: Some(self.region.clone()),
            credentials: self.credentials.clone(),
            ca: self.ca.clone(),
            transport: self.transport,
            ..StoreConfig::default()
        }
    }

    async fn answer(&self) -> Result<(u16, Zeroizing<Vec<u8>>), SecretError> {
        const WAY: &str = "see that the service can be reached from here, and what it says";
        const KEYS: &str = "see that the instance has a role, or name the credentials";
        let ours = |error: StoreError| self.failed(error.to_string(), KEYS);
        let way = |error: &dyn std::error::Error| self.failed(innermost(error), WAY);
        let config = self.store();
        let keys = open::aws_credentials(&config, LIMIT).map_err(ours)?;
        let keys =
            keys.get_credential().await.map_err(|error| self.failed(innermost(&error), KEYS))?;
        let url = match &self.endpoint {
            Some(endpoint) => format!("{}/", endpoint.trim_end_matches('/')),
            None => format!("https://secretsmanager.{}.amazonaws.com/", self.region),
        };
        let asked = GetSecretValue {
            secret_id: &self.secret_id,
            version_stage: self.version_stage.as_deref(),
        };
        let asked = serde_json::to_vec(&asked).map_err(|error| way(&error))?;
        let mut request = HttpRequest::new(HttpRequestBody::from(asked));
        *request.method_mut() = "POST".parse().map_err(|_| self.failed("no such method", WAY))?;
        *request.uri_mut() = url.parse().map_err(|_| {
            self.failed(format!("{url} is not an address"), "mend endpoint or region")
        })?;
        for (name, value) in [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "secretsmanager.GetSecretValue"),
        ] {
            request.headers_mut().insert(name, object_store::HeaderValue::from_static(value));
        }
        AwsAuthorizer::new(&keys, "secretsmanager", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|error| way(&error))?;
        let options = open::client(&config, LIMIT).map_err(ours)?;
        let client = ReqwestConnector::default().connect(&options).map_err(|error| way(&error))?;
        let answer = client.execute(request).await.map_err(|error| way(&error))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().bytes().await.map_err(|error| way(&error))?;
        if body.len() > LONGEST {
            return Err(self.failed(format!("an answer of {} bytes", body.len()), WAY));
        }
        Ok((status, Zeroizing::new(body.to_vec())))
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

impl SecretStore for AwsSecret {
    async fn fetch(&self) -> Result<Secret, SecretError> {
        let answer = tokio::time::timeout(LIMIT, self.answer()).await;
        let (status, body) = answer.map_err(|_| {
            self.failed(format!("no answer within {} s", LIMIT.as_secs()), "try again")
        })??;
        if status != 200 {
            let refused: Refused = serde_json::from_slice(&body).unwrap_or_default();
            let kind = refused.kind.rsplit('#').next().unwrap_or_default();
            return Err(self.failed(
                format!("HTTP {status} {kind}: {}", refused.message),
                "see that there is such a secret, and that these credentials may use \
                 secretsmanager:GetSecretValue on it",
            ));
        }
        // The parser's message may repeat what it met.
        let value: SecretValue = serde_json::from_slice(&body).map_err(|_| {
            self.failed("the answer is not as it should be", "see what the service says")
        })?;
        let text = value.text.ok_or_else(|| {
            self.failed("it is binary", "store the PEM or seed as text (SecretString)")
        })?;
        let Some(field) = &self.field else { return Ok(text) };
        let mut fields: BTreeMap<String, Secret> = serde_json::from_str(&text).map_err(|_| {
            self.failed("it is no JSON object of texts", "leave out `field`, or store it as one")
        })?;
        fields.remove(field).ok_or_else(|| {
            self.failed(format!("it has no field {field}"), "name the field that holds the secret")
        })
    }
}
