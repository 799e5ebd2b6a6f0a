//! The verbs about admission.

use crate::{
    audit::{Happening, Noter},
    directory::Roles,
    metrics::Metrics,
    rules::Admission,
};
use canopy_api::{
    ApiError, Code, Principal,
    endpoint::{Service, policy},
    permission::daemon_of,
    wire::{ADMIT_ITEMS, AdmitReply, AdmitRequest},
};
use canopy_bus::{Bus, LogGate, Server, for_log};
use std::sync::Arc;

/// Adds the verbs to a server.
pub(crate) fn register(
    (server, bus): (Server, &Bus),
    admission: &Arc<Admission>,
    roles: &Roles,
    (metrics, noter): (&Metrics, &Noter),
) -> Server {
    let of = || (Arc::clone(admission), roles.clone());
    let (admit_by, explain_by) = (of(), of());
    let (rules_of, bus) = (Arc::clone(admission), bus.clone());
    let around = (metrics.clone(), noter.clone(), Arc::new(LogGate::default()));
    server
        .handle::<policy::Admit, _, _>(move |caller, request| {
            let ((admission, roles), (metrics, noter, log)) = (admit_by.clone(), around.clone());
            async move {
                let around = (&noter, &*log);
                let answer = admit(&admission, &roles, &caller.principal, &request, around).await;
                metrics.decided(match &answer {
                    Ok(reply) if reply.decisions.iter().all(|one| one.allowed) => "allowed",
                    Ok(_) => "denied",
                    Err(_) => "unavailable",
                });
                answer
            }
        })
        .handle::<policy::Explain, _, _>(move |_, request| {
            let (admission, roles) = explain_by.clone();
            async move {
                let role = roles.of(&admission, &request.principal).await?;
                admission.explain(role, &request)
            }
        })
        .handle::<policy::Rules, _, _>(move |_, request| {
            let answer = rules_of.rules(&request, bus.page_bytes());
            async move { answer }
        })
}

/// A loader speaks for its own host only: which one that is the bus says.
async fn admit(
    admission: &Admission,
    roles: &Roles,
    loader: &Principal,
    request: &AdmitRequest,
    (noter, log): (&Noter, &LogGate),
) -> Result<AdmitReply, ApiError> {
    let Some((Service::Loader, Some(host))) = daemon_of(loader) else {
        return Err(ApiError::new(Code::Denied, format!("{loader} is no host's loader"))
            .remedy("ask with canopy policy explain"));
    };
    let AdmitRequest { principal, items, dry_run } = request;
    if items.len() > ADMIT_ITEMS {
        let said = format!("{} items; at most {ADMIT_ITEMS} are decided at once", items.len());
        return Err(ApiError::new(Code::Invalid, said).at("items").remedy("ask several times"));
    }
    let role = roles.of(admission, principal).await?;
    let (basis, decisions) = admission.decide(principal, role, &host, items)?;
    let denied = || items.iter().zip(&decisions).filter(|(_, one)| !one.allowed);
    if let Some((item, decision)) = denied().next()
        && let Some(unlogged) = log.pass(format!("{host} {principal}"))
    {
        let (by, items) = (decision.rule.as_deref().unwrap_or("none"), denied().count());
        let item = for_log(&item.to_string()).to_string();
        tracing::info!(%host, %principal, item, rule = by, dry_run, items, unlogged, "denied");
    }
    for (item, decision) in denied() {
        noter.note(Happening::denied(&host, principal, item, decision.rule.as_deref(), *dry_run));
    }
    Ok(AdmitReply { basis, decisions })
}
