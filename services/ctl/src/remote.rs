//! The bus, as the commands use it: questions with progress, answers or failures with exit codes.

use crate::{
    cli::{HostArgs, HostsArgs},
    context::Settings,
    failure::{Exit, Failure, io_reason},
    grant::Grant,
    options,
    progress::Progress,
};
use canopy_api::{
    ApiError, Code, HostId, Principal,
    endpoint::{Endpoint, Service, loader, policy},
    near,
    permission::{daemon_of, daemon_principal},
    subject::Target,
    wire::{
        Paged, RulesReply, RulesRequest, VersionRequest,
        hosts::{HostListRequest, HostRecord, HostState},
    },
};
use canopy_bus::{
    Bus, BusConfig, BusError, CallError, CallOptions, Events, Gather, UnreachableCause,
};
use futures::{StreamExt as _, stream};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Most hosts that are named in one message.
const NAMED: usize = 20;
/// How long the connection may take, unless `--timeout` says otherwise.
const CONNECT: Duration = Duration::from_secs(5);
/// How long hosts have to answer a question to all of them, unless `--timeout` says otherwise.
const ALL_HOSTS: Duration = Duration::from_secs(10);
/// When nothing has come for so long, nothing is waited for any more, unless `--timeout` says so.
const QUIET: Duration = Duration::from_secs(1);
/// The same where it is not known who could answer.
const QUIET_UNKNOWN: Duration = Duration::from_millis(700);
/// How often a list is read again from its first page, when it was changed between two pages.
const PAGE_TRIES: usize = 3;
/// Hosts whose next pages are read at once.
const HOSTS_AT_ONCE: usize = 16;
/// How long a list of enrolled hosts is good for a command that asks again and again.
const LIST_LIFE: Duration = Duration::from_secs(10);

/// What many hosts answered.
pub struct Answers<R> {
    /// Each answer with the host that gave it, sorted.
    pub answers: Vec<(HostId, Result<R, ApiError>)>,
    /// Enrolled hosts that connected before and have not answered, sorted.
    pub missing: Vec<HostId>,
    /// How many hosts were to answer, where that is known.
    pub expected: Option<usize>,
    /// How long was waited.
    pub waited: Duration,
}

/// A connection, and the context it came from.
pub struct Remote {
    bus: Bus,
    host: Option<HostId>,
    timeout: Option<Duration>,
    /// When the time is over that `--timeout` gives.
    until: Mutex<Option<Instant>>,
    /// When the list of enrolled hosts was read, and what it was.
    enrolled: Mutex<Option<(Instant, Vec<HostRecord>)>>,
    /// What the caller's token says that it allows.
    grant: Option<Grant>,
}

impl Remote {
    /// Connects, or says why not.
    pub async fn connect(settings: &Settings, timeout: Option<Duration>) -> Result<Self, Failure> {
        let context = settings.complete()?;
        let grant = Grant::read(context.token.as_deref());
        let config = BusConfig {
            url: context.url.clone(),
            ca: context.ca,
            cert: context.cert,
            key: context.key,
            token: context.token,
            server_names: context.server_names,
        };
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let _progress = Progress::start(format!("connecting to {}", context.url));
        let place = settings.place();
        let ready = async {
            let bus = Bus::connect(&config, context.principal.clone()).await?;
            bus.wait_ready(timeout.unwrap_or(CONNECT)).await?;
            Ok(bus)
        };
        let bus = match ready.await {
            Ok(bus) => bus,
            Err(error) => return Err(refused(&error).at(place)),
        };
        let until = Mutex::new(until);
        Ok(Self { bus, host: context.host, timeout, until, enrolled: Mutex::default(), grant })
    }

