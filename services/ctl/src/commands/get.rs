//! `canopy get`

use crate::{
    cli::{GetArgs, GetWhat, HostsArgs},
    commands::{policy, stored_audit},
    failure::{Exit, Failure},
    near,
    output::{Format, Screen},
    remote::Remote,
    seen::Seen,
    view::{
        chains::Chains,
        hosts::{HostRow, HostState, Hosts},
        outdated::Outdated,
        packages::{Found, Packages, Repositories},
        programs::Programs,
    },
};
use canopy_api::{
    HostId, PackageName, ProgramName,
    endpoint::{loader, registry},
    wire::{Empty, GetReply, GetRequest, ListRequest, SearchRequest},
};
use canopy_runtime::clock;

/// Asks and shows.
pub async fn run(args: &GetArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let format = args.output.output;
    match &args.what {
        GetWhat::Hosts { hosts: only } => hosts(only, args, remote, screen).await,
        GetWhat::Chains { interface, hook, netns } => {
            let request =
                GetRequest { netns: netns.clone(), interface: interface.clone(), hook: *hook };
            let chains = Chains::of(states(&args.hosts, &request, remote, screen).await?);
            let named =
                (interface.is_some() || netns.is_some()).then(|| "no such chain".to_owned());
            require(!chains.0.is_empty(), named, "canopy get chains lists them")?;
            screen.show(&chains, format)?;
            remark(screen, format, chains.remarks());
            Ok(Exit::Done)
        }
        GetWhat::Programs { programs: only, interface, hook, netns } => {
            let request =
                GetRequest { netns: netns.clone(), interface: interface.clone(), hook: *hook };
            let programs = Programs::of(states(&args.hosts, &request, remote, screen).await?);
            let programs = pick(programs, only)?;
            screen.show(&programs, format)?;
            Ok(Exit::Done)
        }
        GetWhat::Packages { package, outdated: false } => {
            packages(package.clone(), format, remote, screen).await
        }
        GetWhat::Packages { package, outdated: true } => {
            outdated(package.clone(), args, remote, screen).await
        }
        GetWhat::Audit { filter, service, limit } => {
            let of = (*service, remote.one_of(&args.hosts));
            stored_audit::get(filter, of, *limit, format, remote, screen).await
        }
        GetWhat::Rules => policy::in_force(format, remote, screen).await,
    }
}

/// `get packages`, `package list`.
pub async fn packages(
    package: Option<PackageName>,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let reply = remote.ask_centre::<registry::List>(&ListRequest { package }).await?;
    let packages = Packages(reply);
    screen.show(&packages, format)?;
    remark(screen, format, packages.remarks());
    Ok(Exit::Done)
}

/// `get packages --outdated`
async fn outdated(
    package: Option<PackageName>,
    args: &GetArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let request = ListRequest { package };
    let offered = remote.ask_centre::<registry::List>(&request).await?;
    let states = states(&args.hosts, &GetRequest::default(), remote, screen).await?;
    let outdated = Outdated::of(&states, &offered, request.package.as_ref());
    screen.show(&outdated, args.output.output)?;
    remark(screen, args.output.output, Packages(offered).remarks());
    Ok(Exit::Done)
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

/// State of one host, or of all that answer.
pub async fn states(
    args: &HostsArgs,
    request: &GetRequest,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Vec<GetReply>, Failure> {
    if let Some(host) = remote.one_of(args) {
        return Ok(vec![remote.ask_host::<loader::Get>(&host, request, "asking").await?]);
    }
    let answers = remote.ask_all::<loader::Get>(request).await?;
    if answers.is_empty() {
        return Err(nobody());
    }
    let mut replies = Vec::new();
    for (host, answer) in answers {
        match answer {
            Ok(reply) => replies.push(reply),
            Err(error) => screen.note(&format!("note: {host} answers with an error: {error}")),
        }
    }
    Ok(replies)
}

/// No host answers.
pub fn nobody() -> Failure {
    Failure::new(Exit::Unavailable, "no host answers")
        .fix("see that canopy-loader runs on the hosts and is connected; --timeout 5s waits longer")
}

/// The programs of those names; each must be there.
fn pick(programs: Programs, only: &[ProgramName]) -> Result<Programs, Failure> {
    for name in only {
        if programs.0.iter().all(|entry| entry.program.name != *name) {
            return Err(no_program(name, &programs));
        }
    }
    let picked =
        programs.0.into_iter().filter(|e| only.is_empty() || only.contains(&e.program.name));
    Ok(Programs(picked.collect()))
}

/// There is no program of that name; perhaps one of a similar name.
pub fn no_program(name: &ProgramName, programs: &Programs) -> Failure {
    let names = programs.0.iter().map(|entry| entry.program.name.as_str());
    Failure::new(Exit::NotFound, format!("there is no program \"{name}\"")).fix(near::remedy(
        name.as_str(),
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

async fn hosts(
    only: &[HostId],
    args: &GetArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    // The list of hosts is always of all of them, unless one is named here and now.
    let only: Vec<&HostId> = match (&args.hosts.host, args.hosts.all_hosts) {
        (Some(host), false) if only.is_empty() => vec![host],
        _ => only.iter().collect(),
    };
    let answers = remote.ask_all::<loader::Get>(&GetRequest::default()).await?;
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
    for (host, when) in seen.others(bus, &rows) {
        rows.push(HostRow::mute(host, HostState::Silent, None, when));
    }
    seen.write();
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    for host in &only {
        if rows.iter().all(|row| row.host != **host) {
            let known: Vec<&str> = rows.iter().map(|row| row.host.as_str()).collect();
            let failure = Failure::new(Exit::NotFound, format!("there is no host \"{host}\""));
            return Err(failure.fix(near::remedy(
                host.as_str(),
                known,
                "canopy get hosts lists them",
            )));
        }
    }
    rows.retain(|row| only.is_empty() || only.contains(&&row.host));
    screen.show(&Hosts(rows), args.output.output)?;
    Ok(Exit::Done)
}
