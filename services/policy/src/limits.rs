//! How much of the bus each principal may use: the configuration, and the limits it comes to.

use canopy_api::{Principal, Problem, Problems};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// Longest time between two checks, seconds.
const MAX_CHECK_SECONDS: u64 = 60;
/// Longest back-off that can be configured, seconds.
const MAX_BACK_OFF_SECONDS: u64 = 86_400;

/// How much of the bus each principal may use, all of its connections together. A connection above the
/// number or the rate is refused; connections that exceed another limit are ended, and the principal is
/// refused for a back-off time. Of what is limited a second, two seconds' worth may be used at once. Changed
/// without a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Of each person. Default: 32 connections, 100 connects a second, 2000 subscriptions, 16 MiB pending,
    /// 5000 messages and 32 MiB a second.
    pub people: PrincipalLimits,
    /// Of each daemon of a host. Default: 8 connections, 20 connects a second, 1000 subscriptions, no limit of
    /// pending bytes (others decide what is sent to it; the server's own limit is 32 MB), 2000 messages and
    /// 16 MiB a second.
    pub hosts: PrincipalLimits,
    /// Of each central service, all of its instances together. Default: 64 connections, no other limit.
    pub central: PrincipalLimits,
    /// How often use is checked, seconds: 1 to 60. Default 1. Messages and bytes a second are checked less
    /// often where there are more than a thousand connections.
    pub check_seconds: u64,
    /// For how long a principal is refused whose connections were ended, seconds: 1 to 86400. Doubled each
    /// time it happens again within ten minutes. Default 5.
    pub back_off_seconds: u64,
    /// The longest that it is doubled to, seconds. Default 300.
    pub max_back_off_seconds: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            people: PrincipalLimits::default(),
            hosts: PrincipalLimits::default(),
            central: PrincipalLimits::default(),
            check_seconds: 1,
            back_off_seconds: 5,
            max_back_off_seconds: 300,
        }
    }
}

/// Limits of one principal; 0 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrincipalLimits {
    /// Connections at the same time.
    pub connections: Option<u64>,
    /// Connects. Each instance of the policy service counts those that it is asked about.
    pub connects_per_second: Option<u64>,
    /// Subscriptions of all its connections. The bus server itself allows 512 a connection.
    pub subscriptions: Option<u64>,
    /// Bytes that wait to be read by it, at two checks in a row. The first time in ten minutes its connection is
    /// ended; later it is refused for `back_off_seconds` as well.
    pub pending_bytes: Option<u64>,
    /// Messages that it sends. What a daemon sends in answer to requests counts a sixteenth.
    pub messages_per_second: Option<u64>,
    /// Bytes that it sends. What a daemon sends in answer to requests counts a sixteenth.
    pub bytes_per_second: Option<u64>,
}

impl LimitsConfig {
    /// Adds what cannot be used.
    pub(crate) fn check(&self, problems: &mut Problems) {
        let mut outside = |field: &str, value: u64, most: u64| {
            if !(1..=most).contains(&value) {
                problems.push(Problem::new(
                    format!("auth.limits.{field}"),
                    format!("{value} s is not 1 to {most}"),
                ));
            }
        };
        outside("check_seconds", self.check_seconds, MAX_CHECK_SECONDS);
        outside("back_off_seconds", self.back_off_seconds, MAX_BACK_OFF_SECONDS);
        outside("max_back_off_seconds", self.max_back_off_seconds, MAX_BACK_OFF_SECONDS);
        if self.max_back_off_seconds < self.back_off_seconds {
            problems.push(
                Problem::new(
                    "auth.limits.max_back_off_seconds",
                    format!(
                        "{} s is less than back_off_seconds, {} s",
                        self.max_back_off_seconds, self.back_off_seconds
                    ),
                )
                .remedy("give the longest back-off, or leave both out"),
            );
        }
    }
}

/// What kind of principal somebody is, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PrincipalKind {
    /// A person.
    Person,
    /// A daemon of a host.
    HostDaemon,
    /// A central service.
    Central,
}

impl PrincipalKind {
    pub(crate) fn of(principal: &Principal) -> Self {
        if principal.is_person() {
            Self::Person
        } else if principal.as_str().starts_with("h-") {
            Self::HostDaemon
        } else {
            Self::Central
        }
    }
}

