//! IP prefixes, as people write them in settings and in keys of maps.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The network of an address: the bits beyond the prefix length are zero. A length beyond the address's own
/// bits, 32 or 128, is taken for those.
///
/// ```
/// use canopy_api::prefix::network_of;
///
/// assert_eq!(network_of("192.0.2.7".parse()?, 24), "192.0.2.0".parse::<core::net::IpAddr>()?);
/// assert_eq!(network_of("2001:db8::1".parse()?, 0), "::".parse::<core::net::IpAddr>()?);
/// assert_eq!(network_of("::1".parse()?, 128), "::1".parse::<core::net::IpAddr>()?);
/// # Ok::<_, core::net::AddrParseError>(())
/// ```
pub fn network_of(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}
