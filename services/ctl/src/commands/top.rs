//! `canopy top`

use super::get;
use crate::{
    cli::{TopArgs, as_written},
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

/// Longest time between two looks with `--profile`: the kernel takes times until after the next look, and at
/// most for [`PROFILE_SECONDS`].
const LONGEST_PROFILE_INTERVAL: Duration = Duration::from_secs(290);

/// Whether the options go together.
///
/// # Errors
/// Where the kernel would stop taking times before the next look.
pub fn check(args: &TopArgs) -> Result<(), Failure> {
    if !args.profile || args.interval <= LONGEST_PROFILE_INTERVAL {
        return Ok(());
    }
    let longest = as_written(LONGEST_PROFILE_INTERVAL);
    let message = format!(
        "an interval of {} is too long with --profile: at most {longest}",
        as_written(args.interval)
    );
    Err(Failure::new(Exit::Invalid, message)
        .at("--interval")
        .fix(format!("--interval {longest}, or leave out --profile")))
}

/// Looks again and again, and shows what happened in between.
pub async fn run(args: &TopArgs, remote: &Remote, screen: &mut Screen) -> Result<Exit, Failure> {
    let format = args.output.output;
    let table = format == Format::Table || format == Format::Wide;
    let once = args.once || !table || !screen.terminal;
    let interval = args.interval;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn profiling_lasts_until_the_next_look() {
        let check = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Top(args) => check(&args),
            other => panic!("{other:?}"),
        };
        let failure = check("canopy top --interval 291s --profile").unwrap_err();
        assert!(failure.render("error").contains("at most 290s\n  at: --interval"), "{failure:?}");
        assert_eq!(check("canopy top --interval 290s --profile"), Ok(()));
        assert_eq!(check("canopy top --interval 1h"), Ok(()));
        assert!(LONGEST_PROFILE_INTERVAL < Duration::from_secs(PROFILE_SECONDS.into()));
    }
}
