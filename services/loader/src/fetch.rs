//! Packages over the bus: which version, which bytes, and the loader's own verification of both.

mod error;

pub use error::FetchError;

use crate::{
    cache::Cache,
    core::{
        downgrade::Downgrade,
        resolve::Located,
        trust::{SignatureCheck, Trust, check_index, check_package, rule},
    },
    error::LoaderError,
    metrics::PackageMetrics,
};
use canopy_api::{
    ApiError, Blob, Code, Digest, HostId, PackageName, PackageRef, Principal,
    endpoint::{Service, registry},
    subject::Target,
    time::rfc3339,
    wire::{
        ArtifactReply, ArtifactRequest, IndexAt, PackageDowngraded, PackageRefused, ResolveReply,
        ResolveRequest,
    },
};
use canopy_bus::{Bus, CallError, CallOptions, is_busy};
use canopy_package::{
    Index, IndexSource, Limits, Manifest, PackageError, PublicKey, TrustedKey,
    index::{INDEX_LIMIT, IndexEntry},
    sign::verify_package,
};
use semver::Op;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// How long one chunk may take, and how often it is asked for.
const CHUNK: Duration = Duration::from_secs(4);
const TRIES: u32 = 3;
/// How long a registry is asked again that is busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the fetcher has to remember between requests.
pub trait Memory: Send + Sync {
    /// The version that an index read for a package must have at least: `repository` is what the registry
    /// calls it, `keys` are those whose indexes count for the package.
    fn index_at_least(
        &self,
        package: &PackageName,
        source: &IndexSource,
        repository: &str,
        keys: &[TrustedKey],
    ) -> Result<u64, PackageError>;
    /// Remembers a verified one, durably.
    fn remember_index(
        &self,
        package: &PackageName,
        source: &IndexSource,
        repository: &str,
        version: u64,
    ) -> Result<(), LoaderError>;
    /// The exact version of a package this host has already, if it will do.
    fn locked(&self, reference: &PackageRef) -> Option<Located>;
    /// Seconds since the epoch.
    fn seconds(&self) -> u64;
}

/// Whether the registry says nothing of the package: its repository is away, or has an index that ran out.
/// Any other refusal may be about the package itself (its file or key was revoked, it was withdrawn), and
/// no copy on this host gets around it.
fn without_word(said: &ApiError) -> bool {
    match said.code {
        Code::Unavailable => true,
        Code::Denied => said.reason.as_deref() == Some("index_expired"),
        Code::Invalid | Code::NotFound | Code::Conflict | Code::Unsupported | Code::Internal => {
            false
        }
    }
}

/// An index and its digest.
type KnownIndex = (Digest, Arc<[u8]>);

/// What the registry said to a reference; nothing of it is believed yet.
pub struct Asked(Result<ResolveReply, CallError>);

/// Gets packages.
#[derive(Clone)]
pub struct Fetcher {
    bus: Bus,
    cache: Arc<Cache>,
    rules: Arc<[Trust]>,
    limits: Limits,
    memory: Arc<dyn Memory>,
    kernel: String,
    metrics: Option<PackageMetrics>,
    /// The last long index, so that the packages of one repository fetch it once.
    index: Arc<Mutex<Option<KnownIndex>>>,
}

impl Fetcher {
    /// The bus that packages come from.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// A fetcher for a host with this kernel release.
    pub fn new(
        bus: Bus,
        cache: Arc<Cache>,
        rules: Vec<Trust>,
        limits: Limits,
        memory: Arc<dyn Memory>,
        kernel: String,
    ) -> Self {
        Self {
            bus,
            cache,
            rules: rules.into(),
            limits,
            memory,
            kernel,
            metrics: None,
            index: Arc::default(),
        }
    }

    /// A change begins.
    pub fn begin(&self) {
        self.cache.begin();
    }

