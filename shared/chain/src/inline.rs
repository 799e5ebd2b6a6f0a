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
/// Instructions that the verifier walks for all of them, each alone. In one function it walks more, up
/// to twice as many for programs with loops, and how many depends on the order of the members; called
/// ones it walks once each, in any order. What is inlined may therefore cost only a part of its limit,
/// so that no order takes much longer than another.
const ALL_VERIFIED: u64 = 250_000;
/// Instructions of the whole chain, those of inlined members counted twice: a tenth below the verifier's
/// limit, so that inlining makes no chain fail that would load without.
const CHAIN_VERIFIED: u64 = 900_000;
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

    /// As many as can be, those first that take the verifier least, whatever the order of the members;
    /// nobody where that would leave too little stack to those that are called.
    pub(crate) fn choose(members: &[Member]) -> Self {
        let mut chosen = Self::nobody(members);
        let mut fitting: Vec<_> = members
            .iter()
            .zip(&mut chosen.members)
            .filter_map(|(member, inside)| {
                Some((verified(member)?, stack_if_fit(member)?, member, inside))
            })
            .collect();
        fitting.sort_by_key(|(verified, _, member, _)| (*verified, &member.name));
        let chain: u64 = members.iter().map(|member| u64::from(member.verified_instructions)).sum();
        let most = ALL_VERIFIED.min(CHAIN_VERIFIED.saturating_sub(chain));
        let (mut size, mut walked) = (0, 0);
        for (verified, stack, member, inside) in fitting {
            let length = member.code.instructions.len();
            if size + length > ALL_INSTRUCTIONS || walked + verified > most {
                continue;
            }
            size += length;
            walked += verified;
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

/// Instructions the verifier walks for the member alone. Kernels before 5.16 do not say; without a loop
/// they are about as many as there are.
fn verified(member: &Member) -> Option<u64> {
    let code = &member.code.instructions;
    match member.verified_instructions {
        0 if each(code).any(|(_, insn)| insn.jumps_back()) => None,
        0 => u64::try_from(code.len()).ok(),
        verified => Some(u64::from(verified)),
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
    fn what_the_verifier_walks_bounds_what_lies_inside() {
        let named = |name: &str, verified| Member {
            name: name.parse().unwrap(),
            verified_instructions: verified,
            ..member(vec![Insn::mov32_imm(0, 2), Insn::exit()], 0)
        };
        let chain = [
            named("heavy", 240_000),
            named("light", 500),
            named("too-heavy", 250_001),
            named("middling", 20_000),
        ];
        assert_eq!(Inlined::choose(&chain).members, [false, true, false, true]);
        assert!(chosen(&named("alone", 250_000)));
        assert!(!chosen(&named("alone", 250_001)));
        // Twice as many of what is inlined, and the chain still loads.
        let long = [named("called", 840_000), named("fits", 30_000), named("second", 29_999)];
        assert_eq!(Inlined::choose(&long).members, [false, false, false]);
        let long = [named("called", 840_000), named("fits", 30_000)];
        assert_eq!(Inlined::choose(&long).members, [false, true]);
    }

    #[test]
    fn the_order_of_members_does_not_change_what_lies_inside() {
        // Equal ones too: only so many of them have room.
        let mut chain: Vec<Member> = (0..9)
            .map(|i| Member {
                name: format!("m{i}").parse().unwrap(),
                verified_instructions: [70_000, 90_000, 1_000][i % 3],
                ..member(vec![Insn::mov32_imm(0, 2), Insn::exit()], 0)
            })
            .collect();
        let inside = |chain: &[Member]| -> Vec<String> {
            let chosen = Inlined::choose(chain);
            let inside = chain.iter().zip(chosen.members).filter(|(_, inside)| *inside);
            let mut names: Vec<_> = inside.map(|(member, _)| member.name.to_string()).collect();
            names.sort();
            names
        };
        let first = inside(&chain);
        assert_eq!(first, ["m0", "m2", "m3", "m5", "m6", "m8"]);
        for _ in 0..9 {
            chain.rotate_left(1);
            assert_eq!(inside(&chain), first);
            chain.swap(0, 5);
            assert_eq!(inside(&chain), first);
        }
    }

    #[test]
    fn without_a_verified_count_only_straight_code_lies_inside() {
        let uncounted = |code| Member { verified_instructions: 0, ..member(code, 0) };
        assert!(chosen(&uncounted(vec![Insn::mov32_imm(0, 2), Insn::exit()])));
        let back = Insn::jump_ne(0, 7, -2);
        assert!(!chosen(&uncounted(vec![Insn::mov32_imm(0, 2), back, Insn::exit()])));
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
