//! The verbs about hosts: who may connect as a host's daemon.

use crate::{
    auth::Auth,
    config::HostsRule,
    connections::seconds,
    grants::Giver,
    hosts,
    trust::{HostAuthority, Trust},
};
use canopy_api::{
    ApiError, Code, HostId, Principal,
    endpoint::policy,
    nats::spiffe_id,
    permission::{daemon_of, daemon_principal},
    time,
    wire::hosts::{HostEnrolReply, HostEnrolRequest, HostRecord, HostRenewReply, HostRenewRequest},
};
use canopy_bus::Server;
use canopy_identity::{Certificate, SignError, Signed, SigningRequest};
use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

impl Auth {
    /// Serves the verbs about hosts.
    pub(crate) fn serve_hosts(&self, server: Server) -> Server {
        let of = || self.clone();
        let (enrol, renew, label, revoke, forget) = (of(), of(), of(), of(), of());
        let list = self.hosts.clone();
        server
            .handle::<policy::HostEnrol, _, _>(move |caller, request| {
                let this = enrol.clone();
                async move {
                    let giver = this.giver(&caller.principal).await?;
                    let reply = this.enrol(&request, &giver).await?;
                    caller.notes.about(told("enrolled", &reply.record));
                    Ok(reply)
                }
            })
            .handle::<policy::HostRenew, _, _>(move |caller, request| {
                let this = renew.clone();
                async move { this.renew(&request, &caller.principal).await }
            })
            .handle::<policy::HostLabel, _, _>(move |caller, request| {
                let this = label.clone();
                async move {
                    let giver = this.giver(&caller.principal).await?;
                    let by = (&giver, &this.admission.configured_labels(&request.host));
                    let kept = this.hosts.label(&request.host, &request.labels, by).await?;
                    this.admission.enrolled(&request.host, kept.labels().cloned());
                    tracing::warn!(
                        host = %request.host, labels = ?kept.labels(), by = %giver, "host labelled"
                    );
                    let record = kept.record(seconds());
                    caller.notes.about(told("labelled", &record));
                    Ok(record)
                }
            })
            .handle::<policy::HostRevoke, _, _>(move |caller, request| {
                let this = revoke.clone();
                async move {
                    let giver = this.giver(&caller.principal).await?;
                    let record = this.revoke(&request.host, &giver).await?;
                    caller.notes.about(told("revoked", &record));
                    Ok(record)
                }
            })
            .handle::<policy::HostForget, _, _>(move |caller, request| {
                let this = forget.clone();
                async move {
                    let giver = this.giver(&caller.principal).await?;
                    let record = this.forget(&request.host, &giver).await?;
                    caller.notes.about(format!("forgot host {}", request.host));
                    Ok(record)
                }
            })
            .handle::<policy::HostList, _, _>(move |_, request| {
                let hosts = list.clone();
                async move { hosts.list(&request, seconds()).await }
            })
    }

    async fn enrol(
        &self,
        request: &HostEnrolRequest,
        giver: &Giver,
    ) -> Result<HostEnrolReply, ApiError> {
        let (trust, now) = (self.trust.borrow().clone(), seconds());
        hosts::check(request)?;
        hosts::connect_before(giver, request, now)?;
        let configured = self.admission.configured_labels(&request.host);
        // Before anything is signed, and again for what is replaced.
        let before = self.hosts.get(&request.host).await?.map(|before| before.value);
        hosts::may_enrol(giver, request, &configured, before.as_ref())?;
        let mut signed = BTreeMap::new();
        for (service, text) in &request.certificates {
            let at = format!("certificates.{service}");
            let principal = daemon_principal(*service, Some(&request.host))
                .map_err(|error| ApiError::new(Code::Invalid, error.to_string()).at("host"))?;
            let one = one(&trust, &principal, text, now).map_err(|error| error.at(at))?;
            signed.insert(*service, one);
        }
        let certificates =
            signed.iter().map(|(service, one)| (*service, one.certificate.clone())).collect();
        let kept = self.hosts.enrol(request, &certificates, (giver, &configured), now).await?;
        self.admission.enrolled(&request.host, kept.labels().cloned());
        tracing::warn!(
            host = %request.host, generation = kept.generation(), labels = ?kept.labels(),
            by = %giver, "host enrolled"
        );
        self.end_hosts(request.host.clone());
        let certificates = signed.into_iter().map(|(service, one)| (service, one.pem)).collect();
        Ok(HostEnrolReply { record: kept.record(now), certificates })
    }

    async fn revoke(&self, host: &HostId, giver: &Giver) -> Result<HostRecord, ApiError> {
        let by = (giver, &self.admission.configured_labels(host));
        let kept = self.hosts.revoke(host, by, seconds()).await?;
        self.admission.enrolled(host, None);
        tracing::warn!(%host, by = %giver, "host revoked");
        self.end_hosts(host.clone());
        Ok(kept.record(seconds()))
    }

