//! The endpoint table: every verb of every service, declared once. Servers, clients, bus
//! permissions, the subject reference and the README's status table all come from here.

use crate::wire;
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, time::Duration};

/// A service.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// On every host: owns attachments and chains.
    Loader,
    /// Central: finds and verifies packages.
    Registry,
    /// Central: who may do what, and what was done.
    Policy,
    /// Central: watches certificates.
    CertMonitor,
    /// On every host: notices and answers tampering.
    Enforcer,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Loader, Self::Registry, Self::Policy, Self::CertMonitor, Self::Enforcer];

    /// Its token in subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loader => "loader",
            Self::Registry => "registry",
            Self::Policy => "policy",
            Self::CertMonitor => "cert-monitor",
            Self::Enforcer => "enforcer",
        }
    }

    /// Whether one runs on each host (its subjects carry the host), or a few for the whole fleet.
    pub fn is_host_local(self) -> bool {
        match self {
            Self::Loader | Self::Enforcer => true,
            Self::Registry | Self::Policy | Self::CertMonitor => false,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The unit of permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Changes nothing.
    Read,
    /// Changes hosts.
    Write,
    /// Changes packages.
    Publish,
    /// Tokens, rules, modes.
    Admin,
    /// Daemon to daemon; never given to people.
    Internal,
}

impl Class {
    /// Its token in subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Publish => "publish",
            Self::Admin => "admin",
            Self::Internal => "internal",
        }
    }

    /// Whether its requests change something that a person wants to be done, and leave a trail.
    pub fn changes(self) -> bool {
        match self {
            Self::Write | Self::Publish | Self::Admin => true,
            Self::Read | Self::Internal => false,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether the verb is served yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Served.
    Works,
    /// Named so that nothing else takes the name; not served.
    Planned,
}

/// One verb of one service.
#[derive(Debug)]
pub struct EndpointSpec {
    /// Who serves it.
    pub service: Service,
    /// The permission it needs.
    pub class: Class,
    /// Its name, one subject token.
    pub verb: &'static str,
    /// How long a caller waits by default.
    pub timeout: Duration,
    /// Whether asking twice does nothing the second time by nature. Where not, a repeated
    /// `Canopy-Request-Id` gets the first answer.
    pub idempotent: bool,
    /// Whether it is served yet.
    pub status: Status,
    /// The daemons that may call it, beside the people whose role holds its class.
    pub callers: &'static [Service],
    /// What it does, in one line.
    pub summary: &'static str,
    /// JSON Schema of request and reply; `None` while planned.
    pub schemas: Option<fn() -> (Schema, Schema)>,
}

/// A served endpoint, as a type that ties its request and reply together.
pub trait Endpoint: 'static {
    /// Its row of the table.
    const SPEC: &'static EndpointSpec;
    /// What is asked.
    type Request: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// What is answered.
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
}

/// What [`for_each`] does with an endpoint.
pub trait EndpointVisitor {
    /// Called once for each verb that is served.
    fn visit<E: Endpoint>(&mut self);
}

fn schemas<E: Endpoint>() -> (Schema, Schema) {
    (schema_for!(E::Request), schema_for!(E::Reply))
}

macro_rules! endpoints {
    ($(
        $(#[$mod_doc:meta])*
        $module:ident: $service:ident {
            $( $name:ident = $class:ident $verb:literal ($seconds:literal s $(, $idempotent:ident)? $(, callers $callers:expr)?)
               : $request:ty => $reply:ty, $summary:literal; )*
        } planned {
            $( $pclass:ident $pverb:literal $psummary:literal; )*
        }
    )*) => {
        $(
            $(#[$mod_doc])*
            pub mod $module {
                use super::{Class, Duration, Endpoint, EndpointSpec, Service, Status, schemas, wire};
                $(
                    #[doc = $summary]
                    #[derive(Clone, Copy, Debug)]
                    pub struct $name;
                    impl Endpoint for $name {
                        const SPEC: &'static EndpointSpec = &EndpointSpec {
                            service: Service::$service,
                            class: Class::$class,
                            verb: $verb,
                            timeout: Duration::from_secs($seconds),
                            idempotent: endpoints!(@idempotent $($idempotent)?),
                            status: Status::Works,
                            callers: endpoints!(@callers $($callers)?),
                            summary: $summary,
                            schemas: Some(schemas::<$name>),
                        };
                        type Request = $request;
                        type Reply = $reply;
                    }
                )*
                /// Every verb of the service, served and planned.
                pub const ALL: &[&EndpointSpec] = &[
                    $(<$name as Endpoint>::SPEC,)*
                    $(&EndpointSpec {
                        service: Service::$service,
                        class: Class::$pclass,
                        verb: $pverb,
                        timeout: Duration::from_secs(5),
                        idempotent: false,
                        status: Status::Planned,
                        callers: &[],
                        summary: $psummary,
                        schemas: None,
                    },)*
                ];
            }
        )*

        /// Does something for every verb that is served, with its types.
        pub fn for_each(visitor: &mut impl EndpointVisitor) {
            $($(visitor.visit::<$module::$name>();)*)*
        }

        /// Every verb of every service.
        pub fn all() -> impl Iterator<Item = &'static EndpointSpec> {
            [$($module::ALL),*].into_iter().flatten().copied()
        }
    };
    (@idempotent idempotent) => { true };
    (@idempotent) => { false };
    (@callers $callers:expr) => { $callers };
    (@callers) => { &[] };
}

