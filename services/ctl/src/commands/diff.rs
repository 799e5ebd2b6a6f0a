//! `canopy diff`

use super::partly;
use crate::{
    cli::DiffArgs,
    failure::{Exit, Failure},
    input::Input,
    output::Screen,
    remote::Remote,
    view::diff::Diff,
};
use canopy_api::{
    endpoint::loader,
    wire::{ApplyRequest, GetRequest},
};

/// Rehearses the documents on the host and shows what would change.
pub async fn run(
    args: &DiffArgs,
    input: &Input,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let host = remote.host(&args.host).await?;
    let now = remote.read_host::<loader::Get>(&host, &GetRequest::default(), "asking").await?;
    let request = ApplyRequest {
        document: input.document.clone(),
        // What is compared must be one state: if it moved between the two questions, say so.
        expected_generation: Some(now.generation),
        dry_run: true,
        // A step back is a difference like any other; nothing is done here.
        allow_downgrade: now
            .chains
            .iter()
            .flat_map(|chain| &chain.programs)
            .map(|program| program.package.clone())
            .collect(),
        // What would fail is told beside the differences.
        atomic: false,
    };
    let reply = remote
        .ask_host::<loader::Apply>(&host, &request, "rehearsing on")
        .await
        .map_err(|failure| input.locate(failure))?;
    let diff = Diff::between(&now, reply.clone());
    screen.show(&diff, args.output.output)?;
    let exit = if diff.differs { Exit::Differs } else { Exit::Done };
    Ok(partly::end(&reply, Some(input), screen, exit))
}
