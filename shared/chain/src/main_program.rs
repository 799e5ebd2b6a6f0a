//! The generated `main`: calls the members in order, decides after each, counts, returns.
//!
//! ```text
//! main:    r6 = ctx;  r7 = &cells[0]
//!          for each member i:
//!              r0 = member_i(r6)
//!              if r0 != the usual verdict: goto exit_i        (or slow_i, when there are others)
//! exit_n:  r8 = n * STRIDE
//! end:     r7[r8 + slot(r0)] += 1;  return r0, on TCX as TCX understands it
//! slow_i:  if r0 not in proceed_on[i]: goto exit_i
//!          r7[proceeds_i + slot(r0)] += 1;  goto member i+1
//! exit_i:  r8 = i * STRIDE;  goto end
//! ```
//!
//! The way a packet usually takes costs one call and one compare a member; everything else is out
//! of line. Registers r6 to r9 survive the calls.
//!
//! A member that lies inside `main` (see [`crate::inline`]) uses all registers and the upper part of
//! the stack: then `main` keeps the context and the cells below, and takes them from there.

use crate::{
    cells::{STRIDE, derived},
    compose::Attachment,
    inline,
    insn::Insn,
};
use canopy_api::{VerdictSet, verdict::CELLS};

/// Bytes of stack `main` uses, as the verifier rounds them.
pub(crate) const STACK: u32 = 16;

const HELPER_MAP_LOOKUP: i32 = 1;

// linux/bpf.h, linux/pkt_cls.h
const XDP_ABORTED: i32 = 0;
const TC_ACT_OK: i32 = 0;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_PIPE: i32 = 3;
const TC_ACT_STOLEN: i32 = 4;
const TC_ACT_QUEUED: i32 = 5;
const TC_ACT_TRAP: i32 = 8;
/// `TCX_NEXT`, which is `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;

/// `main` and what has to be filled in.
#[derive(Clone, Debug)]
pub(crate) struct MainProgram {
    pub(crate) instructions: Vec<Insn>,
    /// Where each member is run, by instruction index: its call, or its first instruction.
    pub(crate) members: Vec<usize>,
    /// The load of the cells map, by instruction index.
    pub(crate) cells: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Member(usize),
    Slow(usize),
    Exit(usize),
    Returned(usize),
    End,
    Count,
    Other,
    Broken,
    Next,
    Shot,
}