    /// The time that `--timeout` gives begins now: for what asks again and again.
    pub fn begin(&self) {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// What is left of the time that `--timeout` gives, all questions and the connection together.
    fn left(&self) -> Option<Duration> {
        /// A question that cannot be answered in time any more is put all the same: what is told then is
        /// that it was not answered.
        const LEAST: Duration = Duration::from_millis(1);
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.map(|until| until.saturating_duration_since(Instant::now()).max(LEAST))
    }

    /// Ends the connection in order.
    pub async fn close(&self) {
        self.bus.close().await;
    }

    /// Address of the bus.
    pub fn url(&self) -> &str {
        self.bus.url()
    }

    /// Who is asking.
    pub fn principal(&self) -> &Principal {
        self.bus.principal()
    }

    /// The one host a command is for.
    pub async fn host(&self, args: &HostArgs) -> Result<HostId, Failure> {
        if let Some(host) = args.host.as_ref().or(self.host.as_ref()) {
            return Ok(host.clone());
        }
        let hosts = self.hosts().await?;
        let names: Vec<&str> = hosts.iter().map(HostId::as_str).take(NAMED).collect();
        let known = match (names.len(), hosts.len().saturating_sub(names.len())) {
            (0, _) => "none answers now".to_owned(),
            (_, 0) => format!("there is {}", names.join(", ")),
            (_, more) => format!("there is {} and {more} more", names.join(", ")),
        };
        Err(Failure::new(Exit::Invalid, "no host was named, and the context has no default")
            .fix(format!("--host HOST ({known}), or `host:` in the context")))
    }

    /// The hosts a question is for: one, or all.
    pub fn one_of(&self, args: &HostsArgs) -> Option<HostId> {
        if args.all_hosts {
            return None;
        }
        args.host.clone().or_else(|| self.host.clone())
    }

    /// Every host whose loader answers, of those that the caller's token is for.
    ///
    /// # Errors
    /// Where the token has patterns, and who is enrolled is not known.
    pub async fn hosts(&self) -> Result<Vec<HostId>, Failure> {
        let request = VersionRequest::default();
        if self.grant.as_ref().is_some_and(Grant::is_for_some_hosts) {
            let answers = self.ask_all::<loader::Version>(&request).await?.answers;
            return Ok(answers.into_iter().map(|(host, _)| host).collect());
        }
        let gather = self.patience(QUIET_UNKNOWN, BTreeSet::new());
        let answers = self.bus.gather::<loader::Version>(&request, &gather).await;
        let answers = answers.unwrap_or_default().into_iter();
        Ok(answers.filter_map(|(who, _)| host_of(&who, Service::Loader)).collect())
    }

    /// The hosts that the caller's token is for; `None` for all.
    ///
    /// # Errors
    /// Where the token has patterns, and who is enrolled is not known.
    pub async fn granted(&self) -> Result<Option<BTreeSet<HostId>>, Failure> {
        let Some(grant) = self.grant.as_ref().filter(|grant| grant.is_for_some_hosts()) else {
            return Ok(None);
        };
        grant.hosts(self.enrolled().await.ok().as_deref())
    }

    /// That the caller's token is for these hosts; one that it is not for is not asked where several are, and
    /// must not look like one that has nothing.
    ///
    /// # Errors
    /// With the first that it is not for.
    pub async fn ensure_granted(
        &self,
        mut hosts: impl Iterator<Item = &HostId>,
    ) -> Result<(), Failure> {
        // Where they are not known, the bus says it of one host, and whoever asks several of all.
        let granted = self.granted().await.ok().flatten();
        let (Some(grant), Some(granted)) = (&self.grant, granted) else { return Ok(()) };
        let Some(host) = hosts.find(|host| !granted.contains(*host)) else { return Ok(()) };
        let target = Target::Host(host.clone());
        grant.refusal(loader::Get::SPEC, &target, Some(&granted)).map_or(Ok(()), Err)
    }

    fn patience(&self, quiet: Duration, expected: BTreeSet<Principal>) -> Gather {
        Gather {
            wait: self.left().unwrap_or(ALL_HOSTS),
            quiet: self.timeout.is_none().then_some(quiet),
            expected,
        }
    }

    /// Every enrolled host, as policy has them, page by page; those that were revoked, too.
    ///
    /// # Errors
    /// When policy does not answer, or enrols none.
    pub async fn enrolled(&self) -> Result<Vec<HostRecord>, Failure> {
        let kept = |enrolled: &Mutex<Option<(Instant, Vec<HostRecord>)>>| {
            enrolled.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        if let Some((when, hosts)) = kept(&self.enrolled)
            && when.elapsed() < LIST_LIFE
        {
            return Ok(hosts);
        }
        let hosts = self.read_centre::<policy::HostList>(HostListRequest::default()).await?.hosts;
        *self.enrolled.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), hosts.clone()));
        Ok(hosts)
    }

    /// Events of this subject, from now on.
    pub async fn events(&self, subject: &str) -> Result<Events, Failure> {
        self.bus.subscribe_events(subject).await.map_err(|error| refused(&error))
    }

    /// Asks one host's service.
    pub async fn ask_host<E: Endpoint>(
        &self,
        host: &HostId,
        request: &E::Request,
        doing: &str,
    ) -> Result<E::Reply, Failure> {
        self.ask_host_as::<E>(host, request, doing, None).await
    }

    /// The same, with a request id.
    pub async fn ask_host_as<E: Endpoint>(
        &self,
        host: &HostId,
        request: &E::Request,
        doing: &str,
        request_id: Option<String>,
    ) -> Result<E::Reply, Failure> {
        self.try_host_as::<E>(host, request, doing, request_id).await.flatten()
    }

    /// The same; what the host itself refuses is told apart from a host that could not be asked.
    pub async fn try_host_as<E: Endpoint>(
        &self,
        host: &HostId,
        request: &E::Request,
        doing: &str,
        request_id: Option<String>,
    ) -> Result<Result<E::Reply, Failure>, Failure> {
        let outcome = {
            let _progress = Progress::start(format!("{doing} {host}"));
            self.call::<E>(&Target::Host(host.clone()), request, request_id).await
        };
        match outcome {
            Ok(reply) => Ok(Ok(reply)),
            Err(CallError::Api(error)) => Ok(Err(options::named(E::SPEC, error.into()))),
            Err(CallError::NoResponders { .. }) => Err(self.no_such_host::<E>(host).await),
            Err(error) => Err(self.failed::<E>(&Target::Host(host.clone()), &error).await),
        }
    }

    /// The error of a question to hosts as it is told: what the caller's token does not reach is said to be
    /// that, with the hosts that it does reach.
    async fn failed<E: Endpoint>(&self, target: &Target, error: &CallError) -> Failure {
        let hosts = match error {
            CallError::NotPermitted { .. } => self.granted().await.ok().flatten(),
            _ => None,
        };
        self.told::<E>(target, error, hosts.as_ref())
    }

    fn told<E: Endpoint>(
        &self,
        target: &Target,
        error: &CallError,
        hosts: Option<&BTreeSet<HostId>>,
    ) -> Failure {
        let refused = matches!(error, CallError::NotPermitted { .. });
        let grant = self.grant.as_ref().filter(|_| refused);
        grant
            .and_then(|grant| grant.refusal(E::SPEC, target, hosts))
            .unwrap_or_else(|| options::named(E::SPEC, error.to_api_error().into()))
    }

    /// Reads every page of what one host's service lists.
    pub async fn read_host<E: Paged>(
        &self,
        host: &HostId,
        request: &E::Request,
        doing: &str,
    ) -> Result<E::Reply, Failure>
    where
        E::Request: Clone,
    {
        self.read_host_until::<E>(host, request, doing, |_| false).await
    }

    /// The same, until enough was read.
    pub async fn read_host_until<E: Paged>(
        &self,
        host: &HostId,
        request: &E::Request,
        doing: &str,
        enough: impl Fn(&E::Reply) -> bool,
    ) -> Result<E::Reply, Failure>
    where
        E::Request: Clone,
    {
        let target = Target::Host(host.clone());
        let mut tries = 0;
        loop {
            let first = self.ask_host::<E>(host, request, doing).await?;
            match self.following_until::<E>(&target, request, first, &enough).await {
                Err(error) if tries < PAGE_TRIES && is_overtaken(&error) => tries += 1,
                outcome => return outcome.map_err(|error| options::named(E::SPEC, error.into())),
            }
        }
    }

    /// Reads every page of what a central service lists.
    pub async fn read_centre<E: Paged>(&self, request: E::Request) -> Result<E::Reply, Failure>
    where
        E::Request: Clone,
    {
        let mut tries = 0;
        loop {
            let first = self.ask_centre::<E>(&request).await?;
            match self.following::<E>(&Target::Central, &request, first).await {
                Err(error) if tries < PAGE_TRIES && is_overtaken(&error) => tries += 1,
                outcome => return outcome.map_err(|error| options::named(E::SPEC, error.into())),
            }
        }
    }

    /// The admission rules in force, page by page where one message does not carry them. A service that
    /// knows no pages says again that it does not.
    pub async fn rules(&self) -> Result<RulesReply, Failure> {
        match self.call::<policy::Rules>(&Target::Central, &RulesRequest::default(), None).await {
            Ok(rules) => Ok(rules),
            Err(CallError::Api(error)) if error.code == Code::Unsupported => {
                self.read_centre::<policy::Rules>(RulesRequest { cursor: Some(String::new()) })
                    .await
            }
            Err(_) => self.ask_centre::<policy::Rules>(&RulesRequest::default()).await,
        }
    }

    /// Asks the service of every host, as [`Self::ask_all`] does, then those whose list is longer than one
    /// page for the rest of it.
    pub async fn read_all<E: Paged>(
        &self,
        request: &E::Request,
    ) -> Result<Answers<E::Reply>, Failure>
    where
        E::Request: Clone,
    {
        let mut all = self.ask_all::<E>(request).await?;
        let rest = std::mem::take(&mut all.answers).into_iter().map(|(host, answer)| async move {
            let answer = match answer {
                Ok(first) => self.rest_of::<E>(&host, request, first).await,
                Err(error) => Err(error),
            };
            (host, answer)
        });
        all.answers = stream::iter(rest).buffered(HOSTS_AT_ONCE).collect().await;
        Ok(all)
    }

    async fn rest_of<E: Paged>(
        &self,
        host: &HostId,
        request: &E::Request,
        first: E::Reply,
    ) -> Result<E::Reply, ApiError>
    where
        E::Request: Clone,
    {
        let target = Target::Host(host.clone());
        let mut outcome = self.following::<E>(&target, request, first).await;
        for _ in 0..PAGE_TRIES {
            match outcome {
                Err(error) if is_overtaken(&error) => {
                    let first = self.call::<E>(&target, request, None).await;
                    let first = first.map_err(|error| error.to_api_error())?;
                    outcome = self.following::<E>(&target, request, first).await;
                }
                outcome => return outcome,
            }
        }
        outcome
    }

    /// The pages behind the first one, added to it.
    async fn following<E: Paged>(
        &self,
        target: &Target,
        request: &E::Request,
        reply: E::Reply,
    ) -> Result<E::Reply, ApiError>
    where
        E::Request: Clone,
    {
        self.following_until::<E>(target, request, reply, &|_| false).await
    }

    async fn following_until<E: Paged>(
        &self,
        target: &Target,
        request: &E::Request,
        mut reply: E::Reply,
        enough: &impl Fn(&E::Reply) -> bool,
    ) -> Result<E::Reply, ApiError>
    where
        E::Request: Clone,
    {
        let mut request = request.clone();
        if enough(&reply) || !E::advance(&mut request, &reply) {
            return Ok(reply);
        }
        let _progress = Progress::start("reading the next page");
        loop {
            let page = self.call::<E>(target, &request, None).await;
            E::append(&mut reply, page.map_err(|error| error.to_api_error())?);
            if enough(&reply) || !E::advance(&mut request, &reply) {
                return Ok(reply);
            }
        }
    }

    /// Asks a central service.
    pub async fn ask_centre<E: Endpoint>(&self, request: &E::Request) -> Result<E::Reply, Failure> {
        self.ask_centre_as::<E>(request, None).await
    }

    /// The same, with a request id.
    pub async fn ask_centre_as<E: Endpoint>(
        &self,
        request: &E::Request,
        request_id: Option<String>,
    ) -> Result<E::Reply, Failure> {
        let service = E::SPEC.service;
        let _progress = Progress::start(format!("asking the {service}"));
        match self.call::<E>(&Target::Central, request, request_id).await {
            Err(CallError::NoResponders { .. }) => Err(Failure::new(
                Exit::Unavailable,
                format!("the {service} service does not answer"),
            )
            .fix(format!("see that canopy-{service} runs and is connected"))),
            Err(error) => Err(self.told::<E>(&Target::Central, &error, None)),
            Ok(reply) => Ok(reply),
        }
    }

    /// Asks the service of every host that the caller's token is for, until every enrolled one has answered,
    /// as long as `--timeout` says; without one, until nothing comes any more.
    pub async fn ask_all<E: Endpoint>(
        &self,
        request: &E::Request,
    ) -> Result<Answers<E::Reply>, Failure> {
        let _progress = Progress::start("asking all hosts");
        let service = E::SPEC.service;
        // Where policy is away, or enrols nobody, who answers is all that is known.
        let enrolled = match self.left() {
            // The hosts need time to answer, too.
            Some(left) => tokio::time::timeout(left / 2, self.enrolled()).await.ok(),
            None => Some(self.enrolled().await),
        };
        let enrolled = enrolled.and_then(Result::ok);
        let granted = match &self.grant {
            Some(grant) => grant.hosts(enrolled.as_deref())?,
            None => None,
        };
        let expected: Vec<(HostId, Principal)> = enrolled
            .iter()
            .flatten()
            .filter(|record| {
                record.state == HostState::Active && record.certificates.contains_key(&service)
            })
            .filter(|record| granted.as_ref().is_none_or(|hosts| hosts.contains(&record.host)))
            .filter_map(|record| {
                Some((record.host.clone(), daemon_principal(service, Some(&record.host)).ok()?))
            })
            .collect();
        if let Some(hosts) = granted {
            let expected = enrolled.map(|_| expected.into_iter().map(|(host, _)| host).collect());
            return self.ask_each::<E>(hosts, expected, request).await;
        }
        let quiet = if expected.is_empty() { QUIET_UNKNOWN } else { QUIET };
        let names = expected.iter().map(|(_, principal)| principal.clone()).collect();
        let begun = Instant::now();
        let answers = self.bus.gather::<E>(request, &self.patience(quiet, names)).await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => return Err(self.failed::<E>(&Target::AllHosts, &error).await),
        };
        let waited = begun.elapsed();
        let answers: Vec<_> = answers
            .into_iter()
            .filter_map(|(who, answer)| Some((host_of(&who, service)?, answer)))
            .collect();
        let answered: BTreeSet<&HostId> = answers.iter().map(|(host, _)| host).collect();
        let missing = expected.iter().map(|(host, _)| host).filter(|host| !answered.contains(host));
        let missing = missing.cloned().collect();
        let expected = enrolled.map(|_| expected.len());
        Ok(Answers { answers, missing, expected, waited })
    }

    /// Asks the service of each of these hosts: one question to all of them would reach others, too.
    /// `expected` are those that have to answer, where that is known.
    async fn ask_each<E: Endpoint>(
        &self,
        hosts: BTreeSet<HostId>,
        expected: Option<BTreeSet<HostId>>,
        request: &E::Request,
    ) -> Result<Answers<E::Reply>, Failure> {
        let begun = Instant::now();
        let until = begun + self.left().unwrap_or(ALL_HOSTS);
        let mut missing = expected.clone().unwrap_or_else(|| hosts.clone());
        let questions = hosts.into_iter().map(|host| async move {
            let target = Target::Host(host.clone());
            let answer = self.call::<E>(&target, request, None).await;
            (host, target, answer)
        });
        let mut questions = stream::iter(questions).buffer_unordered(HOSTS_AT_ONCE);
        let mut answers = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let quiet = if self.timeout.is_none() { left.min(QUIET) } else { left };
            let Ok(Some((host, target, answer))) =
                tokio::time::timeout(quiet, questions.next()).await
            else {
                break;
            };
            let answer = match answer {
                Ok(reply) => Ok(reply),
                Err(CallError::NoResponders { .. } | CallError::Timeout { .. }) => continue,
                // The role, or the service: the same at every host.
                Err(error @ CallError::NotPermitted { .. }) => {
                    return Err(self.failed::<E>(&target, &error).await);
                }
                Err(error) => Err(error.to_api_error()),
            };
            missing.remove(&host);
            answers.push((host, answer));
        }
        answers.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Answers {
            answers,
            missing: missing.into_iter().collect(),
            expected: expected.map(|expected| expected.len()),
            waited: begun.elapsed(),
        })
    }

    async fn call<E: Endpoint>(
        &self,
        target: &Target,
        request: &E::Request,
        request_id: Option<String>,
    ) -> Result<E::Reply, CallError> {
        let options = CallOptions { timeout: self.left(), request_id, ..CallOptions::default() };
        self.bus.call_with::<E>(target, request, options).await
    }

    /// Why nobody answers for a host: it is not known, may not connect, or is away.
    async fn no_such_host<E: Endpoint>(&self, host: &HostId) -> Failure {
        let service = E::SPEC.service;
        let away = || {
            Failure::new(Exit::Unavailable, format!("the {service} of host {host} does not answer"))
                .fix(format!("see that canopy-{service} runs on {host} and is connected"))
        };
        let unknown =
            |names: Vec<&str>| {
                Failure::new(Exit::NotFound, format!("there is no host \"{host}\""))
                    .fix(near::hint(host.as_str(), names, "canopy get hosts lists them"))
            };
        let Ok(enrolled) = self.enrolled().await else {
            // Only who answers is known: a host that is away cannot be told from one that is none, unless
            // its name is another's with a slip.
            let hosts = self.hosts().await.unwrap_or_default();
            return match near::nearest(host.as_str(), hosts.iter().map(HostId::as_str)) {
                Some(_) => unknown(hosts.iter().map(HostId::as_str).collect()),
                None => away(),
            };
        };
        let record = enrolled.iter().find(|record| record.host == *host);
        match record.map(|record| record.state) {
            Some(HostState::Active) => away(),
            Some(HostState::Revoked) => {
                Failure::new(Exit::Denied, format!("the host {host} was revoked"))
                    .fix("canopy host enrol lets it in again")
            }
            Some(HostState::Expired) => Failure::new(
                Exit::Denied,
                format!("the enrolment of host {host} has expired: it never connected"),
            )
            .fix("enrol it again: canopy host enrol"),
            Some(HostState::Waiting) => {
                Failure::new(Exit::Unavailable, format!("the host {host} has not connected yet"))
                    .fix(format!("canopy host install on {host}, then start canopy-{service}"))
            }
            None => {
                let hosts = self.hosts().await.unwrap_or_default();
                let known = enrolled.iter().map(|record| &record.host).chain(&hosts);
                unknown(known.map(HostId::as_str).collect())
            }
        }
    }
}

