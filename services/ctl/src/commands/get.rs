//! `canopy get`

use crate::{
    cli::{
        GetArgs, GetWhat, HostsArgs,
        name::{ChainName, ProgramPath, one_host},
    },
    commands::{policy, stored_audit},
    failure::{Exit, Failure},
    output::{Format, Screen},
    remote::{Answers, Remote},
    seen::Seen,
    view::{
        all::Everything,
        chains::Chains,
        hosts::{HostRow, HostState, Hosts},
        outdated::Outdated,
        packages::{Found, Packages, Repositories},
        programs::Programs,
    },
    watch::watch,
};
use canopy_api::{
    HostId, Netns, PackageRef,
    endpoint::{loader, registry},
    near,
    wire::{Empty, GetReply, GetRequest, ListRequest, SearchRequest},
};
use canopy_runtime::clock;
use std::time::Duration;

/// Asks and shows.
pub async fn run(args: &GetArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let format = args.output.output;
    match &args.what {
        GetWhat::All => all(args, remote, screen).await,
        GetWhat::Hosts { hosts: only } => {
            if args.watch {
                let ask = async |_: &mut Screen| {
                    remote.begin();
                    Ok(hosts(only, args, remote).await?.0)
                };
                return watch(format, screen, ask).await;
            }
            let (hosts, note) = hosts(only, args, remote).await?;
            screen.show(&hosts, format)?;
            if let Some(note) = note {
                screen.note(&note);
            }
            Ok(Exit::Done)
        }
        GetWhat::Chains { chains: words, netns, document } => {
            let names = ChainName::list(words, netns.as_ref())?;
            if args.watch && !document {
                let ask = async |_: &mut Screen| {
                    remote.begin();
                    let states = states(&args.hosts, &wanted(&names, netns), remote).await?;
                    Ok(picked(Chains::of(states.replies), &names))
                };
                return watch(format, screen, ask).await;
            }
            let hosts = at(&names, &args.hosts)?;
            remote.ensure_granted(names.iter().filter_map(|name| name.host.as_ref())).await?;
            let states = states(&hosts, &wanted(&names, netns), remote).await?;
            if *document {
                return as_document(&states, &names, format, screen);
            }
            let exit = states.tell(screen);
            let chains = Chains::of(states.replies);
            each_is_there(&chains, &names)?;
            let chains = picked(chains, &names);
            let missing = netns.is_some().then(|| "no such chain".to_owned());
            require(!chains.0.is_empty(), missing, "canopy get chains lists them")?;
            screen.show(&chains, format)?;
            remark(screen, format, chains.remarks());
            Ok(exit)
        }
        GetWhat::Programs { programs: words, interface, hook, netns } => {
            let names =
                words.iter().map(|word| ProgramPath::parse(word)).collect::<Result<Vec<_>, _>>()?;
            let request = GetRequest {
                netns: netns.clone(),
                interface: interface.clone(),
                hook: *hook,
                cursor: None,
            };
            if args.watch {
                let ask = async |_: &mut Screen| {
                    remote.begin();
                    let states = states(&args.hosts, &request, remote).await?;
                    Ok(only_programs(Programs::of(states.replies), &names))
                };
                return watch(format, screen, ask).await;
            }
            let hosts = of_programs(&names, &args.hosts)?;
            remote.ensure_granted(names.iter().filter_map(ProgramPath::host)).await?;
            let states = states(&hosts, &request, remote).await?;
            let exit = states.tell(screen);
            let programs = Programs::of(states.replies);
            for name in &names {
                if !programs.0.iter().any(|program| program.is(name)) {
                    return Err(no_program(name, &programs));
                }
            }
            screen.show(&only_programs(programs, &names), format)?;
            Ok(exit)
        }
        _ if args.watch => {
            Err(Failure::new(Exit::Invalid, "only hosts, chains and programs are watched")
                .fix("leave out --watch"))
        }
        GetWhat::Packages { package, outdated: false } => {
            packages(package.as_ref(), format, remote, screen).await
        }
        GetWhat::Packages { package, outdated: true } => {
            outdated(package.as_ref(), args, remote, screen).await
        }
        GetWhat::Audit { filter, service, limit } => {
            let of = (*service, remote.one_of(&args.hosts));
            stored_audit::get(filter, of, *limit, format, remote, screen).await
        }
        GetWhat::Rules => policy::in_force(format, remote, screen).await,
    }
}

/// The hosts that names and options speak of.
pub fn at(names: &[ChainName], args: &HostsArgs) -> Result<HostsArgs, Failure> {
    let option = if args.all_hosts { None } else { args.host.as_ref() };
    named(names.iter().map(|name| name.host.as_ref()), option, args)
}

