//! `canopy doctor`: looks at everything between the person and the kernel, nearest first.

mod certificate;
mod chains;
mod clock_offset;

use crate::{
    cli::{ConnectionArgs, DoctorArgs},
    commands::on_bus,
    context::Settings,
    failure::{Exit, Failure},
    output::Screen,
    progress::Progress,
    remote::Remote,
    view::doctor::{Finding, Report, Standing},
};
use canopy_api::{
    HostId,
    endpoint::{Endpoint, cert_monitor, enforcer, loader, policy, registry},
    wire::{Empty, GetRequest, Health},
};
use canopy_runtime::clock;

/// Looks, and fails when something that is needed is not there.
pub fn run(
    args: &DoctorArgs,
    connection: &ConnectionArgs,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let mut report = Report::default();
    let local = this_machine();
    report.add("this machine", local.clone());
    if !args.local {
        match Settings::gather(connection) {
            Ok(settings) => everything_else(args, connection, &settings, &local, &mut report),
            Err(failure) => report.add("context", vec![failed("file", &failure)]),
        }
    }
    screen.show(&report, args.output.output)?;
    Ok(if report.count(Standing::Failed) == 0 { Exit::Done } else { Exit::Failed })
}

/// A failure as a finding.
fn failed(name: &str, failure: &Failure) -> Finding {
    let message: Vec<&str> = failure.problems.iter().map(|p| p.message.as_str()).collect();
    let finding = Finding::new(name, Standing::Failed, message.join("; "));
    match failure.problems.iter().find_map(|problem| problem.remedy.clone()) {
        Some(remedy) => finding.remedy(remedy),
        None => finding,
    }
}

fn this_machine() -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        let finding = Finding::new("kernel", Standing::Skipped, "only root can probe it");
        return vec![finding.remedy("on a host: sudo canopy doctor --local")];
    }
    let _progress = Progress::start("probing the kernel");
    // A directory of our own, so that a loader's is neither needed nor touched.
    let root = format!("/sys/fs/bpf/canopy-doctor-{}", std::process::id());
    let facts = canopy_kernel_aya::probe(&root);
    // Not there when there is no bpffs.
    let _ = std::fs::remove_dir(&root);
    facts.into_iter().map(Finding::fact).collect()
}

fn everything_else(
    args: &DoctorArgs,
    connection: &ConnectionArgs,
    settings: &Settings,
    local: &[Finding],
    report: &mut Report,
) {
    let name = settings.name.as_deref().unwrap_or("(none)");
    let place = format!("context {name} of {}", settings.file.display());
    let context = match settings.complete() {
        Ok(context) => context,
        Err(failure) => return report.add(place, vec![failed("context", &failure)]),
    };
    report.add(place, certificate::look(&context, clock::unix_millis(clock::now()) / 1000));
    let bus = format!("bus {} as {}", context.url, context.principal);
    let asked = on_bus(settings, connection.timeout, async |remote| {
        let mut sections = vec![(bus.clone(), services(remote).await)];
        match hosts(args, settings, remote).await {
            Ok(hosts) => {
                for host in hosts {
                    let findings = host_findings(remote, &host, local).await;
                    sections.push((format!("host {host}"), findings));
                }
            }
            Err(failure) => sections.push(("hosts".to_owned(), vec![failed("hosts", &failure)])),
        }
        Ok(sections)
    });
    match asked {
        Ok(sections) => {
            for (place, findings) in sections {
                report.add(place, findings);
            }
        }
        Err(failure) => report.add(bus, vec![failed("connection", &failure)]),
    }
}

/// The host that was named, else every one that answers.
async fn hosts(
    args: &DoctorArgs,
    settings: &Settings,
    remote: &Remote,
) -> Result<Vec<HostId>, Failure> {
    match args.host.host.as_ref().or(settings.host.as_ref()) {
        Some(host) => Ok(vec![host.clone()]),
        None => remote.hosts().await,
    }
}

async fn services(remote: &Remote) -> Vec<Finding> {
    let mut findings = vec![Finding::new("connection", Standing::Ok, "messages come back")];
    central::<registry::Health>(remote, &mut findings).await;
    central::<policy::Health>(remote, &mut findings).await;
    central::<cert_monitor::Health>(remote, &mut findings).await;
    findings
}

