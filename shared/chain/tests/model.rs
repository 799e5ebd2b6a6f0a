//! The composed program, run by a small interpreter, against the words of the design.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Hook, VerdictSet, verdict::CELLS};
use canopy_chain::{
    Attachment, Code, Composed, Function, MapSource, Member, Shape, cells, compose_as, decode,
    insn::Insn,
};
use proptest::prelude::*;

const CONTEXT: u64 = 0x1000_0000;
const CELLS_AT: u64 = 0x2000_0000;
const STACK_TOP: u64 = 0x3000_0000;

/// A member that returns the context's word number `place`, from one of two exits, after making a
/// mess of every register and of its stack.
fn member(place: usize, proceed_on: VerdictSet) -> Member {
    let off = i16::try_from(place * 4).unwrap();
    let mut instructions = vec![Insn { code: 0x61, dst: 0, src: 1, off, imm: 0 }];
    instructions.extend((1..=9).map(|register| Insn::mov32_imm(register, -1)));
    instructions.extend([-8, -16].map(|off| Insn::store64(10, 1, off)));
    instructions.extend([Insn::jump_eq(0, 2, 1), Insn::exit(), Insn::exit()]);
    Member {
        name: format!("m{place}").parse().unwrap(),
        code: Code {
            instructions,
            functions: vec![Function { name: "entry".into(), start: 0, btf: None }],
            ..Code::default()
        },
        maps: Vec::new(),
        proceed_on,
        licence: "GPL".into(),
        needs_gpl: false,
        frags: false,
        stack: vec![16],
        verified_instructions: 7,
        tail_calls: 0,
    }
}

/// Runs a composed program. Only the instructions `main` is made of; anything else is a failure.
struct Machine<'a> {
    program: &'a [Insn],
    context: &'a [u32],
    cells: &'a mut [u64],
    stack: [u8; 64],
}

fn low(value: u64) -> u64 {
    value & 0xffff_ffff
}

impl Machine<'_> {
    fn run(&mut self) -> u32 {
        let mut r = [0xdead_beef_dead_beefu64; 11];
        r[1] = CONTEXT;
        r[10] = STACK_TOP;
        let mut frames: Vec<(usize, [u64; 5])> = Vec::new();
        let mut pc = 0usize;
        for _ in 0..100_000 {
            let insn = self.program[pc];
            pc += 1;
            let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
            let imm = i64::from(insn.imm).cast_unsigned();
            let memory = |register: u64| register.wrapping_add_signed(insn.off.into());
            let mut jump = |taken: bool| {
                if taken {
                    pc = pc.checked_add_signed(isize::from(insn.off)).unwrap();
                }
            };
            match insn.code {
                0xbf => r[dst] = r[src],
                0xbc => r[dst] = low(r[src]),
                0xb4 => r[dst] = low(imm),
                0x0f => r[dst] = r[dst].wrapping_add(r[src]),
                0x07 => r[dst] = r[dst].wrapping_add(imm),
                0x04 => r[dst] = low(r[dst].wrapping_add(imm)),
                0x54 => r[dst] = low(r[dst] & imm),
                0x67 => r[dst] <<= insn.imm,
                0x6c => r[dst] = low(low(r[dst]) << (r[src] & 31)),
                0x05 => jump(true),
                0x15 => jump(r[dst] == imm),
                0x16 => jump(low(r[dst]) == low(imm)),
                0x56 => jump(low(r[dst]) != low(imm)),
                0x26 => jump(low(r[dst]) > low(imm)),
                0x18 => {
                    r[dst] = imm;
                    pc += 1;
                }
                0x61 => r[dst] = self.load(memory(r[src]), 4),
                0x79 => r[dst] = self.load(memory(r[src]), 8),
                0x7b => self.store(memory(r[dst]), 8, r[src]),
                0x62 => self.store(memory(r[dst]), 4, imm),
                0x85 if insn.src == 1 => {
                    frames.push((pc, [r[6], r[7], r[8], r[9], r[10]]));
                    r[10] -= 16;
                    pc = pc.checked_add_signed(insn.imm as isize).unwrap();
                }
                0x85 => {
                    assert_eq!(insn.imm, 1, "only a map lookup");
                    assert_eq!(self.load(r[2], 4), 0, "of the first entry");
                    r[0] = CELLS_AT;
                    r[1..=5].fill(0xbad);
                }
                0x95 => match frames.pop() {
                    None => return u32::try_from(low(r[0])).unwrap(),
                    Some((back, saved)) => {
                        pc = back;
                        r[6..=10].copy_from_slice(&saved);
                    }
                },
                code => panic!("instruction {code:#x} at {}", pc - 1),
            }
        }
        panic!("the program does not end");
    }

    fn load(&self, at: u64, size: usize) -> u64 {
        if (CONTEXT..CELLS_AT).contains(&at) {
            u64::from(self.context[usize::try_from(at - CONTEXT).unwrap() / 4])
        } else if (CELLS_AT..STACK_TOP - 64).contains(&at) {
            assert_eq!((at % 8, size), (0, 8));
            self.cells[usize::try_from(at - CELLS_AT).unwrap() / 8]
        } else {
            let at = 64 - usize::try_from(STACK_TOP - at).unwrap();
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&self.stack[at..at + size]);
            u64::from_le_bytes(bytes)
        }
    }

    fn store(&mut self, at: u64, size: usize, value: u64) {
        if (CELLS_AT..STACK_TOP - 64).contains(&at) {
            assert_eq!((at % 8, size), (0, 8));
            self.cells[usize::try_from(at - CELLS_AT).unwrap() / 8] = value;
        } else {
            let at = 64 - usize::try_from(STACK_TOP - at).unwrap();
            self.stack[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}

/// The chain by the words of the design: what is returned, and each member's counts.
fn model(
    attachment: Attachment,
    sets: &[VerdictSet],
    verdicts: &[u32],
    counts: &mut [[[u64; CELLS]; 2]],
) -> u32 {
    for (i, (set, verdict)) in sets.iter().zip(verdicts).enumerate() {
        let biased = match attachment {
            Attachment::Xdp => *verdict,
            Attachment::Tcx | Attachment::Clsact => verdict.wrapping_add(1),
        };
        let slot = biased.min(32) as usize;
        let goes_on = slot < 32 && set.bits() & (1 << slot) != 0 && i + 1 < sets.len();
        counts[i][usize::from(goes_on)][slot] += 1;
        if !goes_on {
            return match (attachment, verdict.cast_signed()) {
                (Attachment::Tcx, -1 | 0 | 3) | (Attachment::Clsact, 0) => u32::MAX,
                (Attachment::Tcx, 4 | 5 | 8) => 2,
                _ => *verdict,
            };
        }
    }
    unreachable!("the last member ends the chain")
}

fn composed(attachment: Attachment, sets: &[VerdictSet], shape: Shape) -> Composed {
    let members: Vec<Member> =
        sets.iter().enumerate().map(|(place, set)| member(place, *set)).collect();
    let composed = compose_as(attachment, &members, shape).unwrap();
    assert_eq!(composed.inlined, if shape == Shape::Inlined { members.len() } else { 0 });
    composed
}

fn attachments() -> impl Strategy<Value = Attachment> {
    prop_oneof![Just(Attachment::Xdp), Just(Attachment::Tcx), Just(Attachment::Clsact)]
}

/// Sets as people write them, and any others; none empty.
fn sets() -> impl Strategy<Value = VerdictSet> {
    prop_oneof![
        Just(VerdictSet::default_for(Hook::Xdp)),
        Just(VerdictSet::default_for(Hook::TcIngress)),
        (0u32..32).prop_map(|bit| VerdictSet::from_bits(1 << bit)),
        (1u32..).prop_map(VerdictSet::from_bits),
    ]
}

/// Return values: usual ones, the edges of the slots, anything.
fn verdicts() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..9,
        2 => Just(u32::MAX),
        1 => 28u32..36,
        1 => any::<u32>(),
    ]
}