/// The same of programs.
pub fn of_programs(names: &[ProgramPath], args: &HostsArgs) -> Result<HostsArgs, Failure> {
    let option = if args.all_hosts { None } else { args.host.as_ref() };
    named(names.iter().map(ProgramPath::host), option, args)
}

fn named<'a>(
    names: impl Iterator<Item = Option<&'a HostId>> + Clone,
    option: Option<&'a HostId>,
    args: &HostsArgs,
) -> Result<HostsArgs, Failure> {
    let hosts: std::collections::BTreeSet<&HostId> = names.clone().flatten().collect();
    if hosts.len() > 1 && option.is_none() {
        // Names of several hosts are looked for on all of them.
        return Ok(HostsArgs { host: None, all_hosts: true });
    }
    let host = one_host(names, option)?;
    Ok(match host {
        Some(host) => HostsArgs { host: Some(host), all_hosts: false },
        None => args.clone(),
    })
}

/// What is asked of hosts: one chain alone, or all.
pub fn wanted(names: &[ChainName], netns: &Option<Netns>) -> GetRequest {
    match names {
        // What comes from a selector is under the names of interfaces.
        [name] if name.interface.name().is_some() => GetRequest {
            netns: name.netns.clone(),
            interface: name.interface.name().cloned(),
            hook: name.hook,
            cursor: None,
        },
        _ => GetRequest { netns: netns.clone(), ..GetRequest::default() },
    }
}

/// The chains that were named; all where none was.
pub fn picked(mut chains: Chains, names: &[ChainName]) -> Chains {
    if !names.is_empty() {
        chains.0.retain(|chain| names.iter().any(|name| chain.is(name)));
        chains
            .1
            .retain(|(_, selector)| names.iter().any(|name| name.interface == selector.interface));
    }
    chains
}

/// Refuses where a name stands for nothing.
pub fn each_is_there(chains: &Chains, names: &[ChainName]) -> Result<(), Failure> {
    for name in names {
        let waits = chains.1.iter().any(|(_, selector)| selector.interface == name.interface);
        if !waits && !chains.0.iter().any(|chain| chain.is(name)) {
            return Err(Failure::new(Exit::NotFound, format!("there is no chain {name}"))
                .fix("canopy get chains -A lists them"));
        }
    }
    Ok(())
}

fn only_programs(programs: Programs, names: &[ProgramPath]) -> Programs {
    let some = programs
        .0
        .into_iter()
        .filter(|program| names.is_empty() || names.iter().any(|name| program.is(name)));
    Programs(some.collect())
}

/// `get all`
async fn all(args: &GetArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let format = args.output.output;
    if args.watch {
        return Err(Failure::new(
            Exit::Invalid,
            "hosts, chains and programs are watched one at a time",
        )
        .fix("canopy get chains -w"));
    }
    let states = states(&args.hosts, &GetRequest::default(), remote).await?;
    let exit = states.tell(screen);
    let now = clock::rfc3339(clock::now());
    let hosts = states.replies.iter().map(|reply| HostRow::answered(reply, now.clone())).collect();
    let all = Everything {
        hosts: Hosts(hosts),
        chains: Chains::of(states.replies.clone()),
        programs: Programs::of(states.replies),
    };
    screen.show(&all, format)?;
    remark(screen, format, all.chains.remarks());
    Ok(exit)
}

/// `get chains --document`
fn as_document(
    states: &States,
    names: &[ChainName],
    format: Format,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let exit = states.tell(screen);
    let [reply] = states.replies.as_slice() else {
        let hosts: Vec<&str> = states.replies.iter().map(|reply| reply.host.as_str()).collect();
        return Err(Failure::new(Exit::Invalid, "a document is for one host, and several answer")
            .fix(format!("--host HOST: one of {}", hosts.join(", "))));
    };
    let mut state = reply.desired();
    if !names.is_empty() {
        let mut chains = Chains::of(vec![reply.clone()]);
        each_is_there(&chains, names)?;
        chains = picked(chains, names);
        state.chains.retain(|spec| {
            let by_name = |chain: &crate::view::chains::HostChain| {
                let chain = &chain.chain;
                let interface =
                    chain.selector.clone().unwrap_or_else(|| chain.interface.clone().into());
                (&spec.netns, &spec.interface, spec.hook) == (&chain.netns, &interface, chain.hook)
            };
            chains.0.iter().any(by_name)
                || chains.1.iter().any(|(_, selector)| selector.target() == spec.target())
        });
    }
    match format {
        Format::Json => screen.print(&crate::output::json(&state)?)?,
        _ => screen.print(&crate::output::yaml(&state)?)?,
    }
    Ok(exit)
}

