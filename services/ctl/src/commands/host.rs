//! `canopy host`

use crate::{
    cli::{
        ConnectionArgs, HostCommand, HostEnrolArgs, HostInstallArgs, HostRenewArgs, HostRequestArgs,
    },
    commands::on_bus,
    context::Settings,
    failure::{Exit, Failure},
    files,
    output::{Format, Screen},
    remote::Remote,
    view::enrolment::{
        DaemonConfig, Enrolled, Installed, Renewals, RenewedCertificate, Requested, key_lines,
    },
};
use canopy_api::{
    HostId, Principal,
    endpoint::{Service, policy},
    permission::{daemon_of, daemon_principal},
    wire::hosts::{
        HostEnrolRequest, HostForgetRequest, HostLabelRequest, HostListRequest, HostRenewRequest,
        HostRevokeRequest,
    },
};
use canopy_identity::{Certificate, SigningRequest, belong_together, request, request_again};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Largest file that is carried.
const LIMIT: usize = 256 * 1024;
/// What tells the host's daemons where the bus is, beside their certificates.
const PLACE: &str = "host.json";

/// What a host asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFile {
    host: HostId,
    requests: BTreeMap<Service, String>,
}

/// What it is given. Nothing in it is secret.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolmentFile {
    host: HostId,
    bus: String,
    ca: String,
    certificates: BTreeMap<Service, String>,
}

/// Where an installed host belongs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceFile {
    host: HostId,
    bus: String,
}

fn services() -> impl Iterator<Item = Service> {
    Service::ALL.into_iter().filter(|service| service.is_host_local())
}

fn file(dir: &Path, service: Service, ending: &str) -> PathBuf {
    dir.join(format!("{service}.{ending}"))
}

fn invalid(path: &Path, message: impl Into<String>) -> Failure {
    Failure::new(Exit::Invalid, message).at(path.display().to_string())
}

fn parse<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T, Failure> {
    let text = files::read_text(path, LIMIT)?;
    serde_json::from_str(&text).map_err(|_| invalid(path, format!("this is not {what}")))
}

fn principal(service: Service, host: &HostId) -> Result<Principal, Failure> {
    daemon_principal(service, Some(host))
        .map_err(|error| Failure::new(Exit::Invalid, error.to_string()))
}

fn absent(path: &Path, why: &str) -> Result<(), Failure> {
    if path.exists() {
        return Err(Failure::new(Exit::Failed, "there is such a file already")
            .at(path.display().to_string())
            .fix(why));
    }
    Ok(())
}

/// Runs the command.
pub fn run(
    command: &HostCommand,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match command {
        HostCommand::Request(args) => make_request(args, screen),
        HostCommand::Install(args) => install(args, screen),
        HostCommand::Renew(args) => renew(args, connection.timeout, screen),
        HostCommand::Enrol(args) => {
            let asked = read(args)?;
            let settings = Settings::gather(connection)?;
            let ca = settings.complete()?.ca;
            let ca = files::read_text(&ca, LIMIT)?;
            if args.certificate.is_empty() {
                confirm(args, &asked.0, &asked.1, screen)?;
            }
            on_bus(&settings, connection.timeout, async |remote| {
                enrol(args, asked, ca, remote, screen).await
            })
        }
        HostCommand::Forget { host, absent, repeat, output } => {
            connected(connection, async |remote| {
                let request = HostForgetRequest { host: host.clone() };
                let outcome =
                    remote.ask_centre_as::<policy::HostForget>(&request, repeat.id()).await;
                match absent.accept(outcome)? {
                    Some(record) => screen.show(&Enrolled(vec![record]), output.output)?,
                    None => screen.note(&format!("{host} is not enrolled")),
                }
                Ok(Exit::Done)
            })
        }
        HostCommand::List { output } => {
            connected(connection, async |remote| list(None, output.output, remote, screen).await)
        }
        HostCommand::Show { host, output } => connected(connection, async |remote| {
            list(Some(host.clone()), output.output, remote, screen).await
        }),
        HostCommand::Label { host, labels, repeat, output } => {
            connected(connection, async |remote| {
                let labels = labels.iter().cloned().collect();
                let request = HostLabelRequest { host: host.clone(), labels };
                let record =
                    remote.ask_centre_as::<policy::HostLabel>(&request, repeat.id()).await?;
                screen.show(&Enrolled(vec![record]), output.output)?;
                Ok(Exit::Done)
            })
        }
        HostCommand::Revoke { host, absent, repeat, output } => {
            connected(connection, async |remote| {
                let request = HostRevokeRequest { host: host.clone() };
                let outcome =
                    remote.ask_centre_as::<policy::HostRevoke>(&request, repeat.id()).await;
                match absent.accept(outcome)? {
                    Some(record) => screen.show(&Enrolled(vec![record]), output.output)?,
                    None => screen.note(&format!("{host} is not enrolled")),
                }
                Ok(Exit::Done)
            })
        }
    }
}

