//! What is done on the policy service's own machine, before there is a service to ask: making its
//! keys, and the first administrator's token.

use crate::{
    AuthConfig, Config,
    auth::{SeatNkeys, open_data, open_tokens},
    backup,
    connections::seconds,
    grants::Giver,
    trust::Trust,
};
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use canopy_api::{
    Principal,
    endpoint::Service,
    nats::PolicyNkeys,
    permission::Role,
    wire::tokens::{Binding, TokenIssueRequest, TokenReply},
};
use canopy_audit::CheckpointKey;
use canopy_bus::{
    callout::{CalloutKeys, generate_nkey},
    data,
};
use canopy_identity::{Certificate, SigningKey};
use canopy_secrets::{Account, Secret, SecretError, is_root};
use ring::{rand::SystemRandom, signature::Ed25519KeyPair};
use serde_json::json;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// How long `bootstrap` waits for the bus's servers to elect who keeps the tokens.
const LEADERLESS: Duration = Duration::from_secs(30);

const USAGE: &str = "\
canopy-policy keys --output DIR [--owner USER]
    Makes the service's keys in DIR: issuer.seed, xkey.seed, nkey-app.seed, nkey-callout.seed,
    nkey-data.seed, nkey-system.seed, token-signing.pem, audit-signing.pem (each mode 0600), callout.json and
    nkeys.json with the public keys the bus server's configuration names, and audit-signing.pub, which
    canopy audit verify --key takes. Prints the public keys as the bus server's environment has them.
    Overwrites nothing. They belong to USER, whom the service runs as; without --owner, to the owner of DIR.

canopy-policy nkeys --output DIR [--owner USER]
    Makes only the keys of the service's own connections (nkey-*.seed, nkeys.json), for a service that has
    the others. Overwrites nothing. They belong to USER as above.

canopy-policy audit-key --output FILE [--owner USER]
    Makes only the key that signs audit checkpoints, for a service that has the others: FILE (mode 0600),
    and FILE with the ending .pub. Overwrites nothing. They belong to USER as above.

canopy-policy backup --config FILE --output DIR
    Writes everything the service has stored (tokens, enrolments, the audit trail) into the new directory DIR.

canopy-policy restore --config FILE --input DIR
    Puts a backup into a store that has none of it: another bus server, or the cluster that one server has
    become part of, which starts with nothing. Policy services do not run meanwhile. Both read the files the
    configuration names as bootstrap does, and so do files of a backup belong to that user.

canopy-policy bootstrap --config FILE --principal u-NAME --certificate FILE --output FILE
    Writes a token with the role admin for this person, bound to this certificate, to a file of mode
    0600. For the first administrator, and for the day when every administrator has lost theirs: the
    person's earlier token ends. Needs the bus, and the files the configuration names; root reads them as
    the user they belong to. Waits up to 30 s for a cluster that elects a leader.
";