/// The first word of each record.
fn starts<const N: usize>(records: &[u8]) -> Vec<usize> {
    let (records, rest) = records.as_chunks::<N>();
    assert!(rest.is_empty());
    records.iter().map(|r| u32::from_ne_bytes(r[..4].try_into().unwrap()) as usize).collect()
}

proptest! {
    #[test]
    fn the_program_does_what_the_design_says(
        attachment in attachments(),
        shape in prop_oneof![Just(Shape::Calls), Just(Shape::Inlined)],
        sets in proptest::collection::vec(sets(), 1..20),
        packets in proptest::collection::vec(proptest::collection::vec(verdicts(), 20), 1..20),
    ) {
        let hook = if attachment == Attachment::Xdp { Hook::Xdp } else { Hook::TcEgress };
        let program = composed(attachment, &sets, shape);
        let mut values = vec![0; sets.len() * cells::STRIDE];
        let mut counts = vec![[[0; CELLS]; 2]; sets.len()];
        for packet in &packets {
            let expected = model(attachment, &sets, packet, &mut counts);
            let mut machine = Machine {
                program: &program.instructions,
                context: packet,
                cells: &mut values,
                stack: [0; 64],
            };
            prop_assert_eq!(machine.run(), expected);
        }
        let accounts = decode(hook, &sets, &values);
        let mut later = 0;
        for (account, [exits, proceeds]) in accounts.iter().zip(&counts).rev() {
            prop_assert_eq!(&account.exits, exits);
            prop_assert_eq!(&account.proceeds, proceeds);
            later += exits.iter().sum::<u64>();
            let runs: u64 = account.exits.iter().chain(&account.proceeds).sum();
            prop_assert_eq!(runs, later, "runs(i) = the exits at i and after");
        }
        prop_assert_eq!(later, packets.len() as u64);
    }

    #[test]
    fn every_jump_and_call_stays_in_the_program(
        attachment in attachments(),
        shape in prop_oneof![Just(Shape::Calls), Just(Shape::Inlined)],
        sets in proptest::collection::vec(sets(), 1..=cells::MAX_MEMBERS),
    ) {
        let program = composed(attachment, &sets, shape);
        let functions = starts::<8>(&program.func_info);
        let mut second_slot = false;
        for (at, insn) in program.instructions.iter().enumerate() {
            if std::mem::replace(&mut second_slot, insn.is_load64()) {
                second_slot = false;
                continue;
            }
            if insn.is_local_call() {
                let target = (at + 1).checked_add_signed(insn.imm as isize).unwrap();
                prop_assert!(functions.contains(&target), "call at {} to {}", at, target);
            } else if matches!(insn.code & 7, 5 | 6) && !matches!(insn.code, 0x85 | 0x95) {
                let target = (at + 1).checked_add_signed(insn.off.into()).unwrap();
                prop_assert!(target < program.instructions.len());
                let function = |at: usize| functions.partition_point(|start| *start <= at);
                prop_assert_eq!(function(at), function(target), "a jump leaves its function");
            }
        }
        let called = sets.len() - program.inlined;
        prop_assert_eq!(program.functions.len(), called + 1);
        prop_assert_eq!(functions.len(), called + 1);
        prop_assert_eq!(program.loads.len(), 1);
        prop_assert_eq!(program.loads[0].map, MapSource::Cells);
        // The kernel wants a line at the start of each function, in rising order.
        let lines = starts::<16>(&program.line_info);
        prop_assert!(lines.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(functions.iter().all(|start| lines.contains(start)));
    }
}