fn connected(
    connection: &ConnectionArgs,
    work: impl AsyncFnOnce(&Remote) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    on_bus(&Settings::gather(connection)?, connection.timeout, work)
}

fn make_request(args: &HostRequestArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    absent(&args.save, "choose another name")?;
    for service in services() {
        absent(
            &file(&args.dir, service, "key"),
            "a key is never written over: take it away if the host is to have another, or choose another \
             directory",
        )?;
    }
    files::make_directory(&args.dir)?;
    let failed =
        |error: canopy_identity::AuthorityError| Failure::new(Exit::Failed, error.to_string());
    let mut requests = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for service in services() {
        let (key, asked) = request(&principal(service, &args.host)?).map_err(failed)?;
        let place = file(&args.dir, service, "key");
        files::write_new(&place, key.as_bytes(), files::SECRET)
            .map_err(|error| Failure::io("write", &place, &error))?;
        keys.insert(service, fingerprint(&asked)?);
        requests.insert(service, asked);
    }
    let asked = RequestFile { host: args.host.clone(), requests };
    write(&args.save, &asked)?;
    let answer = Requested {
        host: args.host.clone(),
        keys,
        request: args.save.clone(),
        dir: args.dir.clone(),
    };
    screen.show(&answer, args.output.output)?;
    Ok(Exit::Done)
}

fn fingerprint(request: &str) -> Result<String, Failure> {
    SigningRequest::from_pem(request.as_bytes())
        .map(|request| request.key_fingerprint())
        .map_err(|error| Failure::new(Exit::Invalid, error.to_string()))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let text = crate::output::json(value)?;
    files::write_new(path, text.as_bytes(), files::PUBLIC)
        .map_err(|error| Failure::io("write", path, &error))
}

/// What is to be enrolled: read and checked before anything is asked.
fn read(args: &HostEnrolArgs) -> Result<(HostId, BTreeMap<Service, String>), Failure> {
    if let Some(save) = &args.save {
        absent(save, "choose another name")?;
    }
    if let Some(path) = &args.request {
        let asked: RequestFile = parse(path, "a request that canopy host request made")?;
        return Ok((asked.host, asked.requests));
    }
    let mut host: Option<HostId> = None;
    let mut certificates = BTreeMap::new();
    for path in &args.certificate {
        let pem = files::read_text(path, LIMIT)?;
        let certificate = Certificate::from_pem(pem.as_bytes())
            .map_err(|error| invalid(path, error.to_string()))?;
        let named = certificate.our_name().and_then(|name| name.parse::<Principal>().ok());
        let Some((service, Some(of))) = named.as_ref().and_then(daemon_of) else {
            return Err(invalid(path, "it is not the certificate of one daemon of a host")
                .fix("its one URI name is spiffe://canopy/h-<host>-<service>"));
        };
        if host.get_or_insert_with(|| of.clone()) != &of {
            return Err(invalid(path, format!("it is {of}'s, the one before is another host's"))
                .fix("enrol one host at a time"));
        }
        if certificates.insert(service, pem).is_some() {
            return Err(invalid(path, format!("there are two of the {service}")));
        }
    }
    let host = host.ok_or_else(|| Failure::new(Exit::Invalid, "there is nothing to enrol"))?;
    Ok((host, certificates))
}

