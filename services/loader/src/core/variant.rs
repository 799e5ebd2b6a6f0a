//! What a package asks of a host, and which of a program's objects a host runs.

use super::state::Choice;
use canopy_api::wire::{Fact, PassedOver};
use canopy_package::manifest::{ManifestProgram, Requires};
use std::fmt;

/// What a host has.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// Kernel release, as in `uname -r`.
    pub kernel: &'a str,
    /// Machine architecture, as in `uname -m`.
    pub arch: &'a str,
    /// What its kernel can do, as it was tried.
    pub facts: &'a [Fact],
}

/// Something that is asked for and that a host does not have. `Display` says what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Its kernel is older.
    Kernel {
        /// The release that is asked for.
        least: String,
        /// The host's.
        has: String,
    },
    /// It is another machine.
    Arch {
        /// Those that will do.
        wanted: Vec<String>,
        /// The host's.
        has: String,
    },
    /// Its kernel cannot.
    Feature(String),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { least, has } => write!(f, "kernel {least} or later; this is {has}"),
            Self::Arch { wanted, has } => write!(f, "{}; this is {has}", wanted.join(" or ")),
            Self::Feature(name) => write!(f, "\"{name}\", which this host does not have"),
        }
    }
}

impl Lack {
    /// What to do about it, in one line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Kernel { .. } => "update the kernel, or choose another version of the package",
            Self::Arch { .. } => "choose a package built for this architecture",
            Self::Feature(_) => "see `canopy doctor` for what is missing and how to get it",
        }
    }
}

impl Host<'_> {
    /// What of this the host does not have.
    pub fn lacks(&self, requires: &Requires) -> Vec<Lack> {
        let mut lacks = Vec::new();
        if let Some(least) = &requires.kernel
            && release(self.kernel) < release(least)
        {
            lacks.push(Lack::Kernel { least: least.clone(), has: self.kernel.to_owned() });
        }
        if !requires.arch.is_empty() && !requires.arch.iter().any(|known| known == self.arch) {
            lacks.push(Lack::Arch { wanted: requires.arch.clone(), has: self.arch.to_owned() });
        }
        let missing = requires
            .features
            .iter()
            .filter(|feature| !self.facts.iter().any(|fact| fact.name == **feature && fact.ok));
        lacks.extend(missing.cloned().map(Lack::Feature));
        lacks
    }
}

/// The first of a program's objects for which the host lacks nothing; its last is for every host.
pub fn choose(program: &ManifestProgram, host: &Host<'_>) -> (String, Choice) {
    let mut choice = Choice { kernel: host.kernel.to_owned(), passed_over: Vec::new() };
    for variant in &program.variants {
        let lacks = host.lacks(&variant.requires);
        if lacks.is_empty() {
            return (variant.object.clone(), choice);
        }
        let lacks: Vec<_> = lacks.iter().map(ToString::to_string).collect();
        choice
            .passed_over
            .push(PassedOver { object: variant.object.clone(), needs: lacks.join("; and ") });
    }
    (program.object.clone(), choice)
}

/// `6.18.0-rc1-amd64` to (6, 18, 0); missing numbers are 0.
fn release(text: &str) -> [u32; 3] {
    let mut numbers = text.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::Hook;
    use canopy_package::manifest::Variant;
    use proptest::{prelude::*, sample};

    #[test]
    fn releases_compare_by_number() {
        assert!(release("6.9.1-amd64") < release("6.18"));
        assert!(release("5.15") <= release("5.15.0-generic"));
        assert!(release("6.1.0") >= release("6.1"));
    }

    const FEATURES: [&str; 3] = ["ring-buffer", "tcx", "btf"];

    fn requires() -> impl Strategy<Value = Requires> {
        let kernel = prop::option::of(sample::select(&["5.15", "6.1", "6.18"][..]));
        let arch = sample::subsequence(&["x86_64", "aarch64"][..], 0..=2);
        let features = sample::subsequence(&FEATURES[..], 0..=3);
        (kernel, arch, features).prop_map(|(kernel, arch, features)| Requires {
            kernel: kernel.map(str::to_owned),
            arch: arch.into_iter().map(str::to_owned).collect(),
            features: features.into_iter().map(str::to_owned).collect(),
        })
    }

    fn program(variants: Vec<Requires>) -> ManifestProgram {
        let variants = variants.into_iter().enumerate();
        ManifestProgram {
            name: "p".to_owned(),
            object: "plain.o".to_owned(),
            variants: variants
                .map(|(i, requires)| Variant { object: format!("{i}.o"), requires })
                .collect(),
            function: "p".to_owned(),
            hooks: vec![Hook::Xdp],
            priority: 100,
            proceed_on: None,
            frags: false,
            tail_calls: None,
        }
    }

    fn facts(can: &[bool]) -> Vec<Fact> {
        FEATURES
            .iter()
            .zip(can)
            .map(|(name, ok)| Fact {
                name: (*name).to_owned(),
                ok: *ok,
                required: false,
                detail: String::new(),
                remedy: None,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_first_that_the_host_can_do_is_chosen_and_the_others_say_why_not(
            variants in prop::collection::vec(requires(), 0..4),
            kernel in sample::select(&["5.15.0", "6.1.0-25-amd64", "6.18.2+"][..]),
            arch in sample::select(&["x86_64", "riscv64"][..]),
            can in prop::collection::vec(any::<bool>(), 3),
        ) {
            let facts = facts(&can);
            let host = Host { kernel, arch, facts: &facts };
            // As the manifest's reference says it, said once more.
            let fits = |requires: &Requires| {
                let ranks = ["5.15", "6.1", "6.18"];
                let rank = |text: &str| ranks.iter().rposition(|r| text.starts_with(r)).unwrap();
                requires.kernel.as_deref().is_none_or(|least| rank(least) <= rank(kernel))
                    && (requires.arch.is_empty() || requires.arch.iter().any(|a| a == arch))
                    && FEATURES.iter().zip(&can).all(|(name, ok)| {
                        *ok || !requires.features.iter().any(|feature| feature == name)
                    })
            };
            let first = variants.iter().position(fits);
            let program = program(variants);
            let (object, choice) = choose(&program, &host);
            let wanted = first.map_or_else(|| "plain.o".to_owned(), |i| format!("{i}.o"));
            prop_assert_eq!(object, wanted);
            prop_assert_eq!(choice.passed_over.len(), first.unwrap_or(program.variants.len()));
            for (passed, variant) in choice.passed_over.iter().zip(&program.variants) {
                prop_assert_eq!(&passed.object, &variant.object);
                prop_assert!(!passed.needs.is_empty());
            }
        }
    }

    #[test]
    fn everything_that_is_lacking_is_said() {
        let variant = Requires {
            kernel: Some("6.9".to_owned()),
            arch: vec!["aarch64".to_owned()],
            features: vec!["tcx".to_owned()],
        };
        let host = Host { kernel: "6.1.0", arch: "x86_64", facts: &[] };
        let (object, choice) = choose(&program(vec![variant]), &host);
        assert_eq!((object.as_str(), choice.kernel.as_str()), ("plain.o", "6.1.0"));
        assert_eq!(
            choice.passed_over[0].needs,
            "kernel 6.9 or later; this is 6.1.0; and aarch64; this is x86_64; and \"tcx\", which \
             this host does not have"
        );
    }
}
