//! Which object of a program this host runs, where its package has several.
//!
//! The choice is made when a document is applied, and noted beside it: what is attached stays as it is
//! over restarts, whatever a probe says then. It is made again for another kernel, whose pins are gone
//! and for whom every chain is built again anyway; and when what was chosen cannot be built.

use super::{Engine, Inner, Trouble};
use crate::{
    core::{
        state::Wanted,
        variant::{self, Host},
    },
    error::with_causes,
};
use canopy_api::{ChainKey, Target, wire::Fact};
use canopy_kernel::Kernel;

impl<K: Kernel> Engine<K> {
    /// Makes the choices that are not made for this kernel. Those of packages that are not at hand stay
    /// open: without the package nothing is built.
    pub(super) fn choose<'a>(&self, wanted: impl IntoIterator<Item = &'a mut Wanted>) {
        let kernel = self.parts.kernel.release();
        let mut probed: Option<Vec<Fact>> = None;
        for program in wanted.into_iter().flat_map(|wanted| &mut wanted.programs) {
            if program.choice.as_ref().is_none_or(|choice| choice.kernel == kernel) {
                continue;
            }
            let Ok(package) = self.parts.packages.package(&program.digest) else { continue };
            let programs = &package.manifest.programs;
            let Some(declared) = programs.iter().find(|p| p.name == program.program) else {
                continue;
            };
            // Probing is not free: only when somebody asks for a feature.
            let asks = declared.variants.iter().any(|v| !v.requires.features.is_empty());
            if asks && probed.is_none() {
                probed = Some(self.parts.kernel.facts());
            }
            let facts = probed.as_deref().unwrap_or_default();
            let host = Host { kernel: &kernel, arch: std::env::consts::ARCH, facts };
            let (object, choice) = variant::choose(declared, &host);
            tracing::info!(
                program = %program.name, package = %program.package, version = %program.version,
                object, kernel, "variant chosen"
            );
            program.object = object;
            program.choice = Some(choice);
        }
    }

    /// The same for what selectors give, once for all their interfaces.
    pub(super) fn choose_for_rules(&self, inner: &mut Inner) {
        let kernel = self.parts.kernel.release();
        let now = (self.parts.now)();
        let fails = |target: &Target| {
            inner.trouble.iter().any(|(key, trouble)| {
                let chain = inner.wanting.get(key).or_else(|| inner.state.chains.get(key));
                trouble.cannot_be_built()
                    && now >= trouble.not_before
                    && key.hook == target.hook
                    && chain.is_some_and(|chain| chain.rule.as_ref() == Some(&target.interface))
            })
        };
        let mut rules = inner.state.rules.clone();
        for (target, rule) in &mut rules {
            if fails(target) {
                rule.wanted.forget_choices();
            }
        }
        let open = |wanted: &Wanted| wanted.choices().any(|choice| choice.kernel != kernel);
        if !rules.values().any(|rule| open(&rule.wanted)) {
            return;
        }
        self.choose(rules.values_mut().map(|rule| &mut rule.wanted));
        // What stays open was forgotten for nothing.
        for (target, rule) in &mut rules {
            if let Some(before) = inner.state.rules.get(target).filter(|_| open(&rule.wanted)) {
                *rule = before.clone();
            }
        }
        if rules == inner.state.rules {
            return;
        }
        let mut next = inner.state.clone();
        next.rules = rules;
        match self.parts.store.save(&next) {
            Ok(()) => inner.state = next,
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "chosen variants are not written down");
            }
        }
    }

    /// The same for a chain of its own that is about to be built again.
    pub(super) fn choose_for(&self, inner: &Inner, key: &ChainKey, wanted: &mut Wanted) {
        if inner.trouble.get(key).is_some_and(Trouble::cannot_be_built) {
            wanted.forget_choices();
        }
        self.choose([wanted]);
    }
}

impl Trouble {
    /// Whether more is wrong than that the interface is not there.
    fn cannot_be_built(&self) -> bool {
        !self.interface_missing
    }
}
