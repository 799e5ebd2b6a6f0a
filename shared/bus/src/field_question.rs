//! Which fields a service knows, asked beside the reads: what a caller is told of it before it sends a change with
//! a field that came after release 0.1.0.
//!
//! `version` is a read, and whoever floods a service with reads would hold up every such change by the time that
//! its answer is waited for. So a service also answers it under each class of changes that it serves, over the
//! connection that changes come by and without a slot: only who may change something may ask there, and the answer
//! was made at the start. These subjects are no verbs: nothing is done, and nothing is recorded.

use crate::{
    call::{CallError, CallOptions},
    codec::Encoding,
    config::BusError,
    connection::Bus,
};
use async_nats::{Message, Subscriber};
use canopy_api::{
    endpoint::{Class, Endpoint, EndpointSpec, Service, Status},
    known,
    name::{HostId, Principal},
    subject::{self, Target},
    wire::{Version, VersionRequest},
};
use futures::{StreamExt as _, stream::SelectAll};
use std::time::Duration;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The last part of the question's name.
pub(crate) const VERB: &str = "version";

const fn spec(service: Service, class: Class) -> EndpointSpec {
    EndpointSpec {
        service,
        class,
        verb: VERB,
        timeout: Duration::from_secs(2),
        idempotent: true,
        status: Status::Works,
        callers: &[],
        summary: "Which fields the service knows",
        schemas: None,
    }
}

macro_rules! questions {
    ($($name:ident = $service:ident $class:ident;)*) => {
        $(
            struct $name;

            impl Endpoint for $name {
                const SPEC: &'static EndpointSpec = &spec(Service::$service, Class::$class);
                type Request = VersionRequest;
                type Reply = Version;
            }
        )*

        /// Asks under a class of changes; nothing where the service serves none of it.
        pub(crate) async fn ask(
            bus: &Bus,
            (service, class): (Service, Class),
            target: &Target,
            patience: Duration,
        ) -> Option<Result<Version, CallError>> {
            let request = VersionRequest { fields: true };
            let options = CallOptions { timeout: Some(patience), ..CallOptions::default() };
            match (service, class) {
                $((Service::$service, Class::$class) => {
                    Some(bus.call_with::<$name>(target, &request, options).await)
                })*
                _ => None,
            }
        }

        /// Those of a service.
        fn specs(service: Service) -> impl Iterator<Item = &'static EndpointSpec> {
            [$(<$name as Endpoint>::SPEC),*].into_iter().filter(move |spec| spec.service == service)
        }
    };
}

questions! {
    LoaderWrite = Loader Write;
    LoaderAdmin = Loader Admin;
    RegistryPublish = Registry Publish;
    RegistryAdmin = Registry Admin;
    PolicyAdmin = Policy Admin;
}

/// A service, as it is asked.
pub(crate) struct Asked<'a> {
    pub(crate) bus: &'a Bus,
    pub(crate) service: Service,
    pub(crate) host: Option<&'a HostId>,
    pub(crate) me: &'a Principal,
}

impl Asked<'_> {
    /// Answers until the service ends. The subjects.
    pub(crate) async fn serve(
        self,
        tasks: &TaskTracker,
        draining: &CancellationToken,
    ) -> Result<Vec<String>, BusError> {
        let version = Version {
            service: self.service.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.host.cloned(),
            fields: Some(known::served(self.service)),
        };
        let answer = Encoding::MessagePack.encode(&version).map_err(BusError::Defect)?;
        let target = self.host.map_or(Target::Central, |host| Target::Host(host.clone()));
        // Instances of a central service share the questions, as they do the requests.
        let queue = self.host.is_none().then(|| self.service.to_string());
        let (mut subjects, mut questions) = (Vec::new(), SelectAll::new());
        for spec in specs(self.service) {
            let subject = subject::subscription(spec, &target);
            questions.push(subscribe(self.bus, &subject, queue.clone()).await?);
            subjects.push(subject);
        }
        let (bus, me, draining) = (self.bus.clone(), self.me.clone(), draining.clone());
        let answers = async move {
            let answer = bytes::Bytes::from(answer);
            while let Some(question) = questions.next().await {
                if let Some(reply) = reply_to(&question, &me) {
                    // Fails only when the connection is closed.
                    let _ = bus.client.publish(reply, answer.clone()).await;
                }
            }
        };
        tasks.spawn(async move { draining.run_until_cancelled(answers).await });
        Ok(subjects)
    }
}

/// Where the answer goes: to the inbox of who asked, and nowhere else.
fn reply_to(question: &Message, me: &Principal) -> Option<String> {
    let caller = subject::principal_of(&question.subject)?;
    subject::reply_subject(question.reply.as_ref()?, &caller, me)
}

async fn subscribe(
    bus: &Bus,
    subject: &str,
    queue: Option<String>,
) -> Result<Subscriber, BusError> {
    let subscribed = match queue {
        Some(queue) => bus.client.queue_subscribe(subject.to_owned(), queue).await,
        None => bus.client.subscribe(subject.to_owned()).await,
    };
    subscribed.map_err(|error| BusError::Defect(format!("{subject}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use canopy_api::endpoint;
    use std::collections::BTreeSet;

    /// A class of changes that is added to a service is added here.
    #[test]
    fn every_class_of_changes_is_asked_under() {
        let changes: BTreeSet<_> = endpoint::all()
            .filter(|spec| spec.status == Status::Works && spec.class.changes())
            .map(|spec| (spec.service, spec.class))
            .collect();
        let asked = Service::ALL.into_iter().flat_map(specs).map(|spec| (spec.service, spec.class));
        assert_eq!(changes, asked.collect());
        for spec in endpoint::all().filter(|spec| spec.class.changes()) {
            assert_ne!(spec.verb, VERB, "{} {}", spec.service, spec.class);
        }
    }
}
