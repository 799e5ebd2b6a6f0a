//! Where the default route leads.

use crate::{
    netlink::{self, Changes, attributes, u16_at, u32_at},
    netns,
    pins::os,
};
use canopy_kernel::KernelError;
use std::{
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u8 = 254;

/// Bytes of `struct rtmsg` and of `struct rtnexthop`.
const RTMSG: usize = 12;
const NEXTHOP: usize = 8;

/// A default route: its metric and the interfaces it leaves by.
type Route = (u32, Vec<u32>);

/// What changes where a default route leads: links, addresses (the kernel drops the routes of either
/// without a word of its own), routes and next hops.
const GROUPS: u32 = group(1) | group(5) | group(7) | group(9) | group(11) | group(32);

/// `RTNLGRP_…` as a bit.
const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// The routes are listed again after this time, whatever the kernel said.
const LONGEST: Duration = Duration::from_mins(1);

/// Where the default route leads, listed when something changed.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    lists: u64,
}

#[derive(Debug)]
struct Known {
    /// Device and inode of the network namespace.
    namespace: (u64, u64),
    changes: Changes,
    listed: Instant,
    devices: Vec<u32>,
}

impl Routes {
    /// See [`canopy_kernel::Kernel::default_route`].
    pub(crate) fn default_route(&self) -> Result<Vec<u32>, KernelError> {
        // Set whole: a panic elsewhere leaves nothing half.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = netns::identity()?;
        let known = state.known.take().filter(|known| known.namespace == here);
        let changes = match known {
            Some(known) => match known.changes.any() {
                Ok(false) if known.listed.elapsed() < LONGEST => {
                    let devices = known.devices.clone();
                    state.known = Some(known);
                    return Ok(devices);
                }
                Ok(_) => Ok(known.changes),
                Err(_) => Changes::of(GROUPS),
            },
            None => Changes::of(GROUPS),
        };
        // What changes from here on is told, and looked at the next time.
        let listed = Instant::now();
        state.lists += 1;
        let devices = default_route()?;
        match changes {
            Ok(changes) => {
                let devices = devices.clone();
                state.known = Some(Known { namespace: here, changes, listed, devices });
            }
            // Then it is listed every time.
            Err(error) => tracing::debug!(%error, "no word of changed routes"),
        }
        Ok(devices)
    }

    /// How often the routes were listed.
    pub(crate) fn lists(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lists
    }
}

/// Where the default route of the thread's network namespace leads.
pub(crate) fn default_route() -> Result<Vec<u32>, KernelError> {
    let failed = |error| os("list the routes".to_owned(), error);
    let found = best(defaults(libc::AF_INET).map_err(failed)?);
    if !found.is_empty() {
        return Ok(found);
    }
    match defaults(libc::AF_INET6) {
        Ok(routes) => Ok(best(routes)),
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// The interfaces of the routes of the lowest metric.
fn best(routes: Vec<Route>) -> Vec<u32> {
    let least = routes.iter().map(|(metric, _)| *metric).min();
    let kept = routes.into_iter().filter(|(metric, _)| Some(*metric) == least);
    kept.flat_map(|(_, devices)| devices).collect()
}

/// The default routes of the main table.
fn defaults(family: libc::c_int) -> io::Result<Vec<Route>> {
    let mut body = [0; RTMSG];
    if let (Some(of), Ok(family)) = (body.first_mut(), u8::try_from(family)) {
        *of = family;
    }
    let listed = netlink::list(RTM_GETROUTE, &body, RTM_NEWROUTE, parse)?;
    Ok(listed.into_iter().flatten().collect())
}

/// A route, if it is a default one.
fn parse(body: &[u8]) -> Option<Route> {
    // `struct rtmsg`: the length of the destination at 1, table at 4, type at 7.
    let (length, table, kind) = (body.get(1)?, body.get(4)?, body.get(7)?);
    if (*length, *table, *kind) != (0, RT_TABLE_MAIN, RTN_UNICAST) {
        return None;
    }
    let (mut metric, mut devices) = (0, Vec::new());
    for (kind, value) in attributes(body.get(RTMSG..).unwrap_or_default()) {
        match kind {
            RTA_PRIORITY => metric = u32_at(value, 0),
            RTA_OIF => devices.push(u32_at(value, 0)),
            RTA_MULTIPATH => {
                let mut rest = value;
                while rest.len() >= NEXTHOP {
                    // `struct rtnexthop`: its length at 0, the interface at 4.
                    devices.push(u32_at(rest, 4));
                    let length = usize::from(u16_at(rest, 0)).max(NEXTHOP).next_multiple_of(4);
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    Some((metric, devices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    fn route(length: u8, table: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let head = [2, length, 0, 0, table, 3, 0, RTN_UNICAST, 0, 0, 0, 0];
        [head.to_vec(), attributes.concat()].concat()
    }

    #[test]
    fn only_default_routes_of_the_main_table_count() {
        let by = |device: u32| attribute(RTA_OIF, &device.to_ne_bytes());
        let metric = attribute(RTA_PRIORITY, &100_u32.to_ne_bytes());
        assert_eq!(parse(&route(0, RT_TABLE_MAIN, &[by(3), metric])), Some((100, vec![3])));
        assert_eq!(parse(&route(24, RT_TABLE_MAIN, &[by(3)])), None);
        assert_eq!(parse(&route(0, 255, &[by(3)])), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn the_lowest_metric_counts() {
        assert_eq!(best(vec![(100, vec![3]), (50, vec![4]), (50, vec![7])]), [4, 7]);
        assert_eq!(best(Vec::new()), [0_u32; 0]);
    }

    #[test]
    fn a_route_of_several_paths_has_several_interfaces() {
        let hop = |device: u32| {
            let gateway = attribute(5, &[10, 0, 0, 1]);
            let length = u16::try_from(NEXTHOP + gateway.len()).unwrap().to_ne_bytes();
            [length.to_vec(), vec![0, 0], device.to_ne_bytes().to_vec(), gateway].concat()
        };
        let paths = attribute(RTA_MULTIPATH, &[hop(4), hop(7)].concat());
        assert_eq!(parse(&route(0, RT_TABLE_MAIN, &[paths])), Some((0, vec![4, 7])));
    }
}
