//! Enrolled hosts: one value a host, changed by compare and swap, so that several instances agree.

use crate::{
    connect::Refusal,
    grants::Giver,
    page::{Wanted, page},
};
use canopy_admission::{Labels, is_label};
use canopy_api::{
    ApiError, Code, HostId, Principal,
    endpoint::Service,
    permission::daemon_principal,
    time,
    wire::{
        hosts::{
            HostCertificate, HostEnrolRequest, HostListReply, HostListRequest, HostRecord,
            HostState,
        },
        tokens::Revoked,
    },
};
use canopy_bus::data::{Bucket, Stored, Swap};
use canopy_identity::Certificate;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

/// Seconds within which a host has to connect for the first time: a minute to a week.
const FIRST: std::ops::RangeInclusive<u64> = 60..=7 * 86_400;
/// When nobody says otherwise.
const FIRST_DEFAULT: u64 = 3600;
/// Most labels of a host.
const LABELS: usize = 64;
/// How often a change is tried again after somebody else's.
const TRIES: usize = 8;
/// Certificates kept of a daemon that renews: the one in use, and the newest of those it was given.
const NEW_ONES: usize = 3;

/// A certificate that is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Held {
    fingerprint: String,
    key: String,
    until: u64,
}

impl From<&Certificate> for Held {
    fn from(certificate: &Certificate) -> Self {
        Self {
            fingerprint: certificate.fingerprint.clone(),
            key: certificate.key_fingerprint.clone(),
            until: u64::try_from(certificate.not_after).unwrap_or(0),
        }
    }
}

/// What is kept of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    host: HostId,
    #[serde(default)]
    labels: Labels,
    /// How often it was enrolled.
    generation: u64,
    /// Of each daemon the certificate in use, then those it was given since.
    certificates: BTreeMap<Service, Vec<Held>>,
    /// Seconds since 1970, as all times here.
    enrolled: u64,
    enrolled_by: String,
    connect_before: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connected: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<(u64, String)>,
}

impl Kept {
    pub(crate) fn state(&self, now: u64) -> HostState {
        match (&self.revoked, self.connected) {
            (Some(_), _) => HostState::Revoked,
            (None, Some(_)) => HostState::Active,
            (None, None) if now < self.connect_before => HostState::Waiting,
            (None, None) => HostState::Expired,
        }
    }

    pub(crate) fn record(&self, now: u64) -> HostRecord {
        let shown = |seconds| time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        let newest = self.certificates.iter().filter_map(|(service, held)| {
            let Held { fingerprint, key, until } = held.last()?.clone();
            Some((*service, HostCertificate { fingerprint, key, until: shown(until) }))
        });
        HostRecord {
            host: self.host.clone(),
            state: self.state(now),
            labels: self.labels.clone(),
            generation: self.generation,
            certificates: newest.collect(),
            enrolled: shown(self.enrolled),
            enrolled_by: self.enrolled_by.clone(),
            connected: self.connected.map(shown),
            connect_before: shown(self.connect_before),
            revoked: self
                .revoked
                .as_ref()
                .map(|(at, by)| Revoked { by: by.clone(), at: shown(*at) }),
        }
    }

    /// Whether this daemon may connect with this certificate; and what to keep, if that changes
    /// something.
    fn accepts(
        &self,
        service: Service,
        certificate: &str,
        now: u64,
    ) -> Result<Option<Self>, Refusal> {
        match self.state(now) {
            HostState::Revoked => return Err(Refusal::HostRevoked(self.host.clone())),
            HostState::Expired => return Err(Refusal::EnrolmentExpired(self.host.clone())),
            HostState::Waiting | HostState::Active => {}
        }
        let held = self.certificates.get(&service).map(Vec::as_slice).unwrap_or_default();
        let at = held.iter().position(|one| one.fingerprint == certificate);
        let at = at.ok_or_else(|| Refusal::NotTheEnrolled(self.host.clone(), service))?;
        if self.connected.is_some() && at == 0 {
            return Ok(None);
        }
        let mut next = self.clone();
        next.connected = self.connected.or(Some(now));
        // Who uses a new certificate has done with the one before.
        next.certificates.entry(service).or_default().drain(..at);
        Ok(Some(next))
    }

    pub(crate) fn host(&self) -> &HostId {
        &self.host
    }

