//! Slots: how many requests a service works on at once, by class and by caller.
//!
//! Each class has slots of its own, so reads never take the place of a change or of a daemon's request. A
//! caller has a share of a class. Requests beyond it wait, a bounded number per caller, and callers with
//! waiting requests are served in turn: a new caller waits for one request of each other, however many
//! requests the others have sent. Requests beyond that are refused before anything is done for them.

use canopy_api::{
    endpoint::Class,
    name::{HostId, Principal},
    permission::daemon_of,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Classes that have slots.
const CLASSES: usize = 5;

/// Bounds of each class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests worked on at once.
    pub(crate) running: usize,
    /// Requests of one caller that are worked on at once.
    pub(crate) running_of_caller: usize,
    /// The same of the daemons of a host together.
    pub(crate) running_of_host: usize,
    /// Requests of one caller that wait.
    pub(crate) waiting_of_caller: usize,
    /// Bytes of the requests of one caller that wait.
    pub(crate) bytes_of_caller: usize,
    /// Requests of all callers that wait.
    pub(crate) waiting: usize,
    /// Bytes of the requests of all callers that wait.
    pub(crate) bytes: usize,
}

impl Bounds {
    fn running_of(&self, owner: &Owner) -> usize {
        match owner {
            Owner::Principal(_) => self.running_of_caller,
            Owner::Host(_) => self.running_of_host,
        }
    }
}

/// Who shares slots: the daemons of a host have one share, as one machine holds all their keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A person or a central service.
    Principal(Principal),
    /// The daemons of a host.
    Host(HostId),
}

impl Owner {
    pub(crate) fn of(principal: &Principal) -> Self {
        match daemon_of(principal) {
            Some((_, Some(host))) => Self::Host(host),
            _ => Self::Principal(principal.clone()),
        }
    }
}

/// The slots of a service. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    classes: [Mutex<State>; CLASSES],
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    waiting: usize,
    bytes: usize,
    shares: HashMap<Owner, Share>,
    /// Owners that have a waiting request and may run one more, in their order.
    ready: VecDeque<Owner>,
}

#[derive(Debug, Default)]
struct Share {
    running: usize,
    waiting: VecDeque<Waiter>,
    bytes: usize,
    /// Whether it is in `ready`.
    ready: bool,
}

#[derive(Debug)]
struct Waiter {
    grant: oneshot::Sender<Permit>,
    bytes: usize,
}

/// What became of asking for a slot.
#[derive(Debug)]
pub(crate) enum Entered {
    /// It is the request's.
    Now(Permit),
    /// It will be.
    Later(oneshot::Receiver<Permit>),
    /// Too many requests wait already.
    Full,
}

/// A slot, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Permit {
    inner: Arc<Inner>,
    class: Class,
    owner: Option<Owner>,
}

impl Slots {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner { bounds, classes: Default::default() }))
    }

    /// Asks for a slot for a request of so many bytes.
    pub(crate) fn enter(&self, class: Class, owner: Owner, bytes: usize) -> Entered {
        let bounds = &self.0.bounds;
        let mut state = self.0.lock(class);
        let state = &mut *state;
        let share = state.shares.entry(owner.clone()).or_default();
        if share.waiting.is_empty()
            && share.running < bounds.running_of(&owner)
            && state.running < bounds.running
        {
            share.running += 1;
            state.running += 1;
            return Entered::Now(Permit { inner: Arc::clone(&self.0), class, owner: Some(owner) });
        }
        let fits = |share: &Share| {
            share.waiting.len() < bounds.waiting_of_caller
                && share.bytes.saturating_add(bytes) <= bounds.bytes_of_caller
        };
        if !fits(share) {
            // Those whose caller has stopped waiting hold no place.
            share.waiting.retain(|waiter| {
                let gone = waiter.grant.is_closed();
                if gone {
                    share.bytes -= waiter.bytes;
                    state.bytes -= waiter.bytes;
                    state.waiting -= 1;
                }
                !gone
            });
        }
        if !fits(share)
            || state.waiting >= bounds.waiting
            || state.bytes.saturating_add(bytes) > bounds.bytes
        {
            state.forget_idle(&owner);
            return Entered::Full;
        }
        let (grant, granted) = oneshot::channel();
        share.waiting.push_back(Waiter { grant, bytes });
        share.bytes += bytes;
        state.waiting += 1;
        state.bytes += bytes;
        state.make_ready(&owner, bounds);
        Entered::Later(granted)
    }
}

