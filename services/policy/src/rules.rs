//! The admission rules in force: read from a file, exchanged when it changes, and kept when what it
//! changes to is wrong.

use crate::{directory::Directory, metrics::Metrics};
use canopy_admission::{Labels, RuleSet, Subject};
use canopy_api::{
    ApiError, Code, Digest, HostId, Principal, Problem, Problems,
    document::Format,
    permission::Role,
    time::rfc3339,
    wire::{
        AdmissionBasis, AdmissionDecision, AdmissionItem, ExplainReply, ExplainRequest, RulesReply,
        RulesRequest, json_length,
    },
};
use canopy_runtime::{Latch, NamedFiles};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

/// Longest file of rules, bytes.
const LONGEST: u64 = 16 << 20;

/// What is decided by.
#[derive(Clone)]
enum Rules {
    /// No file is configured.
    None,
    /// A file is configured and none could be read yet: nothing is allowed, nothing denied.
    Unread,
    /// These.
    InForce { rules: Arc<RuleSet>, digest: Digest },
}

#[derive(Clone)]
struct State {
    directory: Arc<dyn Directory>,
    /// Labels of enrolled hosts, and how often they changed.
    enrolled: Arc<BTreeMap<HostId, Labels>>,
    enrolments: u64,
    rules: Rules,
    since: SystemTime,
    /// What is wrong with the file as it stands.
    trouble: Option<String>,
}

impl State {
    /// The labels of a host: those of the configuration and those of its enrolment, which counts
    /// where both have one of the name.
    fn labels(&self, host: &HostId) -> Labels {
        let mut labels = self.directory.labels(host);
        labels.extend(self.enrolled.get(host).cloned().unwrap_or_default());
        labels
    }
}

/// The rules, and who is who.
pub struct Admission {
    state: RwLock<State>,
    metrics: Metrics,
    latch: Latch,
}

impl Admission {
    /// Without rules yet; see [`Self::read`].
    pub fn new(
        directory: Arc<dyn Directory>,
        metrics: Metrics,
        latch: Latch,
        now: SystemTime,
    ) -> Self {
        let state = State {
            directory,
            enrolled: Arc::default(),
            enrolments: 0,
            rules: Rules::None,
            since: now,
            trouble: None,
        };
        let admission = Self { state: RwLock::new(state), metrics, latch };
        admission.tell();
        admission
    }

    /// The labels of an enrolled host; `None` when it is none any more.
    pub(crate) fn enrolled(&self, host: &HostId, labels: Option<Labels>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.enrolments += 1;
        let enrolled = Arc::make_mut(&mut state.enrolled);
        match labels {
            Some(labels) => enrolled.insert(host.clone(), labels),
            None => enrolled.remove(host),
        };
    }

