//! Metrics that packages declare, read from their maps now and then: a scrape does not wait for maps of
//! tens of thousands of entries, however often somebody scrapes.

use super::{Engine, report::Report};
use canopy_api::{
    ChainKey, Digest, ProgramName,
    wire::{GetRequest, MetricValue},
};
use canopy_kernel::{Kernel, KernelError};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// What was read last, whole: what is not in it is gone.
#[derive(Default)]
pub(super) struct Samples(Mutex<Option<Sample>>);

struct Sample {
    taken: SystemTime,
    /// The generations that ran.
    of: BTreeMap<ChainKey, u64>,
    values: BTreeMap<(ChainKey, ProgramName), (Digest, Vec<MetricValue>)>,
    device_errors: BTreeMap<ChainKey, BTreeMap<String, u64>>,
}

impl Samples {
    fn lock(&self) -> MutexGuard<'_, Option<Sample>> {
        // It is replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kernel> Engine<K> {
    /// Reads the metrics of every program, if the last time is so long ago or other generations run;
    /// whether it did.
    pub fn sample(&self, every: Duration) -> Result<bool, KernelError> {
        let now = self.now();
        let of: BTreeMap<_, _> = {
            let inner = self.lock();
            inner.state.chains.iter().map(|(key, chain)| (key.clone(), chain.running)).collect()
        };
        let fresh = |last: &Sample| {
            // A clock that was set back makes it old.
            last.of == of && now.duration_since(last.taken).is_ok_and(|since| since < every)
        };
        if self.samples.lock().as_ref().is_some_and(fresh) {
            return Ok(false);
        }
        let mut values = BTreeMap::new();
        let mut device_errors = BTreeMap::new();
        for report in self.report(&GetRequest::default())? {
            let key = report.status.key();
            device_errors.insert(key.clone(), report.status.device_errors);
            for program in report.status.programs {
                values.insert((key.clone(), program.name), (program.digest, program.metrics));
            }
        }
        *self.samples.lock() = Some(Sample { taken: now, of, values, device_errors });
        Ok(true)
    }

    /// As [`Self::report`], with the metrics of packages as they were read last, and how long ago that
    /// was.
    pub fn sampled(&self) -> Result<(Vec<Report>, Option<Duration>), KernelError> {
        let (mut reports, _) = self.statuses(&GetRequest::default())?;
        self.place(&mut reports);
        let samples = self.samples.lock();
        let Some(last) = samples.as_ref() else { return Ok((reports, None)) };
        for report in &mut reports {
            let key = report.status.key();
            if let Some(errors) = last.device_errors.get(&key) {
                report.status.device_errors.clone_from(errors);
            }
            for program in &mut report.status.programs {
                let read = last.values.get(&(key.clone(), program.name.clone()));
                // Another version's are not this one's.
                if let Some((_, metrics)) = read.filter(|(digest, _)| *digest == program.digest) {
                    program.metrics.clone_from(metrics);
                }
            }
        }
        Ok((reports, Some(self.now().duration_since(last.taken).unwrap_or_default())))
    }
}