    /// How often it was enrolled.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.is_some()
    }

    /// The labels, while it is a host of ours.
    pub(crate) fn labels(&self) -> Option<&Labels> {
        (!self.is_revoked()).then_some(&self.labels)
    }

    /// The labels, whether it may connect or not.
    pub(crate) fn kept_labels(&self) -> &Labels {
        &self.labels
    }

    /// When connections of before last became worth nothing.
    pub(crate) fn turned(&self) -> u64 {
        self.revoked.as_ref().map_or(self.enrolled, |(at, _)| *at)
    }

    /// The names of the connections it may have.
    pub(crate) fn users(&self) -> Vec<String> {
        if self.is_revoked() {
            return Vec::new();
        }
        let principals =
            self.certificates.keys().filter_map(|s| daemon_principal(*s, Some(&self.host)).ok());
        principals.map(|principal| user(&principal, self.generation)).collect()
    }
}

/// The name of an enrolled daemon's connections: another one for each enrolment.
pub(crate) fn user(principal: &Principal, generation: u64) -> String {
    format!("{principal}/{generation}")
}

/// Certificates that a daemon gets for its key in [`RENEWALS_SECONDS`].
const RENEWALS: u32 = 10;
/// Ten minutes.
const RENEWALS_SECONDS: u64 = 600;

/// The hosts.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    bucket: Bucket,
    renewals: Arc<Mutex<Renewals>>,
}

/// By daemon: when its window began, seconds since 1970, and how many certificates it got since.
type Renewals = BTreeMap<(HostId, Service), (u64, u32)>;

impl Hosts {
    /// Those in this bucket.
    pub(crate) fn new(bucket: Bucket) -> Self {
        Self { bucket, renewals: Arc::default() }
    }

    /// Counts a renewal. Each writes to the store and is told to every instance, and a daemon needs one in
    /// weeks.
    fn count_renewal(&self, host: &HostId, service: Service, now: u64) -> Result<(), ApiError> {
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        renewals.retain(|_, (began, _)| now.saturating_sub(*began) < RENEWALS_SECONDS);
        let (_, count) = renewals.entry((host.clone(), service)).or_insert((now, 0));
        if *count >= RENEWALS {
            return Err(ApiError::new(
                Code::Unavailable,
                format!("{service} of {host} got {RENEWALS} certificates in {RENEWALS_SECONDS} s"),
            )
            .remedy("use the certificate that was signed last"));
        }
        *count += 1;
        Ok(())
    }

    /// What is kept of one.
    pub(crate) async fn get(&self, host: &HostId) -> Result<Option<Stored<Kept>>, ApiError> {
        Ok(self.bucket.get(host.as_str()).await?)
    }

    /// All of them, by id.
    pub(crate) async fn all(&self) -> Result<Vec<Kept>, ApiError> {
        let mut all: Vec<Kept> = self.bucket.all().await?;
        all.sort_by(|a, b| a.host.cmp(&b.host));
        Ok(all)
    }

    /// What is told of one, or of a page of them.
    pub(crate) async fn list(
        &self,
        request: &HostListRequest,
        now: u64,
    ) -> Result<HostListReply, ApiError> {
        if let Some(host) = &request.host {
            let kept = self.get(host).await?.ok_or_else(|| none(host))?.value;
            return Ok(HostListReply { hosts: vec![kept.record(now)], next: None });
        }
        let wanted =
            Wanted { after: request.after.as_ref().map(HostId::as_str), limit: request.limit };
        let record = |kept: &Kept| (kept.host.to_string(), kept.record(now));
        let (hosts, next) = page(&self.bucket, wanted, record).await?;
        Ok(HostListReply { hosts, next: next.and_then(|host| host.parse().ok()) })
    }

    /// Lets a daemon in, or says why not. The first time is noted before it is let in: an enrolment
    /// that has ended cannot become one that was used.
    pub(crate) async fn admit(
        &self,
        host: &HostId,
        service: Service,
        certificate: &str,
        now: u64,
    ) -> Result<u64, Refusal> {
        let away = |error: ApiError| Refusal::StoreAway(error.to_string());
        for _ in 0..TRIES {
            let before = self.get(host).await.map_err(away)?;
            let before = before.ok_or_else(|| Refusal::NotEnrolled(host.clone()))?;
            let Some(next) = before.value.accepts(service, certificate, now)? else {
                return Ok(before.value.generation);
            };
            let swap = self.bucket.replace(host.as_str(), &next, before.revision).await;
            if swap.map_err(|error| away(error.into()))? == Swap::Done {
                return Ok(next.generation);
            }
        }
        Err(away(busy(host)))
    }

