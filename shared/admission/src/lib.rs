//! Admission: rules in, decisions out. Who may put which package where, write its maps, take it off.
//!
//! **Promises:**
//!
//! 1. What no rule allows is denied, and no `allow` overrules a `deny`.
//! 2. The order of the rules decides nothing; adding a `deny` allows nothing, adding an `allow` denies
//!    nothing.
//! 3. Where it is not known which interfaces a selector stands for, it is allowed only if all of them
//!    are, and denied if any of them is.
//! 4. A rule that the lint says decides nothing decides nothing.
//!
//! **Owns:** the document of rules, the table of cases, what both mean.
//!
//! **Must not know:** who has which role and which host which label (its caller says so), files,
//! sockets, clocks.
//!
//! ```
//! use canopy_admission::{Labels, RuleSet, Subject};
//! use canopy_api::{document::{self, Format}, wire::{AdmissionItem, AdmissionVerb}};
//!
//! let rules: RuleSet = document::load(
//!     "rules:\n\
//!      - name: no-detaching\n  effect: deny\n  reason: ask the network team\n  when: { verbs: [drain] }\n\
//!      - name: operators\n  effect: allow\n  when: { roles: [operator] }\n",
//!     Format::Yaml,
//! ).unwrap();
//! let (alice, web1) = ("u-alice".parse().unwrap(), "web1".parse().unwrap());
//! let (role, labels) = ("operator".parse().ok(), Labels::new());
//! let subject = Subject { principal: &alice, role, host: &web1, labels: &labels };
//! assert!(rules.decide(subject, &AdmissionItem::new(AdmissionVerb::Apply)).allowed);
//! let denied = rules.decide(subject, &AdmissionItem::new(AdmissionVerb::Drain));
//! assert_eq!(denied.rule.as_deref(), Some("no-detaching"));
//! ```

pub mod cases;
mod decide;
mod glob;
mod lint;
mod rule;

pub use cases::{Case, Cases, Outcome};
pub use decide::{Labels, Subject};
pub use glob::Glob;
pub use rule::{Conditions, MAX_RULES, PackagePattern, Rule, RuleSet, is_label};

use canopy_api::{
    Problems,
    document::{self, Format},
};

/// Rules from a document, with everything checked that can be.
pub fn load(text: &str, format: Format) -> Result<RuleSet, Problems> {
    let rules: RuleSet = document::load(text, format)?;
    rules.check()?;
    Ok(rules)
}
