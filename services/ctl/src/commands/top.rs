//! `canopy top`

use super::get;
use crate::{
    cli::TopArgs,
    failure::{Exit, Failure},
    output::{Format, Screen},
    remote::Remote,
    view::top::Top,
};
use canopy_api::{
    endpoint::loader,
    wire::{GetReply, GetRequest, PROFILE_SECONDS, ProfileRequest},
};
use std::time::{Duration, Instant};

/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(200);
/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Looks again and again, and shows what happened in between.
pub async fn run(args: &TopArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let format = args.output.output;
    let table = format == Format::Table || format == Format::Wide;
    let once = args.once || !table || !screen.terminal;
    let interval = args.interval.max(SHORTEST);
    let mut before = look(args, interval, remote, screen).await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            interrupted = tokio::signal::ctrl_c() => {
                let failed = |error| Failure::new(Exit::Failed, format!("no signals: {error}"));
                interrupted.map_err(failed)?;
                return Ok(Exit::Done);
            }
        }
        let after = look(args, interval, remote, screen).await?;
        let top = Top::between(&before.1, &after.1, after.0.duration_since(before.0));
        if !once {
            screen.print(CLEAR)?;
        }
        screen.show(&top, format)?;
        if once {
            return Ok(Exit::Done);
        }
        before = after;
    }
}

/// The state of the hosts, and when it was so.
async fn look(
    args: &TopArgs,
    interval: Duration,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<(Instant, Vec<GetReply>), Failure> {
    let states = get::states(&args.hosts, &GetRequest::default(), remote, screen).await?;
    if args.profile {
        // Over soon after the last look: nobody has to end it.
        let seconds = u32::try_from(interval.as_secs() * 3 + 5).unwrap_or(PROFILE_SECONDS);
        let request = ProfileRequest { seconds: seconds.min(PROFILE_SECONDS) };
        for state in &states {
            remote.ask_host::<loader::Profile>(&state.host, &request, "taking times on").await?;
        }
    }
    Ok((Instant::now(), states))
}
