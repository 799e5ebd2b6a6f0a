//! People's tokens: which are in force. One value a person, changed by compare and swap, so that
//! several instances agree.

use crate::{
    connect::Refusal,
    grants::Giver,
    page::{Wanted, page},
    trust::Trust,
};
use canopy_api::{
    ApiError, Code, Principal,
    authority::Authority,
    permission::Role,
    scope::Scope,
    time,
    wire::tokens::{
        Bearer, Binding, Revoked, TokenIssueRequest, TokenListReply, TokenListRequest, TokenRecord,
        TokenRegenerateRequest, TokenReply, TokenState,
    },
};
use canopy_bus::data::{Bucket, Stored, Swap};
use canopy_identity::{AUDIENCE, Claims, ISSUER, TokenError};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

/// Shortest and longest life of a token that ends by itself, seconds: a minute, ten years.
const LIFE: std::ops::RangeInclusive<u64> = 60..=10 * 366 * 86_400;
/// How often a change is tried again after somebody else's.
const TRIES: usize = 8;

/// What is kept of a person's token: everything but the token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    principal: Principal,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    binding: Option<Binding>,
    id: String,
    generation: u64,
    /// Seconds since 1970, as all times here.
    issued: u64,
    issued_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<(u64, String)>,
}

impl Kept {
    fn state(&self, now: u64) -> TokenState {
        if self.revoked.is_some() {
            TokenState::Revoked
        } else if self.expires.is_some_and(|end| now >= end) {
            TokenState::Expired
        } else {
            TokenState::Active
        }
    }

    fn record(&self, now: u64) -> TokenRecord {
        let shown = |seconds| time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        TokenRecord {
            principal: self.principal.clone(),
            role: self.role,
            scope: self.scope.clone(),
            binding: self.binding.clone(),
            id: self.id.clone(),
            generation: self.generation,
            state: self.state(now),
            issued: shown(self.issued),
            issued_by: self.issued_by.clone(),
            expires: self.expires.map(shown),
            key: self.key.clone(),
            revoked: self
                .revoked
                .as_ref()
                .map(|(at, by)| Revoked { by: by.clone(), at: shown(*at) }),
        }
    }

    fn claims(&self) -> Claims {
        Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: self.principal.clone(),
            role: self.role,
            jti: self.id.clone(),
            generation: self.generation,
            iat: self.issued,
            exp: self.expires,
            cnf: self.binding.clone(),
            scope: self.scope.clone(),
        }
    }

    /// Whether this is the token in force.
    pub(crate) fn accepts(&self, claims: &Claims) -> Result<(), Refusal> {
        if claims.generation < self.generation {
            return Err(Refusal::Regenerated(claims.sub.clone()));
        }
        if self.revoked.is_some() {
            return Err(Refusal::Revoked(claims.sub.clone()));
        }
        // Signed by us, and yet not what we issued: from a store that was set back.
        if self.claims() != *claims {
            return Err(Refusal::Unknown(claims.sub.clone()));
        }
        Ok(())
    }

    /// The name of the connections of this token: another one for each token of a person.
    pub(crate) fn user(&self) -> String {
        user(&self.principal, self.generation)
    }

    /// Whether connections of this token may live. The server itself ends those of one that ends by
    /// itself.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.is_some()
    }

    /// Whether it is in force.
    pub(crate) fn is_active(&self, now: u64) -> bool {
        self.state(now) == TokenState::Active
    }

    /// The role, while the token is in force.
    pub(crate) fn role_in_force(&self, now: u64) -> Option<Role> {
        self.is_active(now).then_some(self.role)
    }

    /// What it allows, in force or not.
    fn authority(&self) -> Authority {
        Authority::new(self.role, self.scope.as_ref()).ending(self.expires)
    }

    /// What it allows, while it is in force.
    pub(crate) fn authority_in_force(&self, now: u64) -> Option<Authority> {
        self.is_active(now).then(|| self.authority())
    }

    /// How many tokens the person has had.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

/// The name of a person's connections.
pub(crate) fn user(principal: &Principal, generation: u64) -> String {
    format!("{principal}/{generation}")
}

