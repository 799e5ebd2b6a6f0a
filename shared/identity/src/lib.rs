//! Who somebody is: what a certificate says, what a token says, and whether the two belong together.
//!
//! **Owns:** reading certificates, signing and verifying people's tokens.
//!
//! **Must not know:** clocks, files, sockets, the bus, which tokens are still in force.

mod certificate;
mod token;

pub use certificate::{Certificate, CertificateError};
pub use token::{
    AUDIENCE, Claims, ISSUER, KeyError, SigningKey, TokenError, VerifyingKeys, Wanted,
};
