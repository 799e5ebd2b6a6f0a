//! Planned once, asked about once, done once: and planned again where the host changed in between.

use super::{Handlers, Turn};
use crate::{core::downgrade::Downgrade, engine::Engine, error::LoaderError};
use canopy_api::{
    ApiError,
    wire::{
        Action, AdmissionItem, AdmissionVerb, Admitted, ApplyReply, MapFollowReply,
        MapFollowRequest, ProfileReply, ProfileRequest,
    },
};
use canopy_bus::Caller;
use canopy_kernel::Kernel;
use std::sync::Arc;

/// How often a change is planned before its caller is told to try again. Interfaces may come and go all
/// the time; nobody waits for ever.
const PLANS: u32 = 5;

/// Who asks for what.
pub(super) struct Ask<'a> {
    pub(super) caller: &'a Caller,
    /// Kept until the work ends; `None` for what need not wait for changes.
    pub(super) turn: Option<Turn>,
    pub(super) dry_run: bool,
}

impl<K: Kernel> Handlers<K> {
    /// Plans, has policy decide on the parts of the plan, and does it. What is done is what was decided
    /// on: `act` does nothing where the host is not as it was planned for.
    pub(super) async fn decided<P, R>(
        &self,
        ask: Ask<'_>,
        plan: impl Fn(&Engine<K>) -> Result<P, LoaderError> + Send + Sync + 'static,
        parts: impl Fn(&P) -> Vec<AdmissionItem>,
        act: impl Fn(&Engine<K>, &P) -> Result<R, LoaderError> + Send + Sync + 'static,
    ) -> Result<(R, Arc<P>, Admitted), ApiError>
    where
        P: Send + Sync + 'static,
        R: Send + 'static,
    {
        let (plan, act) = (Arc::new(plan), Arc::new(act));
        let mut left = PLANS;
        loop {
            left -= 1;
            let again = Arc::clone(&plan);
            let planned = self.blocking(ask.turn.clone(), move |engine| again(engine)).await?;
            let planned = Arc::new(planned);
            let admitted = self.admission.ask(ask.caller, parts(&planned), ask.dry_run).await?;
            let (act, what) = (Arc::clone(&act), Arc::clone(&planned));
            let done = self
                .blocking(ask.turn.clone(), move |engine| match act(engine, &what) {
                    Err(moved) if moved.is_moved() && left > 0 => Ok(None),
                    result => result.map(Some),
                })
                .await?;
            if let Some(done) = done {
                return Ok((done, planned, admitted));
            }
            tracing::info!(left, "the host changed meanwhile; planned again");
        }
    }

    /// Takes run times.
    pub(super) async fn profile(
        &self,
        caller: &Caller,
        request: ProfileRequest,
    ) -> Result<ProfileReply, ApiError> {
        tracing::info!(seconds = request.seconds, by = %caller.principal, "profile");
        caller.notes.about(format!("run times taken for {} s", request.seconds));
        let ask = Ask { caller, turn: None, dry_run: false };
        let (reply, ..) = self
            .decided(
                ask,
                |engine| Ok(engine.parts_of_profile()),
                Clone::clone,
                move |engine, asked| engine.profile_as_asked(&request, asked),
            )
            .await?;
        Ok(reply)
    }

    /// Follows a ring buffer, or goes on.
    pub(super) async fn map_follow(
        &self,
        caller: &Caller,
        request: MapFollowRequest,
    ) -> Result<MapFollowReply, ApiError> {
        let (names, followers) = (Arc::clone(&self.followers), Arc::clone(&self.followers));
        let asked_for = request.map.clone();
        let parts = move |engine: &Engine<K>| {
            engine.parts_of_map(AdmissionVerb::MapFollow, &names.name_now(&asked_for))
        };
        let parts = Arc::new(parts);
        let again = Arc::clone(&parts);
        let ask = Ask { caller, turn: None, dry_run: false };
        let (reply, ..) = self
            .decided(
                ask,
                move |engine| parts(engine),
                Clone::clone,
                move |engine, asked| {
                    if again(engine)? != *asked {
                        return Err(LoaderError::Moved);
                    }
                    Ok(followers.follow(&request)?)
                },
            )
            .await?;
        Ok(reply)
    }
}

/// The programs that went back, on the interfaces where that was done.
pub(super) fn gone_back(downgrades: &[Downgrade], reply: &ApplyReply) -> Vec<Downgrade> {
    let done = |one: &&Downgrade| {
        let chain = reply.chains.iter().find(|chain| Some(chain.key()) == one.target.key());
        chain.is_some_and(|chain| chain.action != Action::Failed)
    };
    downgrades.iter().filter(done).cloned().collect()
}