async fn enrol(
    args: &HostEnrolArgs,
    (host, certificates): (HostId, BTreeMap<Service, String>),
    ca: String,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let request = HostEnrolRequest {
        host: host.clone(),
        certificates,
        labels: args.label.iter().cloned().collect(),
        expires_in: args.expires.map(|within| within.as_secs()),
        replace: args.replace,
    };
    let reply = remote.ask_centre_as::<policy::HostEnrol>(&request, args.repeat.id()).await?;
    if let Some(save) = &args.save {
        let bus = args.bus_url.clone().unwrap_or_else(|| remote.url().to_owned());
        let given = EnrolmentFile { host, bus, ca, certificates: reply.certificates };
        write(save, &given).map_err(|failure| {
            failure.fix("enrol it again with --replace: what was signed is lost")
        })?;
    }
    screen.show(&Enrolled(vec![reply.record]), args.output.output)?;
    Ok(Exit::Done)
}

async fn list(
    host: Option<HostId>,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let hosts = match host {
        Some(host) => {
            let request = HostListRequest { host: Some(host), ..HostListRequest::default() };
            remote.ask_centre::<policy::HostList>(&request).await?.hosts
        }
        None => remote.enrolled().await?,
    };
    screen.show(&Enrolled(hosts), format)?;
    Ok(Exit::Done)
}

/// Shows the keys that are to be signed, and has them confirmed: before anything is sent.
fn confirm(
    args: &HostEnrolArgs,
    host: &HostId,
    requests: &BTreeMap<Service, String>,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let place = args.request.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let mut keys = BTreeMap::new();
    for (service, request) in requests {
        keys.insert(*service, fingerprint(request).map_err(|failure| failure.at(&place))?);
    }
    screen.note(&format!("keys of {host}:"));
    for line in key_lines(&keys) {
        screen.note(&line);
    }
    if !args.expect_fingerprint.is_empty() {
        return expected(&args.expect_fingerprint, &keys).map_err(|failure| failure.at(place));
    }
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Invalid, "nothing was signed: the keys are not confirmed")
            .at(place)
            .fix(
                "compare them with those that the host showed, then give --expect-fingerprint \
                 FINGERPRINT for each, or --yes",
            ));
    }
    eprint_question(&format!("are these the keys that {host} showed? [y/N] "));
    let mut answer = String::new();
    // Nothing to be read is no.
    let _ = io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Denied, "nothing was signed: the keys were not confirmed")),
    }
}

fn eprint_question(text: &str) {
    let _ = write!(io::stderr(), "{}", canopy_api::text::shown(text));
}

/// Whether each key is one that the host showed, and each that it showed is there.
fn expected(given: &[String], keys: &BTreeMap<Service, String>) -> Result<(), Failure> {
    let wanted: Vec<(Option<&str>, &str)> = given
        .iter()
        .map(|text| match text.split_once('=') {
            // A fingerprint has no padding, and no '='.
            Some((service, key)) => (Some(service), key),
            None => (None, text.as_str()),
        })
        .collect();
    let refused = |message: String| {
        Err(Failure::new(Exit::Denied, format!("nothing was signed: {message}"))
            .fix("somebody else may have made this request: look at the host"))
    };
    for (service, key) in keys {
        let named = |(of, wanted): &(Option<&str>, &str)| {
            of.is_none_or(|of| of == service.as_str()) && wanted == key
        };
        if !wanted.iter().any(named) {
            return refused(format!("the key of {service} is {key}, which was not expected"));
        }
    }
    for (service, key) in wanted {
        let found = keys
            .iter()
            .any(|(of, has)| has == key && service.is_none_or(|service| service == of.as_str()));
        if !found {
            return refused(format!("no key of the request is {key}"));
        }
    }
    Ok(())
}

