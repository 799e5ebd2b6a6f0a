//! `canopy policy`: admission rules checked, tested and explained.

use crate::{
    cli::{ExplainArgs, PolicyCommand},
    failure::{Exit, Failure},
    input,
    output::{Format, Screen},
    remote::Remote,
    view::policy::{Checked, Explained, Rules, Tested},
};
use canopy_admission::{Cases, Labels, RuleSet, Subject};
use canopy_api::{
    HostId,
    endpoint::policy,
    wire::{AdmissionBasis, AdmissionItem, ExplainReply, ExplainRequest},
};
use std::path::Path;

/// Runs a subcommand that needs no bus; `None` for one that does.
pub fn offline(command: &PolicyCommand, screen: &mut Screen) -> Option<Result<Exit, Failure>> {
    match command {
        PolicyCommand::Check { file, strict, output } => {
            Some(check(file, *strict, output.output, screen))
        }
        PolicyCommand::Test { rules, cases, output } => {
            Some(test(rules, cases, output.output, screen))
        }
        PolicyCommand::Explain(args) => {
            let file = args.rules.as_ref()?;
            Some(explain_by(file, args, screen))
        }
    }
}

/// A file of rules, with everything checked that can be.
fn rules(path: &Path) -> Result<(String, RuleSet), Failure> {
    let (name, rules): (_, RuleSet) = input::document(path)?;
    rules.check().map_err(|problems| Failure::in_file(&name, problems))?;
    Ok((name, rules))
}

fn check(file: &Path, strict: bool, format: Format, screen: &mut Screen) -> Result<Exit, Failure> {
    let (name, rules) = rules(file)?;
    let remarks = rules.lint();
    let exit = if strict && !remarks.is_empty() { Exit::Differs } else { Exit::Done };
    screen.show(&Checked { file: name, rules: rules.rules.len(), remarks }, format)?;
    Ok(exit)
}

fn test(file: &Path, cases: &Path, format: Format, screen: &mut Screen) -> Result<Exit, Failure> {
    let (_, rules) = rules(file)?;
    let (name, cases): (_, Cases) = input::document(cases)?;
    cases.check(&rules).map_err(|problems| Failure::in_file(&name, problems))?;
    let tested = Tested(cases.run(&rules));
    let exit = if tested.failed() == 0 { Exit::Done } else { Exit::Differs };
    screen.show(&tested, format)?;
    Ok(exit)
}

fn item(args: &ExplainArgs) -> AdmissionItem {
    let (package, version) = args.package.clone().unzip();
    AdmissionItem {
        interface: args.interface.clone(),
        within: args.within.clone(),
        hook: args.hook,
        behind: args.behind.clone(),
        package,
        version,
        publisher: args.publisher.as_ref().map(ToString::to_string),
        map: args.map.clone(),
        shared_with: args.shared_with.clone(),
        ..AdmissionItem::new(args.verb)
    }
}

fn explain_by(file: &Path, args: &ExplainArgs, screen: &mut Screen) -> Result<Exit, Failure> {
    let (_, rules) = rules(file)?;
    let host = args.host.host.clone().ok_or_else(|| {
        Failure::new(Exit::Invalid, "no host was named")
            .fix("--host HOST, and its labels by --label")
    })?;
    let labels: Labels = args.label.iter().cloned().collect();
    let item = item(args);
    let subject = Subject { principal: &args.who, role: args.role, host: &host, labels: &labels };
    let reply = ExplainReply {
        basis: AdmissionBasis::Rules,
        role: args.role,
        decision: rules.decide(subject, &item),
        rules: rules.explain(subject, &item),
        labels: labels.clone(),
    };
    show(args, host, item, reply, screen)
}

/// `policy explain`, by the policy service.
pub async fn explain(
    args: &ExplainArgs,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let host = remote.host(&args.host).await?;
    let request = ExplainRequest { principal: args.who.clone(), host, item: item(args) };
    let reply = remote.ask_centre::<policy::Explain>(&request).await?;
    show(args, request.host, request.item, reply, screen)
}

fn show(
    args: &ExplainArgs,
    host: HostId,
    item: AdmissionItem,
    reply: ExplainReply,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let exit = if reply.decision.allowed { Exit::Done } else { Exit::Denied };
    screen.show(&Explained { who: args.who.clone(), host, item, reply }, args.output.output)?;
    Ok(exit)
}

/// `get rules`
pub async fn in_force(
    format: Format,
    remote: &Remote,
    screen: &mut Screen,
) -> Result<Exit, Failure> {
    let rules = Rules(remote.rules().await?);
    screen.show(&rules, format)?;
    if matches!(format, Format::Table | Format::Wide) {
        for remark in rules.remarks() {
            screen.note(&remark);
        }
    }
    Ok(Exit::Done)
}