endpoints! {
    /// The host's loader.
    loader: Loader {
        Health = Read "health" (3 s, idempotent): wire::Empty => wire::Health, "Is the service well, and if not, why";
        Version = Read "version" (3 s, idempotent): wire::VersionRequest => wire::Version, "Version and build of the service";
        Get = Read "get" (5 s, idempotent): wire::GetRequest => wire::GetReply, "Desired and observed state of the host, with counters";
        Facts = Read "facts" (5 s, idempotent): wire::Empty => wire::FactsReply, "What this host's kernel and set-up can and cannot do";
        Apply = Write "apply" (30 s): wire::ApplyRequest => wire::ApplyReply, "Makes the chains of a document so, or says what would change";
        Delete = Write "delete" (30 s): wire::DeleteRequest => wire::ApplyReply, "Removes a chain, or one program of a chain";
        Drain = Write "drain" (30 s): wire::DrainRequest => wire::ApplyReply, "Detaches everything and keeps the intent, or brings it back";
        Profile = Write "profile" (5 s, idempotent): wire::ProfileRequest => wire::ProfileReply, "Has the kernel take the time of programs' runs for a while";
        MapList = Read "map-list" (5 s, idempotent): wire::MapListRequest => wire::MapListReply, "Maps of the programs in chains: types, sizes, what can be done with each";
        MapDump = Read "map-dump" (10 s, idempotent): wire::MapDumpRequest => wire::MapDumpReply, "Contents of a map, decoded, page by page";
        MapGet = Read "map-get" (5 s, idempotent): wire::MapGetRequest => wire::MapGetReply, "Single entries of a map, decoded";
        MapSet = Write "map-set" (30 s): wire::MapSetRequest => wire::MapChangeReply, "Writes entries of a map";
        MapFollow = Write "map-follow" (10 s, idempotent): wire::MapFollowRequest => wire::MapFollowReply, "Publishes what programs put into a ring buffer as events, for a while";
        MapDelete = Write "map-delete" (30 s): wire::MapDeleteRequest => wire::MapChangeReply, "Removes entries of a map";
        ResetIndex = Admin "reset-index" (10 s): wire::ResetHostRequest => wire::ResetIndexReply, "Accepts indexes of a repository again that are older than one seen before";
    } planned {
        Internal "repair" "Restores one object after tampering";
    }
    /// The package registry.
    registry: Registry {
        Health = Read "health" (3 s, idempotent): wire::Empty => wire::Health, "Is the service well, and if not, why";
        Version = Read "version" (3 s, idempotent): wire::VersionRequest => wire::Version, "Version and build of the service";
        List = Read "list" (5 s, idempotent): wire::ListRequest => wire::ListReply, "Packages and their versions";
        Describe = Read "describe" (5 s, idempotent): wire::DescribeRequest => wire::DescribeReply, "One package version: manifest, signature, size";
        Resolve = Read "resolve" (5 s, idempotent, callers &[Service::Loader]): wire::ResolveRequest => wire::ResolveReply, "The exact version and digest a requirement means today";
        Artifact = Internal "artifact" (10 s, idempotent, callers &[Service::Loader]): wire::ArtifactRequest => wire::ArtifactReply, "One chunk of a package file, by digest";
        Search = Read "search" (10 s, idempotent): wire::SearchRequest => wire::SearchReply, "Packages by name, description, hook or keyword";
        Refresh = Publish "refresh" (10 s, idempotent): wire::Empty => wire::RefreshReply, "Reads the repositories again now";
        PublishIndex = Publish "publish-index" (10 s, idempotent): wire::PublishIndexRequest => wire::PublishIndexReply, "One chunk of the index of a repository that can be published to";
        PublishUpload = Publish "publish-upload" (10 s, idempotent): wire::PublishUploadRequest => wire::PublishUploadReply, "Takes one chunk of a file that is going to be published";
        Publish = Publish "publish" (60 s, idempotent): wire::PublishRequest => wire::PublishReply, "Adds signed packages to a repository, with the index that names them";
        Yank = Publish "yank" (60 s, idempotent): wire::YankRequest => wire::PublishReply, "Withdraws a version from new resolutions, or brings it back";
        ResetIndex = Admin "reset-index" (10 s): wire::ResetRepositoryRequest => wire::ResetIndexReply, "Accepts the index of a repository as it is now, though a higher version was seen before";
    } planned {
    }
    /// Tokens, roles, admission, audit.
    policy: Policy {
        Health = Read "health" (3 s, idempotent): wire::Empty => wire::Health, "Is the service well, and if not, why";
        Version = Read "version" (3 s, idempotent): wire::VersionRequest => wire::Version, "Version and build of the service";
        TokenIssue = Admin "token-issue" (10 s): wire::tokens::TokenIssueRequest => wire::tokens::TokenReply, "A token for a person";
        TokenRegenerate = Admin "token-regenerate" (10 s): wire::tokens::TokenRegenerateRequest => wire::tokens::TokenReply, "Another token for a person; the old one ends at once, with its connections";
        TokenRevoke = Admin "token-revoke" (10 s): wire::tokens::TokenRevokeRequest => wire::tokens::TokenRecord, "Ends a person's token, with its connections";
        TokenList = Read "token-list" (10 s, idempotent): wire::tokens::TokenListRequest => wire::tokens::TokenListReply, "Who has a token, of which role, in which state";
        HostEnrol = Admin "host-enrol" (10 s): wire::hosts::HostEnrolRequest => wire::hosts::HostEnrolReply, "A host may connect: signs its certificates, once";
        HostLabel = Admin "host-label" (10 s): wire::hosts::HostLabelRequest => wire::hosts::HostRecord, "Other labels for a host";
        HostRevoke = Admin "host-revoke" (10 s): wire::hosts::HostRevokeRequest => wire::hosts::HostRecord, "A host may not connect any more, and its connections end";
        HostForget = Admin "host-forget" (10 s): wire::hosts::HostForgetRequest => wire::hosts::HostRecord, "Removes what is kept of a revoked host";
        HostList = Read "host-list" (10 s, idempotent): wire::hosts::HostListRequest => wire::hosts::HostListReply, "Which hosts are enrolled, with which labels and certificates";
        HostRenew = Internal "host-renew" (5 s, idempotent, callers &[Service::Loader, Service::Enforcer]): wire::hosts::HostRenewRequest => wire::hosts::HostRenewReply, "Another certificate for the key of the daemon that asks";
        Admit = Internal "admit" (2 s, idempotent, callers &[Service::Loader]): wire::AdmitRequest => wire::AdmitReply, "May this person do this on the host that asks";
        Explain = Read "explain" (5 s, idempotent): wire::ExplainRequest => wire::ExplainReply, "Which admission rule would decide, and what each says";
        Rules = Read "rules" (5 s, idempotent): wire::RulesRequest => wire::RulesReply, "The admission rules in force";
        AuditAppend = Internal "audit-append" (5 s, idempotent, callers &[Service::Loader, Service::Registry]): wire::AuditAppendRequest => wire::AuditAppendReply, "Stores audit records of the writer that asks, in order";
        Audit = Admin "audit" (10 s, idempotent): wire::AuditRequest => wire::AuditReply, "What was done, by whom: the stored audit records";
        AuditCheckpoints = Admin "audit-checkpoints" (10 s, idempotent): wire::AuditCheckpointsRequest => wire::AuditCheckpointsReply, "How far each stored chain goes, signed";
    } planned {
    }
    /// Certificates.
    cert_monitor: CertMonitor {
        Health = Read "health" (3 s, idempotent): wire::Empty => wire::Health, "Is the service well, and if not, why";
        Version = Read "version" (3 s, idempotent): wire::VersionRequest => wire::Version, "Version and build of the service";
    } planned {
        Read "certs" "Every certificate watched, with days left and findings";
        Internal "report" "The certificates a service is using";
    }
    /// Tampering.
    enforcer: Enforcer {
        Health = Read "health" (3 s, idempotent): wire::Empty => wire::Health, "Is the service well, and if not, why";
        Version = Read "version" (3 s, idempotent): wire::VersionRequest => wire::Version, "Version and build of the service";
    } planned {
        Read "status" "Mode, detector tier and recent events of the host";
        Admin "mode" "Observe, enforce or secure, for a host or a chain";
        Read "foreign" "Programs on the host that are not ours";
        Admin "allow" "Declares a foreign program legitimate";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn verbs_are_unique_single_tokens() {
        let mut seen = BTreeSet::new();
        for endpoint in all() {
            assert!(
                endpoint.verb.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{}",
                endpoint.verb
            );
            assert!(seen.insert((endpoint.service, endpoint.verb)), "{} twice", endpoint.verb);
        }
    }

    #[test]
    fn only_daemons_named_in_the_table_reach_internal_verbs() {
        for endpoint in all().filter(|endpoint| endpoint.status == Status::Works) {
            if endpoint.class == Class::Internal {
                assert!(!endpoint.callers.is_empty(), "{} has nobody to call it", endpoint.verb);
            }
        }
    }
}
