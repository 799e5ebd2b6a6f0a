//! Which members lie inside `main` instead of being called.
//!
//! A call and its return cost more than many a member: about 7 ns where the kernel guards returns
//! against speculation (AMD's "Safe RET"), 1.6 ns where it need not. A member of one function needs
//! no frame of its own: its `exit` becomes a jump to what follows, and `main` keeps what it must
//! not lose below the member's stack.

use crate::{
    insn::Insn,
    member::{Code, Member},
};

/// Instructions of a member at most. A larger one does enough for the call not to matter, and is
/// better seen under its own name.
const INSTRUCTIONS: usize = 512;
/// Instructions of all of them: conditional jumps reach 32,767.
const ALL_INSTRUCTIONS: usize = 24_000;
/// Stack of a member at most, bytes: those that are called need room below `main`'s frame.
const STACK: u32 = 256;
/// The kernel's limit of a path of calls (`MAX_BPF_STACK`), bytes.
const ALL_STACK: u32 = 512;

/// The choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inlined {
    /// Whether it lies inside, for each member.
    pub(crate) members: Vec<bool>,
    /// Stack of the deepest of them, a multiple of 8.
    pub(crate) stack: u32,
}

impl Inlined {
    /// None.
    pub(crate) fn nobody(members: &[Member]) -> Self {
        Self { members: vec![false; members.len()], stack: 0 }
    }

    /// As many as can be; nobody where that would leave too little stack to those that are called.
    pub(crate) fn choose(members: &[Member]) -> Self {
        let mut chosen = Self::nobody(members);
        let mut size = 0;
        for (member, inside) in members.iter().zip(&mut chosen.members) {
            let Some(stack) = stack_if_fit(member) else { continue };
            if size + member.code.instructions.len() > ALL_INSTRUCTIONS {
                continue;
            }
            size += member.code.instructions.len();
            chosen.stack = chosen.stack.max(stack);
            *inside = true;
        }
        let called = members.iter().zip(&chosen.members).filter(|(_, inside)| !**inside);
        let deepest = called.map(|(member, _)| member.code.stack(&member.stack)).max().unwrap_or(0);
        // `main` itself: three slots, rounded as the verifier does.
        if (chosen.stack + 24).next_multiple_of(32) + deepest > ALL_STACK {
            return Self::nobody(members);
        }
        chosen
    }
}

/// The member's stack, a multiple of 8, if it can lie inside.
fn stack_if_fit(member: &Member) -> Option<u32> {
    let stack = member.stack.first()?.next_multiple_of(8);
    (stack <= STACK && fits(&member.code)).then_some(stack)
}

/// One function; no way out of it but `exit` (a tail call leaves `main` as well, a packet access of
/// the classic kind may); nothing that refers to functions or that the verifier gives room on the
/// stack (`may_goto`).
fn fits(code: &Code) -> bool {
    let leaves = |insn: &Insn| {
        insn.is_local_function()
            || insn.is_local_call()
            || insn.is_classic_access()
            || insn.is_may_goto()
    };
    code.functions.len() == 1
        && code.instructions.len() <= INSTRUCTIONS
        && !code.makes_tail_calls()
        && !each(&code.instructions).any(|(_, insn)| leaves(insn))
}

/// The instructions, each with its place, without the second slots of two-slot loads.
pub(crate) fn each(code: &[Insn]) -> impl Iterator<Item = (usize, &Insn)> {
    let mut second = false;
    code.iter().enumerate().filter(move |(_, insn)| {
        let skip = second;
        second = !skip && insn.is_load64();
        !skip
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Function;

    fn member(instructions: Vec<Insn>, stack: u32) -> Member {
        Member {
            name: "m".parse().unwrap(),
            code: Code {
                instructions,
                functions: vec![Function { name: "entry".into(), start: 0, btf: None }],
                ..Code::default()
            },
            maps: Vec::new(),
            proceed_on: canopy_api::VerdictSet::from_bits(4),
            licence: "GPL".into(),
            needs_gpl: false,
            frags: false,
            stack: vec![stack],
            verified_instructions: 2,
            tail_calls: 0,
        }
    }

    fn chosen(member: &Member) -> bool {
        Inlined::choose(std::slice::from_ref(member)).members == [true]
    }

    #[test]
    fn small_members_of_one_function_lie_inside() {
        let pass = vec![Insn::mov32_imm(0, 2), Insn::exit()];
        assert!(chosen(&member(pass.clone(), 0)));
        assert!(chosen(&member(pass.clone(), 256)));
        assert!(!chosen(&member(pass.clone(), 264)));
        let mut unknown = member(pass.clone(), 0);
        unknown.stack.clear();
        assert!(!chosen(&unknown));
        let long = vec![Insn::mov32_imm(0, 2); INSTRUCTIONS].into_iter().chain([Insn::exit()]);
        assert!(!chosen(&member(long.collect(), 0)));
    }

    #[test]
    fn what_leaves_by_other_ways_is_called() {
        for leaves in [
            Insn::call_local(0),
            Insn::call_helper(crate::insn::HELPER_TAIL_CALL),
            Insn { code: 0x20, ..Insn::default() },
            Insn { code: 0x50, ..Insn::default() },
            Insn { code: 0xe5, ..Insn::default() },
        ] {
            assert!(!chosen(&member(vec![leaves, Insn::exit()], 0)), "{leaves:?}");
        }
        // The same bits as the second half of a constant are no instruction.
        let [first, _] = Insn::load_map(1);
        let constant = Insn { code: 0x20, ..Insn::default() };
        assert!(chosen(&member(vec![first, constant, Insn::exit()], 0)));
    }

    #[test]
    fn nobody_does_where_a_called_member_needs_the_stack() {
        let inside = member(vec![Insn::mov32_imm(0, 2), Insn::exit()], 200);
        let tail_call = Insn::call_helper(crate::insn::HELPER_TAIL_CALL);
        let mut called = member(vec![tail_call, Insn::exit()], 400);
        assert_eq!(
            Inlined::choose(&[inside.clone(), called.clone()]),
            Inlined::nobody(&[inside.clone(), called.clone()])
        );
        called.stack = vec![200];
        assert_eq!(
            Inlined::choose(&[inside, called]),
            Inlined { members: vec![true, false], stack: 200 }
        );
    }
}
