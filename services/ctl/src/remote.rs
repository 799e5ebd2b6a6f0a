//! The bus, as the commands use it: questions with progress, answers or failures with exit codes.

use crate::{
    cli::{HostArgs, HostsArgs},
    context::Settings,
    failure::{Exit, Failure},
    near,
    progress::Progress,
};
use canopy_api::{
    ApiError, HostId, Principal,
    endpoint::{Endpoint, Service, loader},
    permission::daemon_of,
    subject::Target,
    wire::Empty,
};
use canopy_bus::{Bus, BusConfig, BusError, CallError, CallOptions, Events};
use std::{fmt::Write as _, time::Duration};

/// How long the connection may take, unless `--timeout` says otherwise.
const CONNECT: Duration = Duration::from_secs(5);
/// How long hosts have to answer a question to all of them, unless `--timeout` says otherwise.
const ALL_HOSTS: Duration = Duration::from_millis(700);

/// A connection, and the context it came from.
pub struct Remote {
    bus: Bus,
    host: Option<HostId>,
    timeout: Option<Duration>,
}

impl Remote {
    /// Connects, or says why not.
    pub async fn connect(settings: &Settings, timeout: Option<Duration>) -> Result<Self, Failure> {
        let context = settings.complete()?;
        let config = BusConfig {
            url: context.url.clone(),
            ca: context.ca,
            cert: context.cert,
            key: context.key,
            token: context.token,
            server_names: context.server_names,
        };
        let _progress = Progress::start(format!("connecting to {}", context.url));
        let place = format!("context {} of {}", context.name, settings.file.display());
        let ready = async {
            let bus = Bus::connect(&config, context.principal.clone()).await?;
            bus.wait_ready(timeout.unwrap_or(CONNECT)).await?;
            Ok(bus)
        };
        let bus = ready.await.map_err(|error| refused(&error).at(place))?;
        Ok(Self { bus, host: context.host, timeout })
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
        let hosts = self.hosts().await;
        let names: Vec<&str> = hosts.iter().map(HostId::as_str).collect();
        let known = if names.is_empty() {
            "none answers now".to_owned()
        } else {
            format!("there is {}", names.join(", "))
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

    /// Every host whose loader answers.
    pub async fn hosts(&self) -> Vec<HostId> {
        let answers = self.bus.call_all::<loader::Version>(&Empty {}, self.patience()).await;
        answers
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(who, _)| host_of(&who, Service::Loader))
            .collect()
    }

    fn patience(&self) -> Duration {
        self.timeout.unwrap_or(ALL_HOSTS)
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
        let outcome = {
            let _progress = Progress::start(format!("{doing} {host}"));
            self.call::<E>(&Target::Host(host.clone()), request, request_id).await
        };
        match outcome {
            Err(CallError::NoResponders { .. }) => Err(self.no_such_host::<E>(host).await),
            other => other.map_err(|error| error.to_api_error().into()),
        }
    }

    /// Asks a central service.
    pub async fn ask_centre<E: Endpoint>(&self, request: &E::Request) -> Result<E::Reply, Failure> {
        let service = E::SPEC.service;
        let _progress = Progress::start(format!("asking the {service}"));
        match self.call::<E>(&Target::Central, request, None).await {
            Err(CallError::NoResponders { .. }) => Err(Failure::new(
                Exit::Unavailable,
                format!("the {service} service does not answer"),
            )
            .fix(format!("see that canopy-{service} runs and is connected"))),
            other => other.map_err(|error| error.to_api_error().into()),
        }
    }

    /// Asks the service of every host; each answer with the host that gave it, sorted.
    pub async fn ask_all<E: Endpoint>(
        &self,
        request: &E::Request,
    ) -> Result<Vec<(HostId, Result<E::Reply, ApiError>)>, Failure> {
        let _progress = Progress::start("asking all hosts");
        let answers = self
            .bus
            .call_all::<E>(request, self.patience())
            .await
            .map_err(|error| Failure::from(error.to_api_error()))?;
        Ok(answers
            .into_iter()
            .filter_map(|(who, answer)| Some((host_of(&who, E::SPEC.service)?, answer)))
            .collect())
    }

    async fn call<E: Endpoint>(
        &self,
        target: &Target,
        request: &E::Request,
        request_id: Option<String>,
    ) -> Result<E::Reply, CallError> {
        let options = CallOptions { timeout: self.timeout, request_id, ..CallOptions::default() };
        self.bus.call_with::<E>(target, request, options).await
    }

    async fn no_such_host<E: Endpoint>(&self, host: &HostId) -> Failure {
        let service = E::SPEC.service;
        let hosts = self.hosts().await;
        Failure::new(Exit::Unavailable, format!("the {service} of host {host} does not answer"))
            .fix(near::remedy(
                host.as_str(),
                hosts.iter().map(HostId::as_str),
                &format!("see that canopy-{service} runs on {host} and is connected"),
            ))
    }
}

/// `h-web1-loader` is web1's loader.
fn host_of(principal: &Principal, service: Service) -> Option<HostId> {
    let (of, host) = daemon_of(principal)?;
    host.filter(|_| of == service)
}

/// Why there is no connection.
fn refused(error: &BusError) -> Failure {
    let exit = match error {
        BusError::File { .. } | BusError::Secret { .. } | BusError::Address { .. } => Exit::Invalid,
        BusError::NotPermitted { .. } => Exit::Denied,
        BusError::Refused { refusal, .. } => Exit::of_refusal(refusal),
        _ => Exit::Unavailable,
    };
    let mut message = match error {
        BusError::Secret { field, error } => format!("{field} cannot be used: {error}"),
        _ => error.to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(message, ": {cause}");
        source = cause.source();
    }
    let fix = match error {
        BusError::Secret { error, .. } => error.remedy.as_str(),
        BusError::File { .. } => "correct the path in the context, or the file's permissions",
        BusError::Address { .. } => "correct `url` in the context",
        BusError::Refused { refusal, .. } => refusal.remedy(),
        BusError::NotPermitted { .. } => {
            "`principal` must be the name in the certificate: spiffe://canopy/<principal>"
        }
        _ => "is the bus running at that address? canopy doctor looks closer",
    };
    Failure::new(exit, message).fix(fix)
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