    /// Keeps an enrolment whose certificates were read or signed already.
    pub(crate) async fn enrol(
        &self,
        request: &HostEnrolRequest,
        certificates: &BTreeMap<Service, Certificate>,
        (giver, configured): (&Giver, &Labels),
        now: u64,
    ) -> Result<Kept, ApiError> {
        let host = &request.host;
        let connect_before = connect_before(giver, request, now)?;
        for _ in 0..TRIES {
            let before = self.get(host).await?;
            may_enrol(giver, request, configured, before.as_ref().map(|before| &before.value))?;
            let taken = before.as_ref().filter(|before| {
                matches!(before.value.state(now), HostState::Waiting | HostState::Active)
            });
            if taken.is_some() && !request.replace {
                return Err(ApiError::new(Code::Conflict, format!("{host} is enrolled already"))
                    .at("host")
                    .remedy("look who it is; with --replace its certificates of before end"));
            }
            let kept = Kept {
                host: host.clone(),
                labels: match &before {
                    Some(before) if request.labels.is_empty() => before.value.labels.clone(),
                    _ => request.labels.clone(),
                },
                generation: before.as_ref().map_or(0, |before| before.value.generation) + 1,
                certificates: certificates
                    .iter()
                    .map(|(service, certificate)| (*service, vec![certificate.into()]))
                    .collect(),
                enrolled: now,
                enrolled_by: giver.name().to_owned(),
                connect_before,
                connected: None,
                revoked: None,
            };
            let swap = match before {
                Some(before) => self.bucket.replace(host.as_str(), &kept, before.revision).await?,
                None => self.bucket.create(host.as_str(), &kept).await?,
            };
            if swap == Swap::Done {
                return Ok(kept);
            }
        }
        Err(busy(host))
    }

    /// Whether a daemon may have another certificate for this key.
    pub(crate) async fn may_renew(
        &self,
        host: &HostId,
        service: Service,
        key: &str,
        now: u64,
    ) -> Result<Stored<Kept>, ApiError> {
        let kept = self.get(host).await?.ok_or_else(|| none(host))?;
        let held = kept.value.certificates.get(&service);
        // The key of the enrolment in force: who was replaced may still be connected for a moment.
        let same = held.is_some_and(|held| held.iter().all(|one| one.key == key));
        if kept.value.state(now) != HostState::Active || !same {
            return Err(ApiError::new(
                Code::Denied,
                format!("{service} of {host} is not enrolled with this key"),
            )
            .at("request")
            .remedy("another key is another enrolment: canopy host request, canopy host enrol"));
        }
        self.count_renewal(host, service, now)?;
        Ok(kept)
    }

    /// Keeps a renewed certificate beside the one in use.
    pub(crate) async fn renewed(
        &self,
        before: Stored<Kept>,
        service: Service,
        certificate: &Certificate,
    ) -> Result<(), ApiError> {
        let mut next = before.value;
        let held = next.certificates.entry(service).or_default();
        held.push(certificate.into());
        if held.len() > NEW_ONES + 1 {
            held.remove(1);
        }
        match self.bucket.replace(next.host.as_str(), &next, before.revision).await? {
            Swap::Done => Ok(()),
            Swap::Overtaken => Err(busy(&next.host)),
        }
    }

    /// Changes what is kept of a host; nothing is written where nothing changes.
    pub(crate) async fn change(
        &self,
        host: &HostId,
        change: impl Fn(&mut Kept) -> Result<(), ApiError>,
    ) -> Result<Kept, ApiError> {
        for _ in 0..TRIES {
            let before = self.get(host).await?.ok_or_else(|| none(host))?;
            let mut next = before.value.clone();
            change(&mut next)?;
            if next == before.value {
                return Ok(next);
            }
            let swap = self.bucket.replace(host.as_str(), &next, before.revision).await?;
            if swap == Swap::Done {
                return Ok(next);
            }
        }
        Err(busy(host))
    }

    /// Takes a host back.
    pub(crate) async fn revoke(
        &self,
        host: &HostId,
        (giver, configured): (&Giver, &Labels),
        now: u64,
    ) -> Result<Kept, ApiError> {
        self.change(host, |kept| {
            giver.may_change_whole_host(host, &together(configured, &kept.labels))?;
            kept.revoked.get_or_insert_with(|| (now, giver.name().to_owned()));
            Ok(())
        })
        .await
    }

