//! `cargo xtask demo`: the whole of Canopy on this machine, with real packets, seen from inside and
//! from outside; then somebody tampers, and it comes back.
//!
//! Every figure that is shown is also checked: a demonstration that shows the wrong thing fails.

use crate::{
    dev,
    network::{ALLOWED, BLOCKED, FLOODING, INTERFACE},
    outside, paths,
    progress::{heading, step, wait_for},
    shell,
    stack::Stack,
    traffic::{self, Echo, Sent},
};
use anyhow::{Context as _, Result, ensure};
use canopy_api::{
    Hook,
    endpoint::Service,
    wire::{ChainState, ChainStatus, ProgramStatus},
};
use std::{thread, time::Duration};

/// Datagrams of the well-behaved sources, and how fast.
const POLITE: (u64, u64) = (200, 200);
/// Datagrams of the flooding source, and how fast; far over the limit in `demo.yaml`.
const FLOOD: (u64, u64) = (20_000, 10_000);
/// Longest time an attached chain may be gone after somebody detached it.
const RESTORE_LIMIT: f64 = 1.5;

/// Runs it and leaves the stack up.
pub fn run(build: dev::Build) -> Result<()> {
    let old = dev::existing()?;
    if !old.leftovers().is_empty() || !dev::network().leftovers().is_empty() {
        heading("Cleaning up after an earlier run");
        dev::down()?;
    }
    let stack = dev::up(build)?;

    heading("Applying deploy/dev/demo.yaml");
    shell::run(
        stack.canopy("operator")?.args(["apply", "-f"]).arg(paths::workspace().join(DOCUMENT)),
    )?;

    heading("Sending packets");
    let echo = Echo::start()?;
    let allowed = send("allowed", ALLOWED, &echo, POLITE)?;
    let blocked = send("blocked", BLOCKED, &echo, POLITE)?;
    let flooding = send("flooding", FLOODING, &echo, FLOOD)?;
    ensure!(allowed.replies == allowed.sent, "an allowed packet was not answered");
    ensure!(blocked.replies == 0, "{} blocked packets were answered", blocked.replies);
    ensure!(
        flooding.replies > 0 && flooding.replies < flooding.sent / 2,
        "the flood was not limited"
    );

    heading("What each program did (canopy get chains)");
    let chains = chains(&stack)?;
    for chain in &chains {
        print_chain(chain);
    }
    let xdp = chain(&chains, Hook::Xdp)?;
    ensure!(
        metric(xdp, "blocklist", "blocked") == Some(exact(blocked.sent)),
        "the firewall did not count what was blocked: {:?}",
        metric(xdp, "blocklist", "blocked")
    );
    ensure!(
        metric(xdp, "limit", "limited") == Some(exact(flooding.sent - flooding.replies)),
        "the limiter's count {:?} is not what the sender missed",
        metric(xdp, "limit", "limited")
    );
    compare_with_bpftool(&chains)?;

    heading("Somebody tampers");
    tamper(&stack, &echo)?;

    dev::hints()
}

/// What is applied.
const DOCUMENT: &str = "deploy/dev/demo.yaml";

fn send(kind: &str, from: &str, echo: &Echo, (count, per_second): (u64, u64)) -> Result<Sent> {
    let sent = traffic::send(&dev::network(), from, echo.address(), count, per_second)?;
    println!(
        "  {kind:<9} {from:<13} sent {:>6} in {:4.1} s, answered {:>6} (counted by the sender)",
        sent.sent, sent.seconds, sent.replies
    );
    Ok(sent)
}

/// Every chain, as the command line tells it.
pub fn chains(stack: &Stack) -> Result<Vec<ChainStatus>> {
    let text = shell::output(stack.canopy("viewer")?.args(["get", "chains", "-o", "json"]))?;
    serde_json::from_str(&text).with_context(|| format!("`canopy get chains` said {text:?}"))
}

fn chain(chains: &[ChainStatus], hook: Hook) -> Result<&ChainStatus> {
    chains
        .iter()
        .find(|chain| chain.interface.as_str() == INTERFACE && chain.hook == hook)
        .with_context(|| format!("there is no chain {INTERFACE}/{hook}"))
}

