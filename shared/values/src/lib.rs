//! The contents of maps between bytes and JSON, by the types in an object's BTF.
//!
//! **Owns:** what the bytes of a key, a value or a global variable mean, and how that is written in
//! JSON. **Must not know:** the kernel, packages, who asks.
//!
//! | in C | in JSON |
//! |---|---|
//! | integers | numbers; beyond 64 bits, decimal text |
//! | `__be16`, `__be32`, `__be64` | numbers as the host reads them: port 80 is 80 |
//! | `bool` | `true`, `false` (any other byte is a number) |
//! | `char` | text of one character where it can be printed, else a number |
//! | `char[n]` | text where it is some: printable, zeros only behind it; else a list |
//! | `enum` | the name; a number that has none stays a number |
//! | `struct` | an object; what is in an anonymous struct or union belongs to the outer one |
//! | `union` | an object with every member, each its own view of the same bytes |
//! | arrays | lists |
//! | `float`, `double` | numbers; `"inf"`, `"-inf"`, `"nan"` |
//! | pointers | text, `"0xffff888000000000"` |
//! | `bpf_spin_lock`, `bpf_timer` and their like | `"(bpf_timer)"`: the kernel's, never written |
//! | no type, or one that does not fit the bytes | hexadecimal text, in the order of memory |
//!
//! Going back, every field of a struct is needed (its padding becomes zeros), and one member of a
//! union; several must say the same. Numbers are taken as decimal or `0x` text too.
//!
//! ```
//! use canopy_values::Codec;
//! use serde_json::json;
//!
//! let untyped = Codec::default();
//! assert_eq!(untyped.decode(None, &[0, 80]), json!("0050"));
//! assert_eq!(untyped.encode(None, 2, &json!("0050"), "key"), Ok(vec![0, 80]));
//! ```

mod codec;
mod declare;
mod decode;
mod encode;
mod object;
mod shape;
mod sum;

pub use codec::Codec;
pub use object::{MapTypes, ObjectTypes, TypesError, Variable};