/// Instructions with jumps to labels, resolved at the end.
#[derive(Default)]
struct Assembler {
    instructions: Vec<Insn>,
    labels: Vec<(Label, usize)>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(&mut self, insn: Insn) {
        self.instructions.push(insn);
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    fn jump(&mut self, insn: Insn, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.emit(insn);
    }

    fn finish(mut self) -> Vec<Insn> {
        for (at, to) in self.jumps {
            let target = self.labels.iter().find(|(label, _)| *label == to).map(|(_, at)| *at);
            let distance = target.and_then(|target| {
                let target = i32::try_from(target).ok()?;
                i16::try_from(target - i32::try_from(at).ok()? - 1).ok()
            });
            debug_assert!(distance.is_some(), "main is short and every label is placed");
            if let (Some(insn), Some(distance)) = (self.instructions.get_mut(at), distance) {
                insn.off = distance;
            }
        }
        self.instructions
    }
}

/// The value a program returns for a verdict slot.
fn value(attachment: Attachment, slot: u8) -> i32 {
    i32::from(slot) - attachment.bias()
}

/// `w1 =` the slot of `r0`, if it is at most 31; else jumps.
fn slot_of_r0(asm: &mut Assembler, attachment: Attachment, otherwise: Label) {
    asm.emit(Insn::mov32(1, 0));
    if attachment.bias() != 0 {
        asm.emit(Insn::add32_imm(1, attachment.bias()));
    }
    asm.jump(Insn::jump_gt(1, 31, 0), otherwise);
}

/// Where `main` keeps what members inside it would destroy, as offsets from the frame pointer.
#[derive(Clone, Copy)]
struct Kept {
    context: i16,
    cells: i16,
}

impl Kept {
    fn below(stack: u32) -> Self {
        let stack = i16::try_from(stack).unwrap_or(i16::MAX - 16);
        Self { context: -(stack + 8), cells: -(stack + 16) }
    }
}

/// Jumps to the next instruction, which have the verifier keep a state between two members.
///
/// It explores the rest of the chain anew for each way through a member, unless it finds itself in a
/// state that it has seen there. It keeps one only where eight instructions and two jumps have gone by
/// since the last (`is_state_visited`), and drops those at the head of a loop; without one here, the ways
/// through members multiply. The kernel removes these jumps before it compiles the program
/// (`opt_remove_nops`): a packet does not meet them.
fn checkpoint(asm: &mut Assembler) {
    for _ in 0..8 {
        asm.emit(Insn::jump(0));
    }
}

/// Emits a member's instructions; each `exit` becomes a jump behind them.
fn inside(asm: &mut Assembler, member: usize, code: &[Insn]) {
    let mut copied = code.to_vec();
    let start = asm.instructions.len();
    for (at, insn) in inline::each(code) {
        if insn.is_exit()
            && let Some(copy) = copied.get_mut(at)
        {
            *copy = Insn::jump(0);
            if at + 1 < code.len() {
                asm.jumps.push((start + at, Label::Returned(member)));
            }
        }
    }
    asm.instructions.extend(copied);
    asm.label(Label::Returned(member));
}

/// A member as `main` sees it.
pub(crate) struct Step<'a> {
    /// Verdicts after which `main` goes on; not empty, but for the last, whose set has no meaning.
    pub(crate) proceed_on: VerdictSet,
    /// Its instructions, when it lies inside.
    pub(crate) inside: Option<&'a [Insn]>,
}