fn install(args: &HostInstallArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let given: EnrolmentFile = parse(&args.enrolment, "an enrolment that canopy host enrol saved")?;
    // Daemons are started elsewhere: their configuration names files by absolute paths.
    let dir =
        std::path::absolute(&args.dir).map_err(|error| Failure::io("use", &args.dir, &error))?;
    // All are looked at before one is written.
    for (service, pem) in &given.certificates {
        let me = principal(*service, &given.host)?;
        let certificate = Certificate::from_pem(pem.as_bytes())
            .map_err(|error| invalid(&args.enrolment, error.to_string()))?;
        if certificate.our_name() != Some(me.as_str()) {
            return Err(invalid(&args.enrolment, format!("the {service}'s is not {me}'s")));
        }
        let key = file(&dir, *service, "key");
        if !belong_together(pem, &secret(&key)?) {
            return Err(invalid(&args.enrolment, format!("the {service}'s is of another key"))
                .at(key.display().to_string())
                .fix("it was signed for another request: enrol the host again, with its own"));
        }
    }
    let ca = dir.join("ca.crt");
    files::write_atomic(&ca, given.ca.as_bytes(), files::PUBLIC)?;
    let mut daemons = BTreeMap::new();
    for (service, pem) in &given.certificates {
        let cert = file(&dir, *service, "crt");
        files::write_atomic(&cert, pem.as_bytes(), files::PUBLIC)?;
        let key = file(&dir, *service, "key");
        let config = DaemonConfig { url: given.bus.clone(), ca: ca.clone(), cert, key };
        daemons.insert(*service, config);
    }
    let place = PlaceFile { host: given.host.clone(), bus: given.bus };
    let text = crate::output::json(&place)?;
    files::write_atomic(&dir.join(PLACE), text.as_bytes(), files::PUBLIC)?;
    screen.show(&Installed { host: given.host, daemons }, args.output.output)?;
    Ok(Exit::Done)
}

/// A key that nobody else may read.
fn secret(path: &Path) -> Result<canopy_secrets::Secret, Failure> {
    canopy_secrets::read_private(path).map_err(|error| {
        Failure::new(Exit::Failed, error.reason.clone())
            .at(path.display().to_string())
            .fix(error.remedy.clone())
    })
}

fn renew(
    args: &HostRenewArgs,
    timeout: Option<Duration>,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let place: PlaceFile = parse(&args.dir.join(PLACE), "what canopy host install wrote")?;
    let mut renewals = BTreeMap::new();
    for service in services() {
        let cert = file(&args.dir, service, "crt");
        if !cert.exists() {
            continue;
        }
        let pem = files::read_text(&cert, LIMIT)?;
        let certificate = Certificate::from_pem(pem.as_bytes())
            .map_err(|error| invalid(&cert, error.to_string()))?;
        if !args.now && !is_due(&certificate) {
            renewals.insert(service, RenewedCertificate { renewed: false, until: None });
            continue;
        }
        let me = principal(service, &place.host)?;
        let key = file(&args.dir, service, "key");
        let asked =
            request_again(&me, &secret(&key)?).map_err(|error| invalid(&key, error.to_string()))?;
        let settings = Settings {
            file: args.dir.join(PLACE),
            url: Some(place.bus.clone()),
            ca: Some(args.dir.join("ca.crt")),
            cert: Some(cert.clone()),
            key: Some(key.clone()),
            principal: Some(me),
            ..Settings::default()
        };
        let reply = on_bus(&settings, timeout, async |remote| {
            let request = HostRenewRequest { request: asked };
            remote.ask_centre::<policy::HostRenew>(&request).await
        })?;
        if !belong_together(&reply.certificate, &secret(&key)?) {
            return Err(Failure::new(Exit::Failed, "what came back is of another key")
                .at(key.display().to_string()));
        }
        files::write_atomic(&cert, reply.certificate.as_bytes(), files::PUBLIC)?;
        let until = Some(reply.until);
        renewals.insert(service, RenewedCertificate { renewed: true, until });
    }
    if renewals.is_empty() {
        return Err(Failure::new(Exit::NotFound, "there is no certificate of a daemon")
            .at(args.dir.display().to_string())
            .fix("canopy host install puts them there"));
    }
    screen.show(&Renewals(renewals), args.output.output)?;
    Ok(Exit::Done)
}

/// Whether less than a third of its time is left.
fn is_due(certificate: &Certificate) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let life = certificate.not_after.saturating_sub(certificate.not_before);
    certificate.not_after.saturating_sub(now) < life / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_request_has_to_be_expected() {
        let keys: BTreeMap<Service, String> =
            [(Service::Loader, "AAA".to_owned()), (Service::Enforcer, "BBB".to_owned())].into();
        let check = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            expected(&given, &keys).is_ok()
        };
        assert!(check(&["AAA", "BBB"]));
        assert!(check(&["enforcer=BBB", "loader=AAA"]));
        assert!(!check(&["AAA"]), "the other key was not expected");
        assert!(!check(&["loader=BBB", "enforcer=AAA"]), "exchanged");
        assert!(!check(&["AAA", "BBB", "CCC"]), "one that is not there");
        assert!(!check(&["aaa", "BBB"]));
    }
}