impl State {
    /// Puts an owner into `ready` that belongs there.
    fn make_ready(&mut self, owner: &Owner, bounds: &Bounds) {
        let Some(share) = self.shares.get_mut(owner) else { return };
        if !share.ready && !share.waiting.is_empty() && share.running < bounds.running_of(owner) {
            share.ready = true;
            self.ready.push_back(owner.clone());
        }
    }

    fn forget_idle(&mut self, owner: &Owner) {
        if let Some(share) = self.shares.get(owner)
            && share.running == 0
            && share.waiting.is_empty()
            && !share.ready
        {
            self.shares.remove(owner);
        }
    }

    /// The next waiting requests that have a slot now.
    fn next(&mut self, bounds: &Bounds) -> Vec<(Owner, oneshot::Sender<Permit>)> {
        let mut granted = Vec::new();
        while self.running < bounds.running {
            let Some(owner) = self.ready.pop_front() else { break };
            let Some(share) = self.shares.get_mut(&owner) else { continue };
            share.ready = false;
            if let Some(waiter) = share.waiting.pop_front() {
                share.bytes -= waiter.bytes;
                self.bytes -= waiter.bytes;
                self.waiting -= 1;
                // Its caller may have stopped waiting.
                if !waiter.grant.is_closed() {
                    share.running += 1;
                    self.running += 1;
                    granted.push((owner.clone(), waiter.grant));
                }
            }
            self.make_ready(&owner, bounds);
            self.forget_idle(&owner);
        }
        granted
    }
}

