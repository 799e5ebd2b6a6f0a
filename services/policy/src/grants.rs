//! Whether who asks may give, change or take back what they ask for: nobody gives more than they have, and
//! nobody takes from others what they could not have given.

use crate::{auth::Auth, connections::seconds};
use canopy_admission::Labels;
use canopy_api::{
    ApiError, Code, HostId, Principal,
    authority::{Authority, Excess},
    endpoint::{Class, Service},
    permission::daemon_of,
    wire::{AuditCheckpointsRequest, AuditRequest},
};
use std::fmt;

/// The services of a host, for what concerns it as a whole.
fn host_services() -> impl Iterator<Item = Service> {
    Service::ALL.into_iter().filter(|service| service.is_host_local())
}

/// Somebody who asks for one of the verbs of administrators.
#[derive(Clone, Debug)]
pub(crate) struct Giver {
    /// Who.
    principal: String,
    authority: Authority,
}

impl fmt::Display for Giver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.principal)
    }
}

impl Giver {
    /// Whoever has the service's own keys, and needs no token.
    pub(crate) fn bootstrap() -> Self {
        Self { principal: "bootstrap".to_owned(), authority: Authority::unlimited() }
    }

    /// As a record says who did something.
    pub(crate) fn name(&self) -> &str {
        &self.principal
    }

    /// When a token ends that is given now for this many seconds; without a number as its giver's own does.
    pub(crate) fn end_of(&self, life: Option<u64>, now: u64) -> Option<u64> {
        life.map(|life| now.saturating_add(life)).or(self.authority.until)
    }

    /// That a token that allows this may be given.
    pub(crate) fn may_give(&self, token: &Authority) -> Result<(), ApiError> {
        let Some(excess) = self.authority.excess_of(token) else { return Ok(()) };
        let Self { principal, authority } = self;
        let (message, remedy) = if let Excess::Time { .. } = excess {
            (
                format!("the token would be valid {excess}, when {principal}'s own ends"),
                "leave the time out for a token that ends with your own, or ask an administrator whose \
                 token ends later or not at all",
            )
        } else {
            (
                format!(
                    "the token would reach {excess}, which {principal}'s own does not ({authority})"
                ),
                "ask for no more than your own token allows, or have it issued by somebody whose \
                 token reaches that far",
            )
        };
        Err(ApiError::new(Code::Denied, message).at(excess.field()).remedy(remedy))
    }

    /// That somebody's token, which allows this, may be changed or ended. One that ends later than this
    /// giver's own may be: what takes its place does not.
    pub(crate) fn may_change(&self, owner: &Principal, token: &Authority) -> Result<(), ApiError> {
        let Some(excess) = self.authority.excess_in_reach(token) else { return Ok(()) };
        let message = format!(
            "{owner}'s last token reaches {excess}, which {}'s own does not ({})",
            self.principal, self.authority
        );
        Err(ApiError::new(Code::Denied, message)
            .at("principal")
            .remedy("ask somebody whose token reaches as far as the one that is to be changed"))
    }

    /// Until when something may wait to be used that is given now, for this many seconds or by `default` at most
    /// for so many: no longer than this giver's token is in force.
    pub(crate) fn first_use_before(
        &self,
        asked: Option<u64>,
        default: u64,
        now: u64,
    ) -> Result<u64, ApiError> {
        let Some(own) = self.authority.until else {
            return Ok(now.saturating_add(asked.unwrap_or(default)));
        };
        let Some(asked) = asked else { return Ok(now.saturating_add(default).min(own)) };
        let before = now.saturating_add(asked);
        if before <= own {
            return Ok(before);
        }
        let excess = Excess::Time { own, until: Some(before) };
        let message =
            format!("it could be used {excess}, when {}'s own token ends", self.principal);
        Err(ApiError::new(Code::Denied, message).at(excess.field()).remedy(
            "ask for less time, or ask an administrator whose token ends later or not at all",
        ))
    }

    /// That these daemons of a host with these labels may be let in, labelled or taken back.
    pub(crate) fn may_change_host(
        &self,
        host: &HostId,
        labels: &Labels,
        services: impl IntoIterator<Item = Service>,
    ) -> Result<(), ApiError> {
        let Some(excess) = self.authority.excess_of_host(host, labels, services) else {
            return Ok(());
        };
        let what = match excess {
            Excess::Services(_) => format!("{excess} of {host} are"),
            Excess::Role { .. } | Excess::Hosts(_) | Excess::Time { .. } => {
                format!("{host} is")
            }
        };
        let message = format!("{what} beyond {}'s own token ({})", self.principal, self.authority);
        Err(ApiError::new(Code::Denied, message)
            .at("host")
            .remedy("ask somebody whose token reaches the host and all of its daemons"))
    }

    /// The same of a host as a whole.
    pub(crate) fn may_change_whole_host(
        &self,
        host: &HostId,
        labels: &Labels,
    ) -> Result<(), ApiError> {
        self.may_change_host(host, labels, host_services())
    }
}

impl Auth {
    /// Who asks, with what their token in force allows.
    ///
    /// # Errors
    /// When they have none that allows verbs of administrators here: it was changed since they connected.
    pub(crate) async fn giver(&self, principal: &Principal) -> Result<Giver, ApiError> {
        let stored = self.tokens().get(principal).await?;
        let authority = stored.and_then(|stored| stored.value.authority_in_force(seconds()));
        match authority {
            Some(authority) if authority.may_use(Service::Policy, Class::Admin) => {
                Ok(Giver { principal: principal.to_string(), authority })
            }
            Some(_) | None => Err(ApiError::new(
                Code::Denied,
                format!("{principal} has no token in force that allows this"),
            )
            .remedy("connect again; canopy token list shows which tokens are in force")),
        }
    }

    /// The labels that count for a host, in admission and scopes, whether it may connect or not.
    pub(crate) async fn labels_of(&self, host: &HostId) -> Result<Labels, ApiError> {
        let mut labels = self.admission.configured_labels(host);
        if let Some(stored) = self.hosts.get(host).await? {
            labels.extend(stored.value.kept_labels().clone());
        }
        Ok(labels)
    }

    /// That who asks may read these audit records: who is narrowed to hosts reads those of one of their
    /// hosts at a time.
    pub(crate) async fn may_read_audit(
        &self,
        principal: &Principal,
        request: &AuditRequest,
    ) -> Result<(), ApiError> {
        let of_writer = request.writer.as_ref().and_then(|writer| daemon_of(writer)?.1);
        self.may_read_records(principal, of_writer.or_else(|| request.host.clone())).await
    }

    /// The same of checkpoints.
    pub(crate) async fn may_read_checkpoints(
        &self,
        principal: &Principal,
        request: &AuditCheckpointsRequest,
    ) -> Result<(), ApiError> {
        let writer = request.writer.as_ref();
        self.may_read_records(principal, writer.and_then(|writer| daemon_of(writer)?.1)).await
    }

    async fn may_read_records(
        &self,
        principal: &Principal,
        host: Option<HostId>,
    ) -> Result<(), ApiError> {
        let giver = self.giver(principal).await?;
        let Some(host) = host else {
            if giver.authority.scope.hosts.is_none() {
                return Ok(());
            }
            let message = format!(
                "the whole trail is about every host, which {principal}'s token does not reach ({})",
                giver.authority
            );
            return Err(ApiError::new(Code::Denied, message)
                .at("host")
                .remedy("ask for the records of one host of yours: --host HOST"));
        };
        giver.may_change_host(&host, &self.labels_of(&host).await?, [])
    }
}
