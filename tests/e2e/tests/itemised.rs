//! One document, several interfaces: what can be is done, what cannot is told.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::float_cmp,
    reason = "tests: a failure is the message"
)]

use canopy_api::{
    Hook,
    endpoint::Service,
    wire::{Action, ApplyReply},
};
use canopy_e2e::{BLOCKED, INTERFACE, World};

/// The firewall on [`INTERFACE`]; on `lo`, which has no native XDP, what cannot be; on a third
/// interface, which is not there, something.
fn document() -> String {
    let on = |interface: &str, mode: &str| {
        format!(
            "- interface: {interface}\n  hook: xdp\n{mode}  programs:\n  \
             - {{ name: wall, package: firewall@^0.1 }}\n"
        )
    };
    World::firewall() + &on("lo", "  xdp_mode: native\n") + &on("gone0", "")
}

#[test]
fn what_fails_on_one_interface_is_told_and_the_others_are_changed() {
    let world = World::start().unwrap();
    std::fs::write(world.dir().join("document.yaml"), document()).unwrap();

    // All or nothing: nothing.
    let whole = ["apply", "-f", "document.yaml", "-o", "json", "--atomic"];
    let answer = world.canopy_as("operator", &whole).unwrap();
    assert_eq!(answer.code, 4, "{}", answer.err);
    assert_eq!(world.kernel_link().unwrap(), None);
    assert_eq!(world.chains().unwrap(), []);

    // Each for itself; a repeat of the request gets the same answer.
    let each = ["apply", "-f", "document.yaml", "-o", "json", "--request-id", "each"];
    let answer = world.canopy_as("operator", &each).unwrap();
    assert_eq!(answer.code, 9, "{}", answer.err);
    let reply: ApplyReply = serde_json::from_str(&answer.out).unwrap();
    let told: Vec<_> =
        reply.chains.iter().map(|chain| (chain.interface.as_str(), chain.action)).collect();
    assert_eq!(
        told,
        [(INTERFACE, Action::Created), ("lo", Action::Failed), ("gone0", Action::Failed)]
    );
    let error: serde_json::Value = serde_json::from_str(&answer.err).unwrap();
    let problems = error["error"]["problems"].as_array().unwrap();
    let native = problems[0]["message"].as_str().unwrap();
    assert!(native.starts_with("lo/xdp: native XDP is refused: "), "{native}");
    assert_eq!(problems[1]["path"], "document.yaml: chains[2].interface", "{}", answer.err);
    assert_eq!(world.send(BLOCKED, 20).unwrap(), 0, "the firewall does its work");
    let link = world.kernel_link().unwrap().unwrap();
    let again = world.canopy_as("operator", &each).unwrap();
    assert_eq!((again.code, again.out), (9, answer.out));
    assert_eq!(world.kernel_link().unwrap().unwrap(), link);

    let chains = world.chains().unwrap();
    assert_eq!(chains.len(), 1, "{chains:?}");
    assert_eq!((chains[0].interface.as_str(), chains[0].hook), (INTERFACE, Hook::Xdp));
    let counted = |result: &str| {
        let name = "canopy_loader_changes_total";
        world.metric(Service::Loader, name, &[("result", result)]).unwrap()
    };
    assert_eq!((counted("created"), counted("failed")), (1.0, 2.0));
    world.end().unwrap();
}