/// What was read in part is another thing now.
fn is_overtaken(error: &ApiError) -> bool {
    error.code == Code::Conflict && error.path == "cursor"
}

/// `h-web1-loader` is web1's loader.
fn host_of(principal: &Principal, service: Service) -> Option<HostId> {
    let (of, host) = daemon_of(principal)?;
    host.filter(|_| of == service)
}

/// Why there is no connection, each kind with its own exit code. What the libraries below say is left out.
fn refused(error: &BusError) -> Failure {
    match error {
        BusError::File { field, path, source } => Failure::new(
            Exit::Invalid,
            format!("{field}: cannot read {}: {}", path.display(), io_reason(source)),
        )
        .fix("correct the path in the context, or the file's permissions"),
        BusError::Secret { field, error } => {
            Failure::new(Exit::Invalid, format!("{field} cannot be used: {error}"))
                .fix(error.remedy.clone())
        }
        BusError::Address { url } => {
            Failure::new(Exit::Invalid, format!("\"{url}\" is not an address of a bus"))
                .fix("correct `url` in the context: tls://HOST:4222")
        }
        BusError::NotPermitted { .. } => Failure::new(Exit::Denied, error.to_string())
            .fix("`principal` must be the name in the certificate: spiffe://canopy/<principal>"),
        BusError::Refused { refusal, .. } => {
            Failure::new(Exit::of_refusal(refusal), error.to_string()).fix(refusal.remedy())
        }
        BusError::Unreachable { url, cause, .. } => unreachable_bus(url, *cause),
        other => {
            Failure::new(Exit::Unavailable, other.to_string()).fix("canopy doctor looks closer")
        }
    }
}