    /// How often labels of enrolled hosts changed: to be asked before all of them are read.
    pub(crate) fn enrolments(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).enrolments
    }

    /// All enrolled hosts, unless one was changed since `before`, after which they were read.
    pub(crate) fn all_enrolled(&self, hosts: &[crate::hosts::Kept], before: u64) {
        let labels = hosts
            .iter()
            .filter_map(|kept| Some((kept.host().clone(), kept.labels()?.clone())))
            .collect();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.enrolments == before {
            state.enrolled = Arc::new(labels);
        }
    }

    /// Other people and hosts.
    pub fn know(&self, directory: Arc<dyn Directory>) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).directory = directory;
    }

    /// No file any more: whoever the bus lets through may.
    pub fn open(&self, now: SystemTime) {
        self.change(|state| {
            if !matches!(state.rules, Rules::None) {
                tracing::warn!("admission is open: no rules are configured any more");
                state.since = now;
            }
            state.rules = Rules::None;
            state.trouble = None;
        });
    }

    /// What a file says now. With a mistake in it the rules before stay; where there are none, every
    /// change is refused until it is mended.
    pub fn read(&self, path: &Path, text: Result<String, Problem>, now: SystemTime) {
        let loaded = text
            .map_err(Problems::from)
            .and_then(|text| Ok((parse(path, &text)?, Digest::of(text.as_bytes()))));
        self.change(|state| match loaded {
            Ok((rules, digest)) => {
                tracing::info!(rules = rules.rules.len(), %digest, "admission rules are in force");
                state.rules = Rules::InForce { rules: Arc::new(rules), digest };
                state.since = now;
                state.trouble = None;
            }
            Err(problems) => {
                let kept = match state.rules {
                    Rules::InForce { .. } => "the rules before stay in force",
                    Rules::None | Rules::Unread => {
                        state.rules = Rules::Unread;
                        "every change is refused until it is mended"
                    }
                };
                for problem in &problems.0 {
                    tracing::error!(file = %path.display(), "the rules are not used, {kept}: {problem}");
                }
                let first = problems.0.first().map(ToString::to_string).unwrap_or_default();
                state.trouble = Some(format!("{}: {first}; {kept}", path.display()));
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
        self.tell();
    }

    fn tell(&self) {
        let state = self.state();
        let (count, open) = match &state.rules {
            Rules::None => (0, true),
            Rules::Unread => (0, false),
            Rules::InForce { rules, .. } => (rules.rules.len(), false),
        };
        self.metrics.rules(count, open, state.trouble.is_none());
        match (&state.trouble, &state.rules) {
            (Some(trouble), _) => self.latch.set(false, trouble),
            (None, Rules::None) => self.latch.warn(
                "open: no rules, so that whoever the bus lets through may change hosts; set `rules` in \
                 policy's configuration",
            ),
            (None, _) => self.latch.set(true, format!("{count} rules in force")),
        }
    }

    fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The role the configuration gives a person.
    pub(crate) fn configured_role(&self, principal: &Principal) -> Option<Role> {
        self.state().directory.role(principal)
    }

    /// The labels that the configuration gives a host.
    pub(crate) fn configured_labels(&self, host: &HostId) -> Labels {
        self.state().directory.labels(host)
    }

    /// Every host that is known, with its labels.
    pub(crate) fn hosts(&self) -> Vec<(HostId, Labels)> {
        let state = self.state();
        let configured = state.directory.hosts().into_iter().map(|(host, _)| host);
        let all: BTreeSet<HostId> = configured.chain(state.enrolled.keys().cloned()).collect();
        all.into_iter().map(|host| (host.clone(), state.labels(&host))).collect()
    }

    /// Decides on every item.
    pub fn decide(
        &self,
        principal: &Principal,
        role: Option<Role>,
        host: &HostId,
        items: &[AdmissionItem],
    ) -> Result<(AdmissionBasis, Vec<AdmissionDecision>), ApiError> {
        let state = self.state();
        let labels = state.labels(host);
        let subject = Subject { principal, role, host, labels: &labels };
        match &state.rules {
            Rules::None => Ok((AdmissionBasis::Open, items.iter().map(open).collect())),
            Rules::Unread => Err(unread(&state)),
            Rules::InForce { rules, .. } => {
                let decided = items.iter().map(|item| rules.decide(subject, item)).collect();
                Ok((AdmissionBasis::Rules, decided))
            }
        }
    }

    /// How a decision comes about.
    pub fn explain(
        &self,
        role: Option<Role>,
        request: &ExplainRequest,
    ) -> Result<ExplainReply, ApiError> {
        let ExplainRequest { principal, host, item } = request;
        let state = self.state();
        let labels = state.labels(host);
        let subject = Subject { principal, role, host, labels: &labels };
        let (basis, decision, rules) = match &state.rules {
            Rules::None => (AdmissionBasis::Open, open(item), Vec::new()),
            Rules::Unread => return Err(unread(&state)),
            Rules::InForce { rules, .. } => {
                let verdicts = rules.explain(subject, item);
                (AdmissionBasis::Rules, rules.decide(subject, item), verdicts)
            }
        };
        Ok(ExplainReply { basis, role, labels, decision, rules })
    }

    /// The rules in force: whole, or a page of about `room` bytes of JSON where a cursor asks for one.
    ///
    /// # Errors
    /// When the cursor is none, or other rules came into force since the page before.
    pub fn rules(&self, request: &RulesRequest, room: usize) -> Result<RulesReply, ApiError> {
        let state = self.state();
        let (digest, document) = match &state.rules {
            Rules::None | Rules::Unread => (None, serde_json::Value::Null),
            Rules::InForce { rules, digest } => {
                (Some(digest.to_string()), serde_json::to_value(rules.as_ref()).unwrap_or_default())
            }
        };
        let whole = RulesReply {
            basis: match &state.rules {
                Rules::None => AdmissionBasis::Open,
                Rules::Unread | Rules::InForce { .. } => AdmissionBasis::Rules,
            },
            since: rfc3339(state.since),
            digest,
            trouble: state.trouble,
            document,
            text: None,
            next: None,
        };
        let Some(cursor) = request.cursor.as_deref() else { return Ok(whole) };
        let document =
            if whole.document.is_null() { String::new() } else { whole.document.to_string() };
        let head = RulesReply { document: serde_json::Value::Null, ..whole };
        page_of_rules(head, &document, cursor, room)
    }
}

/// A page of the document's text. What its cursor points into is named by its digest: replicas of policy
/// that read the same rules go on with each other's pages.
fn page_of_rules(
    head: RulesReply,
    document: &str,
    cursor: &str,
    room: usize,
) -> Result<RulesReply, ApiError> {
    let digest = Digest::of(document.as_bytes());
    let start = if cursor.is_empty() {
        0
    } else {
        let unreadable = || {
            ApiError::new(Code::Invalid, "the cursor is not the \"next\" of a reply")
                .at("cursor")
                .remedy("leave it empty for the first page")
        };
        let (of, start) = cursor.split_once(' ').ok_or_else(unreadable)?;
        let of: Digest = of.parse().map_err(|_| unreadable())?;
        let start = start.parse::<usize>().map_err(|_| unreadable())?;
        if of != digest {
            return Err(ApiError::new(Code::Conflict, "other rules came into force meanwhile")
                .at("cursor")
                .remedy("start again from the first page"));
        }
        if !(1..document.len()).contains(&start) || !document.is_char_boundary(start) {
            return Err(unreadable());
        }
        start
    };
    // In a JSON string, a quote or a backslash of the text takes two bytes.
    let piece = room.saturating_sub(json_length(&head)) / 2;
    let mut end = document.len().min(start.saturating_add(piece.max(4)));
    while !document.is_char_boundary(end) {
        end -= 1;
    }
    let text = document.get(start..end).unwrap_or_default().to_owned();
    let next = (end < document.len()).then(|| format!("{digest} {end}"));
    Ok(RulesReply { text: Some(text), next, ..head })
}

fn open(item: &AdmissionItem) -> AdmissionDecision {
    if item.verb.is_named_only() {
        return AdmissionDecision {
            allowed: false,
            rule: None,
            reason: format!("no rule names {}, and none is allowed without", item.verb),
        };
    }
    AdmissionDecision {
        allowed: true,
        rule: None,
        reason: "no rules are configured: whoever the bus lets through may".to_owned(),
    }
}

fn unread(state: &State) -> ApiError {
    let trouble = state.trouble.as_deref().unwrap_or("not read yet");
    ApiError::new(Code::Unavailable, format!("the admission rules cannot be used: {trouble}"))
        .remedy("mend the file; canopy policy check says everything that is wrong with it")
        .reason(canopy_api::error::RULES_UNUSABLE)
}

/// The file of the rules, and its text as it was read last.
#[derive(Clone, Debug)]
pub struct RulesFile {
    path: PathBuf,
    seen: Option<Result<String, Problem>>,
}

impl RulesFile {
    /// A file that was not read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text, if it is another one than the last time. Reads a file; not for a thread that others
    /// wait for.
    pub fn changed(&mut self) -> Option<Result<String, Problem>> {
        let now = canopy_files::check_protected(&self.path)
            .map_err(|open| {
                Problem::new("", format!("the rules are not used: {open}")).remedy(open.remedy)
            })
            .and_then(|()| {
                canopy_files::read_text(&self.path, LONGEST)
                    .map_err(|error| Problem::new("", format!("cannot be read: {error}")))
            });
        if self.seen.as_ref() == Some(&now) {
            return None;
        }
        self.seen = Some(now.clone());
        Some(now)
    }
}

/// What the text of the file `path` says.
fn parse(path: &Path, text: &str) -> Result<RuleSet, Problems> {
    let format = Format::of(path).ok_or_else(|| {
        Problem::new("", "neither JSON nor YAML by its name").remedy("name it .json, .yaml or .yml")
    })?;
    canopy_admission::load(text, format)
}

/// Says what keeps the rules in a file from being used.
pub(crate) fn check_file(field: &str, path: &Path, files: &mut NamedFiles) {
    let text = RulesFile::new(path.to_owned()).changed().unwrap_or_else(|| Ok(String::new()));
    let problems = text.map_err(Problems::from).and_then(|text| parse(path, &text));
    for problem in problems.err().into_iter().flat_map(|problems| problems.0) {
        let place = match problem.path.as_str() {
            "" => path.display().to_string(),
            inside => format!("{}: {inside}", path.display()),
        };
        let mut told = Problem::new(field, format!("{place}: {}", problem.message));
        told.remedy = problem.remedy.or_else(|| Some("correct the file, or the path".to_owned()));
        files.push(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    fn head() -> RulesReply {
        RulesReply {
            basis: AdmissionBasis::Rules,
            since: "2026-01-01T00:00:00Z".to_owned(),
            digest: Some("sha256:1".to_owned()),
            trouble: None,
            document: serde_json::Value::Null,
            text: None,
            next: None,
        }
    }

    #[test]
    fn pages_of_rules_fit_and_hold_the_whole_document() {
        let rule = |n: usize| serde_json::json!({ "name": format!("r{n}"), "reason": "\"ä\\é\"" });
        let document = serde_json::json!({ "rules": (0..40).map(rule).collect::<Vec<_>>() });
        let document = document.to_string();
        for room in [1, 200, 300, 1_000, 100_000] {
            let (mut cursor, mut text, mut pages) = (String::new(), String::new(), 0);
            loop {
                let page = page_of_rules(head(), &document, &cursor, room).unwrap();
                let next = json_length(&page.next).saturating_add(30);
                assert!(json_length(&page) <= room.max(json_length(&head()) + 20) + next, "{room}");
                text += page.text.as_deref().unwrap();
                pages += 1;
                let Some(next) = page.next else { break };
                cursor = next;
            }
            assert_eq!(text, document, "{room}");
            assert_eq!(pages == 1, room == 100_000, "{pages} pages of {room}");
        }
    }

    #[test]
    fn a_page_of_other_rules_is_a_conflict_of_the_cursor() {
        let first = page_of_rules(head(), "{\"rules\":[\"ä\",1,2]}", "", 1).unwrap();
        let next = first.next.unwrap();
        let error = page_of_rules(head(), "{\"rules\":[\"ä\",1,3]}", &next, 1).unwrap_err();
        assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "cursor"));
        let (digest, _) = next.split_once(' ').unwrap();
        // Within a letter, behind the end, and what is no cursor.
        for wrong in ["x", "x 1", digest, &format!("{digest} 12"), &format!("{digest} 99")] {
            let error = page_of_rules(head(), "{\"rules\":[\"ä\",1,2]}", wrong, 1).unwrap_err();
            assert_eq!((error.code, error.path.as_str()), (Code::Invalid, "cursor"), "{wrong}");
        }
    }

    #[test]
    fn rules_that_others_may_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.yaml");
        fs::write(&path, "rules: []\n").unwrap();
        let mut file = RulesFile::new(path.clone());
        assert_eq!(file.changed().unwrap().unwrap(), "rules: []\n");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let problem = file.changed().unwrap().unwrap_err();
        let remedy = format!("chmod go-w {}", path.display());
        assert_eq!(problem.remedy, Some(remedy), "{}", problem.message);
        assert!(file.changed().is_none(), "it is told once");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(file.changed().unwrap().is_ok());
    }
}
