//! Who somebody is: what a certificate says, what a token says, and whether the two belong together.
//!
//! **Owns:** reading certificates, signing those of hosts' daemons, signing and verifying people's
//! tokens.
//!
//! **Must not know:** clocks, files, sockets, the bus, which tokens are still in force.

mod authority;
mod certificate;
mod token;

pub use authority::{
    Authority, AuthorityError, RequestError, SignError, Signed, SigningRequest, belong_together,
    request, request_again,
};
pub use certificate::{Certificate, CertificateError};
pub use token::{
    AUDIENCE, Claims, ISSUER, KeyError, SigningKey, TokenError, VerifyingKeys, Wanted,
    unverified_authority,
};
