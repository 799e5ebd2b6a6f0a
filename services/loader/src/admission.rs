//! Asking policy whether a change may be made. Without an answer none is made; what runs keeps
//! running, and is restored and restarted without asking anybody.

use crate::metrics::AdmissionMetrics;
use canopy_api::{
    ApiError, Code, Principal, Problem,
    endpoint::policy,
    error::RULES_UNUSABLE,
    subject::Target,
    wire::{ADMIT_ITEMS, AdmissionBasis, AdmissionDecision, AdmissionItem, AdmitRequest, Admitted},
};
use canopy_bus::{Bus, CallError, CallOptions, Caller, LogGate};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often policy is asked that says nothing: one of several instances may hang.
const TRIES: u32 = 2;
/// How long policy is asked again that is busy, within what the caller waits: other changes of this host wait
/// meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is left of the caller's time for the change and its answer.
const CHANGING: Duration = Duration::from_secs(1);

/// Whether policy is asked before a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AdmissionMode {
    /// Policy is asked; without its answer nothing is changed.
    #[default]
    Required,
    /// DANGER: nobody is asked. Whoever the bus lets through changes this host, whatever the rules
    /// say. For a host that has no policy service.
    Off,
}

/// Why a change is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// It is denied.
    #[error("admission denies this")]
    Denied(Vec<(AdmissionItem, AdmissionDecision)>),
    /// Policy gives no answer.
    #[error("policy cannot be asked whether this is allowed: {0}")]
    Silent(#[source] CallError),
    /// It answered something else than was asked.
    #[error("policy answered {got} of {asked} questions")]
    Answer {
        /// Questions.
        asked: usize,
        /// Answers.
        got: usize,
    },
}

impl NotAdmitted {
    fn result(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::Silent(_) | Self::Answer { .. } => "unavailable",
        }
    }

    /// The rules that deny.
    fn rules(&self) -> Vec<String> {
        match self {
            Self::Denied(parts) => parts.iter().filter_map(|(_, one)| one.rule.clone()).collect(),
            Self::Silent(_) | Self::Answer { .. } => Vec::new(),
        }
    }

    /// What the caller is told.
    pub fn into_api(self) -> ApiError {
        const REMEDY: &str = "nothing was changed and what runs keeps running; see that \
                              canopy-policy is well (canopy doctor), then try again";
        let said = self.to_string();
        match self {
            Self::Silent(error) => {
                // Policy's own word why it cannot answer says more than that it did not.
                let remedy = match &error {
                    CallError::Api(api) => api.remedy.clone(),
                    _ => None,
                };
                ApiError::new(Code::Unavailable, said)
                    .remedy(remedy.unwrap_or_else(|| REMEDY.to_owned()))
            }
            Self::Answer { .. } => ApiError::new(Code::Unavailable, said).remedy(REMEDY),
            Self::Denied(parts) => {
                let mut problems: Vec<Problem> = parts.iter().map(problem).collect();
                let first = match problems.len() {
                    1 => problems.remove(0),
                    parts => Problem::new("", format!("admission denies {parts} parts of this")),
                };
                let mut error = ApiError::new(Code::Denied, first.message).at(first.path).remedy(
                    "ask whoever administers the rules; canopy policy explain says how each rule decides",
                );
                error.problems = problems;
                error
            }
        }
    }
}

/// `apply firewall 0.1.0 on eth0/xdp is denied by "no-xdp": reason`
fn problem((item, decision): &(AdmissionItem, AdmissionDecision)) -> Problem {
    let by = match &decision.rule {
        Some(rule) => format!(" by rule \"{rule}\""),
        None => String::new(),
    };
    Problem::new(&item.path, format!("{item} is denied{by}: {}", decision.reason))
}

/// Whether policy may answer the same question in a moment, without anybody doing anything.
fn may_answer_soon(error: &ApiError) -> bool {
    error.retryable && error.reason.as_deref() != Some(RULES_UNUSABLE)
}