fn metric(chain: &ChainStatus, program: &str, name: &str) -> Option<f64> {
    let program = chain.programs.iter().find(|candidate| candidate.name.as_str() == program)?;
    let values: Vec<f64> = program
        .metrics
        .iter()
        .filter(|metric| metric.name == name)
        .map(|metric| metric.value)
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Counts are far below 2⁵³ here.
#[allow(clippy::cast_precision_loss, reason = "counts of a demonstration are small")]
fn exact(count: u64) -> f64 {
    count as f64
}

fn print_chain(chain: &ChainStatus) {
    let mode = chain.observed.as_ref().map_or("-", |observed| observed.mode.as_str());
    println!("  {}, {mode}", chain.key());
    println!(
        "    {:>3}  {:<10} {:<16} {:>8}  {:<28} METRICS",
        "POS", "PROGRAM", "PACKAGE", "PACKETS", "VERDICTS"
    );
    for program in &chain.programs {
        println!(
            "    {:>3}  {:<10} {:<16} {:>8}  {:<28} {}",
            program.position,
            program.name,
            format!("{}@{}", program.package, program.version),
            program.runs,
            words(program.verdicts.iter().map(|(name, count)| (name.as_str(), exact(*count)))),
            metrics(program),
        );
    }
}

/// The package's metrics that are one number each, zero ones left out.
fn metrics(program: &ProgramStatus) -> String {
    let single =
        program.metrics.iter().filter(|metric| metric.labels.is_empty() && metric.value != 0.0);
    words(single.map(|metric| (metric.name.as_str(), metric.value)))
}

fn words<'a>(pairs: impl Iterator<Item = (&'a str, f64)>) -> String {
    pairs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// The kernel's own word, through a tool that knows nothing of Canopy.
fn compare_with_bpftool(chains: &[ChainStatus]) -> Result<()> {
    heading("What the kernel says (bpftool)");
    for chain in chains {
        let observed =
            chain.observed.as_ref().with_context(|| format!("{} is not attached", chain.key()))?;
        let program = outside::program(observed.program_id.into())?;
        let members = outside::members(program.id)?;
        println!(
            "  {:<16} program {} \"{}\" tag {} on link {}: {}",
            chain.key(),
            program.id,
            program.name,
            program.tag,
            observed.link_id,
            members.join(", "),
        );
        ensure!(program.tag == observed.tag, "bpftool sees another program on {}", chain.key());
        ensure!(
            members.len() == chain.programs.len(),
            "bpftool sees {} members on {}, not {}",
            members.len(),
            chain.key(),
            chain.programs.len()
        );
    }
    Ok(())
}

/// Detaches the chain's link with a foreign tool, bus and enforcer stopped, while the blocked source
/// goes on sending: what it gets answered is how long the chain was gone.
fn tamper(stack: &Stack, echo: &Echo) -> Result<()> {
    step("stopping bus and enforcer: the loader does it alone", || {
        stack.process(Service::Enforcer).stop()?;
        stack.bus().stop()
    })?;
    let before = link(INTERFACE)?;
    println!("  $ bpftool link detach id {before}");
    let to = echo.address();
    // Three seconds of one packet a millisecond; the tampering happens in the first.
    let sender = thread::spawn(move || traffic::send(&dev::network(), BLOCKED, to, 3_000, 1_000));
    thread::sleep(Duration::from_millis(500));
    outside::detach_link(before)?;
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender failed"))??;
    let gap = sent.last_reply - sent.first_reply;
    println!(
        "  the blocked source sent {} packets; {} were answered, within {gap:.2} s: then the chain \
         was back",
        sent.sent, sent.replies
    );
    ensure!(sent.replies > 0, "the chain was never gone: the tampering did not work");
    ensure!(gap <= RESTORE_LIMIT, "the chain was gone for {gap:.2} s, over {RESTORE_LIMIT} s");
    ensure!(
        sent.last_reply < sent.seconds - 0.2,
        "packets of the blocked source were answered until the end"
    );
    let after = link(INTERFACE)?;
    ensure!(after != before, "the link cannot be the same: a detached one never comes back");
    step("starting bus and enforcer again", || {
        stack.start_bus()?;
        stack.wait_for_bus()?;
        stack.start_service(Service::Enforcer)?;
        for service in Service::ALL {
            stack.wait_ready(service)?;
        }
        Ok(())
    })?;
    let restored = wait_for("the loader answers again", Duration::from_secs(15), || {
        let chains = chains(stack).map_err(|error| format!("{error:#}"))?;
        let xdp = chain(&chains, Hook::Xdp).map_err(|error| format!("{error:#}"))?;
        match xdp.state {
            ChainState::Active if xdp.restored > 0 => Ok(xdp.restored),
            state => Err(format!("{state:?}, restored {} times", xdp.restored)),
        }
    })?;
    println!("  the loader says: active, restored {restored} time(s), link {before} -> {after}");
    Ok(())
}

/// The XDP link on an interface, as foreign tools tell it.
fn link(interface: &str) -> Result<u64> {
    outside::xdp_link(interface)?
        .map(|link| link.id)
        .with_context(|| format!("there is no XDP link on {interface}"))
}