    async fn forget(&self, host: &HostId, giver: &Giver) -> Result<HostRecord, ApiError> {
        // Where any certificate of the authority will do, what is kept of a revoked host is all that keeps
        // it out.
        if self.trust.borrow().hosts == HostsRule::Any {
            let message = "with `auth.hosts: any` a host that is forgotten may connect again";
            return Err(ApiError::new(Code::Conflict, message)
                .at("host")
                .remedy("keep it revoked, or set `auth.hosts: enrolled`"));
        }
        let by = (giver, &self.admission.configured_labels(host));
        let record = self.hosts.forget(host, by, seconds()).await?;
        tracing::warn!(%host, by = %giver, "host forgotten");
        Ok(record)
    }

    /// A daemon prolongs its own certificate; which one asks is what the bus says.
    async fn renew(
        &self,
        request: &HostRenewRequest,
        caller: &Principal,
    ) -> Result<HostRenewReply, ApiError> {
        let Some((service, Some(host))) = daemon_of(caller) else {
            return Err(ApiError::new(Code::Denied, format!("{caller} is no host's daemon")));
        };
        let (trust, now) = (self.trust.borrow().clone(), seconds());
        let asked = read(&request.request).map_err(|error| error.at("request"))?;
        let kept = self.hosts.may_renew(&host, service, &asked.key_fingerprint(), now).await?;
        let signed = sign(&trust, &asked, caller, now).map_err(|error| error.at("request"))?;
        self.hosts.renewed(kept, service, &signed.certificate).await?;
        let until = u64::try_from(signed.certificate.not_after).unwrap_or(0);
        let until = time::rfc3339(UNIX_EPOCH + Duration::from_secs(until));
        tracing::info!(%host, %service, %until, "certificate renewed");
        Ok(HostRenewReply { certificate: signed.pem, until })
    }

    fn end_hosts(&self, host: HostId) {
        let (connections, stop) = (self.connections.clone(), self.cx.shutdown.clone());
        self.cx
            .tasks
            .spawn(async move { stop.run_until_cancelled(connections.host_changed(&host)).await });
    }
}

/// What the audit record says of a host.
fn told(done: &str, record: &HostRecord) -> String {
    let labels: Vec<String> =
        record.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
    let keys = record.certificates.iter().map(|(service, one)| format!("{service} {}", one.key));
    let keys: Vec<String> = keys.collect();
    format!(
        "{done}: host {}, enrolment {}, labels {labels}, keys {}",
        record.host,
        record.generation,
        keys.join(", ")
    )
}

/// A certificate from what was sent: signed now, or by the authority before.
fn one(trust: &Trust, principal: &Principal, text: &str, now: u64) -> Result<Signed, ApiError> {
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return sign(trust, &read(text)?, principal, now);
    }
    let invalid = |said: String| ApiError::new(Code::Invalid, said);
    let certificate =
        Certificate::from_pem(text.as_bytes()).map_err(|error| invalid(error.to_string()))?;
    if certificate.our_name() != Some(principal.as_str()) {
        let found = certificate.names.uri;
        return Err(invalid(format!(
            "the certificate is for {found:?}; it has to be for {} and nobody else",
            spiffe_id(principal)
        )));
    }
    if let Some(name) = &certificate.misplaced_name {
        return Err(invalid(format!(
            "the certificate has {name:?} as an e-mail address, as a DNS name or in its subject"
        ))
        .remedy(format!("have one signed whose only Canopy name is {}", spiffe_id(principal))));
    }
    if i64::try_from(now).is_ok_and(|now| now > certificate.not_after) {
        return Err(invalid("the certificate has ended".to_owned()));
    }
    Ok(Signed { pem: text.to_owned(), certificate })
}

fn read(text: &str) -> Result<SigningRequest, ApiError> {
    SigningRequest::from_pem(text.as_bytes()).map_err(|error| refused(error.into()))
}

fn sign(
    trust: &Trust,
    asked: &SigningRequest,
    principal: &Principal,
    now: u64,
) -> Result<Signed, ApiError> {
    let Some(HostAuthority { authority, life }) = &trust.authority else {
        return Err(ApiError::new(
            Code::Unsupported,
            "this policy service has no authority's key to sign with",
        )
        .remedy(
            "give it `auth.ca`, or have the request signed elsewhere and send the certificate",
        ));
    };
    authority.sign(asked, principal, now, *life).map_err(refused)
}

fn refused(error: SignError) -> ApiError {
    match error {
        SignError::Request(error) => ApiError::new(Code::Invalid, error.to_string())
            .remedy("make it with canopy host request, for this host"),
        SignError::Authority(error) => ApiError::new(Code::Internal, format!("`auth.ca`: {error}")),
    }
}

/// Answers the verbs about hosts where nobody is asked who connects.
pub(crate) fn without(server: Server) -> Server {
    let none = || {
        ApiError::new(Code::Unsupported, "this policy service enrols no hosts")
            .remedy("give it `auth` in its configuration, and the bus server a callout")
    };
    server
        .handle::<policy::HostEnrol, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::HostRenew, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::HostLabel, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::HostRevoke, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::HostForget, _, _>(move |_, _| async move { Err(none()) })
        .handle::<policy::HostList, _, _>(move |_, _| async move { Err(none()) })
}
