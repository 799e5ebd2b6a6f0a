//! The state of a host as a document.

use super::{ChainStatus, GetReply, PlannedProgram, ProgramStatus, SelectorStatus};
use crate::{
    desired::{ChainSpec, DesiredState, PackageRef, ProgramSpec},
    selector::Target,
};
use std::collections::BTreeSet;

impl GetReply {
    /// What is desired of the host, as a document: applied to it, it changes nothing. Versions and
    /// priorities are those that were resolved; what is attached and not desired is left out.
    pub fn desired(&self) -> DesiredState {
        let selectors = self.selectors.iter().map(SelectorStatus::spec);
        let mut described = BTreeSet::new();
        let chains = self.chains.iter().filter(|chain| !chain.programs.is_empty());
        let chains = selectors
            .chain(chains.map(ChainStatus::spec))
            .filter(|spec| described.insert(spec.target()))
            .collect();
        DesiredState { chains }
    }
}

impl SelectorStatus {
    fn spec(&self) -> ChainSpec {
        let programs = self.programs.iter().map(PlannedProgram::spec).collect();
        let Target { netns, interface, hook } = self.target();
        ChainSpec {
            netns,
            interface,
            hook,
            xdp_mode: self.xdp_mode,
            tc_mode: self.tc_mode,
            programs,
        }
    }
}

impl ChainStatus {
    /// As it is described: for its selector, where it comes from one.
    fn spec(&self) -> ChainSpec {
        ChainSpec {
            netns: self.netns.clone(),
            interface: self.selector.clone().unwrap_or_else(|| self.interface.clone().into()),
            hook: self.hook,
            xdp_mode: self.xdp_mode,
            tc_mode: self.tc_mode,
            programs: self.programs.iter().map(ProgramStatus::spec).collect(),
        }
    }
}

impl PlannedProgram {
    fn spec(&self) -> ProgramSpec {
        ProgramSpec {
            name: self.name.clone(),
            package: exactly(&self.package, &self.version),
            program: Some(self.program.clone()),
            priority: Some(self.priority),
            proceed_on: Some(self.proceed_on.clone()),
            config: self.config.clone(),
        }
    }
}

impl ProgramStatus {
    fn spec(&self) -> ProgramSpec {
        ProgramSpec {
            name: self.name.clone(),
            package: exactly(&self.package, &self.version),
            program: Some(self.program.clone()),
            priority: Some(self.priority),
            proceed_on: Some(self.proceed_on.clone()),
            config: self.config.clone(),
        }
    }
}

fn exactly(name: &crate::PackageName, version: &str) -> PackageRef {
    let requirement = semver::VersionReq::parse(&format!("={version}"));
    PackageRef { name: name.clone(), requirement: requirement.unwrap_or_default() }
}
