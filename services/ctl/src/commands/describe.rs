//! `canopy describe`

use crate::{
    cli::{DescribeArgs, DescribeWhat, HostArgs},
    commands::get,
    failure::{Exit, Failure},
    output::{Format, Screen},
    remote::Remote,
    view::{
        chains::{ChainInFull, Chains},
        hosts::HostInFull,
        packages::PackageInFull,
        programs::{ProgramInFull, Programs},
    },
};
use canopy_api::{
    ChainKey, PackageRef,
    endpoint::{loader, registry},
    wire::{DescribeRequest, Empty, GetRequest},
};

/// Asks and shows.
pub async fn run(
    args: &DescribeArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let format = args.output.output;
    match &args.what {
        DescribeWhat::Chain { interface, hook, netns } => {
            let key = ChainKey { netns: netns.clone(), interface: interface.clone(), hook: *hook };
            let request = GetRequest {
                netns: netns.clone(),
                interface: Some(interface.clone()),
                hook: Some(*hook),
            };
            let states = get::states(&args.hosts, &request, remote, screen).await?;
            let mut chains = Chains::of(states).0;
            // Without a namespace the answer has the chains of all.
            chains.retain(|found| found.chain.key() == key);
            if chains.is_empty() {
                return Err(Failure::new(Exit::NotFound, format!("there is no chain {key}"))
                    .fix("canopy get chains -A lists them"));
            }
            screen.show(&ChainInFull(chains), format)?;
        }
        DescribeWhat::Program { name } => {
            let states = get::states(&args.hosts, &GetRequest::default(), remote, screen).await?;
            let programs = Programs::of(states);
            if programs.0.iter().all(|entry| entry.program.name != *name) {
                return Err(get::no_program(name, &programs));
            }
            let found = programs.0.into_iter().filter(|entry| entry.program.name == *name);
            screen.show(&ProgramInFull(found.collect()), format)?;
        }
        DescribeWhat::Package { package: wanted } => {
            return package(wanted, format, remote, screen).await;
        }
        DescribeWhat::Host { name } => {
            let named = HostArgs { host: name.clone().or_else(|| args.hosts.host.clone()) };
            let host = remote.host(&named).await?;
            let state =
                remote.ask_host::<loader::Get>(&host, &GetRequest::default(), "asking").await?;
            let facts = remote.ask_host::<loader::Facts>(&host, &Empty {}, "asking").await?;
            screen.show(&HostInFull { state, facts }, format)?;
        }
    }
    Ok(Exit::Done)
}

/// `describe package`, `package show`.
pub async fn package(
    package: &PackageRef,
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let any = package.requirement == semver::VersionReq::STAR;
    let request = DescribeRequest {
        package: package.name.clone(),
        requirement: (!any).then(|| package.requirement.to_string()),
    };
    let reply = remote.ask_centre::<registry::Describe>(&request).await?;
    screen.show(&PackageInFull(reply), format)?;
    Ok(Exit::Done)
}