/// Runs one of these commands; `None` when the arguments are those of the service.
pub fn run(args: &[String]) -> Option<ExitCode> {
    let (name, rest) = args.split_first()?;
    let help = || format!("{}\nCommands:\n\n{USAGE}", canopy_runtime::usage(Service::Policy));
    let done = match name.as_str() {
        "help" | "--help" | "-h" => Ok(help()),
        "keys" => options(rest, ["--output"], ["--owner"])
            .and_then(|([output], [owner])| keys(Path::new(&output), owner.as_deref())),
        "nkeys" => options(rest, ["--output"], ["--owner"])
            .and_then(|([output], [owner])| nkeys(Path::new(&output), owner.as_deref())),
        "audit-key" => options(rest, ["--output"], ["--owner"])
            .and_then(|([output], [owner])| audit_key(Path::new(&output), owner.as_deref())),
        "backup" => options(rest, ["--config", "--output"], [])
            .and_then(|([config, output], [])| stored(&config, Path::new(&output), Store::Backup)),
        "restore" => options(rest, ["--config", "--input"], [])
            .and_then(|([config, input], [])| stored(&config, Path::new(&input), Store::Restore)),
        "bootstrap" => options(rest, ["--config", "--principal", "--certificate", "--output"], [])
            .and_then(|([config, principal, certificate, output], [])| {
                bootstrap(&config, &principal, &certificate, Path::new(&output))
            }),
        option if option.starts_with('-') => return None,
        _ => Err(anyhow::Error::new(Usage("there is no such command".to_owned()))),
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

/// The values of these options: those that are needed, and those that may be left out.
fn options<const N: usize, const M: usize>(
    args: &[String],
    needed: [&str; N],
    others: [&str; M],
) -> anyhow::Result<([String; N], [Option<String>; M])> {
    let mut values: [Option<String>; N] = std::array::from_fn(|_| None);
    let mut more: [Option<String>; M] = std::array::from_fn(|_| None);
    let mut rest = args.iter();
    while let Some(name) = rest.next() {
        let place = needed
            .iter()
            .zip(&mut values)
            .chain(others.iter().zip(&mut more))
            .find(|(one, _)| *one == name)
            .map(|(_, place)| place);
        match (place, rest.next()) {
            (None, _) => bail!(Usage(format!("there is no option {name}"))),
            (Some(_), None) => bail!(Usage(format!("{name} needs a value"))),
            (Some(Some(_)), _) => bail!(Usage(format!("{name} is given twice"))),
            (Some(place), Some(value)) => *place = Some(value.clone()),
        }
    }
    let missing: Vec<&str> =
        needed.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(n, _)| *n).collect();
    if !missing.is_empty() {
        bail!(Usage(format!("{} missing", missing.join(", "))));
    }
    Ok((values.map(Option::unwrap_or_default), more))
}

/// An error of a secret with what to do about it.
#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn with_remedy(error: SecretError) -> anyhow::Error {
    anyhow::anyhow!("{error}; {}", error.remedy)
}

/// Whose new files in this directory are to be: the named user's, who is to be able to enter it; else its
/// owner's.
fn owner(dir: &Path, named: Option<&str>) -> anyhow::Result<Account> {
    let looked = || format!("cannot look at {}", dir.display());
    let Some(named) = named else { return Account::owner_of(dir).with_context(looked) };
    let owner = Account::named(named).map_err(with_remedy)?;
    if !owner.is_this_process() && !is_root() {
        bail!("only root can make files of {owner}: run this with sudo, or as {owner}");
    }
    let enters = owner.act(|| dir.join(".").metadata().is_ok())?;
    if !enters {
        bail!(
            "{owner} cannot enter {}: choose a directory that {owner} can reach, or give it to {owner} \
             with chown",
            dir.display()
        );
    }
    Ok(owner)
}

/// The same of a directory that is made where it is not there, and is the named user's then.
fn owner_of_new(dir: &Path, named: Option<&str>) -> anyhow::Result<Account> {
    if !dir.exists() {
        // Who is to have it is known before there is anything.
        let account = named.map(|named| Account::named(named).map_err(with_remedy)).transpose()?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        if let Some(owner) = account {
            let made = fs::File::open(dir).and_then(|made| owner.give(&made));
            made.with_context(|| format!("cannot give {} to {owner}", dir.display()))?;
        }
    }
    owner(dir, named)
}

fn keys(dir: &Path, named: Option<&str>) -> anyhow::Result<String> {
    let callout = CalloutKeys::generate();
    let (issuer, xkey) = callout.seeds()?;
    let pem = signing_key()?;
    let audit = signing_key()?;
    let audit_public = format!("{}\n", CheckpointKey::from_pem(&audit)?.public());
    let id = SigningKey::from_pem(&pem)?.id().to_owned();
    let owner = owner_of_new(dir, named)?;
    let public = format!("{:#}\n", json!({ "issuer": callout.issuer(), "xkey": callout.xkey() }));
    let own = OwnNkeys::generate()?;
    let mut files: Vec<(&str, &str, u32)> = vec![
        ("issuer.seed", &issuer, 0o600),
        ("xkey.seed", &xkey, 0o600),
        ("token-signing.pem", &pem, 0o600),
        ("audit-signing.pem", &audit, 0o600),
        ("callout.json", &public, 0o644),
        ("audit-signing.pub", &audit_public, 0o644),
    ];
    files.extend(own.files());
    let written = write_set(dir, &files, &owner)?;
    let (issuer, xkey) = (callout.issuer(), callout.xkey());
    Ok(format!(
        "{written}tokens will be signed by the key {id}\n{}\nthe bus server's environment:\n\
         CANOPY_CALLOUT_ISSUER={issuer}\nCANOPY_CALLOUT_XKEY={xkey}\n{}",
        belongs(&owner),
        own.environment()
    ))
}

