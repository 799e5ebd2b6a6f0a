//! The loader's verbs on the bus. Changes wait for each other; reading does not wait for them.

mod deciding;

use crate::{
    admission::Admission,
    audit,
    core::resolve::{self, Located},
    engine::{Engine, Options, Programs, Proposal},
    error::LoaderError,
    facts::FactsCache,
    fetch::Fetcher,
    follow::{Followers, LEASE, Sink},
    metrics::PackageMetrics,
};
use canopy_api::{
    ApiError, Code, DesiredState, HostId, Principal,
    endpoint::{Service, loader},
    wire::{
        AdmissionVerb, ApplyReply, ApplyRequest, DeleteRequest, DrainRequest, Empty, FactsReply,
        GetReply, GetRequest, MapChangeReply, MapDeleteRequest, MapRecords, MapSetRequest,
        ResetIndexReply,
    },
};
use canopy_bus::{Bus, Caller, Link, Server};
use canopy_kernel::Kernel;
use deciding::{Ask, gone_back};
use futures::{StreamExt as _, stream};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, mpsc},
    time::{Instant, timeout_at},
};

/// How long a change waits for its turn when its caller does not say how long it will wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is left for an answer to reach a caller before its time is over.
const ON_THE_WAY: Duration = Duration::from_millis(500);

/// How long the packages of a document may take together. Less than a caller of `delete` or `drain`
/// waits: a registry that drips must not keep anybody from taking a chain off.
const FETCHING: Duration = Duration::from_secs(20);

/// Packages of a document that the registry is asked about at once.
const AT_ONCE: usize = 8;

/// Events of ring buffers that wait to be published.
const QUEUE: usize = 64;

/// A change's turn; given back with the last of these.
type Turn = Arc<OwnedMutexGuard<()>>;

/// Packages by the text of the reference.
type Packages = BTreeMap<String, Located>;
/// What is worth telling of them, likewise.
type Notes = BTreeMap<String, String>;

/// What the handlers share.
pub struct Handlers<K> {
    engine: Arc<Engine<K>>,
    fetcher: Fetcher,
    admission: Admission,
    /// One change at a time, from its packages to its commit.
    changes: Arc<Mutex<()>>,
    /// The ring buffers that are followed.
    followers: Arc<Followers<K>>,
    metrics: Option<PackageMetrics>,
    /// What this host can do.
    facts: FactsCache,
}

impl<K> Clone for Handlers<K> {
    fn clone(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            fetcher: self.fetcher.clone(),
            admission: self.admission.clone(),
            changes: Arc::clone(&self.changes),
            followers: Arc::clone(&self.followers),
            metrics: self.metrics.clone(),
            facts: self.facts.clone(),
        }
    }
}

impl<K: Kernel> Handlers<K> {
    /// Handlers over an engine. Events go out on the bus that packages come from.
    pub fn new(engine: Arc<Engine<K>>, fetcher: Fetcher, admission: Admission) -> Self {
        let sink = records(fetcher.bus().clone(), engine.host().clone());
        let followers = Followers::new(Arc::clone(&engine), sink, LEASE);
        let (changes, facts) = (Arc::default(), FactsCache::default());
        Self { engine, fetcher, admission, changes, followers, metrics: None, facts }
    }

