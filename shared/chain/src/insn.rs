//! eBPF instructions: the encoding, and the few shapes the generated `main` is made of.
//!
//! Encoding: the kernel's `Documentation/bpf/standardization/instruction-set.rst`.

/// Bytes of one instruction slot. A 64-bit immediate load takes two slots.
pub const SIZE: usize = 8;

/// `BPF_PSEUDO_MAP_FD`: the immediate of a 64-bit load is a map.
pub const PSEUDO_MAP: u8 = 1;
/// `BPF_PSEUDO_MAP_VALUE`: the immediate is a place inside the only value of an array map.
pub const PSEUDO_MAP_VALUE: u8 = 2;
/// `BPF_PSEUDO_FUNC`: the immediate is a function of the same program.
pub const PSEUDO_FUNC: u8 = 4;
/// `BPF_PSEUDO_CALL`: the call's target is a function of the same program.
pub const PSEUDO_CALL: u8 = 1;
/// `BPF_FUNC_tail_call`.
pub const HELPER_TAIL_CALL: i32 = 12;

const LD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// One instruction slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register, or what kind of immediate it is.
    pub src: u8,
    /// Signed offset: of a jump in instructions, of a memory access in bytes.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

impl Insn {
    /// As the kernel takes it, in this machine's byte order.
    pub fn to_bytes(self) -> [u8; SIZE] {
        let registers = if cfg!(target_endian = "little") {
            (self.dst & 0xf) | (self.src << 4)
        } else {
            (self.dst << 4) | (self.src & 0xf)
        };
        let [o0, o1] = self.off.to_ne_bytes();
        let [i0, i1, i2, i3] = self.imm.to_ne_bytes();
        [self.code, registers, o0, o1, i0, i1, i2, i3]
    }

    /// From [`Self::to_bytes`]'s form.
    pub fn from_bytes(bytes: [u8; SIZE]) -> Self {
        let [code, registers, o0, o1, i0, i1, i2, i3] = bytes;
        let (low, high) = (registers & 0xf, registers >> 4);
        let (dst, src) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        Self {
            code,
            dst,
            src,
            off: i16::from_ne_bytes([o0, o1]),
            imm: i32::from_ne_bytes([i0, i1, i2, i3]),
        }
    }

    /// Instructions from bytes; `None` when their number is not a multiple of [`SIZE`].
    pub fn parse(bytes: &[u8]) -> Option<Vec<Self>> {
        let (chunks, rest) = bytes.as_chunks::<SIZE>();
        rest.is_empty().then(|| chunks.iter().copied().map(Self::from_bytes).collect())
    }

    /// Whether this is the first slot of a 64-bit immediate load.
    pub fn is_load64(self) -> bool {
        self.code == LD_IMM64
    }

    /// Whether this calls a function of the same program.
    pub fn is_local_call(self) -> bool {
        self.code == CALL && self.src == PSEUDO_CALL
    }

    /// Whether this loads the address of a function of the same program.
    pub fn is_local_function(self) -> bool {
        self.is_load64() && self.src == PSEUDO_FUNC
    }

    /// Whether this is a call of the `bpf_tail_call` helper.
    pub fn is_tail_call(self) -> bool {
        self.code == CALL && self.src == 0 && self.imm == HELPER_TAIL_CALL
    }

    /// Whether this is a packet access of the classic kind (`LD_ABS`, `LD_IND`), which ends the
    /// program where the packet ends.
    pub fn is_classic_access(self) -> bool {
        matches!(self.code & 0xe7, 0x20 | 0x40)
    }

    /// Whether this is `may_goto`, for which the verifier keeps a counter on the stack.
    pub fn is_may_goto(self) -> bool {
        self.code == 0xe5
    }

    /// Whether this jumps to an instruction before it: to where a loop begins.
    pub fn jumps_back(self) -> bool {
        // BPF_JMP and BPF_JMP32, less calls and `exit`; the long jump has its distance in `imm`.
        match (self.code & 0x07, self.code & 0xf0) {
            (0x05 | 0x06, 0x80 | 0x90) => false,
            (0x06, 0x00) => self.imm < 0,
            (0x05 | 0x06, _) => self.off < 0,
            _ => false,
        }
    }

    /// Whether this is `exit`.
    pub fn is_exit(self) -> bool {
        self.code == EXIT
    }

    /// Whether this loads a map or a place in one.
    pub fn is_map_load(self) -> bool {
        self.is_load64() && matches!(self.src, PSEUDO_MAP | PSEUDO_MAP_VALUE)
    }