/// The keys of the service's own connections.
struct OwnNkeys {
    /// File, seed.
    seeds: [(&'static str, Secret); 4],
    public: PolicyNkeys,
    /// `public` as its file has it.
    json: String,
}

impl OwnNkeys {
    fn generate() -> anyhow::Result<Self> {
        let [app, callout, data, system] = [(); 4].map(|()| generate_nkey());
        let (app, callout, data, system) = (app?, callout?, data?, system?);
        let public = PolicyNkeys { app: app.0, callout: callout.0, data: data.0, system: system.0 };
        let json = serde_json::to_string_pretty(&public)? + "\n";
        let seeds = [
            ("nkey-app.seed", app.1),
            ("nkey-callout.seed", callout.1),
            ("nkey-data.seed", data.1),
            ("nkey-system.seed", system.1),
        ];
        Ok(Self { seeds, public, json })
    }

    fn files(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        let seeds = self.seeds.iter().map(|(name, seed)| (*name, seed.as_str(), 0o600));
        seeds.chain([("nkeys.json", self.json.as_str(), 0o644)])
    }

    /// The public keys, as variables of the bus server's environment.
    fn environment(&self) -> String {
        let PolicyNkeys { app, callout, data, system } = &self.public;
        format!(
            "CANOPY_NKEY_APP={app}\nCANOPY_NKEY_CALLOUT={callout}\nCANOPY_NKEY_DATA={data}\n\
             CANOPY_NKEY_SYSTEM={system}\n"
        )
    }
}

fn nkeys(dir: &Path, named: Option<&str>) -> anyhow::Result<String> {
    let owner = owner_of_new(dir, named)?;
    let own = OwnNkeys::generate()?;
    let files: Vec<(&str, &str, u32)> = own.files().collect();
    let written = write_set(dir, &files, &owner)?;
    let environment = own.environment();
    Ok(format!("{written}{}\nthe bus server's environment:\n{environment}", belongs(&owner)))
}

/// Writes all of these files or none: half a set would be taken for a whole one. The paths, a line each.
fn write_set(dir: &Path, files: &[(&str, &str, u32)], owner: &Account) -> anyhow::Result<String> {
    if let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).exists()) {
        bail!("{} exists; choose another directory", dir.join(name).display());
    }
    let mut written = String::new();
    for (name, content, mode) in files {
        let path = dir.join(name);
        write_new(&path, content, *mode, owner)?;
        written = format!("{written}{}\n", path.display());
    }
    Ok(written)
}