    /// With metrics.
    #[must_use]
    pub fn counted(mut self, metrics: PackageMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Counts, logs and tells the bus that a package was not believed; says nothing where none came.
    pub async fn report(
        &self,
        host: &HostId,
        package: &PackageName,
        error: &FetchError,
        now: SystemTime,
    ) {
        let Some(reason) = error.disbelieved() else { return };
        if let Some(metrics) = &self.metrics {
            metrics.refused.with_label_values(&[reason]).inc();
        }
        tracing::warn!(%package, reason, "package refused: {error}");
        let refused = PackageRefused {
            host: Some(host.clone()),
            repository: None,
            package: Some(package.clone()),
            reason: reason.to_owned(),
            message: error.to_string(),
            time: rfc3339(now),
        };
        let told =
            self.bus.publish_event(Service::Loader, "package", "refused", Some(host), &refused);
        if let Err(error) = told.await {
            tracing::warn!(%error, "the bus was not told of a refused package");
        }
    }

    /// Tells the log and the bus of programs that went back to an older version.
    pub async fn tell_downgrades(
        &self,
        host: &HostId,
        downgrades: &[Downgrade],
        by: &Principal,
        now: SystemTime,
    ) {
        for Downgrade { target, program, package, from, to, .. } in downgrades {
            // What a selector stands for is told interface by interface.
            let Some(key) = target.key() else { continue };
            tracing::warn!(%key, %program, %package, %from, %to, %by, "went back to an older version");
            let event = PackageDowngraded {
                host: host.clone(),
                netns: key.netns.clone(),
                interface: key.interface.clone(),
                hook: key.hook,
                program: program.clone(),
                package: package.clone(),
                from: from.to_string(),
                to: to.to_string(),
                by: by.clone(),
                time: rfc3339(now),
            };
            let told = self.bus.publish_event(
                Service::Loader,
                "package",
                "downgraded",
                Some(host),
                &event,
            );
            if let Err(error) = told.await {
                tracing::warn!(%error, "the bus was not told of a downgrade");
            }
        }
    }

    /// The exact package a reference means today, verified and cached. When the registry cannot
    /// be reached, the version this host has already, if it will do; the note says so.
    pub async fn locate(
        &self,
        reference: &PackageRef,
    ) -> Result<(Located, Option<String>), FetchError> {
        let asked = self.ask(reference).await?;
        self.answered(reference, asked).await
    }

    /// Asks the registry what a reference means. Costs little memory, so that many can be asked at once.
    pub async fn ask(&self, reference: &PackageRef) -> Result<Asked, FetchError> {
        // What nobody may publish need not be asked for.
        self.rule(reference)?;
        Ok(Asked(self.resolve(reference).await))
    }

    fn rule(&self, reference: &PackageRef) -> Result<&Trust, FetchError> {
        rule(&self.rules, &reference.name)
            .ok_or_else(|| FetchError::NoTrust { package: reference.name.clone() })
    }

    async fn resolve(&self, reference: &PackageRef) -> Result<ResolveReply, CallError> {
        let request = ResolveRequest {
            package: reference.name.clone(),
            requirement: reference.requirement.to_string(),
            arch: Some(std::env::consts::ARCH.to_owned()),
            kernel: Some(self.kernel.clone()),
        };
        let (options, until) = (CallOptions::default(), Instant::now() + PATIENCE);
        self.bus
            .call_again::<registry::Resolve>(&Target::Central, &request, &options, until, is_busy)
            .await
    }

    /// The package that an answer to [`Self::ask`] means; see [`Self::locate`].
    pub async fn answered(
        &self,
        reference: &PackageRef,
        Asked(answer): Asked,
    ) -> Result<(Located, Option<String>), FetchError> {
        let trust = self.rule(reference)?;
        match answer {
            Ok(reply) => {
                let reply = match self.with_index(reply).await {
                    // Another index has taken its place since: what does that one say?
                    Err(FetchError::Registry(error)) if error.code == Code::NotFound => {
                        let reply = self.resolve(reference).await.map_err(|error| {
                            FetchError::Registry(Box::new(error.to_api_error()))
                        })?;
                        self.with_index(reply).await?
                    }
                    other => other?,
                };
                self.verified(trust, reference, reply).await
            }
            Err(error) => {
                // Nothing it could have said may be used. What was asked may still be answered by what
                // this host has: that comes from the registry's publisher, not from the registry.
                let unanswered = match &error {
                    CallError::NoResponders { .. }
                    | CallError::Timeout { .. }
                    | CallError::Disconnected { .. }
                    | CallError::Refused { .. } => true,
                    CallError::Api(api) => without_word(api),
                    CallError::NotPermitted { .. } | CallError::Codec { .. } => false,
                };
                let at_hand =
                    if unanswered { self.at_hand(trust, reference, &error).await? } else { None };
                let (located, note) =
                    at_hand.ok_or_else(|| FetchError::Registry(Box::new(error.to_api_error())))?;
                Ok((located, Some(note)))
            }
        }
    }

    /// The package of this host that will do where the registry has no answer: the version a chain has,
    /// or, asked for exactly, the one that lies in the cache. With a note that says so.
    async fn at_hand(
        &self,
        trust: &Trust,
        reference: &PackageRef,
        error: &CallError,
    ) -> Result<Option<(Located, String)>, FetchError> {
        if let Some(mut located) = self.locked(reference).await? {
            located.signed_by = self.still_trusted(trust, &located).await?;
            let Manifest { name, version, .. } = &located.package.manifest;
            let note = format!(
                "the registry cannot be asked ({error}); {name} {version} of this host will do"
            );
            return Ok(Some((located, note)));
        }
        let (me, rule, of) = (self.clone(), trust.clone(), reference.clone());
        let cached = blocking(move || me.cached(&rule, &of)).await?;
        Ok(cached.map(|located| {
            let Manifest { name, version, .. } = &located.package.manifest;
            let note = format!(
                "the registry cannot be asked ({error}); {name} {version} is taken from this host's \
                 cache, and whether it was withdrawn since is not known"
            );
            (located, note)
        }))
    }

    /// The package of an exact version in the cache, verified anew: its key or its file may have been
    /// revoked since it was put there. None of a range, of which a newer one may be published; and none
    /// where signatures do not count, because nothing says then which version a file is.
    fn cached(&self, rule: &Trust, reference: &PackageRef) -> Result<Option<Located>, FetchError> {
        if !is_exact(reference) || rule.signatures == SignatureCheck::SkipForDevelopment {
            return Ok(None);
        }
        let found = self.cache.signed(&reference.name);
        let mut fitting =
            found.into_iter().filter(|(version, _)| reference.requirement.matches(version));
        // Of two files that both claim the version nothing says which is meant.
        let (Some((version, digest)), None) = (fitting.next(), fitting.next()) else {
            return Ok(None);
        };
        let (Some(bytes), Some(signature)) =
            (self.cache.bytes(&digest), self.cache.signature(&digest))
        else {
            return Ok(None);
        };
        let what = format!("{} {version} of this host's cache", reference.name);
        let length = bytes.len() as u64;
        let name = reference.name.clone();
        let entry = IndexEntry { name, version, digest, length, yanked: false };
        entry.not_revoked(&rule.revoked).map_err(|source| refused(&what, source))?;
        self.open(rule, &entry, &what, (&bytes, Some(&signature)), false).map(Some)
    }

    /// An answer with its index, which is fetched when it was too long to stand in it. What it says is
    /// checked afterwards, like any other.
    async fn with_index(&self, mut reply: ResolveReply) -> Result<ResolveReply, FetchError> {
        let Some(IndexAt { digest, length }) = reply.index_at.take() else { return Ok(reply) };
        if length > INDEX_LIMIT as u64 {
            let (what, limit) = ("the index".to_owned(), INDEX_LIMIT as u64);
            return Err(refused(reply.package.as_str(), PackageError::TooLarge { what, limit }));
        }
        let known = self.index.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, bytes)) = known.filter(|(known, _)| *known == digest) {
            reply.index = Some(Blob(bytes.to_vec()));
            return Ok(reply);
        }
        let what = format!("the index for {}", reply.package);
        let mut bytes: Vec<u8> = Vec::new();
        while (bytes.len() as u64) < length {
            let chunk = self.chunk(&digest, bytes.len() as u64).await?;
            let sent = bytes.len() as u64 + chunk.data.0.len() as u64;
            if chunk.total != length || chunk.data.0.is_empty() || sent > length {
                let sent = if chunk.total == length { sent } else { chunk.total };
                return Err(FetchError::Length { what, announced: length, sent });
            }
            bytes.extend_from_slice(&chunk.data.0);
        }
        let found = Digest::of(&bytes);
        if found != digest {
            let (asked, got) = (format!("the index {digest}"), found.to_string());
            return Err(FetchError::Answer { asked, got });
        }
        let kept: Arc<[u8]> = bytes.as_slice().into();
        *self.index.lock().unwrap_or_else(PoisonError::into_inner) = Some((digest, kept));
        reply.index = Some(Blob(bytes));
        Ok(reply)
    }

    async fn locked(&self, reference: &PackageRef) -> Result<Option<Located>, FetchError> {
        let (memory, reference) = (Arc::clone(&self.memory), reference.clone());
        blocking(move || Ok(memory.locked(&reference))).await
    }

    /// Whether a package of this host could still come to it: its key may have been revoked since. Who
    /// signed it, where signatures count.
    async fn still_trusted(
        &self,
        trust: &Trust,
        located: &Located,
    ) -> Result<Option<PublicKey>, FetchError> {
        let manifest = &located.package.manifest;
        let what = format!("{} {} of this host", manifest.name, manifest.version);
        if trust.revoked.contains(&located.digest) {
            let digest = located.digest.clone();
            return Err(refused(&what, PackageError::DigestRevoked { digest }));
        }
        if trust.signatures == SignatureCheck::SkipForDevelopment {
            return Ok(None);
        }
        let (keys, cache, now) =
            (trust.keys.clone(), Arc::clone(&self.cache), self.memory.seconds());
        let located = located.clone();
        blocking(move || {
            let (digest, manifest) = (&located.digest, &located.package.manifest);
            let (name, version) = (&manifest.name, &manifest.version);
            let bytes = cache.bytes(digest).unwrap_or_default();
            let signature = cache.signature(digest).unwrap_or_default();
            verify_package(&bytes, &signature, &keys, now, name, version, digest)
                .map(Some)
                .map_err(|source| refused(&what, source))
        })
        .await
    }

    /// The package an answer means, with a note where it is worth one.
    async fn verified(
        &self,
        trust: &Trust,
        reference: &PackageRef,
        reply: ResolveReply,
    ) -> Result<(Located, Option<String>), FetchError> {
        let got = format!("{} {}", reply.package, reply.version.version);
        let version = semver::Version::parse(&reply.version.version)
            .ok()
            .filter(|version| {
                reply.package == reference.name && reference.requirement.matches(version)
            })
            .ok_or_else(|| FetchError::Answer { asked: reference.to_string(), got: got.clone() })?;

        // The index says which versions there are, and the package is opened if it is here.
        let me = self.clone();
        let (rule, reference, what) = (trust.clone(), reference.clone(), got.clone());
        let (entry, signature, note, at_hand) = blocking(move || {
            let (entry, note) = me.entry(&rule, &reference, &reply, &version, &what)?;
            let signature = reply.signature;
            let at_hand = me.cache.bytes(&entry.digest);
            let at_hand = at_hand
                .map(|bytes| me.open(&rule, &entry, &what, (&bytes, signature.as_deref()), false))
                .transpose()?;
            Ok((entry, signature, note, at_hand))
        })
        .await?;
        if let Some(located) = at_hand {
            return Ok((located, note));
        }

        let bytes = self.download(&got, &entry).await?;
        let (me, rule) = (self.clone(), trust.clone());
        let located =
            blocking(move || me.open(&rule, &entry, &got, (&bytes, signature.as_deref()), true))
                .await?;
        Ok((located, note))
    }

    /// What the index of an answer says of the version that is meant, with a note where it is worth one.
    fn entry(
        &self,
        rule: &Trust,
        reference: &PackageRef,
        reply: &ResolveReply,
        version: &semver::Version,
        what: &str,
    ) -> Result<(IndexEntry, Option<String>), FetchError> {
        let memory = &self.memory;
        let had = memory.locked(reference);
        let at_least = |source: &IndexSource| {
            let keys = rule.keys_of_index();
            memory.index_at_least(&reply.package, source, &reply.repository, keys)
        };
        let (entry, index) = match check_index(rule, reply, version, memory.seconds(), at_least) {
            Err(PackageError::IndexExpired { expires }) => {
                let expired = || refused(what, PackageError::IndexExpired { expires });
                let entry = self.of_expired(rule, reference, reply, version, had.as_ref());
                let note = format!(
                    "{}; {what} is on this host already, and what was published or withdrawn since is not \
                     known",
                    PackageError::IndexExpired { expires }
                );
                return entry.map(|entry| (entry, Some(note))).ok_or_else(expired);
            }
            other => other.map_err(|source| refused(what, source))?,
        };
        if entry.yanked && had.as_ref().is_none_or(|had| had.digest != entry.digest) {
            return Err(FetchError::Yanked { what: what.to_owned() });
        }
        let Some((index, source)) = index else { return Ok((entry, None)) };
        memory
            .remember_index(&reply.package, &source, &reply.repository, index.version)
            .map_err(|error| FetchError::Remember(Box::new(error)))?;
        // The index says which versions there are; which of them is meant is the registry's
        // word alone, and must not take the host back to a hole that was mended.
        let has = had.map(|had| had.package.manifest.version.clone());
        let counts = |has: &semver::Version| {
            index.entry(&reply.package, has).is_some_and(|entry| !entry.yanked)
        };
        if let Some(has) = has.filter(|has| has > version && counts(has)) {
            return Err(FetchError::Downgrade { what: what.to_owned(), has });
        }
        let newest = index.matching(&reply.package, &reference.requirement).next();
        let note = newest.filter(|newest| newest.version > *version).map(|newest| {
            format!(
                "{} {} is published too; the registry says that {version} is the newest for this host",
                newest.name, newest.version
            )
        });
        Ok((entry, note))
    }

    /// What an index that has expired says of a version that is on this host already: one that a chain has,
    /// or, asked for exactly and not withdrawn, one in the cache. An index that expires keeps hosts from
    /// being held back by who hides a newer one; of what a host has already, nothing is chosen by it.
    fn of_expired(
        &self,
        rule: &Trust,
        reference: &PackageRef,
        reply: &ResolveReply,
        version: &semver::Version,
        had: Option<&Located>,
    ) -> Option<IndexEntry> {
        let (bytes, signature) = (reply.index.as_ref()?, reply.index_signature.as_ref()?);
        let (keys, now) = (rule.keys_of_index(), self.memory.seconds());
        let index = Index::open_to_extend(&bytes.0, signature, keys, now).ok()?;
        let entry = index.entry(&reply.package, version)?;
        let says_the_same = entry.digest == reply.version.digest;
        let revoked = entry.not_revoked(&rule.revoked).is_err();
        let runs = had.is_some_and(|had| had.digest == entry.digest);
        let cached = is_exact(reference) && !entry.yanked && self.cache.has(&entry.digest);
        (says_the_same && !revoked && (runs || cached)).then(|| entry.clone())
    }

    /// The package of these bytes, checked, and kept if they came just now.
    fn open(
        &self,
        rule: &Trust,
        entry: &IndexEntry,
        what: &str,
        (bytes, signature): (&[u8], Option<&str>),
        fresh: bool,
    ) -> Result<Located, FetchError> {
        let IndexEntry { digest, .. } = entry;
        let opened = self.cache.opened(digest);
        let now = self.memory.seconds();
        let (package, signed_by) =
            check_package(rule, entry, (bytes, signature), opened, &self.limits, now)
                .map_err(|source| refused(what, source))?;
        if fresh || self.cache.signature(digest).as_deref() != signature {
            self.cache.keep(digest, bytes, signature).map_err(FetchError::Cache)?;
        }
        self.cache.hold(digest, &package);
        Ok(Located { digest: digest.clone(), package, signed_by })
    }

    async fn download(&self, what: &str, entry: &IndexEntry) -> Result<Vec<u8>, FetchError> {
        let refuse = |source| refused(what, source);
        let limit = self.limits.archive_bytes as u64;
        if entry.length > limit {
            let what = "the package file".to_owned();
            return Err(refuse(PackageError::TooLarge { what, limit }));
        }
        let begun = self.part(entry).await?;
        let resumed = !begun.is_empty();
        let bytes = self.rest(what, entry, begun).await?;
        // Whole: from here on it is kept as a package, or not at all.
        self.cache.drop_part(&entry.digest);
        let mut found = Digest::of(&bytes);
        if found == entry.digest {
            if let Some(metrics) = self.metrics.as_ref().filter(|_| resumed) {
                metrics.resumed.with_label_values::<&str>(&[]).inc();
            }
            return Ok(bytes);
        }
        if resumed {
            // Perhaps it was what lay here that was wrong.
            let bytes = self.rest(what, entry, Vec::new()).await?;
            self.cache.drop_part(&entry.digest);
            found = Digest::of(&bytes);
            if found == entry.digest {
                return Ok(bytes);
            }
        }
        Err(refuse(PackageError::WrongDigest { wanted: entry.digest.clone(), found }))
    }

    /// What is there of it already.
    async fn part(&self, entry: &IndexEntry) -> Result<Vec<u8>, FetchError> {
        let (cache, digest, length) = (Arc::clone(&self.cache), entry.digest.clone(), entry.length);
        blocking(move || {
            let part = cache.part(&digest);
            if part.len() as u64 <= length {
                return Ok(part);
            }
            cache.drop_part(&digest);
            Ok(Vec::new())
        })
        .await
    }

    /// The file, of which this much is there.
    async fn rest(
        &self,
        what: &str,
        entry: &IndexEntry,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<u8>, FetchError> {
        while (bytes.len() as u64) < entry.length {
            let reply = self.chunk(&entry.digest, bytes.len() as u64).await?;
            let so_far = (bytes.len() + reply.data.0.len()) as u64;
            if reply.total != entry.length || reply.data.0.is_empty() || so_far > entry.length {
                self.cache.drop_part(&entry.digest);
                return Err(FetchError::Length {
                    what: what.to_owned(),
                    announced: entry.length,
                    sent: if reply.total == entry.length { so_far } else { reply.total },
                });
            }
            bytes.extend_from_slice(&reply.data.0);
            let (cache, digest) = (Arc::clone(&self.cache), entry.digest.clone());
            blocking(move || cache.add_part(&digest, &reply.data.0).map_err(FetchError::Cache))
                .await?;
        }
        Ok(bytes)
    }

    /// A chunk, from whichever registry answers: one that ends in the middle of it is no reason to
    /// begin again.
    async fn chunk(&self, digest: &Digest, offset: u64) -> Result<ArtifactReply, FetchError> {
        let request = ArtifactRequest { digest: digest.clone(), offset };
        let mut tries = 1;
        loop {
            let options = CallOptions { timeout: Some(CHUNK), ..CallOptions::default() };
            let until = Instant::now() + PATIENCE;
            let asked = self.bus.call_again::<registry::Artifact>(
                &Target::Central,
                &request,
                &options,
                until,
                is_busy,
            );
            match asked.await {
                Ok(reply) => return Ok(reply),
                Err(CallError::Timeout { .. } | CallError::NoResponders { .. })
                    if tries < TRIES =>
                {
                    tries += 1;
                }
                Err(error) => return Err(FetchError::Registry(Box::new(error.to_api_error()))),
            }
        }
    }
}

/// Whether one version alone will do.
fn is_exact(reference: &PackageRef) -> bool {
    match reference.requirement.comparators.as_slice() {
        [only] => only.op == Op::Exact && only.minor.is_some() && only.patch.is_some(),
        _ => false,
    }
}

fn refused(what: &str, source: PackageError) -> FetchError {
    FetchError::Refused { what: what.to_owned(), source: Box::new(source) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    canopy_bus::blocking(work).await.unwrap_or(Err(FetchError::Defect))
}
