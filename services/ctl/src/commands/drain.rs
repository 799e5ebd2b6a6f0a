//! `canopy drain`

use crate::{
    cli::DrainArgs,
    failure::{Exit, Failure},
    output::Screen,
    remote::Remote,
    view::change::Change,
};
use canopy_api::{endpoint::loader, wire::DrainRequest};

/// Detaches everything on the host, or brings it back.
pub async fn run(args: &DrainArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let host = remote.host(&args.host).await?;
    let request = DrainRequest { undo: args.undo, dry_run: args.dry_run };
    let doing = if args.undo { "bringing back" } else { "draining" };
    let id = args.request_id.clone();
    let reply = remote.ask_host_as::<loader::Drain>(&host, &request, doing, id).await?;
    screen.show(&Change(reply), args.output.output)?;
    Ok(Exit::Done)
}