/// Who can use what was written.
fn belongs(owner: &Account) -> String {
    format!(
        "these files are {owner}'s: the service has to run as {owner} (--owner names another)\n"
    )
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

fn audit_key(path: &Path, named: Option<&str>) -> anyhow::Result<String> {
    let pem = signing_key()?;
    let public = CheckpointKey::from_pem(&pem)?.public();
    let beside = path.with_extension("pub");
    if let Some(there) = [path, &beside].into_iter().find(|path| path.exists()) {
        bail!("{} exists; choose another file", there.display());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let owner = owner(parent.unwrap_or(Path::new(".")), named)?;
    write_new(path, &pem, 0o600, &owner)?;
    write_new(&beside, &format!("{public}\n"), 0o644, &owner)?;
    Ok(format!(
        "{}\n{}\ncheckpoints will be signed by the key {}\n{}",
        path.display(),
        beside.display(),
        public.id(),
        belongs(&owner)
    ))
}

fn write_new(path: &Path, content: &str, mode: u32, owner: &Account) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            // Before there is anything in it.
            if !owner.is_this_process() && is_root() {
                owner.give(&file)?;
            }
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
    // Whose the file is that root names is for root to know; who else may write it still counts.
    canopy_files::accept_any_owner();
    let path = PathBuf::from(config);
    let config: Config = canopy_runtime::load(&path)
        .map_err(|problems| anyhow::anyhow!("{}: {problems}", path.display()))?;
    let auth = config.auth.as_ref().context("the configuration has no `auth`")?;
    let principal: Principal = principal.parse()?;
    let pem = canopy_files::read(certificate.as_ref(), 1 << 20)
        .with_context(|| format!("cannot read {certificate}"))?;
    let certificate =
        Certificate::from_pem(&pem).map_err(|error| anyhow::anyhow!("{certificate}: {error}"))?;
    if output.exists() {
        bail!("{} exists; choose another file", output.display());
    }
    let binding = Binding::Fingerprint(certificate.fingerprint);
    // The service's files are its user's, and no secret of another user is read, not even by root.
    let service = Account::owner_of(&auth.data.key)
        .with_context(|| format!("auth.data.key: cannot read {}", auth.data.key.display()))?;
    let issue = || issue(&config, auth, &principal, &binding);
    let reply = if is_root() { service.act(issue)?? } else { issue()? };
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let owner = owner(parent.unwrap_or(Path::new(".")), None)?;
    write_new(output, &format!("{}\n", reply.token.0), 0o600, &owner)?;
    Ok(format!("{}: token {} of {principal}, role admin\n", output.display(), reply.record.id))
}

/// What to do with everything that is stored.
#[derive(Clone, Copy)]
enum Store {
    Backup,
    Restore,
}

/// Backs up, or restores, with the service's own keys.
fn stored(config: &str, dir: &Path, what: Store) -> anyhow::Result<String> {
    let path = PathBuf::from(config);
    let config: Config = canopy_runtime::load(&path)
        .map_err(|problems| anyhow::anyhow!("{}: {problems}", path.display()))?;
    let auth = config.auth.as_ref().context("the configuration has no `auth`")?;
    let service = Account::owner_of(&auth.data.key)
        .with_context(|| format!("auth.data.key: cannot read {}", auth.data.key.display()))?;
    let work = || -> anyhow::Result<String> {
        let nkeys = SeatNkeys::read(&auth.nkeys)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let data = open_data(&config.bus, auth, &nkeys).await?;
            let done = match what {
                Store::Backup => backup::backup(&data, dir).await,
                Store::Restore => backup::restore(&data, dir, &config).await,
            };
            data.close().await;
            done
        })
    };
    if is_root() { service.act(work)? } else { work() }
}

/// Issues a token with the service's own keys.
fn issue(
    config: &Config,
    auth: &AuthConfig,
    principal: &Principal,
    binding: &Binding,
) -> anyhow::Result<TokenReply> {
    let trust = Trust::read(auth)?;
    let nkeys = SeatNkeys::read(&auth.nkeys)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let data = open_data(&config.bus, auth, &nkeys).await?;
        let issued = data::retry_for(LEADERLESS, async {
            let tokens = open_tokens(&data, auth).await?;
            let (now, giver) = (seconds(), Giver::bootstrap());
            let issue = TokenIssueRequest {
                principal: principal.clone(),
                role: Role::Admin,
                scope: None,
                binding: Some(binding.clone()),
                expires_in: None,
            };
            // Who has lost theirs may have one in force.
            let before = tokens.get(principal).await?;
            if before.is_some_and(|before| before.value.is_active(now)) {
                tokens.revoke(principal, &giver, now).await?;
            }
            anyhow::Ok(tokens.issue(&trust, &issue, &giver, now).await?)
        });
        let issued = Box::pin(issued).await;
        data.close().await;
        issued
    })
}
