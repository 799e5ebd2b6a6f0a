//! What the service at the other end knows: asked before a change is sent that an earlier release would not
//! understand as a whole.

use crate::{
    call::{CallError, CallOptions},
    connection::Bus,
    field_question,
};
use canopy_api::{
    endpoint::{
        Class, Endpoint, EndpointSpec, Service, cert_monitor, enforcer, loader, policy, registry,
    },
    error::{ApiError, Code},
    known::{self, Fields},
    permission::daemon_of,
    subject::Target,
    wire::{Version, VersionRequest},
};
use futures::future::BoxFuture;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How long what a service says of itself is believed: it may be updated meanwhile.
const BELIEVED: Duration = Duration::from_mins(1);

/// How long a service has to say what it knows. Without an answer the request itself is the question.
const PATIENCE: Duration = Duration::from_secs(2);

/// A service, as it described itself.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    version: String,
    fields: Fields,
    pub(crate) asked: Instant,
}

impl Bus {
    /// Refuses a change with fields that its receiver does not know, before it is sent: of those in `newer`, which
    /// came after services began to say what they know. Where the receiver does not say it, nothing is refused:
    /// it refuses unknown fields itself.
    ///
    /// # Errors
    /// `unsupported`, with the field and the version of the receiver.
    pub(crate) async fn ensure_newer_known<E: Endpoint>(
        &self,
        target: &Target,
        request: &E::Request,
        newer: &BTreeSet<String>,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let spec = E::SPEC;
        let is_question = spec.class == Class::Read || spec.verb == field_question::VERB;
        if is_question || newer.is_empty() || *target == Target::AllHosts {
            return Ok(());
        }
        let Ok(request) = serde_json::to_value(request) else { return Ok(()) };
        let used = known::used(&request, newer);
        if used.is_empty() {
            return Ok(());
        }
        self.ensure(
            (spec.service, spec.class),
            (spec.verb, &used.into_iter().collect::<Vec<_>>()),
            target,
            Some(timeout),
        )
        .await
    }

    async fn ensure(
        &self,
        (service, class): (Service, Class),
        (verb, used): (&str, &[String]),
        target: &Target,
        timeout: Option<Duration>,
    ) -> Result<(), CallError> {
        let Some(peer) = self.peer((service, class), target, timeout).await else { return Ok(()) };
        let who = match target {
            Target::Host(host) => format!("host {host} runs canopy-{service} {}", peer.version),
            Target::Central | Target::AllHosts => {
                format!("the {service} service runs {}", peer.version)
            }
        };
        let unsupported =
            |message, remedy: &str| ApiError::new(Code::Unsupported, message).remedy(remedy);
        let Some(known) = peer.fields.get(verb) else {
            let message = format!("{who}, which does not serve \"{verb}\"; nothing was sent");
            return Err(CallError::Api(unsupported(message, "upgrade it")));
        };
        match used.iter().find(|field| !known.contains(*field)) {
            None => Ok(()),
            Some(field) => {
                let message =
                    format!("{who}, which does not know the field \"{field}\"; nothing was sent");
                let error = unsupported(message, "upgrade it, or leave the field out");
                Err(CallError::Api(error.at(field)))
            }
        }
    }

    /// Whether the bus server takes the question from here: daemons put those only that the table has them put.
    fn may_ask_version(&self, service: Service) -> bool {
        daemon_of(self.principal())
            .is_none_or(|(caller, _)| version_spec(service).callers.contains(&caller))
    }

    /// The service at the other end; nothing where it does not say, or cannot be asked.
    async fn peer(
        &self,
        (service, class): (Service, Class),
        target: &Target,
        timeout: Option<Duration>,
    ) -> Option<Peer> {
        if !self.may_ask_version(service) {
            return None;
        }
        let name = (service, target.to_string());
        if let Some(peer) = self.shared.peer(&name).filter(|peer| peer.asked.elapsed() < BELIEVED) {
            return Some(peer);
        }
        let patience = timeout.map_or(PATIENCE, |timeout| PATIENCE.min(timeout / 2));
        // Without a connection the request itself tells why there is none.
        if !self.wait_link(patience).await {
            return None;
        }
        let version = match self.version_under(service, class, target, patience).await {
            // A release that answers it as a read alone.
            None | Some(Err(CallError::NoResponders { .. })) => {
                self.version_by_read(service, target, patience).await
            }
            Some(outcome) => outcome,
        };
        let Version { version, fields, .. } = version.ok()?;
        let fields = fields.unwrap_or_else(|| known::before(service));
        let peer = Peer { version, fields, asked: Instant::now() };
        self.shared.keep_peer(name, peer.clone());
        Some(peer)
    }

    /// The question under a class of changes, which waits behind no read.
    fn version_under<'a>(
        &'a self,
        service: Service,
        class: Class,
        target: &'a Target,
        patience: Duration,
    ) -> BoxFuture<'a, Option<Result<Version, CallError>>> {
        Box::pin(field_question::ask(self, (service, class), target, patience))
    }

    async fn version_by_read(
        &self,
        service: Service,
        target: &Target,
        patience: Duration,
    ) -> Result<Version, CallError> {
        let ask = |fields| self.version_of(service, target, fields, patience);
        match ask(true).await {
            // A release that cannot say which fields it has.
            Err(CallError::Api(error))
                if error.code == Code::Unsupported || error.code == Code::Invalid =>
            {
                ask(false).await
            }
            outcome => outcome,
        }
    }

    fn version_of<'a>(
        &'a self,
        service: Service,
        target: &'a Target,
        fields: bool,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Version, CallError>> {
        let request = VersionRequest { fields };
        let options = CallOptions { timeout: Some(patience), ..CallOptions::default() };
        Box::pin(async move {
            match service {
                Service::Loader => {
                    self.call_with::<loader::Version>(target, &request, options).await
                }
                Service::Registry => {
                    self.call_with::<registry::Version>(target, &request, options).await
                }
                Service::Policy => {
                    self.call_with::<policy::Version>(target, &request, options).await
                }
                Service::CertMonitor => {
                    self.call_with::<cert_monitor::Version>(target, &request, options).await
                }
                Service::Enforcer => {
                    self.call_with::<enforcer::Version>(target, &request, options).await
                }
            }
        })
    }
}

fn version_spec(service: Service) -> &'static EndpointSpec {
    match service {
        Service::Loader => loader::Version::SPEC,
        Service::Registry => registry::Version::SPEC,
        Service::Policy => policy::Version::SPEC,
        Service::CertMonitor => cert_monitor::Version::SPEC,
        Service::Enforcer => enforcer::Version::SPEC,
    }
}
