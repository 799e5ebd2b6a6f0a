//! `canopy package trust`: what the fleet remembers of repositories.

use crate::{
    cli::ResetIndexArgs,
    failure::{Exit, Failure},
    output::Screen,
    remote::{Answers, Remote},
    view::trust::{ResetIndexes, ResetRow},
};
use canopy_api::{
    ApiError, HostId,
    endpoint::{loader, registry},
    wire::{ResetHostRequest, ResetIndexReply, ResetRepositoryRequest},
};

/// Has the registry, and hosts that are named, accept a repository's index as it is now.
pub async fn reset_index(
    args: &ResetIndexArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
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
    if args.all_hosts {
        let Answers { answers, missing, .. } =
            remote.ask_all::<loader::ResetIndex>(&request).await?;
        for (host, answer) in answers {
            take(&host, answer.map_err(|error: ApiError| Failure::from(error)));
        }
        for host in missing {
            let silent = Failure::new(Exit::Partly, "the loader did not answer");
            take(&host, Err(silent.fix("repeat it for that host: --host")));
        }
    }
    for host in &args.hosts {
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