/// Whoever is asked before a change.
#[derive(Clone)]
pub struct Admission {
    mode: AdmissionMode,
    bus: Bus,
    metrics: Option<AdmissionMetrics>,
    log: Arc<LogGate>,
}

impl Admission {
    /// Policy on this bus, or nobody.
    pub fn new(mode: AdmissionMode, bus: Bus) -> Self {
        Self { mode, bus, metrics: None, log: Arc::default() }
    }

    /// With metrics.
    #[must_use]
    pub fn counted(mut self, metrics: AdmissionMetrics) -> Self {
        metrics.required.with_label_values::<&str>(&[]).set(match self.mode {
            AdmissionMode::Required => 1,
            AdmissionMode::Off => 0,
        });
        self.metrics = Some(metrics);
        self
    }

    /// Whether all of this may be done; every part that may not is told. Decisions are not kept: the
    /// next question is asked anew.
    pub async fn ask(
        &self,
        caller: &Caller,
        items: Vec<AdmissionItem>,
        dry_run: bool,
    ) -> Result<Admitted, ApiError> {
        let by = &caller.principal;
        if self.mode == AdmissionMode::Off {
            self.count("off");
            return Ok(Admitted { basis: AdmissionBasis::Off, rules: Vec::new() });
        }
        let begun = Instant::now();
        let patience = begun + PATIENCE;
        let until = caller.until.and_then(|until| until.checked_sub(CHANGING));
        let until = until.map_or(patience, |until| until.min(patience));
        let asked = self.decided(by, items, dry_run, until).await;
        if let Some(metrics) = &self.metrics {
            let took = begun.elapsed().as_secs_f64();
            metrics.duration.with_label_values::<&str>(&[]).observe(took);
        }
        match asked {
            Ok(admitted) => {
                self.count("allowed");
                caller.notes.rules(admitted.rules.iter().cloned());
                Ok(admitted)
            }
            Err(refused) => {
                self.count(refused.result());
                caller.notes.rules(refused.rules());
                if let Some(unlogged) = self.log.pass(by.as_str()) {
                    let result = refused.result();
                    tracing::warn!(%by, dry_run, result, unlogged, "not admitted: {refused}");
                }
                Err(refused.into_api())
            }
        }
    }

    async fn decided(
        &self,
        by: &Principal,
        mut items: Vec<AdmissionItem>,
        dry_run: bool,
        until: Instant,
    ) -> Result<Admitted, NotAdmitted> {
        let mut basis = AdmissionBasis::Rules;
        let mut rules = BTreeSet::new();
        let mut denied = Vec::new();
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(ADMIT_ITEMS));
            let request = AdmitRequest {
                principal: by.clone(),
                items: std::mem::replace(&mut items, rest),
                dry_run,
            };
            let reply = self.call(&request, until).await?;
            let (asked, got) = (request.items.len(), reply.decisions.len());
            if asked != got {
                return Err(NotAdmitted::Answer { asked, got });
            }
            basis = reply.basis;
            for (item, decision) in request.items.into_iter().zip(reply.decisions) {
                if decision.allowed {
                    rules.extend(decision.rule);
                } else {
                    denied.push((item, decision));
                }
            }
        }
        if denied.is_empty() {
            Ok(Admitted { basis, rules: rules.into_iter().collect() })
        } else {
            Err(NotAdmitted::Denied(denied))
        }
    }

    async fn call(
        &self,
        request: &AdmitRequest,
        until: Instant,
    ) -> Result<canopy_api::wire::AdmitReply, NotAdmitted> {
        let options = CallOptions::default();
        let mut tries = 1;
        loop {
            let asked = self.bus.call_again::<policy::Admit>(
                &Target::Central,
                request,
                &options,
                until,
                may_answer_soon,
            );
            match asked.await {
                Ok(reply) => return Ok(reply),
                Err(CallError::Timeout { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(NotAdmitted::Silent(error)),
            }
        }
    }

    fn count(&self, result: &str) {
        if let Some(metrics) = &self.metrics {
            metrics.asked.with_label_values(&[result]).inc();
        }
    }
}
