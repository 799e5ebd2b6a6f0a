//! `canopy delete`

use super::{get, partly};
use crate::{
    cli::{
        DeleteArgs, DeleteHow, DeleteWhat, HostArgs,
        name::{ChainName, ProgramPath, one_host},
    },
    failure::{Exit, Failure},
    input::Input,
    output::Screen,
    remote::Remote,
    view::{change::Change, programs::Programs},
};
use canopy_api::{
    ChainSpec, DesiredState, HostId, ProgramName, Target,
    endpoint::loader,
    wire::{Action, ApplyReply, ApplyRequest, DeleteRequest, GetRequest, Omitted},
};
use serde_json::json;

/// Removes what was named, or every chain of the documents.
pub async fn run(
    args: &DeleteArgs,
    input: Option<&Input>,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    match (&args.what, input) {
        (Some(DeleteWhat::Chain { chains, netns, program, how }), _) => {
            let names = ChainName::list(chains, netns.as_ref())?;
            let host = host(names.iter().map(|name| name.host.as_ref()), how, remote).await?;
            let targets = names.iter().map(ChainName::target).collect::<Result<Vec<_>, _>>()?;
            let targets = targets.into_iter().map(|target| (target, program.clone()));
            each(&host, targets.collect(), how, remote, screen).await
        }
        (Some(DeleteWhat::Program { programs, how }), _) => {
            let names = programs
                .iter()
                .map(|word| ProgramPath::parse(word))
                .collect::<Result<Vec<_>, _>>()?;
            let host = host(names.iter().map(ProgramPath::host), how, remote).await?;
            let targets = members(&host, &names, how, remote, screen).await?;
            each(&host, targets, how, remote, screen).await
        }
        (None, Some(input)) => all_of(input, args, remote, screen).await,
        (None, None) => Err(Failure::new(Exit::Invalid, "nothing was named to delete")),
    }
}

/// The one host that names and options speak of.
async fn host<'a>(
    names: impl Iterator<Item = Option<&'a HostId>>,
    how: &'a DeleteHow,
    remote: &Remote,
) -> Result<HostId, Failure> {
    remote.host(&HostArgs { host: one_host(names, how.host.host.as_ref())? }).await
}

/// Removes one after the other: all are named before the first is removed.
async fn each(
    host: &HostId,
    targets: Vec<(Target, Option<ProgramName>)>,
    how: &DeleteHow,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let change = &how.change;
    if targets.len() > 1 && (change.request_id.is_some() || change.expected_generation.is_some()) {
        return Err(Failure::new(
            Exit::Invalid,
            "--request-id and --expected-generation are of one deletion, and several are named",
        )
        .fix("delete -f FILE removes several chains in one request"));
    }
    let mut exit = Exit::Done;
    for (target, program) in targets {
        let request = DeleteRequest {
            netns: target.netns,
            interface: target.interface,
            hook: target.hook,
            program,
            expected_generation: change.expected_generation,
            dry_run: change.dry_run,
        };
        let id = change.request_id.clone();
        // A host that does not exist is an error whatever may be missing on it.
        match remote.try_host_as::<loader::Delete>(host, &request, "deleting on", id).await? {
            Ok(reply) => {
                let reply = Change(reply);
                screen.show(&reply, how.output.output)?;
                exit = exit.max(partly::end(&reply.0, None, screen, Exit::Done));
            }
            Err(failure) if failure.exit == Exit::NotFound && how.absent.ignore_not_found => {}
            Err(failure) if failure.exit == Exit::NotFound => {
                screen.fail(&failure);
                exit = exit.max(Exit::NotFound);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(exit)
}

/// In which chains the programs are. One that is in several has to be named with its chain.
async fn members(
    host: &HostId,
    names: &[ProgramPath],
    how: &DeleteHow,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Vec<(Target, Option<ProgramName>)>, Failure> {
    let state = remote.read_host::<loader::Get>(host, &GetRequest::default(), "asking").await?;
    let programs = Programs::of(vec![state]);
    let mut targets: Vec<(Target, Option<ProgramName>)> = Vec::new();
    for name in names {
        let mut chains: Vec<Target> = Vec::new();
        for found in programs.0.iter().filter(|program| program.is(name)) {
            // A program is removed from what describes it: the selector, for all of its interfaces.
            let interface =
                found.selector.clone().unwrap_or_else(|| found.interface.clone().into());
            let target = Target { netns: found.netns.clone(), interface, hook: found.hook };
            if !chains.contains(&target) {
                chains.push(target);
            }
        }
        match chains.as_slice() {
            [] if how.absent.ignore_not_found => {}
            [] => return Err(get::no_program(name, &programs)),
            [_] => {}
            several => {
                let chains: Vec<String> = several
                    .iter()
                    .map(|target| format!("{}/{}", target.interface, target.hook))
                    .collect();
                let message =
                    format!("\"{name}\" is in {} chains: {}", chains.len(), chains.join(", "));
                return Err(Failure::new(Exit::Conflict, message).fix(format!(
                    "name the chain, too: canopy delete program {}/{}",
                    chains.first().map_or("eth0/xdp", String::as_str),
                    name.program
                )));
            }
        }
        targets.extend(chains.into_iter().map(|target| (target, Some(name.program.clone()))));
    }
    if targets.is_empty() {
        screen.note("nothing to delete");
    }
    Ok(targets)
}

/// Every chain of the documents, in one request: each with no programs is a chain removed.
async fn all_of(
    input: &Input,
    args: &DeleteArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
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
    let reply = remote
        .ask_host_as::<loader::Apply>(&host, &request, "deleting on", id)
        .await
        .map_err(|failure| input.locate(failure))?;
    let absent = if how.absent.ignore_not_found { Vec::new() } else { absent(&gone, &reply) };
    let change = Change(reply);
    screen.show(&change, how.output.output)?;
    for (i, target) in &absent {
        let failure = Failure::new(Exit::NotFound, format!("there is no chain {target}"))
            .at(format!("chains[{i}]"))
            .fix("canopy get chains lists them; --ignore-not-found takes it as done");
        screen.fail(&input.locate(failure));
    }
    let otherwise = if absent.is_empty() { Exit::Done } else { Exit::NotFound };
    Ok(partly::end(&change.0, Some(input), screen, otherwise))
}

/// What was to be removed and was not there: nothing became of it.
fn absent(gone: &DesiredState, reply: &ApplyReply) -> Vec<(usize, Target)> {
    let nothing = |target: &Target| {
        let chain = |outcome: &&canopy_api::wire::ChainOutcome| {
            target.key().as_ref() == Some(&outcome.key())
        };
        let selector = reply.selectors.iter().find(|outcome| outcome.target() == *target);
        match (reply.chains.iter().find(chain), selector) {
            (Some(outcome), _) => outcome.action == Action::Unchanged,
            (None, Some(outcome)) => outcome.action == Action::Unchanged,
            // A reply that leaves out chains says nothing of those it has not.
            (None, None) => !reply.omitted.contains(&Omitted::Chains),
        }
    };
    gone.chains
        .iter()
        .map(ChainSpec::target)
        .enumerate()
        .filter(|(_, target)| nothing(target))
        .collect()
}
