//! Connections of a service: requests of a class come over one of their own where there are many to send them.
//!
//! A connection carries messages in their order. What a flood of reads leaves on its way here would be in
//! front of every change, and of every answer that this service waits for itself.

use crate::{
    config::BusError,
    connection::{Bus, Link},
};
use canopy_api::endpoint::Class;
use futures::future::select_all;
use std::time::Duration;
use tokio::sync::watch;

/// The connections.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    /// For changes and everything that the service itself sends and asks.
    main: Bus,
    read: Bus,
    internal: Option<Bus>,
}

impl Lanes {
    /// Opens those beside the first; `internal` where there are internal verbs.
    pub(crate) async fn open(main: &Bus, internal: bool) -> Result<Self, BusError> {
        let read = main.beside().await?;
        let internal = if internal { Some(main.beside().await?) } else { None };
        Ok(Self { main: main.clone(), read, internal })
    }

    /// Where requests of a class come, and their answers go.
    pub(crate) fn of(&self, class: Class) -> &Bus {
        match class {
            Class::Read => &self.read,
            Class::Internal => self.internal.as_ref().unwrap_or(&self.main),
            Class::Write | Class::Publish | Class::Admin => &self.main,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Bus> {
        [&self.main, &self.read].into_iter().chain(&self.internal)
    }

    /// Waits until all of them carry messages.
    pub(crate) async fn wait_ready(&self, limit: Duration) -> Result<(), BusError> {
        for lane in self.all() {
            lane.wait_ready(limit).await?;
        }
        Ok(())
    }

    /// Whether the server refused a subscription.
    pub(crate) fn subscription_refused(&self, subject: &str) -> bool {
        self.all().any(|lane| lane.shared.subscription_refused(subject))
    }

    /// The state of each.
    pub(crate) fn watch(&self) -> Vec<watch::Receiver<Link>> {
        self.all().map(Bus::watch_link).collect()
    }

    /// Sends what is queued, and ends those beside the first.
    pub(crate) async fn end(&self) {
        for lane in self.all() {
            lane.flush_at_end().await;
        }
        self.read.close().await;
        if let Some(internal) = &self.internal {
            internal.close().await;
        }
    }
}

/// Waits until the state of one changes; false when there is none any more.
pub(crate) async fn changed(links: &mut [watch::Receiver<Link>]) -> bool {
    let changes = links.iter_mut().map(|link| Box::pin(link.changed()));
    select_all(changes).await.0.is_ok()
}

/// Whether all are up.
pub(crate) fn all_connected(links: &mut [watch::Receiver<Link>]) -> bool {
    let mut all = true;
    for link in links {
        all &= *link.borrow_and_update() == Link::Connected;
    }
    all
}
