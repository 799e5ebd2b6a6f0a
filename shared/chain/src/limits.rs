//! Limits checked before the kernel is asked, so that a refusal can name a member and a remedy.

use crate::{
    cells::MAX_MEMBERS, error::ComposeError, licence::gpl_compatible, main_program, member::Member,
};
use canopy_api::ProgramName;
use std::collections::BTreeSet;

/// Instructions the verifier walks for one program (`BPF_COMPLEXITY_LIMIT_INSNS`).
pub const VERIFIED_INSTRUCTIONS: u64 = 1_000_000;
/// Maps of one program (`MAX_USED_MAPS`).
pub const MAPS: usize = 64;
/// Functions of one program, the generated one included (`BPF_MAX_SUBPROGS`).
pub const FUNCTIONS: usize = 256;
/// Stack left to a member: `MAX_BPF_STACK` less the generated function's frame, bytes.
pub const STACK: u32 = 512 - main_program::STACK;
/// Call frames left to a member: `MAX_CALL_FRAMES` less the generated function's.
pub const FRAMES: u32 = 7;
/// Tail calls a packet can take (`MAX_TAIL_CALL_CNT`).
pub const TAIL_CALLS: u32 = 33;

/// The member with the most of something.
fn most<N: Ord + Copy>(members: &[Member], of: impl Fn(&Member) -> N) -> Option<(&ProgramName, N)> {
    // The first of equals: `max_by_key` would take the last.
    members.iter().rev().map(|member| (&member.name, of(member))).max_by_key(|(_, n)| *n)
}

/// Checks everything that does not depend on how maps are laid out.
pub(crate) fn check(members: &[Member]) -> Result<(), ComposeError> {
    if members.is_empty() {
        return Err(ComposeError::Empty);
    }
    if members.len() > MAX_MEMBERS {
        return Err(ComposeError::TooManyMembers { count: members.len(), limit: MAX_MEMBERS });
    }
    for pair in members.windows(2) {
        if let [member, next] = pair
            && member.proceed_on.bits() == 0
        {
            return Err(ComposeError::NeverRuns {
                member: member.name.clone(),
                next: next.name.clone(),
            });
        }
    }
    for member in members {
        code(member)?;
        let frames = member.code.frames();
        if frames > FRAMES {
            return Err(ComposeError::Frames {
                member: member.name.clone(),
                frames,
                limit: FRAMES,
            });
        }
        let bytes = member.code.stack(&member.stack);
        if !member.stack.is_empty() && bytes > STACK {
            return Err(ComposeError::Stack { member: member.name.clone(), bytes, limit: STACK });
        }
    }
    sums(members)?;
    tail_calls(members)?;
    licence(members)
}

fn code(member: &Member) -> Result<(), ComposeError> {
    let malformed = |what| ComposeError::Malformed { member: member.name.clone(), what };
    let code = &member.code;
    if code.functions.first().is_none_or(|entry| entry.start != 0) {
        return Err(malformed("it has no entry function"));
    }
    if !code.functions.is_sorted_by(|a, b| a.start < b.start)
        || code.functions.last().is_none_or(|last| last.start >= code.instructions.len())
    {
        return Err(malformed("its functions overlap"));
    }
    for load in &code.maps {
        let wide = code.instructions.get(load.at).is_some_and(|insn| insn.is_map_load())
            && load.at + 1 < code.instructions.len();
        if !wide || load.map >= member.maps.len() {
            return Err(malformed("it loads a map that is not there"));
        }
    }
    Ok(())
}

fn sums(members: &[Member]) -> Result<(), ComposeError> {
    let walked = |member: &Member| u64::from(member.verified_instructions);
    let size = |member: &Member| member.code.instructions.len() as u64;
    for of in [&walked as &dyn Fn(&Member) -> u64, &size] {
        let total = members.iter().map(of).sum();
        if total > VERIFIED_INSTRUCTIONS
            && let Some((member, own)) = most(members, of)
        {
            return Err(ComposeError::TooComplex {
                member: member.clone(),
                own,
                total,
                limit: VERIFIED_INSTRUCTIONS,
            });
        }
    }
    let functions = |member: &Member| member.code.functions.len();
    let count = 1 + members.iter().map(functions).sum::<usize>();
    if count > FUNCTIONS
        && let Some((member, own)) = most(members, functions)
    {
        return Err(ComposeError::TooManyFunctions {
            member: member.clone(),
            own,
            count,
            limit: FUNCTIONS,
        });
    }
    Ok(())
}

/// The budget is the packet's, and an exhausted one is not an error to the program: a member could
/// silently starve another. One member may have all of it.
fn tail_calls(members: &[Member]) -> Result<(), ComposeError> {
    let mut calling: Vec<&Member> = members.iter().filter(|m| m.tail_calls > 0).collect();
    calling.sort_by_key(|member| std::cmp::Reverse(member.tail_calls));
    if let [first, second, ..] = calling.as_slice()
        && calling.iter().map(|m| u64::from(m.tail_calls)).sum::<u64>() > u64::from(TAIL_CALLS)
    {
        return Err(ComposeError::TailCalls {
            member: first.name.clone(),
            own: first.tail_calls,
            other: second.name.clone(),
            others: second.tail_calls,
            limit: TAIL_CALLS,
        });
    }
    Ok(())
}

fn licence(members: &[Member]) -> Result<(), ComposeError> {
    let strict = members.iter().find(|member| !gpl_compatible(&member.licence));
    let needing = members.iter().find(|member| member.needs_gpl);
    match (needing, strict) {
        (Some(member), Some(other)) => Err(ComposeError::Licence {
            member: member.name.clone(),
            other: other.name.clone(),
            licence: other.licence.clone(),
        }),
        _ => Ok(()),
    }
}

/// Checks the number of maps once it is known how many the chain would load.
pub(crate) fn maps(members: &[Member], count: usize) -> Result<(), ComposeError> {
    if count > MAPS
        && let Some((member, own)) = most(members, |member| {
            member.used_maps().map(|map| map.identity).collect::<BTreeSet<_>>().len()
        })
    {
        return Err(ComposeError::TooManyMaps { member: member.clone(), own, count, limit: MAPS });
    }
    Ok(())
}
