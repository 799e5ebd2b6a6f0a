//! What is done on the policy service's own machine, before there is a service to ask: making its
//! keys, and the first administrator's token.

use crate::{Config, auth::open_tokens, connections::seconds, trust::Trust};
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use canopy_api::{
    Principal,
    permission::Role,
    wire::tokens::{Binding, TokenIssueRequest},
};
use canopy_audit::CheckpointKey;
use canopy_bus::callout::CalloutKeys;
use canopy_identity::{Certificate, SigningKey};
use canopy_secrets::Secret;
use ring::{rand::SystemRandom, signature::Ed25519KeyPair};
use serde_json::json;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "\
canopy-policy keys --output DIR
    Makes the service's keys in DIR: issuer.seed, xkey.seed, token-signing.pem, audit-signing.pem (each
    mode 0600), callout.json with the public keys the bus server's configuration names, and
    audit-signing.pub, which canopy audit verify --key takes. Overwrites nothing.

canopy-policy audit-key --output FILE
    Makes only the key that signs audit checkpoints, for a service that has the others: FILE (mode 0600),
    and FILE with the ending .pub. Overwrites nothing.

canopy-policy bootstrap --config FILE --principal u-NAME --certificate FILE --output FILE
    Writes a token with the role admin for this person, bound to this certificate, to a file of mode
    0600. For the first administrator, and for the day when every administrator has lost theirs: the
    person's earlier token ends. Needs the bus, and the files the configuration names.
";

/// Runs one of these commands; `None` when the arguments are those of the service.
pub fn run(args: &[String]) -> Option<ExitCode> {
    let (name, rest) = args.split_first()?;
    let done = match name.as_str() {
        "keys" => options(rest, ["--output"]).and_then(|[output]| keys(Path::new(&output))),
        "audit-key" => {
            options(rest, ["--output"]).and_then(|[output]| audit_key(Path::new(&output)))
        }
        "bootstrap" => options(rest, ["--config", "--principal", "--certificate", "--output"])
            .and_then(|[config, principal, certificate, output]| {
                bootstrap(&config, &principal, &certificate, Path::new(&output))
            }),
        _ => return None,
    };
    Some(match done {
        Ok(text) => {
            // Nobody is left to tell when standard output is closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = std::io::stderr()
                .write_all(format!("canopy-policy {name}: {error:#}\n").as_bytes());
            if error.is::<Usage>() {
                let _ = std::io::stderr().write_all(format!("\n{USAGE}").as_bytes());
                return Some(ExitCode::from(2));
            }
            ExitCode::FAILURE
        }
    })
}

/// The arguments do not make sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The values of these options, each of which is needed.
fn options<const N: usize>(args: &[String], names: [&str; N]) -> anyhow::Result<[String; N]> {
    let mut values: [Option<String>; N] = std::array::from_fn(|_| None);
    let mut rest = args.iter();
    while let Some(name) = rest.next() {
        let place = names.iter().position(|one| one == name);
        let place = place.and_then(|place| values.get_mut(place));
        match (place, rest.next()) {
            (None, _) => bail!(Usage(format!("there is no option {name}"))),
            (Some(_), None) => bail!(Usage(format!("{name} needs a value"))),
            (Some(Some(_)), _) => bail!(Usage(format!("{name} is given twice"))),
            (Some(place), Some(value)) => *place = Some(value.clone()),
        }
    }
    let missing: Vec<&str> =
        names.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(n, _)| *n).collect();
    if !missing.is_empty() {
        bail!(Usage(format!("{} missing", missing.join(", "))));
    }
    Ok(values.map(Option::unwrap_or_default))
}

fn keys(dir: &Path) -> anyhow::Result<String> {
    let callout = CalloutKeys::generate();
    let (issuer, xkey) = callout.seeds()?;
    let pem = signing_key()?;
    let audit = signing_key()?;
    let audit_public = format!("{}\n", CheckpointKey::from_pem(&audit)?.public());
    let id = SigningKey::from_pem(&pem)?.id().to_owned();
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let public = format!("{:#}\n", json!({ "issuer": callout.issuer(), "xkey": callout.xkey() }));
    let files: [(&str, &str, u32); 6] = [
        ("issuer.seed", &issuer, 0o600),
        ("xkey.seed", &xkey, 0o600),
        ("token-signing.pem", &pem, 0o600),
        ("audit-signing.pem", &audit, 0o600),
        ("callout.json", &public, 0o644),
        ("audit-signing.pub", &audit_public, 0o644),
    ];
    // All or none: half a set would be taken for a whole one.
    if let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).exists()) {
        bail!("{} exists; choose another directory", dir.join(name).display());
    }
    let mut said = String::new();
    for (name, content, mode) in files {
        let path = dir.join(name);
        write_new(&path, content, mode)?;
        said = format!("{said}{}\n", path.display());
    }
    Ok(format!("{said}tokens will be signed by the key {id}\n"))
}

/// A new Ed25519 key, PKCS#8 in PEM.
fn signing_key() -> anyhow::Result<Secret> {
    let signing = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("no randomness for a key"))?;
    Ok(Secret::from(format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(signing.as_ref())
    )))
}

fn audit_key(path: &Path) -> anyhow::Result<String> {
    let pem = signing_key()?;
    let public = CheckpointKey::from_pem(&pem)?.public();
    let beside = path.with_extension("pub");
    if let Some(there) = [path, &beside].into_iter().find(|path| path.exists()) {
        bail!("{} exists; choose another file", there.display());
    }
    write_new(path, &pem, 0o600)?;
    write_new(&beside, &format!("{public}\n"), 0o644)?;
    Ok(format!(
        "{}\n{}\ncheckpoints will be signed by the key {}\n",
        path.display(),
        beside.display(),
        public.id()
    ))
}

fn write_new(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        })
        .with_context(|| format!("cannot write {}", path.display()))
}

fn bootstrap(
    config: &str,
    principal: &str,
    certificate: &str,
    output: &Path,
) -> anyhow::Result<String> {
    let path = PathBuf::from(config);
    let config: Config = canopy_runtime::load(&path)
        .map_err(|problems| anyhow::anyhow!("{}: {problems}", path.display()))?;
    let auth = config.auth.as_ref().context("the configuration has no `auth`")?;
    let principal: Principal = principal.parse()?;
    let pem = fs::read(certificate).with_context(|| format!("cannot read {certificate}"))?;
    let certificate =
        Certificate::from_pem(&pem).map_err(|error| anyhow::anyhow!("{certificate}: {error}"))?;
    let trust = Trust::read(auth)?;
    if output.exists() {
        bail!("{} exists; choose another file", output.display());
    }
    let binding = Binding::Fingerprint(certificate.fingerprint);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reply = runtime.block_on(async {
        let (data, tokens) = open_tokens(&config.bus, auth).await?;
        let (now, by) = (seconds(), "bootstrap");
        let issue = TokenIssueRequest {
            principal: principal.clone(),
            role: Role::Admin,
            scope: None,
            binding: Some(binding.clone()),
            expires_in: None,
        };
        // Who has lost theirs may have one in force.
        let before = tokens.get(&principal).await?;
        if before.is_some_and(|before| before.value.is_active(now)) {
            tokens.revoke(&principal, by, now).await?;
        }
        let reply = tokens.issue(&trust, &issue, by, now).await?;
        data.close().await;
        anyhow::Ok(reply)
    })?;
    write_new(output, &format!("{}\n", reply.token.0), 0o600)?;
    Ok(format!("{}: token {} of {principal}, role admin\n", output.display(), reply.record.id))
}
