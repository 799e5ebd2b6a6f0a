//! Run times on request: taken for a while, and never left on.
//!
//! The kernel takes them while a descriptor of ours is open: it ends with the time asked for, by the
//! round of every second, and with the process.

use super::{Engine, admission::as_asked};
use crate::error::LoaderError;
use canopy_api::{
    ApiError, Code,
    wire::{AdmissionItem, PROFILE_SECONDS, ProfileReply, ProfileRequest},
};
use canopy_kernel::Kernel;
use canopy_runtime::clock;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// Run times that are taken.
#[derive(Default)]
pub(super) struct Profile(Mutex<Option<Running>>);

struct Running {
    until: SystemTime,
    /// The kernel takes them while this is there.
    _times: Box<dyn Send>,
}

impl Profile {
    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        // It is set whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kernel> Engine<K> {
    /// Has run times taken, if policy was asked about just this host's programs.
    pub fn profile_as_asked(
        &self,
        request: &ProfileRequest,
        asked: &[AdmissionItem],
    ) -> Result<ProfileReply, LoaderError> {
        as_asked(Some(asked), || Ok(self.parts_of_profile()))?;
        self.profile(request)
    }

    /// Has run times taken. Policy is not asked: see [`Self::profile_as_asked`].
    pub fn profile(&self, request: &ProfileRequest) -> Result<ProfileReply, LoaderError> {
        if request.seconds > PROFILE_SECONDS {
            let said = format!("{} s is too long; at most {PROFILE_SECONDS} s", request.seconds);
            let error = ApiError::new(Code::Invalid, said).at("seconds");
            return Err(error.remedy("ask again before they are over").into());
        }
        let until = self.now() + Duration::from_secs(request.seconds.into());
        let mut profile = self.profile.lock();
        if request.seconds == 0 {
            if profile.take().is_some() {
                tracing::info!("run times are not taken any more: ended");
            }
        } else if let Some(running) = profile.as_mut() {
            running.until = running.until.max(until);
        } else {
            let times = self.parts.kernel.take_times().map_err(LoaderError::kernel)?;
            *profile = Some(Running { until, _times: times });
            tracing::info!(seconds = request.seconds, "run times are taken");
        }
        Ok(ProfileReply {
            host: self.parts.host.clone(),
            until: profile.as_ref().map(|running| clock::rfc3339(running.until)),
        })
    }

    /// Ends what is over. A clock that was set back makes nothing longer than one request may ask for.
    pub(super) fn end_profile(&self) {
        let now = self.now();
        let longest = Duration::from_secs(PROFILE_SECONDS.into());
        let mut profile = self.profile.lock();
        let over = |running: &mut Running| now >= running.until || running.until > now + longest;
        if profile.as_mut().is_some_and(over) {
            *profile = None;
            tracing::info!("run times are not taken any more: the time is over");
        }
    }
}