    /// `exit`
    pub fn exit() -> Self {
        Self { code: EXIT, ..Self::default() }
    }

    /// A call of the function that starts `distance` slots after the next instruction.
    pub fn call_local(distance: i32) -> Self {
        Self { code: CALL, src: PSEUDO_CALL, imm: distance, ..Self::default() }
    }

    /// A call of a helper.
    pub fn call_helper(helper: i32) -> Self {
        Self { code: CALL, imm: helper, ..Self::default() }
    }

    /// `goto +off`
    pub fn jump(off: i16) -> Self {
        Self { code: 0x05, off, ..Self::default() }
    }

    /// `if dst == imm goto +off`, 64 bits.
    pub fn jump_eq64(dst: u8, imm: i32, off: i16) -> Self {
        Self { code: 0x15, dst, imm, off, ..Self::default() }
    }

    /// `if (u32)dst == imm goto +off`
    pub fn jump_eq(dst: u8, imm: i32, off: i16) -> Self {
        Self { code: 0x16, dst, imm, off, ..Self::default() }
    }

    /// `if (u32)dst != imm goto +off`
    pub fn jump_ne(dst: u8, imm: i32, off: i16) -> Self {
        Self { code: 0x56, dst, imm, off, ..Self::default() }
    }

    /// `if (u32)dst > imm goto +off`, unsigned.
    pub fn jump_gt(dst: u8, imm: i32, off: i16) -> Self {
        Self { code: 0x26, dst, imm, off, ..Self::default() }
    }

    /// `dst = src`, 64 bits.
    pub fn mov(dst: u8, src: u8) -> Self {
        Self { code: 0xbf, dst, src, ..Self::default() }
    }

    /// `(u32)dst = (u32)src`, upper half zero.
    pub fn mov32(dst: u8, src: u8) -> Self {
        Self { code: 0xbc, dst, src, ..Self::default() }
    }

    /// `(u32)dst = imm`, upper half zero.
    pub fn mov32_imm(dst: u8, imm: i32) -> Self {
        Self { code: 0xb4, dst, imm, ..Self::default() }
    }

    /// `dst += src`, 64 bits.
    pub fn add(dst: u8, src: u8) -> Self {
        Self { code: 0x0f, dst, src, ..Self::default() }
    }

    /// `dst += imm`, 64 bits.
    pub fn add_imm(dst: u8, imm: i32) -> Self {
        Self { code: 0x07, dst, imm, ..Self::default() }
    }

    /// `(u32)dst += imm`
    pub fn add32_imm(dst: u8, imm: i32) -> Self {
        Self { code: 0x04, dst, imm, ..Self::default() }
    }

    /// `(u32)dst &= imm`
    pub fn and32_imm(dst: u8, imm: i32) -> Self {
        Self { code: 0x54, dst, imm, ..Self::default() }
    }

    /// `dst <<= imm`, 64 bits.
    pub fn shl_imm(dst: u8, imm: i32) -> Self {
        Self { code: 0x67, dst, imm, ..Self::default() }
    }

    /// `(u32)dst <<= (u32)src`
    pub fn shl32(dst: u8, src: u8) -> Self {
        Self { code: 0x6c, dst, src, ..Self::default() }
    }

    /// `dst = *(u64 *)(src + off)`
    pub fn load64(dst: u8, src: u8, off: i16) -> Self {
        Self { code: 0x79, dst, src, off, ..Self::default() }
    }

    /// `*(u64 *)(dst + off) = src`
    pub fn store64(dst: u8, src: u8, off: i16) -> Self {
        Self { code: 0x7b, dst, src, off, ..Self::default() }
    }

    /// `*(u32 *)(dst + off) = imm`
    pub fn store32_imm(dst: u8, off: i16, imm: i32) -> Self {
        Self { code: 0x62, dst, off, imm, ..Self::default() }
    }

    /// The two slots of `dst = map`; the loader puts the map's descriptor in the first.
    pub fn load_map(dst: u8) -> [Self; 2] {
        [Self { code: LD_IMM64, dst, src: PSEUDO_MAP, ..Self::default() }, Self::default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_round_trip(code: u8, dst in 0u8..16, src in 0u8..16, off: i16, imm: i32) {
            let insn = Insn { code, dst, src, off, imm };
            prop_assert_eq!(Insn::from_bytes(insn.to_bytes()), insn);
        }
    }
}
