//! The connections of each principal at this moment: what the limit of connections is counted by.
//!
//! A connection counts from the moment it is granted. Bus servers tell all instances of this service of
//! connects and disconnects; a listing of all connections corrects what was missed.

use canopy_api::Principal;
use canopy_bus::system::SessionId;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a granted connection counts that no server has told of: its client may have gone.
const UNCONFIRMED: Duration = Duration::from_secs(5);

/// A connection of a principal.
#[derive(Clone, Copy, Debug)]
struct Session {
    since: Instant,
    confirmed: bool,
}

impl Session {
    fn counts(&self, now: Instant) -> bool {
        self.confirmed || now.duration_since(self.since) < UNCONFIRMED
    }
}

/// Who is connected.
#[derive(Debug, Default)]
pub(crate) struct SessionTable(Mutex<HashMap<Principal, HashMap<SessionId, Session>>>);

/// A connection that is about to be granted; given up unless it is kept.
pub(crate) struct Reservation<'a> {
    table: &'a SessionTable,
    principal: Principal,
    id: SessionId,
    kept: bool,
}

impl Reservation<'_> {
    /// The connection was granted.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.table.disconnected(&self.principal, &self.id);
        }
    }
}

impl SessionTable {
    fn lock(&self) -> MutexGuard<'_, HashMap<Principal, HashMap<SessionId, Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one connection more, or says how many there are if those are `limit` already.
    pub(crate) fn reserve(
        &self,
        principal: &Principal,
        id: SessionId,
        limit: Option<u64>,
        now: Instant,
    ) -> Result<Reservation<'_>, u64> {
        let mut table = self.lock();
        let sessions = table.entry(principal.clone()).or_default();
        sessions.retain(|_, session| session.counts(now));
        let count = u64::try_from(sessions.len()).unwrap_or(u64::MAX);
        if limit.is_some_and(|limit| count >= limit) {
            return Err(count);
        }
        sessions.insert(id.clone(), Session { since: now, confirmed: false });
        Ok(Reservation { table: self, principal: principal.clone(), id, kept: false })
    }

    /// A server says that somebody has connected.
    pub(crate) fn connected(&self, principal: &Principal, id: SessionId, now: Instant) {
        let mut table = self.lock();
        let sessions = table.entry(principal.clone()).or_default();
        sessions.insert(id, Session { since: now, confirmed: true });
    }

    /// A server says that somebody has gone.
    pub(crate) fn disconnected(&self, principal: &Principal, id: &SessionId) {
        let mut table = self.lock();
        if let Some(sessions) = table.get_mut(principal) {
            sessions.remove(id);
            if sessions.is_empty() {
                table.remove(principal);
            }
        }
    }

    /// These are all connections there were a moment ago.
    pub(crate) fn listed(
        &self,
        all: impl IntoIterator<Item = (Principal, SessionId)>,
        now: Instant,
    ) {
        let mut listed: HashMap<Principal, HashMap<SessionId, Session>> = HashMap::new();
        for (principal, id) in all {
            let session = Session { since: now, confirmed: true };
            listed.entry(principal).or_default().insert(id, session);
        }
        let mut table = self.lock();
        // The newest may have come after the list was made.
        for (principal, sessions) in table.drain() {
            let young =
                sessions.into_iter().filter(|(_, one)| now.duration_since(one.since) < UNCONFIRMED);
            for (id, session) in young {
                listed.entry(principal.clone()).or_default().entry(id).or_insert(session);
            }
        }
        *table = listed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> SessionId {
        SessionId { server: "N1".to_owned(), id: number }
    }

    fn alice() -> Principal {
        "u-alice".parse().unwrap()
    }

    #[test]
    fn connections_are_counted_by_principal() {
        let (table, now) = (SessionTable::default(), Instant::now());
        for number in 0..3 {
            table.reserve(&alice(), id(number), Some(3), now).ok().unwrap().keep();
        }
        assert_eq!(table.reserve(&alice(), id(9), Some(3), now).err(), Some(3));
        let bob = "u-bob".parse().unwrap();
        table.reserve(&bob, id(4), Some(3), now).ok().unwrap().keep();
        table.disconnected(&alice(), &id(1));
        // One that is refused for another reason does not count.
        drop(table.reserve(&alice(), id(5), Some(3), now));
        table.reserve(&alice(), id(6), Some(3), now).ok().unwrap().keep();
        assert_eq!(table.reserve(&alice(), id(7), Some(3), now).err(), Some(3));
        assert!(table.reserve(&alice(), id(7), None, now).is_ok());
    }

    #[test]
    fn granted_connections_that_never_came_stop_counting() {
        let (table, now) = (SessionTable::default(), Instant::now());
        table.reserve(&alice(), id(1), Some(1), now).ok().unwrap().keep();
        let later = now + UNCONFIRMED;
        table.reserve(&alice(), id(2), Some(1), later).ok().unwrap().keep();
        table.connected(&alice(), id(2), later);
        assert_eq!(table.reserve(&alice(), id(3), Some(1), later + UNCONFIRMED).err(), Some(1));
    }

    #[test]
    fn a_listing_corrects_missed_events() {
        let (table, now) = (SessionTable::default(), Instant::now());
        table.connected(&alice(), id(1), now);
        table.connected(&alice(), id(2), now);
        let later = now + UNCONFIRMED;
        table.reserve(&alice(), id(4), None, later).ok().unwrap().keep();
        table.listed([(alice(), id(2)), (alice(), id(3))], later);
        // 1 is gone, 3 was not known, 4 is younger than the list.
        assert_eq!(table.reserve(&alice(), id(5), Some(3), later).err(), Some(3));
    }
}