/// `get packages`, `package list`.
pub async fn packages(
    package: Option<&PackageRef>,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let package_name = package.map(|package| package.name.clone());
    let request = ListRequest { package: package_name, ..ListRequest::default() };
    let mut reply = remote.read_centre::<registry::List>(request).await?;
    if let Some(package) = package {
        for summary in &mut reply.packages {
            summary.versions.retain(|one| {
                // As it is told: a version that cannot be read is shown.
                one.version.parse().map_or(true, |version| package.requirement.matches(&version))
                    || package.requirement == semver::VersionReq::STAR
            });
        }
        reply.packages.retain(|summary| !summary.versions.is_empty());
        let there = !reply.packages.is_empty();
        let shown = package.to_string();
        let shown = shown.strip_suffix("@*").unwrap_or(&shown);
        let missing = format!("there is no package {shown}");
        require(there, Some(missing), "canopy get packages lists them")?;
    }
    let packages = Packages(reply);
    screen.show(&packages, format)?;
    remark(screen, format, packages.remarks());
    Ok(Exit::Done)
}

/// `get packages --outdated`
async fn outdated(
    package: Option<&PackageRef>,
    args: &GetArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let package_name = package.map(|package| package.name.clone());
    let request = ListRequest { package: package_name.clone(), ..ListRequest::default() };
    let offered = remote.read_centre::<registry::List>(request).await?;
    let states = states(&args.hosts, &GetRequest::default(), remote).await?;
    let exit = states.tell(screen);
    let outdated = Outdated::of(&states.replies, &offered, package_name.as_ref());
    screen.show(&outdated, args.output.output)?;
    remark(screen, args.output.output, Packages(offered).remarks());
    Ok(exit)
}

/// `package search`
pub async fn search(
    request: &SearchRequest,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let found = Found(remote.ask_centre::<registry::Search>(request).await?);
    screen.show(&found, format)?;
    remark(screen, format, found.remarks());
    Ok(Exit::Done)
}

/// `package refresh`
pub async fn refresh(
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let reply = remote.ask_centre::<registry::Refresh>(&Empty {}).await?;
    screen.show(&Repositories(reply), format)?;
    Ok(Exit::Done)
}

/// The state of hosts, and what is missing of it.
#[derive(Debug)]
pub struct States {
    /// Of each host that answered.
    pub replies: Vec<GetReply>,
    /// Hosts that did not answer, or with an error.
    pub trouble: Vec<Failure>,
}

impl States {
    /// Says what is missing; how the command ends.
    pub fn tell(&self, screen: &mut Screen) -> Exit {
        for failure in &self.trouble {
            screen.fail(failure);
        }
        if self.trouble.is_empty() { Exit::Done } else { Exit::Partly }
    }
}

/// State of one host, or of all.
pub async fn states(
    args: &HostsArgs,
    request: &GetRequest,
    remote: &Remote,
) -> Result<States, Failure> {
    if let Some(host) = remote.one_of(args) {
        let reply = remote.read_host::<loader::Get>(&host, request, "asking").await?;
        return Ok(States { replies: vec![reply], trouble: Vec::new() });
    }
    let (replies, trouble) = gathered(remote.read_all::<loader::Get>(request).await?)?;
    Ok(States { replies, trouble })
}

/// What many hosts answered, and what is missing of it.
///
/// # Errors
/// Where no host answered.
pub fn gathered<R>(answers: Answers<R>) -> Result<(Vec<R>, Vec<Failure>), Failure> {
    let Answers { answers, missing, expected, waited } = answers;
    if answers.is_empty() {
        return Err(nobody());
    }
    let mut replies = Vec::new();
    let mut trouble = Vec::new();
    for (host, answer) in answers {
        match answer {
            Ok(reply) => replies.push(reply),
            Err(error) => {
                let mut failure = Failure { exit: Exit::Partly, ..Failure::from(error) };
                if let Some(first) = failure.problems.first_mut() {
                    first.message = format!("{host}: {}", first.message);
                }
                trouble.push(failure);
            }
        }
    }
    if !missing.is_empty() {
        trouble.push(did_not_answer(&missing, expected.unwrap_or_default(), waited));
    }
    Ok((replies, trouble))
}

/// Most hosts that are named in one message.
const NAMED: usize = 20;

fn did_not_answer(missing: &[HostId], expected: usize, waited: Duration) -> Failure {
    let names: Vec<&str> = missing.iter().take(NAMED).map(HostId::as_str).collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "{} of {expected} enrolled hosts did not answer within {:.1} s: {}{more}",
        missing.len(),
        waited.as_secs_f64(),
        names.join(", ")
    );
    Failure::new(Exit::Partly, message)
        .fix("--timeout 30s waits longer; canopy get hosts says how each is")
}