/// The tokens.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    bucket: Bucket,
}

impl Tokens {
    /// Those in this bucket.
    pub(crate) fn new(bucket: Bucket) -> Self {
        Self { bucket }
    }

    /// What is kept of one.
    pub(crate) async fn get(
        &self,
        principal: &Principal,
    ) -> Result<Option<Stored<Kept>>, ApiError> {
        Ok(self.bucket.get(principal.as_str()).await?)
    }

    /// All of them, by person.
    pub(crate) async fn all(&self) -> Result<Vec<Kept>, ApiError> {
        let mut all: Vec<Kept> = self.bucket.all().await?;
        all.sort_by(|a, b| a.principal.cmp(&b.principal));
        Ok(all)
    }

    /// What is told of one, or of a page of them.
    pub(crate) async fn list(
        &self,
        request: &TokenListRequest,
        now: u64,
    ) -> Result<TokenListReply, ApiError> {
        if let Some(principal) = &request.principal {
            let kept = self.get(principal).await?.ok_or_else(|| none(principal))?.value;
            return Ok(TokenListReply { tokens: vec![kept.record(now)], next: None });
        }
        let after = request.after.as_ref().map(Principal::as_str);
        let record = |kept: &Kept| (kept.principal.to_string(), kept.record(now));
        let (tokens, next) =
            page(&self.bucket, Wanted { after, limit: request.limit }, record).await?;
        Ok(TokenListReply { tokens, next: next.and_then(|person| person.parse().ok()) })
    }

    /// A token for a person who has none in force.
    pub(crate) async fn issue(
        &self,
        trust: &Trust,
        request: &TokenIssueRequest,
        giver: &Giver,
        now: u64,
    ) -> Result<TokenReply, ApiError> {
        check_issue(request)?;
        let expires = giver.end_of(request.expires_in, now);
        giver.may_give(&Authority::new(request.role, request.scope.as_ref()).ending(expires))?;
        let principal = &request.principal;
        for _ in 0..TRIES {
            let before = self.get(principal).await?;
            // A name that reached further is nobody's to take over, in force or not.
            if let Some(before) = &before {
                giver.may_change(principal, &before.value.authority())?;
            }
            if before.as_ref().is_some_and(|before| before.value.is_active(now)) {
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("{principal} has a token in force"),
                )
                .at("principal")
                .remedy("regenerate it, or revoke it before you issue one of another role"));
            }
            let kept = Kept {
                principal: principal.clone(),
                role: request.role,
                scope: request.scope.clone(),
                binding: request.binding.clone(),
                id: token_id(),
                generation: before.as_ref().map_or(0, |before| before.value.generation) + 1,
                issued: now,
                issued_by: giver.name().to_owned(),
                expires,
                key: trust.signing.id().to_owned(),
                revoked: None,
            };
            if let Some(made) = self.put(trust, kept, before, now).await? {
                return Ok(made);
            }
        }
        Err(busy(principal))
    }

    /// Another token in place of the one in force.
    pub(crate) async fn regenerate(
        &self,
        trust: &Trust,
        request: &TokenRegenerateRequest,
        giver: &Giver,
        now: u64,
    ) -> Result<TokenReply, ApiError> {
        check_life(request.expires_in)?;
        let principal = &request.principal;
        for _ in 0..TRIES {
            let before = self.get(principal).await?.ok_or_else(|| none(principal))?;
            // Whoever names another certificate for it has it.
            giver.may_change(principal, &before.value.authority())?;
            if before.value.revoked.is_some() {
                return Err(ApiError::new(
                    Code::Conflict,
                    format!("{principal}'s token was revoked"),
                )
                .at("principal")
                .remedy("issue a new one"));
            }
            let expires = giver.end_of(request.expires_in, now);
            giver.may_give(&before.value.authority().ending(expires))?;
            let kept = Kept {
                binding: request.binding.clone().or_else(|| before.value.binding.clone()),
                id: token_id(),
                generation: before.value.generation + 1,
                issued: now,
                issued_by: giver.name().to_owned(),
                expires,
                key: trust.signing.id().to_owned(),
                ..before.value.clone()
            };
            if let Some(made) = self.put(trust, kept, Some(before), now).await? {
                return Ok(made);
            }
        }
        Err(busy(principal))
    }

    /// Ends a person's token.
    pub(crate) async fn revoke(
        &self,
        principal: &Principal,
        giver: &Giver,
        now: u64,
    ) -> Result<TokenRecord, ApiError> {
        for _ in 0..TRIES {
            let before = self.get(principal).await?.ok_or_else(|| none(principal))?;
            giver.may_change(principal, &before.value.authority())?;
            if before.value.revoked.is_some() {
                return Ok(before.value.record(now));
            }
            let kept = Kept { revoked: Some((now, giver.name().to_owned())), ..before.value };
            let swap = self.bucket.replace(principal.as_str(), &kept, before.revision).await?;
            if swap == Swap::Done {
                return Ok(kept.record(now));
            }
        }
        Err(busy(principal))
    }

    /// Signs, then keeps; `None` when somebody else was quicker.
    async fn put(
        &self,
        trust: &Trust,
        kept: Kept,
        before: Option<Stored<Kept>>,
        now: u64,
    ) -> Result<Option<TokenReply>, ApiError> {
        let token = trust.signing.sign(&kept.claims()).map_err(unsignable)?;
        let key = kept.principal.as_str();
        let swap = match before {
            Some(before) => self.bucket.replace(key, &kept, before.revision).await?,
            None => self.bucket.create(key, &kept).await?,
        };
        Ok(match swap {
            Swap::Overtaken => None,
            Swap::Done => Some(TokenReply { token: Bearer(token), record: kept.record(now) }),
        })
    }
}

