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

/// Looks again and again, and shows what happened in between.
pub async fn run(args: &TopArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let format = args.output.output;
    let table = format == Format::Table || format == Format::Wide;
    let once = args.once || !table || !screen.terminal;
    let interval = args.interval.max(SHORTEST);
    let (mut before, mut exit) = look(args, interval, remote, screen).await?;
    loop {
        tokio::time::sleep(interval).await;
        remote.begin();
        let (after, of_after) = look(args, interval, remote, screen).await?;
        exit = exit.max(of_after);
        let top = Top::between(&before.1, &after.1, after.0.duration_since(before.0));
        if !once {
            screen.clear()?;
        }
        screen.show(&top, format)?;
        if once {
            return Ok(exit);
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
) -> Result<((Instant, Vec<GetReply>), Exit), Failure> {
    let states = get::states(&args.hosts, &GetRequest::default(), remote).await?;
    let exit = states.tell(screen);
    let states = states.replies;
    if args.profile {
        // Over soon after the last look: nobody has to end it.
        let seconds = u32::try_from(interval.as_secs() * 3 + 5).unwrap_or(PROFILE_SECONDS);
        let request = ProfileRequest { seconds: seconds.min(PROFILE_SECONDS) };
        for state in &states {
            remote.ask_host::<loader::Profile>(&state.host, &request, "taking times on").await?;
        }
    }
    Ok(((Instant::now(), states), exit))
}