async fn central<E: Endpoint<Request = Empty, Reply = Health>>(
    remote: &Remote,
    findings: &mut Vec<Finding>,
) {
    let name = E::SPEC.service.as_str();
    match remote.ask_centre::<E>(&Empty {}).await {
        Ok(health) => findings.extend(service(name, health)),
        Err(failure) => findings.push(failed(name, &failure)),
    }
}

/// One line for a service that is well, one more for each thing it lacks.
fn service(name: &str, health: Health) -> Vec<Finding> {
    let mut findings = if health.ready {
        let up = format!("ready, up {} s", health.uptime_seconds);
        vec![Finding::new(name, Standing::Ok, up)]
    } else {
        vec![Finding::new(name, Standing::Failed, "not ready")]
    };
    for check in health.checks.into_iter().filter(|check| !check.ok || check.warning) {
        let mut finding = Finding::check(check);
        finding.name = format!("{name}: {}", finding.name);
        findings.push(finding);
    }
    findings
}

async fn host_findings(remote: &Remote, host: &HostId, local: &[Finding]) -> Vec<Finding> {
    let mut findings = Vec::new();
    match remote.ask_host::<loader::Health>(host, &Empty {}, "asking").await {
        Ok(health) => findings.extend(service("loader", health)),
        Err(failure) => return vec![failed("loader", &failure)],
    }
    match remote.ask_host::<enforcer::Health>(host, &Empty {}, "asking").await {
        Ok(health) => findings.extend(service("enforcer", health)),
        Err(failure) => {
            // The loader heals its chains alone.
            let mut finding = failed("enforcer", &failure);
            finding.standing = Standing::Warn;
            findings.push(finding);
        }
    }
    let before = clock::now();
    match remote.ask_host::<loader::Facts>(host, &Empty {}, "asking").await {
        Ok(facts) => {
            findings.push(clock_offset::look(before, clock::now(), &facts.time));
            let facts: Vec<Finding> = facts.facts.into_iter().map(Finding::fact).collect();
            findings.extend(unless_same(facts, local));
        }
        Err(failure) => findings.push(failed("facts", &failure)),
    }
    match remote.read_host::<loader::Get>(host, &GetRequest::default(), "asking").await {
        Ok(state) => findings.extend(chains::findings(&state)),
        Err(failure) => findings.push(failed("chains", &failure)),
    }
    findings
}

/// A host's abilities in one line, where they are this machine's: most likely it is this machine.
fn unless_same(facts: Vec<Finding>, local: &[Finding]) -> Vec<Finding> {
    let same = facts.len() == local.len()
        && facts.iter().zip(local).all(|(a, b)| a.name == b.name && a.standing == b.standing);
    if facts.is_empty() || !same {
        return facts;
    }
    let lacking = facts.iter().any(|finding| finding.standing == Standing::Failed);
    let standing = if lacking { Standing::Failed } else { Standing::Ok };
    vec![Finding::new("abilities", standing, "as this machine's, above")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::wire::Check;

    #[test]
    fn abilities_are_told_once() {
        let fact = |name: &str, standing| Finding::new(name, standing, "seen here");
        let local = [fact("btf", Standing::Ok), fact("lsm", Standing::Missing)];
        let there = vec![fact("btf", Standing::Ok), fact("lsm", Standing::Missing)];
        assert_eq!(unless_same(there, &local).len(), 1);
        let other = vec![fact("btf", Standing::Failed), fact("lsm", Standing::Missing)];
        assert_eq!(unless_same(other.clone(), &local), other);
    }

    #[test]
    fn a_service_that_is_not_ready_says_what_it_lacks() {
        let check = |name: &str, ok| Check {
            name: name.to_owned(),
            ok,
            detail: "why".to_owned(),
            warning: name == "admission",
        };
        let health = Health {
            ready: false,
            checks: vec![check("admission", true), check("bus", true), check("state", false)],
            uptime_seconds: 1,
        };
        let found = service("loader", health);
        let lines: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.standing)).collect();
        assert_eq!(
            lines,
            [
                ("loader", Standing::Failed),
                ("loader: admission", Standing::Warn),
                ("loader: state", Standing::Failed),
            ]
        );
    }
}