fn check_issue(request: &TokenIssueRequest) -> Result<(), ApiError> {
    check_life(request.expires_in)?;
    if !request.principal.is_person() {
        return Err(ApiError::new(
            Code::Invalid,
            format!(
                "{} is not a person: services are known by their certificates",
                request.principal
            ),
        )
        .at("principal")
        .remedy("write it as u-<name>"));
    }
    if request.role.must_be_bound() && request.binding.is_none() {
        return Err(unsignable(TokenError::Unbound(request.role)));
    }
    let scope = request.scope.as_ref();
    if request.role == Role::Publisher && scope.is_some_and(|scope| scope.hosts.is_some()) {
        return Err(ApiError::new(
            Code::Invalid,
            "a publisher cannot be narrowed to hosts: what is published is for every host",
        )
        .at("scope.hosts")
        .remedy("leave the hosts out, or issue a viewer's token"));
    }
    for (at, none) in [
        ("scope.services", scope.and_then(|s| s.services.as_ref().map(BTreeSet::is_empty))),
        ("scope.hosts", scope.and_then(|s| s.hosts.as_ref().map(BTreeSet::is_empty))),
    ] {
        if none == Some(true) {
            return Err(ApiError::new(Code::Invalid, "an empty list means nothing at all")
                .at(at)
                .remedy("leave it out for no narrowing"));
        }
    }
    Ok(())
}

fn check_life(life: Option<u64>) -> Result<(), ApiError> {
    match life {
        Some(life) if !LIFE.contains(&life) => Err(ApiError::new(
            Code::Invalid,
            format!(
                "{life} s is not between {} s and {} days",
                LIFE.start(),
                LIFE.end() / (24 * 60 * 60)
            ),
        )
        .at("expires_in")
        .remedy("leave it out for a token that ends when yours does")),
        _ => Ok(()),
    }
}

fn unsignable(error: TokenError) -> ApiError {
    match error {
        TokenError::Unbound(_) => ApiError::new(Code::Invalid, error.to_string())
            .at("binding")
            .remedy("name the certificate (x5t#S256), or a name in it (san)"),
        other => ApiError::new(Code::Internal, format!("the token cannot be signed: {other}")),
    }
}

fn none(principal: &Principal) -> ApiError {
    ApiError::new(Code::NotFound, format!("{principal} has never had a token")).at("principal")
}

fn busy(principal: &Principal) -> ApiError {
    ApiError::new(Code::Conflict, format!("{principal}'s token is being changed by others"))
        .remedy("look at it, and try again")
}

fn token_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}
