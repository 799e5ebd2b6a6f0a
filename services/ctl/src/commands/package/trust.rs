//! `canopy package trust`: what the fleet remembers of repositories.

use crate::{
    cli::ResetIndexArgs,
    failure::{Exit, Failure},
    output::Screen,
    remote::Remote,
    view::trust::{ResetIndexes, ResetRow},
};
use canopy_api::{
    HostId,
    endpoint::{Service, loader, registry},
    wire::{ResetHostRequest, ResetIndexReply, ResetRepositoryRequest, hosts::HostState},
};
use std::collections::BTreeSet;

/// Has the registry, and hosts that are named, accept a repository's index as it is now.
pub async fn reset_index(
    args: &ResetIndexArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let hosts = named(args, remote).await?;
    let request = ResetRepositoryRequest { repository: args.repository.clone() };
    let reply = remote.ask_centre::<registry::ResetIndex>(&request).await?;
    let request = ResetHostRequest {
        repository: args.repository.clone(),
        id: reply.id.clone(),
        to: reply.to,
    };
    let mut rows = vec![ResetRow::new("registry", reply)];
    let mut failures = Vec::new();
    let mut take = |host: &HostId, outcome: Result<ResetIndexReply, Failure>| match outcome {
        Ok(reply) => rows.push(ResetRow::new(host.as_str(), reply)),
        Err(mut failure) => {
            failure.exit = Exit::Partly;
            if let Some(first) = failure.problems.first_mut() {
                first.message = format!("{host}: {}", first.message);
            }
            failures.push(failure);
        }
    };
    for host in &hosts {
        let outcome = remote.ask_host::<loader::ResetIndex>(host, &request, "asking").await;
        take(host, outcome);
    }
    screen.show(&ResetIndexes(rows), args.output.output)?;
    let exit = if failures.is_empty() { Exit::Done } else { Exit::Partly };
    for failure in &failures {
        screen.fail(failure);
    }
    Ok(exit)
}

/// The hosts that are named; or all that are enrolled and have connected, and whoever answers besides. What
/// changes something is asked of one host after the other.
async fn named(args: &ResetIndexArgs, remote: &Remote) -> Result<BTreeSet<HostId>, Failure> {
    let mut hosts: BTreeSet<HostId> = args.hosts.iter().cloned().collect();
    if args.all_hosts {
        // Where policy is away, or enrols nobody, who answers is all that is known.
        let enrolled = remote.enrolled().await.unwrap_or_default();
        let granted = remote.granted().await?;
        let active = enrolled.into_iter().filter(|record| {
            record.state == HostState::Active && record.certificates.contains_key(&Service::Loader)
        });
        let active = active.map(|record| record.host);
        hosts.extend(active.filter(|host| granted.as_ref().is_none_or(|all| all.contains(host))));
        hosts.extend(remote.hosts().await?);
    }
    Ok(hosts)
}
