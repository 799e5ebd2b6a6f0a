//! `canopy drain`, `canopy undrain`

use crate::{
    cli::{DrainArgs, HostArgs, UndrainArgs, name::one_host},
    failure::{Exit, Failure},
    output::Screen,
    remote::Remote,
    view::change::Change,
};
use canopy_api::{endpoint::loader, wire::DrainRequest};

/// Detaches everything on the host, or brings it back.
pub async fn run(args: &DrainArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let host = HostArgs { host: one_host([args.name.as_ref()], args.host.host.as_ref())? };
    let host = remote.host(&host).await?;
    let request = DrainRequest { undo: args.undo, dry_run: args.dry_run };
    let doing = if args.undo { "bringing back" } else { "draining" };
    let id = args.request_id.clone();
    let reply = remote.ask_host_as::<loader::Drain>(&host, &request, doing, id).await?;
    screen.show(&Change(reply), args.output.output)?;
    Ok(Exit::Done)
}

/// `undrain` as the `drain --undo` that it is.
pub fn undone(args: &UndrainArgs) -> DrainArgs {
    DrainArgs {
        name: args.name.clone(),
        undo: true,
        dry_run: args.dry_run,
        request_id: args.request_id.clone(),
        host: args.host.clone(),
        output: args.output,
    }
}
