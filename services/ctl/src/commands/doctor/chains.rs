//! Chains of a host that are attached and may have no effect all the same.

use crate::view::{
    chains::warnings,
    doctor::{Finding, Standing},
};
use canopy_api::wire::{ChainState, GetReply};

/// One line for all chains that are well, one more for each thing that keeps packets from a chain or what
/// a chain sends from the wire.
pub(super) fn findings(state: &GetReply) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut well = 0;
    for chain in &state.chains {
        let name = format!("chain {}", chain.key());
        let warnings = warnings(chain);
        match (chain.state, &chain.reason) {
            (ChainState::Active | ChainState::Drained, _) | (_, None) => {}
            (ChainState::Pending | ChainState::Diverged, Some(reason)) => {
                found.push(Finding::new(&name, Standing::Warn, reason));
                continue;
            }
        }
        if warnings.is_empty() {
            well += 1;
        }
        found.extend(warnings.into_iter().map(|why| Finding::new(&name, Standing::Warn, why)));
    }
    if well > 0 || found.is_empty() {
        let detail = match well {
            0 => "none".to_owned(),
            1 => "1 with nothing before it".to_owned(),
            n => format!("{n} with nothing before them"),
        };
        found.insert(0, Finding::new("chains", Standing::Ok, detail));
    }
    found.extend(state.stray_pins.iter().map(|path| {
        Finding::new("pins", Standing::Warn, format!("{path} is nothing of Canopy's; left alone"))
            .remedy("find out whose it is, and move or remove it")
    }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::host;
    use canopy_api::wire::{ChainPlacement, ForeignProgram};

    #[test]
    fn a_program_before_a_chain_and_lost_packets_are_told() {
        let mut state = host();
        state.chains.truncate(1);
        let lines = |state: &GetReply| -> Vec<(String, Standing, String)> {
            findings(state).into_iter().map(|f| (f.name, f.standing, f.detail)).collect()
        };
        let well = |text: &str| ("chains".to_owned(), Standing::Ok, text.to_owned());
        assert_eq!(lines(&state), [well("1 with nothing before it")]);

        state.chains[0].placement = Some(ChainPlacement {
            position: 1,
            programs: 2,
            revision: Some(3),
            before: vec![ForeignProgram {
                attached: "tcx".to_owned(),
                program_id: 12,
                name: Some("somebody_else".to_owned()),
                tag: Some("0011223344556677".to_owned()),
                program_type: Some("sched_cls".to_owned()),
                link_id: Some(7),
                filter: None,
            }],
        });
        state.chains[0].device_errors.insert("rx_xdp_tx_errors".to_owned(), 50);
        state.stray_pins.push("/sys/fs/bpf/canopy/notes".to_owned());
        let told = lines(&state);
        let names: Vec<_> =
            told.iter().map(|(name, standing, _)| (name.as_str(), *standing)).collect();
        let chain = ("chain eth0/xdp", Standing::Warn);
        assert_eq!(names, [chain, chain, ("pins", Standing::Warn)]);
        assert_eq!(
            told[0].2,
            "program 12 \"somebody_else\" (tcx, link 7, type sched_cls, tag 0011223344556677) runs \
             before the chain: what it drops or ends does not reach the chain"
        );
        assert_eq!(
            told[1].2,
            "the device dropped packets that the chain sent: rx_xdp_tx_errors 50"
        );
        assert!(told[2].2.contains("/sys/fs/bpf/canopy/notes"), "{told:?}");
    }

    #[test]
    fn a_chain_that_is_not_as_desired_says_why_once() {
        let mut state = host();
        state.chains[1].pin_problem = Some("hidden".to_owned());
        let told = findings(&state);
        let details: Vec<_> = told.iter().map(|f| f.detail.as_str()).collect();
        assert_eq!(details, ["1 with nothing before it", "there is no interface \"eth9\""]);
        state.chains.clear();
        assert_eq!(findings(&state)[0].detail, "none");
    }
}