/// No host answers.
pub fn nobody() -> Failure {
    Failure::new(Exit::Unavailable, "no host answers")
        .fix("see that canopy-loader runs on the hosts and is connected; --timeout 5s waits longer")
}

/// There is no such program; perhaps one of a similar name.
pub fn no_program(name: &ProgramPath, programs: &Programs) -> Failure {
    let names = programs.0.iter().map(|entry| entry.program.name.as_str());
    Failure::new(Exit::NotFound, format!("there is no program \"{name}\"")).fix(near::hint(
        name.program.as_str(),
        names,
        "canopy get programs -A lists them",
    ))
}

fn require(there: bool, otherwise: Option<String>, remedy: &str) -> Result<(), Failure> {
    match otherwise {
        Some(message) if !there => Err(Failure::new(Exit::NotFound, message).fix(remedy)),
        _ => Ok(()),
    }
}

fn remark(screen: &mut Screen, format: Format, remarks: Vec<String>) {
    if matches!(format, Format::Table | Format::Wide) {
        for remark in remarks {
            screen.note(&remark);
        }
    }
}

/// Enrolled hosts, those that answer, and, where policy does not say who is enrolled, those that have
/// answered this machine before.
async fn hosts(
    only: &[HostId],
    args: &GetArgs,
    remote: &Remote,
) -> Result<(Hosts, Option<String>), Failure> {
    // The list of hosts is always of all of them, unless one is named here and now.
    let only: Vec<&HostId> = match (&args.hosts.host, args.hosts.all_hosts) {
        (Some(host), false) if only.is_empty() => vec![host],
        _ => only.iter().collect(),
    };
    let answers = remote.read_all::<loader::Get>(&GetRequest::default()).await?.answers;
    let enrolled = remote.enrolled().await;
    let granted = remote.granted().await?;
    let now = clock::rfc3339(clock::now());
    let mut seen = Seen::read();
    let bus = remote.url();
    let mut rows: Vec<HostRow> = Vec::new();
    for (host, answer) in answers {
        seen.saw(bus, &host, &now);
        rows.push(match answer {
            Ok(reply) => HostRow::answered(&reply, now.clone()),
            Err(error) => {
                HostRow::mute(host, HostState::Failing, Some(error.to_string()), now.clone())
            }
        });
    }
    // Hosts that were not asked, as the token is for others, are not silent.
    let is_asked = |host: &HostId| granted.as_ref().is_none_or(|hosts| hosts.contains(host));
    let mut before = seen.others(bus, &rows);
    before.retain(|(host, _)| is_asked(host));
    let last_seen = |host: &HostId| {
        before.iter().find(|(other, _)| other == host).map(|(_, when)| when.clone())
    };
    let note = match enrolled {
        Ok(records) => {
            for row in &mut rows {
                row.enrolled = Some(false);
            }
            for record in records.into_iter().filter(|record| is_asked(&record.host)) {
                match rows.iter_mut().find(|row| row.host == record.host) {
                    Some(row) => row.is_enrolled(&record),
                    None => rows.push(HostRow::enrolled(&record, last_seen(&record.host))),
                }
            }
            None
        }
        Err(failure) => {
            for (host, when) in before {
                rows.push(HostRow::mute(host, HostState::Silent, None, when));
            }
            let reason = failure.problems.first().map(|problem| problem.message.clone());
            let reason = reason.unwrap_or_default();
            Some(format!(
                "note: who is enrolled is not known ({reason}); shown are hosts that answer, and those that \
                 answered this machine before"
            ))
        }
    };
    seen.write();
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    for host in &only {
        if rows.iter().all(|row| row.host != **host) {
            let known: Vec<&str> = rows.iter().map(|row| row.host.as_str()).collect();
            let failure = Failure::new(Exit::NotFound, format!("there is no host \"{host}\""));
            return Err(failure.fix(near::hint(
                host.as_str(),
                known,
                "canopy get hosts lists them",
            )));
        }
    }
    rows.retain(|row| only.is_empty() || only.contains(&&row.host));
    Ok((Hosts(rows), note))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_did_not_answer_are_named_up_to_a_number() {
        let hosts: Vec<HostId> = (0..25).map(|n| format!("web{n}").parse().unwrap()).collect();
        let told = did_not_answer(&hosts[..2], 1501, Duration::from_millis(300)).render("error");
        assert!(
            told.starts_with(
                "error: 2 of 1501 enrolled hosts did not answer within 0.3 s: web0, web1\n"
            ),
            "{told}"
        );
        let told = did_not_answer(&hosts, 1501, Duration::from_secs(5)).render("error");
        assert!(told.contains("web19 and 5 more\n"), "{told}");
    }
}
