//! `canopy describe`

use crate::{
    cli::{
        DescribeArgs, DescribeWhat, HostArgs,
        name::{ChainName, ProgramPath},
    },
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
    PackageRef,
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
        DescribeWhat::Chain { chains: words, netns } => {
            let names = ChainName::list(words, netns.as_ref())?;
            for name in &names {
                name.target()?;
            }
            let hosts = get::at(&names, &args.hosts)?;
            remote.ensure_granted(names.iter().filter_map(|name| name.host.as_ref())).await?;
            let states = get::states(&hosts, &get::wanted(&names, netns), remote).await?;
            let exit = states.tell(screen);
            let mut chains = Chains::of(states.replies);
            // Without a namespace the answer has the chains of all.
            chains.0.retain(|found| {
                names.iter().any(|name| found.is(name) && name.netns == found.chain.netns)
            });
            get::each_is_there(&chains, &names)?;
            screen.show(&ChainInFull(chains.0), format)?;
            return Ok(exit);
        }
        DescribeWhat::Program { programs: words } => {
            let names =
                words.iter().map(|word| ProgramPath::parse(word)).collect::<Result<Vec<_>, _>>()?;
            let hosts = get::of_programs(&names, &args.hosts)?;
            remote.ensure_granted(names.iter().filter_map(ProgramPath::host)).await?;
            let states = get::states(&hosts, &GetRequest::default(), remote).await?;
            let exit = states.tell(screen);
            let programs = Programs::of(states.replies);
            for name in &names {
                if !programs.0.iter().any(|program| program.is(name)) {
                    return Err(get::no_program(name, &programs));
                }
            }
            let found = programs.0.into_iter().filter(|one| names.iter().any(|name| one.is(name)));
            screen.show(&ProgramInFull(found.collect()), format)?;
            return Ok(exit);
        }
        DescribeWhat::Package { package: wanted } => {
            return package(wanted, format, remote, screen).await;
        }
        DescribeWhat::Host { name } => {
            let named = HostArgs { host: name.clone().or_else(|| args.hosts.host.clone()) };
            let host = remote.host(&named).await?;
            let state =
                remote.read_host::<loader::Get>(&host, &GetRequest::default(), "asking").await?;
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