    /// Removes what is kept of a host that was revoked.
    pub(crate) async fn forget(
        &self,
        host: &HostId,
        (giver, configured): (&Giver, &Labels),
        now: u64,
    ) -> Result<HostRecord, ApiError> {
        for _ in 0..TRIES {
            let before = self.get(host).await?.ok_or_else(|| none(host))?;
            giver.may_change_whole_host(host, &together(configured, &before.value.labels))?;
            if !before.value.is_revoked() {
                let state = before.value.state(now).as_str();
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("{host} is {state}; only a revoked host can be forgotten"),
                )
                .at("host")
                .remedy(format!("canopy host revoke {host}, then forget it")));
            }
            let removed = self.bucket.remove(host.as_str(), before.revision).await?;
            if removed == Swap::Done {
                return Ok(before.value.record(now));
            }
        }
        Err(busy(host))
    }

    /// Puts labels on, or takes them away.
    pub(crate) async fn label(
        &self,
        host: &HostId,
        labels: &BTreeMap<String, Option<String>>,
        (giver, configured): (&Giver, &Labels),
    ) -> Result<Kept, ApiError> {
        self.change(host, |kept| {
            // As it is before: nobody brings a host into their own reach.
            giver.may_change_whole_host(host, &together(configured, &kept.labels))?;
            for (name, value) in labels {
                match value {
                    Some(value) => kept.labels.insert(name.clone(), value.clone()),
                    None => kept.labels.remove(name),
                };
            }
            check_labels(&kept.labels)
        })
        .await
    }
}

/// The labels that count for a host: those of its enrolment before those of the configuration.
fn together(configured: &Labels, enrolled: &Labels) -> Labels {
    let mut labels = configured.clone();
    labels.extend(enrolled.clone());
    labels
}

/// Until when a host may connect for the first time that is enrolled now.
pub(crate) fn connect_before(
    giver: &Giver,
    request: &HostEnrolRequest,
    now: u64,
) -> Result<u64, ApiError> {
    giver.first_use_before(request.expires_in, FIRST_DEFAULT, now)
}

/// That a host may be enrolled by this giver: as it is known, where it is, and as it will be.
pub(crate) fn may_enrol(
    giver: &Giver,
    request: &HostEnrolRequest,
    configured: &Labels,
    before: Option<&Kept>,
) -> Result<(), ApiError> {
    let host = &request.host;
    let old = before.map(|before| &before.labels);
    if old.is_some() || !configured.is_empty() {
        let old = old.map_or_else(|| configured.clone(), |old| together(configured, old));
        giver.may_change_whole_host(host, &old)?;
    }
    let new = match old {
        Some(old) if request.labels.is_empty() => old,
        _ => &request.labels,
    };
    giver.may_change_host(host, &together(configured, new), request.certificates.keys().copied())
}

/// What can be said of a request before anything is signed.
pub(crate) fn check(request: &HostEnrolRequest) -> Result<(), ApiError> {
    check_labels(&request.labels)?;
    if let Some(first) = request.expires_in.filter(|first| !FIRST.contains(first)) {
        let said = format!("{first} s is not between {} s and {} s", FIRST.start(), FIRST.end());
        return Err(ApiError::new(Code::Invalid, said)
            .at("expires_in")
            .remedy("an enrolment is used soon or made again"));
    }
    if request.certificates.is_empty() {
        return Err(ApiError::new(Code::Invalid, "no daemon of the host is to be enrolled")
            .at("certificates")
            .remedy("canopy host request makes what is to be sent"));
    }
    match request.certificates.keys().find(|service| !service.is_host_local()) {
        Some(service) => {
            Err(ApiError::new(Code::Invalid, format!("{service} is no daemon of a host"))
                .at("certificates"))
        }
        None => Ok(()),
    }
}

fn check_labels(labels: &Labels) -> Result<(), ApiError> {
    if labels.len() > LABELS {
        let said = format!("{} labels; a host has at most {LABELS}", labels.len());
        return Err(ApiError::new(Code::Invalid, said).at("labels"));
    }
    match labels.iter().find(|(name, value)| !is_label(name, true) || !is_label(value, false)) {
        Some((name, value)) => {
            Err(ApiError::new(Code::Invalid, format!("{name}={value} is not a label"))
                .at(format!("labels.{name}"))
                .remedy("name and value are 1 to 63 letters, digits, '_', '.' and '-'"))
        }
        None => Ok(()),
    }
}

fn none(host: &HostId) -> ApiError {
    // What was forgotten leaves nothing behind but its record in the audit trail.
    let message = format!("the host {host} is not enrolled: it never was, or it was forgotten");
    ApiError::new(Code::NotFound, message).at("host").remedy(
        "canopy host list shows the hosts; canopy get audit --verb host-forget shows who forgot one, and when",
    )
}

fn busy(host: &HostId) -> ApiError {
    ApiError::new(Code::Conflict, format!("what is kept of {host} is being changed by others"))
        .remedy("look at it, and try again")
}