/// Limits of one principal; `None` where there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) connections: Option<u64>,
    pub(crate) connects_per_second: Option<u64>,
    pub(crate) subscriptions: Option<u64>,
    pub(crate) pending_bytes: Option<u64>,
    pub(crate) messages_per_second: Option<u64>,
    pub(crate) bytes_per_second: Option<u64>,
}

const MIB: u64 = 1024 * 1024;

impl PrincipalKind {
    /// What holds where nothing is configured.
    fn default_limits(self) -> Limits {
        match self {
            Self::Person => Limits {
                connections: Some(32),
                connects_per_second: Some(100),
                subscriptions: Some(2000),
                pending_bytes: Some(16 * MIB),
                messages_per_second: Some(5000),
                bytes_per_second: Some(32 * MIB),
            },
            Self::HostDaemon => Limits {
                connections: Some(8),
                connects_per_second: Some(20),
                subscriptions: Some(1000),
                pending_bytes: None,
                messages_per_second: Some(2000),
                bytes_per_second: Some(16 * MIB),
            },
            Self::Central => Limits {
                connections: Some(64),
                connects_per_second: None,
                subscriptions: None,
                pending_bytes: None,
                messages_per_second: None,
                bytes_per_second: None,
            },
        }
    }
}

impl LimitsConfig {
    /// The limits of a kind of principal.
    pub(crate) fn of(&self, kind: PrincipalKind) -> Limits {
        let configured = match kind {
            PrincipalKind::Person => &self.people,
            PrincipalKind::HostDaemon => &self.hosts,
            PrincipalKind::Central => &self.central,
        };
        let default = kind.default_limits();
        let limit = |configured: Option<u64>, default: Option<u64>| {
            configured.or(default).filter(|limit| *limit > 0)
        };
        Limits {
            connections: limit(configured.connections, default.connections),
            connects_per_second: limit(configured.connects_per_second, default.connects_per_second),
            subscriptions: limit(configured.subscriptions, default.subscriptions),
            pending_bytes: limit(configured.pending_bytes, default.pending_bytes),
            messages_per_second: limit(configured.messages_per_second, default.messages_per_second),
            bytes_per_second: limit(configured.bytes_per_second, default.bytes_per_second),
        }
    }

    pub(crate) fn check_interval(&self) -> Duration {
        Duration::from_secs(self.check_seconds)
    }

    /// For how long a principal is refused whose connections were ended so many times in a row.
    pub(crate) fn back_off(&self, times: u32) -> Duration {
        let doubled = 1_u64.checked_shl(times.saturating_sub(1)).unwrap_or(u64::MAX);
        let seconds = self.back_off_seconds.saturating_mul(doubled);
        Duration::from_secs(seconds.min(self.max_back_off_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_defaults_by_kind_and_zero_is_none() {
        let config: LimitsConfig =
            serde_json::from_str(r#"{"people": {"connections": 3, "pending_bytes": 0}}"#).unwrap();
        let people = config.of(PrincipalKind::Person);
        assert_eq!(people.connections, Some(3));
        assert_eq!(people.subscriptions, Some(2000));
        assert_eq!(people.pending_bytes, None);
        let hosts = config.of(PrincipalKind::HostDaemon);
        assert_eq!((hosts.connections, hosts.pending_bytes), (Some(8), None));
        assert_eq!(config.of(PrincipalKind::Central).bytes_per_second, None);
    }

    #[test]
    fn back_off_doubles_up_to_its_bound() {
        let config = LimitsConfig::default();
        let seconds: Vec<u64> = [1, 2, 3, 7, 8, 63, 64, 65, u32::MAX]
            .map(|times| config.back_off(times).as_secs())
            .into();
        assert_eq!(seconds, [5, 10, 20, 300, 300, 300, 300, 300, 300]);
    }

    #[test]
    fn limits_outside_their_range_are_named() {
        let config =
            LimitsConfig { check_seconds: 0, back_off_seconds: 400, ..LimitsConfig::default() };
        let mut problems = Problems::default();
        config.check(&mut problems);
        let paths: Vec<&str> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["auth.limits.check_seconds", "auth.limits.max_back_off_seconds"]);
    }
}