impl Inner {
    fn lock(&self, class: Class) -> MutexGuard<'_, State> {
        let [read, write, publish, admin, internal] = &self.classes;
        let of = match class {
            Class::Read => read,
            Class::Write => write,
            Class::Publish => publish,
            Class::Admin => admin,
            Class::Internal => internal,
        };
        of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(owner) = self.owner.take() else { return };
        let granted = {
            let mut state = self.inner.lock(self.class);
            state.running -= 1;
            if let Some(share) = state.shares.get_mut(&owner) {
                share.running -= 1;
            }
            state.make_ready(&owner, &self.inner.bounds);
            state.forget_idle(&owner);
            state.next(&self.inner.bounds)
        };
        for (owner, grant) in granted {
            let (inner, class) = (Arc::clone(&self.inner), self.class);
            // A permit that nobody takes is dropped here, which gives the slot to the next.
            let _ = grant.send(Self { inner, class, owner: Some(owner) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        running: 4,
        running_of_caller: 2,
        running_of_host: 1,
        waiting_of_caller: 3,
        bytes_of_caller: 100,
        waiting: 100,
        bytes: 1000,
    };

    fn owner(name: &str) -> Owner {
        Owner::of(&name.parse().unwrap())
    }

    fn now(entered: Entered) -> Permit {
        match entered {
            Entered::Now(permit) => permit,
            other => panic!("no slot: {other:?}"),
        }
    }

    fn later(entered: Entered) -> oneshot::Receiver<Permit> {
        match entered {
            Entered::Later(granted) => granted,
            other => panic!("not waiting: {other:?}"),
        }
    }

    #[test]
    fn classes_do_not_share_slots() {
        let slots = Slots::new(BOUNDS);
        let flood: Vec<Entered> = (0..100)
            .map(|n| slots.enter(Class::Read, owner(&format!("u-{}", n % 10)), 1))
            .collect();
        assert_eq!(flood.iter().filter(|one| matches!(one, Entered::Now(_))).count(), 4);
        for class in [Class::Write, Class::Publish, Class::Admin, Class::Internal] {
            now(slots.enter(class, owner("u-0"), 1));
        }
    }

    #[test]
    fn one_caller_has_a_share_and_a_bounded_queue() {
        let slots = Slots::new(BOUNDS);
        let mut flood: Vec<Entered> =
            (0..100).map(|_| slots.enter(Class::Write, owner("u-m"), 1)).collect();
        let count = |flood: &[Entered], of: fn(&Entered) -> bool| {
            flood.iter().filter(|one| of(one)).count()
        };
        assert_eq!(count(&flood, |one| matches!(one, Entered::Now(_))), 2);
        assert_eq!(count(&flood, |one| matches!(one, Entered::Later(_))), 3);
        let _other = now(slots.enter(Class::Write, owner("u-o"), 1));
        // Requests whose caller has gone make room for others of the same caller.
        flood.retain(|one| matches!(one, Entered::Now(_)));
        let _waiting = later(slots.enter(Class::Write, owner("u-m"), 1));
        assert!(matches!(slots.enter(Class::Write, owner("u-m"), 100), Entered::Full), "bytes");
    }

    #[test]
    fn waiting_callers_are_served_in_turn() {
        let slots = Slots::new(Bounds { running: 1, running_of_caller: 1, ..BOUNDS });
        let enter = |name: &str| slots.enter(Class::Write, owner(name), 1);
        let mut held = now(enter("u-m"));
        let mut of_m: VecDeque<_> = (0..3).map(|_| later(enter("u-m"))).collect();
        // Whoever comes after the flood, and two who come later.
        let mut others: VecDeque<_> = ["u-o", "u-p"].map(|name| later(enter(name))).into();
        let mut order = String::new();
        for _ in 0..5 {
            drop(held);
            let other = others.front_mut().and_then(|other| other.try_recv().ok());
            held = if let Some(permit) = other {
                others.pop_front();
                order.push('o');
                permit
            } else {
                order.push('m');
                of_m.pop_front().unwrap().try_recv().unwrap()
            };
        }
        assert_eq!(order, "oommm");
    }

    #[test]
    fn the_order_of_one_caller_is_kept() {
        let slots = Slots::new(Bounds { running_of_caller: 1, ..BOUNDS });
        let mut held = now(slots.enter(Class::Write, owner("u-m"), 1));
        let mut waiting: Vec<_> =
            (0..3).map(|_| later(slots.enter(Class::Write, owner("u-m"), 1))).collect();
        for at in 0..3 {
            drop(held);
            held = waiting[at].try_recv().unwrap();
            for later in &mut waiting[at + 1..] {
                later.try_recv().unwrap_err();
            }
        }
    }

    #[test]
    fn daemons_of_one_host_have_one_share() {
        assert_eq!(owner("h-web1-loader"), owner("h-web1-enforcer"));
        assert_ne!(owner("h-web1-loader"), owner("h-web2-loader"));
        assert_ne!(owner("u-web1"), owner("h-web1-loader"));
    }

    #[test]
    fn a_host_has_a_smaller_share_than_a_person() {
        let slots = Slots::new(BOUNDS);
        let _first = now(slots.enter(Class::Internal, owner("h-web1-loader"), 1));
        let second = slots.enter(Class::Internal, owner("h-web1-enforcer"), 1);
        assert!(matches!(second, Entered::Later(_)), "{second:?}");
        let _other = now(slots.enter(Class::Internal, owner("h-web2-loader"), 1));
        let _person = now(slots.enter(Class::Internal, owner("u-alice"), 1));
        let _again = now(slots.enter(Class::Internal, owner("u-alice"), 1));
    }

    #[test]
    fn nothing_is_kept_of_callers_that_are_done() {
        let slots = Slots::new(BOUNDS);
        for n in 0..1000 {
            let entered: Vec<_> =
                (0..8).map(|_| slots.enter(Class::Read, owner(&format!("u-{n}")), 1)).collect();
            drop(entered);
        }
        let state = slots.0.lock(Class::Read);
        assert_eq!((state.running, state.waiting, state.bytes), (0, 0, 0));
        assert_eq!((state.shares.len(), state.ready.len()), (0, 0));
    }
}