    /// Counts changes here.
    #[must_use]
    pub fn counted(mut self, metrics: PackageMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Puts every verb on a server.
    pub fn register(&self, server: Server) -> Server {
        let (get, facts, apply, delete, drain) =
            (self.clone(), self.clone(), self.clone(), self.clone(), self.clone());
        let (profile, reset) = (self.clone(), self.clone());
        self.register_maps(server)
            .handle::<loader::ResetIndex, _, _>(move |caller, request| {
                let me = reset.clone();
                async move {
                    let reply =
                        me.blocking(None, move |engine| engine.reset_index(&request)).await?;
                    let ResetIndexReply { repository, from, to, .. } = &reply;
                    tracing::warn!(
                        %repository, from, to, by = %caller.principal, "highest index version reset"
                    );
                    caller.notes.about(format!(
                        "highest index version of {repository} reset from {from} to {to}"
                    ));
                    Ok(reply)
                }
            })
            .handle::<loader::Get, _, _>(move |_, request| {
                let me = get.clone();
                async move { me.get(request).await }
            })
            .handle::<loader::Facts, _, _>(move |_, _: Empty| {
                let me = facts.clone();
                async move { me.facts().await }
            })
            .handle::<loader::Apply, _, _>(move |caller, request| {
                let me = apply.clone();
                async move { Ok(me.fitting(me.apply(caller, request).await?)) }
            })
            .handle::<loader::Delete, _, _>(move |caller, request| {
                let me = delete.clone();
                async move { Ok(me.fitting(me.delete(caller, request).await?)) }
            })
            .handle::<loader::Profile, _, _>(move |caller, request| {
                let me = profile.clone();
                async move { me.profile(&caller, request).await }
            })
            .handle::<loader::Drain, _, _>(move |caller, request| {
                let me = drain.clone();
                async move { Ok(me.fitting(me.drain(&caller, request).await?)) }
            })
    }

    /// Puts the verbs about maps on a server.
    fn register_maps(&self, server: Server) -> Server {
        let (list, dump, get, set, delete) =
            (self.clone(), self.clone(), self.clone(), self.clone(), self.clone());
        let follow = self.clone();
        server
            .handle::<loader::MapList, _, _>(move |_, request| {
                let me = list.clone();
                async move {
                    let room = me.fetcher.bus().page_bytes();
                    me.blocking(None, move |engine| engine.map_list(&request, room)).await
                }
            })
            .handle::<loader::MapDump, _, _>(move |_, request| {
                let me = dump.clone();
                async move {
                    let room = me.fetcher.bus().page_bytes();
                    me.blocking(None, move |engine| engine.map_dump(&request, room)).await
                }
            })
            .handle::<loader::MapGet, _, _>(move |_, request| {
                let me = get.clone();
                async move { me.blocking(None, move |engine| engine.map_get(&request)).await }
            })
            .handle::<loader::MapSet, _, _>(move |caller, request| {
                let me = set.clone();
                async move { me.map_set(&caller, request).await }
            })
            .handle::<loader::MapDelete, _, _>(move |caller, request| {
                let me = delete.clone();
                async move { me.map_delete(&caller, request).await }
            })
            .handle::<loader::MapFollow, _, _>(move |caller, request| {
                let me = follow.clone();
                async move { me.map_follow(&caller, request).await }
            })
    }

    async fn get(&self, request: GetRequest) -> Result<GetReply, ApiError> {
        let room = self.fetcher.bus().page_bytes();
        self.blocking(None, move |engine| engine.get_page(&request, room)).await
    }

    /// The reply to a change as the bus carries it.
    fn fitting(&self, reply: ApplyReply) -> ApplyReply {
        // Of one change there is one reply: it may take more of a message than a page.
        let page = self.fetcher.bus().page_bytes();
        reply.within(page.saturating_add(page / 2))
    }

    async fn facts(&self) -> Result<FactsReply, ApiError> {
        let probe = || self.blocking(None, |engine| Ok(engine.probe()));
        let facts = self.facts.get(probe).await?;
        Ok(self.engine.facts(facts))
    }

    /// Waits until no other change is being made; not longer than the caller does, for whom nothing
    /// is to be done any more then.
    async fn turn(&self, caller: &Caller) -> Result<Turn, ApiError> {
        // Early enough for the caller to hear that nothing was done.
        let now = Instant::now();
        let left = caller.until.map_or(PATIENCE, |until| Instant::from_std(until) - now);
        let until = now + left.saturating_sub(ON_THE_WAY.min(left / 5));
        let turn = Arc::clone(&self.changes).lock_owned();
        timeout_at(until, turn).await.map(Arc::new).map_err(|_| {
            ApiError::new(
                Code::Unavailable,
                "other changes of this host were being made all the time; nothing was done",
            )
            .remedy("try again")
        })
    }

    /// Every package a document names, with what is worth telling of them.
    async fn locate(&self, document: &DesiredState) -> Result<(Packages, Notes), ApiError> {
        let until = Instant::now() + FETCHING;
        self.fetcher.begin();
        let references = resolve::references(document);
        let asked: Vec<_> = references
            .values()
            .map(|(reference, _)| {
                let (fetcher, reference) = (self.fetcher.clone(), reference.clone());
                async move { timeout_at(until, fetcher.ask(&reference)).await }
            })
            .collect();
        let mut asking = stream::iter(asked).buffered(AT_ONCE);
        let mut located = Packages::new();
        let mut notes = Notes::new();
        for (text, (reference, path)) in &references {
            let Some(asked) = asking.next().await else { break };
            let found = match asked {
                Ok(Ok(asked)) => timeout_at(until, self.fetcher.answered(reference, asked)).await,
                Ok(Err(error)) => Ok(Err(error)),
                Err(late) => Err(late),
            };
            let found = found.map_err(|_| {
                let seconds = FETCHING.as_secs();
                let said = format!("the packages did not come within {seconds} s");
                ApiError::new(Code::Unavailable, said)
                    .at(path)
                    .remedy("see that the registry is well, then try again; nothing was changed")
            })?;
            let (mut found, note) = match found {
                Ok(found) => found,
                Err(source) => {
                    let (host, now) = (self.engine.host(), self.engine.now());
                    self.fetcher.report(host, &reference.name, &source, now).await;
                    let (path, source) = (path.clone(), Box::new(source));
                    return Err(LoaderError::Fetch { path, source }.into_api());
                }
            };
            if let Some(note) = note {
                notes.insert(text.clone(), note);
            }
            // Many references may mean one package: it is in memory once.
            if let Some(same) = located.values().find(|other| other.digest == found.digest) {
                found = same.clone();
            }
            located.insert(text.clone(), found);
        }
        Ok((located, notes))
    }

    async fn apply(&self, caller: Caller, request: ApplyRequest) -> Result<ApplyReply, ApiError> {
        let turn = self.turn(&caller).await?;
        let document = resolve::check(request.document)?;
        caller.notes.about(audit::apply_request(&document));
        let before = self.engine.programs();
        let allowed = request.allow_downgrade;
        let options = Options {
            expected_generation: request.expected_generation,
            dry_run: request.dry_run,
            atomic: request.atomic,
            by: caller.principal.clone(),
            until: caller.until,
        };
        // Said before anything is fetched for nothing; asked again when the change is made.
        let asked_for = options.clone();
        self.blocking(None, move |engine| engine.admitted(&asked_for)).await?;
        let (located, notes) = self.locate(&document).await?;
        let asked = resolve::resolve(&document, &located, &notes)?;
        let summary = summary(&asked);
        let by = options.by.clone();
        let ask = Ask { caller: &caller, turn: Some(turn), dry_run: options.dry_run };
        let plan = move |engine: &Engine<K>| {
            let proposal = engine.propose_apply(asked.clone(), &options)?;
            match proposal.downgrades().iter().find(|one| !allowed.contains(&one.package)) {
                Some(refused) => Err(LoaderError::Downgrade(Box::new(refused.clone()))),
                None => Ok(proposal),
            }
        };
        let act = move |engine: &Engine<K>, proposal: &Proposal| {
            engine
                .check_host(&document, &located)
                .map_err(|error| LoaderError::Host(Box::new(error)))?;
            engine.execute(proposal)
        };
        let decided = self.decided(ask, plan, |proposal| proposal.parts().to_vec(), act).await;
        let (reply, proposal) = match decided {
            Ok((reply, proposal, admitted)) => {
                (Ok(ApplyReply { admission: Some(admitted), ..reply }), Some(proposal))
            }
            Err(error) => (Err(error), None),
        };
        if let (Ok(reply), Some(proposal)) = (&reply, &proposal) {
            self.record(&caller, "apply", &before, reply).await;
            if !reply.dry_run {
                let back = gone_back(proposal.downgrades(), reply);
                let (host, now) = (self.engine.host(), self.engine.now());
                self.fetcher.tell_downgrades(host, &back, &by, now).await;
            }
        }
        match &reply {
            Ok(reply) => {
                tracing::info!(
                    generation = reply.generation, dry_run = reply.dry_run, %summary, "applied"
                );
                self.tell(reply, &by);
            }
            Err(error) => {
                // The bus server logs refusals, and counts those of a flood.
                tracing::debug!(code = error.code.as_str(), path = error.path, %summary, "refused: {error}");
            }
        }
        reply
    }

    async fn delete(&self, caller: Caller, request: DeleteRequest) -> Result<ApplyReply, ApiError> {
        caller.notes.about(audit::delete_request(&request));
        let turn = self.turn(&caller).await?;
        let before = self.engine.programs();
        let options = Options {
            expected_generation: request.expected_generation,
            dry_run: request.dry_run,
            atomic: false,
            by: caller.principal.clone(),
            until: caller.until,
        };
        tracing::info!(
            interface = %request.interface, hook = %request.hook, by = %options.by, "delete"
        );
        let by = options.by.clone();
        let ask = Ask { caller: &caller, turn: Some(turn), dry_run: options.dry_run };
        let (reply, _, admitted) = self
            .decided(
                ask,
                move |engine| engine.propose_delete(&request, &options),
                |proposal| proposal.parts().to_vec(),
                Engine::execute,
            )
            .await?;
        self.record(&caller, "delete", &before, &reply).await;
        self.tell(&reply, &by);
        Ok(ApplyReply { admission: Some(admitted), ..reply })
    }

    /// Says in the audit record and on the bus what a change did.
    async fn record(&self, caller: &Caller, verb: &str, before: &Programs, reply: &ApplyReply) {
        caller.notes.about(audit::describe(before, reply));
        let who = (caller, verb, self.engine.now());
        audit::publish(self.fetcher.bus(), who, before, reply).await;
    }

    /// Counts what came of a change, and puts what failed into the log.
    fn tell(&self, reply: &ApplyReply, by: &Principal) {
        if let Some(metrics) = &self.metrics {
            metrics.changed(reply);
        }
        for (chain, error) in reply.failed().filter(|_| !reply.dry_run) {
            tracing::warn!(
                interface = %chain.interface, hook = %chain.hook, code = error.code.as_str(),
                path = error.path, %by, "left as it was: {error}"
            );
        }
    }

    async fn drain(&self, caller: &Caller, request: DrainRequest) -> Result<ApplyReply, ApiError> {
        let verb = if request.undo { "undrain" } else { "drain" };
        caller.notes.about(format!("{verb} of the host"));
        let turn = self.turn(caller).await?;
        let before = self.engine.programs();
        let by = &caller.principal;
        tracing::warn!(undo = request.undo, dry_run = request.dry_run, %by, "drain");
        let DrainRequest { undo, dry_run } = request;
        let until = caller.until;
        let (reply, _, admitted) = self
            .decided(
                Ask { caller, turn: Some(turn), dry_run },
                move |engine| Ok(engine.parts_of_drain(undo)),
                Clone::clone,
                move |engine, asked| engine.drain_as_asked(undo, dry_run, until, asked),
            )
            .await?;
        self.record(caller, verb, &before, &reply).await;
        Ok(ApplyReply { admission: Some(admitted), ..reply })
    }

    async fn map_set(
        &self,
        caller: &Caller,
        request: MapSetRequest,
    ) -> Result<MapChangeReply, ApiError> {
        let keys = request.entries.iter().map(|entry| &entry.key);
        caller.notes.about(audit::map_request(&request.map, "to be written", keys));
        let turn = self.turn(caller).await?;
        tracing::info!(
            map = %request.map, entries = request.entries.len(), dry_run = request.dry_run,
            by = %caller.principal, "map set"
        );
        let until = caller.until;
        let keys: Vec<_> = request.entries.iter().map(|entry| entry.key.clone()).collect();
        let ask = Ask { caller, turn: Some(turn), dry_run: request.dry_run };
        let map = request.map.clone();
        let (reply, ..) = self
            .decided(
                ask,
                move |engine| engine.parts_of_map(AdmissionVerb::MapSet, &map),
                Clone::clone,
                move |engine, asked| engine.map_set_as_asked(&request, until, asked),
            )
            .await?;
        let done = if reply.dry_run { "checked in a dry run" } else { "written" };
        self.record_map(caller, ("map-set", done), &keys, &reply).await;
        Ok(reply)
    }

    async fn map_delete(
        &self,
        caller: &Caller,
        request: MapDeleteRequest,
    ) -> Result<MapChangeReply, ApiError> {
        caller.notes.about(audit::map_request(&request.map, "to be removed", request.keys.iter()));
        let turn = self.turn(caller).await?;
        tracing::info!(
            map = %request.map, entries = request.keys.len(), dry_run = request.dry_run,
            by = %caller.principal, "map delete"
        );
        let until = caller.until;
        let keys = request.keys.clone();
        let ask = Ask { caller, turn: Some(turn), dry_run: request.dry_run };
        let map = request.map.clone();
        let (reply, ..) = self
            .decided(
                ask,
                move |engine| engine.parts_of_map(AdmissionVerb::MapDelete, &map),
                Clone::clone,
                move |engine, asked| engine.map_delete_as_asked(&request, until, asked),
            )
            .await?;
        let done = if reply.dry_run { "checked in a dry run" } else { "removed" };
        self.record_map(caller, ("map-delete", done), &keys, &reply).await;
        Ok(reply)
    }

    /// Says in the audit record and on the bus what was written to a map.
    async fn record_map(
        &self,
        caller: &Caller,
        (verb, done): (&str, &str),
        keys: &[Value],
        reply: &MapChangeReply,
    ) {
        let keys = keys.iter().filter(|key| !reply.absent.contains(key)).collect::<Vec<_>>();
        caller.notes.about(audit::map_request(&reply.map, done, keys.into_iter()));
        audit::publish_map(self.fetcher.bus(), (caller, verb, self.engine.now()), reply).await;
    }

    /// Runs work that blocks. The turn is given back when the work ends, not when its
    /// caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        turn: Option<Turn>,
        work: impl FnOnce(&Engine<K>) -> Result<T, LoaderError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let engine = Arc::clone(&self.engine);
        let done = canopy_bus::blocking(move || {
            let result = work(&engine);
            drop(turn);
            result
        })
        .await;
        let Ok(result) = done else {
            tracing::error!("a request ended in a panic");
            return Err(ApiError::new(Code::Internal, "the loader failed at this request")
                .remedy("report this with the loader's log"));
        };
        result.map_err(|error| {
            tracing::debug!(error = crate::error::with_causes(&error), "not done");
            error.into_api()
        })
    }
}

/// Where records of ring buffers go: out as events, in order. What does not fit the queue is dropped
/// by whoever read it, and counted there.
fn records(bus: Bus, host: HostId) -> Sink {
    let (queue, mut events) = mpsc::channel::<MapRecords>(QUEUE);
    let out = bus.clone();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let sent =
                out.publish_event(Service::Loader, "map", "records", Some(&host), &event).await;
            if let Err(error) = sent {
                tracing::debug!(map = %event.map, %error, "records are not published");
            }
        }
    });
    // An event for a bus that is away would be lost without a word.
    Arc::new(move |event| bus.link() == Link::Connected && queue.try_send(event).is_ok())
}

/// `cpy0/xdp: 2 programs, cpy0/tc-ingress: removed`
fn summary(wishes: &[resolve::Wish]) -> String {
    wishes
        .iter()
        .map(|wish| match &wish.wanted {
            Some(wanted) => format!("{}: {} program(s)", wish.target, wanted.programs.len()),
            None => format!("{}: none", wish.target),
        })
        .collect::<Vec<_>>()
        .join(", ")
}
