//! `canopy delete`

use super::partly;
use crate::{
    cli::{DeleteArgs, DeleteWhat},
    failure::{Exit, Failure},
    input::Input,
    output::Screen,
    remote::Remote,
    view::change::Change,
};
use canopy_api::{
    ChainSpec, DesiredState,
    endpoint::loader,
    wire::{ApplyRequest, DeleteRequest},
};
use serde_json::json;

/// Removes what was named, or every chain of the documents.
pub async fn run(
    args: &DeleteArgs,
    input: Option<&Input>,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let reply = match (&args.what, input) {
        (Some(DeleteWhat::Chain { interface, hook, netns, program, how }), _) => {
            let host = remote.host(&how.host).await?;
            let request = DeleteRequest {
                netns: netns.clone(),
                interface: interface.clone(),
                hook: *hook,
                program: program.clone(),
                expected_generation: how.change.expected_generation,
                dry_run: how.change.dry_run,
            };
            let id = how.change.request_id.clone();
            remote.ask_host_as::<loader::Delete>(&host, &request, "deleting on", id).await?
        }
        (None, Some(input)) => all_of(input, args, remote).await?,
        (None, None) => return Err(Failure::new(Exit::Invalid, "nothing was named to delete")),
    };
    let how = match &args.what {
        Some(DeleteWhat::Chain { how, .. }) => how,
        None => &args.how,
    };
    let change = Change(reply);
    screen.show(&change, how.output.output)?;
    Ok(partly::end(&change.0, input, screen, Exit::Done))
}

/// Every chain of the documents, in one request: each with no programs is a chain removed.
async fn all_of(
    input: &Input,
    args: &DeleteArgs,
    remote: &Remote,
) -> Result<canopy_api::wire::ApplyReply, Failure> {
    let how = &args.how;
    let host = remote.host(&how.host).await?;
    let gone = input.desired.chains.iter().map(|chain| ChainSpec {
        xdp_mode: None,
        tc_mode: None,
        programs: Vec::new(),
        ..chain.clone()
    });
    let gone = DesiredState { chains: gone.collect() };
    let request = ApplyRequest {
        document: json!(gone),
        expected_generation: how.change.expected_generation,
        dry_run: how.change.dry_run,
        allow_downgrade: Vec::new(),
        atomic: args.atomic,
    };
    let id = how.change.request_id.clone();
    remote
        .ask_host_as::<loader::Apply>(&host, &request, "deleting on", id)
        .await
        .map_err(|failure| input.locate(failure))
}
