//! `canopy apply`

use super::partly;
use crate::{
    cli::ApplyArgs,
    failure::{Exit, Failure},
    input::Input,
    output::Screen,
    remote::Remote,
    view::change::Change,
};
use canopy_api::{endpoint::loader, wire::ApplyRequest};

/// Sends the documents, checked before, to the host.
pub async fn run(
    args: &ApplyArgs,
    input: &Input,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let host = remote.host(&args.host).await?;
    let request = ApplyRequest {
        document: input.document.clone(),
        expected_generation: args.change.expected_generation,
        dry_run: args.change.dry_run,
        allow_downgrade: args.allow_downgrade.clone(),
        atomic: args.atomic,
    };
    let reply = remote
        .ask_host_as::<loader::Apply>(
            &host,
            &request,
            "applying to",
            args.change.request_id.clone(),
        )
        .await
        .map_err(|failure| input.locate(failure))?;
    let change = Change(reply);
    screen.show(&change, args.output.output)?;
    Ok(partly::end(&change.0, Some(input), screen, Exit::Done))
}