/// Generates `main` for these members, at most [`crate::cells::MAX_MEMBERS`]. `stack` is the deepest
/// of those inside.
pub(crate) fn generate(attachment: Attachment, steps: &[Step<'_>], stack: u32) -> MainProgram {
    let mut asm = Assembler::default();
    let mut members = Vec::with_capacity(steps.len());
    let last = steps.len().saturating_sub(1);
    let kept = steps.iter().any(|step| step.inside.is_some()).then(|| Kept::below(stack));
    let number = |index: usize| i32::try_from(index).unwrap_or(i32::MAX);

    asm.emit(Insn::mov(6, 1));
    asm.emit(Insn::store32_imm(10, -4, 0));
    asm.emit(Insn::mov(2, 10));
    asm.emit(Insn::add_imm(2, -4));
    let load_cells = asm.instructions.len();
    for half in Insn::load_map(1) {
        asm.emit(half);
    }
    asm.emit(Insn::call_helper(HELPER_MAP_LOOKUP));
    asm.jump(Insn::jump_eq64(0, 0, 0), Label::Broken);
    asm.emit(Insn::mov(7, 0));
    if let Some(kept) = kept {
        asm.emit(Insn::store64(10, 6, kept.context));
        asm.emit(Insn::store64(10, 7, kept.cells));
    }

    let hot = |set: &VerdictSet| derived(attachment.hook(), *set).unwrap_or(0);
    for (i, step) in steps.iter().enumerate() {
        asm.label(Label::Member(i));
        if i > 0 && kept.is_some() {
            checkpoint(&mut asm);
        }
        let before = i.checked_sub(1).and_then(|before| steps.get(before));
        if step.inside.is_none() && before.is_some_and(|before| before.inside.is_some()) {
            // The verifier takes all five registers for arguments of a called function: what a member
            // inside left in them would make each way through it another state.
            for register in 2..=5 {
                asm.emit(Insn::mov32_imm(register, 0));
            }
        }
        match kept {
            Some(kept) => asm.emit(Insn::load64(1, 10, kept.context)),
            None => asm.emit(Insn::mov(1, 6)),
        }
        members.push(asm.instructions.len());
        match step.inside {
            Some(code) => inside(&mut asm, i, code),
            None => asm.emit(Insn::call_local(0)),
        }
        if i < last {
            let set = &step.proceed_on;
            let miss = if set.bits().count_ones() > 1 { Label::Slow(i) } else { Label::Exit(i) };
            asm.jump(Insn::jump_ne(0, value(attachment, hot(set)), 0), miss);
        }
    }

    asm.emit(Insn::mov32_imm(8, number(last * STRIDE)));
    asm.label(Label::End);
    if let Some(kept) = kept {
        asm.emit(Insn::load64(7, 10, kept.cells));
    }
    slot_of_r0(&mut asm, attachment, Label::Other);
    asm.label(Label::Count);
    asm.emit(Insn::add(1, 8));
    asm.emit(Insn::shl_imm(1, 3));
    asm.emit(Insn::add(7, 1));
    asm.emit(Insn::load64(2, 7, 0));
    asm.emit(Insn::add_imm(2, 1));
    asm.emit(Insn::store64(7, 2, 0));
    finish(&mut asm, attachment);

    asm.label(Label::Other);
    asm.emit(Insn::mov32_imm(1, 32));
    asm.jump(Insn::jump(0), Label::Count);

    for (i, step) in steps.iter().enumerate().take(last) {
        let set = &step.proceed_on;
        let rest = set.bits() & !(1 << hot(set));
        if rest != 0 {
            asm.label(Label::Slow(i));
            slot_of_r0(&mut asm, attachment, Label::Exit(i));
            asm.emit(Insn::mov32_imm(2, 1));
            asm.emit(Insn::shl32(2, 1));
            asm.emit(Insn::and32_imm(2, rest.cast_signed()));
            asm.jump(Insn::jump_eq(2, 0, 0), Label::Exit(i));
            let base = i16::try_from((i * STRIDE + CELLS) * 8).unwrap_or(i16::MAX);
            asm.emit(Insn::shl_imm(1, 3));
            if let Some(kept) = kept {
                asm.emit(Insn::load64(7, 10, kept.cells));
            }
            asm.emit(Insn::add(1, 7));
            asm.emit(Insn::load64(2, 1, base));
            asm.emit(Insn::add_imm(2, 1));
            asm.emit(Insn::store64(1, 2, base));
            asm.jump(Insn::jump(0), Label::Member(i + 1));
        }
        asm.label(Label::Exit(i));
        asm.emit(Insn::mov32_imm(8, number(i * STRIDE)));
        asm.jump(Insn::jump(0), Label::End);
    }

    // The lookup of index 0 in an array of one entry does not fail; the verifier wants it handled.
    asm.label(Label::Broken);
    asm.emit(Insn::mov32_imm(0, if attachment.bias() == 0 { XDP_ABORTED } else { TC_ACT_SHOT }));
    asm.emit(Insn::exit());

    MainProgram { instructions: asm.finish(), members, cells: load_cells }
}

/// Returns `r0`. TCX lets the next program run only on -1, and delivers what it does not know:
/// verdicts that mean "this packet is taken" become a drop. A filter of clsact lets the next one run
/// on the same -1, to which the kernel turns what it does not know (`cls_bpf_exec_opcode`).
fn finish(asm: &mut Assembler, attachment: Attachment) {
    if attachment != Attachment::Xdp {
        asm.jump(Insn::jump_eq(0, TC_ACT_OK, 0), Label::Next);
    }
    if attachment == Attachment::Tcx {
        asm.jump(Insn::jump_eq(0, TC_ACT_PIPE, 0), Label::Next);
        for taken in [TC_ACT_STOLEN, TC_ACT_QUEUED, TC_ACT_TRAP] {
            asm.jump(Insn::jump_eq(0, taken, 0), Label::Shot);
        }
    }
    asm.emit(Insn::exit());
    if attachment != Attachment::Xdp {
        asm.label(Label::Next);
        asm.emit(Insn::mov32_imm(0, NEXT));
        asm.emit(Insn::exit());
    }
    if attachment == Attachment::Tcx {
        asm.label(Label::Shot);
        asm.emit(Insn::mov32_imm(0, TC_ACT_SHOT));
        asm.emit(Insn::exit());
    }
}