/// What kept a connection from being made, and what to do about it.
fn unreachable_bus(url: &str, cause: UnreachableCause) -> Failure {
    let unavailable = |message: String| Failure::new(Exit::Unavailable, message);
    let invalid = |message: String| Failure::new(Exit::Invalid, message);
    match cause {
        UnreachableCause::CertificateExpired => {
            invalid(format!("the certificate of the bus at {url} has expired"))
                .fix("renew the server's certificate; is the clock of this machine right?")
        }
        UnreachableCause::CertificateNotYetValid => {
            invalid(format!("the certificate of the bus at {url} is not valid yet"))
                .fix("is the clock of this machine right, and that of the certificate's authority?")
        }
        UnreachableCause::CertificateName => {
            invalid(format!("the certificate of the bus at {url} is for another name"))
                .fix("correct `url` in the context to a name in the server's certificate")
        }
        UnreachableCause::UnknownAuthority => {
            invalid(format!("the bus at {url} and `ca` of the context do not belong together"))
                .fix("`ca` must be the authority that signed the server's certificate and yours")
        }
        UnreachableCause::Tls => unavailable(format!("no TLS connection with the bus at {url}"))
            .fix("is it the port of the bus, and are certificate and key of its authority?"),
        UnreachableCause::ConnectionRefused => {
            unavailable(format!("no bus at {url}: nothing listens there"))
                .fix("is the bus running at that address? canopy doctor looks closer")
        }
        UnreachableCause::UnknownName => {
            unavailable(format!("no bus at {url}: the name is not known"))
                .fix("correct `url` in the context")
        }
        UnreachableCause::NoMessages => {
            unavailable(format!("the bus at {url} answers, and messages do not come back"))
                .fix("canopy doctor looks closer")
        }
        UnreachableCause::NoAnswer | UnreachableCause::Other => {
            unavailable(format!("no bus at {url}: it does not answer"))
                .fix("is the bus running at that address? canopy doctor looks closer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_its_service() {
        let host_of = |text: &str, service| host_of(&text.parse().unwrap(), service);
        let host = |text: &str| host_of(text, Service::Loader).map(|host| host.to_string());
        assert_eq!(host("h-web1-loader").as_deref(), Some("web1"));
        assert_eq!(host("h-web-1-loader").as_deref(), Some("web-1"));
        assert_eq!(host("s-registry"), None);
        assert_eq!(host("h-web1-enforcer"), None);
        assert!(host_of("h-web1-enforcer", Service::Enforcer).is_some());
    }
}
