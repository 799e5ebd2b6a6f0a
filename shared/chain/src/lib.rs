//! The chain composer: several programs' instructions in, one program's instructions out.
//!
//! **Owns:** the generated `main` and its accounting, the order of members, the merge of BTF, the
//! limits checked before the kernel is asked. **Must not know:** syscalls, descriptors, ELF, files.
//!
//! One `bpf_link` runs one program. [`compose`] makes one program of many: a generated `main` calls
//! each member's entry function in turn (or holds it inside itself, see [`Shape`]), looks at what it
//! returned, and goes on or ends. [`decode`]
//! turns what `main` counted into each member's packets by verdict.
//!
//! ```
//! use canopy_api::{Hook, VerdictSet};
//! use canopy_chain::{Attachment, Code, Function, Member, compose, insn::Insn};
//!
//! let pass = vec![Insn::mov32_imm(0, 2), Insn::exit()];
//! let entry = Function { name: "prog".to_owned(), start: 0, btf: None };
//! let member = Member {
//!     name: "pass".parse()?,
//!     code: Code { instructions: pass, functions: vec![entry], ..Code::default() },
//!     maps: Vec::new(),
//!     proceed_on: VerdictSet::default_for(Hook::Xdp),
//!     licence: "GPL".to_owned(),
//!     needs_gpl: false,
//!     frags: false,
//!     stack: vec![0],
//!     verified_instructions: 2,
//!     tail_calls: 0,
//! };
//! let chain = compose(Attachment::Xdp, &[member])?;
//! assert_eq!(chain.functions, ["canopy_xdp", "p0_pass"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod btf;
pub mod cells;
mod compose;
mod error;
mod inline;
pub mod insn;
mod licence;
pub mod limits;
mod main_program;
mod member;
mod order;

pub use cells::{Account, decode};
pub use compose::{
    Attachment, Composed, Load, MapSource, Shape, Types, alone, alone_in, compose, compose_as,
    compose_in,
};
pub use error::ComposeError;
pub use licence::gpl_compatible;
pub use member::{Code, Function, KernelCall, Line, Map, MapLoad, Member};
pub use order::sort;
