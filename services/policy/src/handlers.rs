//! The verbs about admission.

use crate::{metrics::Metrics, rules::Admission};
use canopy_api::{
    ApiError, Code, HostId, Principal,
    endpoint::{Service, policy},
    wire::{ADMIT_ITEMS, AdmitReply, AdmitRequest, Empty},
};
use canopy_bus::Server;
use std::sync::Arc;

/// Adds the verbs to a server.
pub(crate) fn register(server: Server, admission: &Arc<Admission>, metrics: &Metrics) -> Server {
    let of = || Arc::clone(admission);
    let (admit_by, explain_by, rules_of) = (of(), of(), of());
    let metrics = metrics.clone();
    server
        .handle::<policy::Admit, _, _>(move |caller, request| {
            let answer = admit(&admit_by, &caller.principal, &request);
            metrics.decided(match &answer {
                Ok(reply) if reply.decisions.iter().all(|one| one.allowed) => "allowed",
                Ok(_) => "denied",
                Err(_) => "unavailable",
            });
            async move { answer }
        })
        .handle::<policy::Explain, _, _>(move |_, request| {
            let answer = explain_by.explain(&request);
            async move { answer }
        })
        .handle::<policy::Rules, _, _>(move |_, _: Empty| {
            let answer = rules_of.rules();
            async move { Ok(answer) }
        })
}

/// A loader speaks for its own host only: which one that is the bus says.
fn admit(
    admission: &Admission,
    loader: &Principal,
    request: &AdmitRequest,
) -> Result<AdmitReply, ApiError> {
    let host = host_of(loader).ok_or_else(|| {
        ApiError::new(Code::Denied, format!("{loader} is no host's loader"))
            .remedy("ask with canopy policy explain")
    })?;
    let AdmitRequest { principal, items, dry_run } = request;
    if items.len() > ADMIT_ITEMS {
        let said = format!("{} items; at most {ADMIT_ITEMS} are decided at once", items.len());
        return Err(ApiError::new(Code::Invalid, said).at("items").remedy("ask several times"));
    }
    let (basis, decisions) = admission.decide(principal, &host, items)?;
    for (item, decision) in items.iter().zip(&decisions).filter(|(_, one)| !one.allowed) {
        let rule = decision.rule.as_deref().unwrap_or("none");
        tracing::info!(%host, %principal, %item, rule, dry_run, "denied");
    }
    Ok(AdmitReply { basis, decisions })
}

fn host_of(loader: &Principal) -> Option<HostId> {
    let host = loader.as_str().strip_prefix("h-")?.strip_suffix(Service::Loader.as_str())?;
    host.strip_suffix('-')?.parse().ok()
}
