//! Putting the answer of a relocation into an instruction (`bpf_core_patch_insn`).

use canopy_chain::insn::Insn;

/// A call of a helper that no kernel has, which the verifier names where it can be reached:
/// `0xbad2310`, "bad relo". libbpf's number, which people search for.
pub(crate) const UNRESOLVED: i32 = 195_896_080;

/// What a relocation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// What the compiler must have put there; `None` where that is not known.
    pub(super) expected: Option<u64>,
    pub(super) wanted: u64,
    /// For accesses to memory: the sizes before and after, where they differ; whether that is safe.
    pub(super) resize: Option<Resize>,
}

/// A field whose size in the kernel is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resize {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Whether a read of the other size gives the same number: pointers and unsigned integers.
    pub(super) safe: bool,
}

const CLASS: u8 = 7;
const SOURCE_REGISTER: u8 = 8;
const SIZES: u8 = 0x18;

/// Makes the instruction one that the verifier refuses where it can be reached.
pub(super) fn refuse(code: &mut [Insn], at: usize) {
    let poison = Insn { code: 0x85, imm: UNRESOLVED, ..Insn::default() };
    let wide = code.get(at).is_some_and(|insn| insn.is_load64());
    for insn in code.iter_mut().skip(at).take(if wide { 2 } else { 1 }) {
        *insn = poison;
    }
}

/// Puts the value where the instruction has it.
pub(super) fn apply(code: &mut [Insn], at: usize, value: &Value) -> Result<(), String> {
    let Some(mut insn) = code.get(at).copied() else {
        return Err("the relocation is malformed: it is about no instruction".to_owned());
    };
    let unexpected = || "the relocation is malformed: the instruction has another value".to_owned();
    let as_compiled = |found: u64| value.expected.is_none_or(|expected| expected == found);
    match insn.code & CLASS {
        4 | 7 if insn.code & SOURCE_REGISTER == 0 => {
            // The compiler's value is compared as libbpf does: sign-extended.
            if !as_compiled(i64::from(insn.imm).cast_unsigned()) {
                return Err(unexpected());
            }
            insn.imm = low_half(value.wanted);
        }
        1..=3 => {
            if !as_compiled(i64::from(insn.off).cast_unsigned()) {
                return Err(unexpected());
            }
            insn.off = i16::try_from(value.wanted)
                .map_err(|_| "the field lies further than an instruction reaches".to_owned())?;
            if let Some(resize) = value.resize {
                if !resize.safe {
                    return Err("the kernel's field has another size, and is not one whose value \
                                stays the same: a pointer or an unsigned integer"
                        .to_owned());
                }
                if size_of(insn.code) != resize.from {
                    return Err(unexpected());
                }
                let size = size_bits(resize.to)
                    .ok_or_else(|| format!("the kernel's field has {} bytes", resize.to))?;
                insn.code = insn.code & !SIZES | size;
            }
        }
        0 if insn.is_load64() => {
            let second = code.get(at + 1).copied();
            let plain = |insn: &Insn| insn.src == 0 && insn.off == 0;
            let Some(mut second) = second.filter(|second| {
                plain(&insn) && plain(second) && second.code == 0 && second.dst == 0
            }) else {
                return Err("the relocation is malformed: the instruction has another form".into());
            };
            let found =
                u64::from(insn.imm.cast_unsigned()) | u64::from(second.imm.cast_unsigned()) << 32;
            if !as_compiled(found) {
                return Err(unexpected());
            }
            insn.imm = low_half(value.wanted);
            second.imm = low_half(value.wanted >> 32);
            if let Some(place) = code.get_mut(at + 1) {
                *place = second;
            }
        }
        _ => {
            return Err("the relocation is malformed: the instruction takes no value".to_owned());
        }
    }
    if let Some(place) = code.get_mut(at) {
        *place = insn;
    }
    Ok(())
}

fn low_half(value: u64) -> i32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

fn size_of(code: u8) -> u64 {
    match code & SIZES {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

fn size_bits(size: u64) -> Option<u8> {
    match size {
        4 => Some(0x00),
        2 => Some(0x08),
        1 => Some(0x10),
        8 => Some(0x18),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(expected: Option<u64>, value: u64) -> Value {
        Value { expected, wanted: value, resize: None }
    }

    #[test]
    fn values_go_where_each_class_has_them() {
        // r1 = 3; r2 = *(u64 *)(r1 + 8); r3 = 0x100000002 ll
        let mov = Insn { code: 0xb7, dst: 1, imm: 3, ..Insn::default() };
        let load = Insn { code: 0x79, dst: 2, src: 1, off: 8, ..Insn::default() };
        let wide = Insn { code: 0x18, dst: 3, imm: 2, ..Insn::default() };
        let mut code = vec![mov, load, wide, Insn { imm: 1, ..Insn::default() }];
        apply(&mut code, 0, &value(Some(3), u64::MAX)).unwrap();
        apply(&mut code, 1, &value(Some(8), 40)).unwrap();
        apply(&mut code, 2, &value(Some(0x1_0000_0002), 0x5_0000_0006)).unwrap();
        assert_eq!((code[0].imm, code[1].off, code[2].imm, code[3].imm), (-1, 40, 6, 5));
    }

    #[test]
    fn values_the_compiler_did_not_write_are_refused() {
        let mut code = vec![Insn { code: 0xb7, imm: 3, ..Insn::default() }];
        assert!(apply(&mut code, 0, &value(Some(4), 5)).is_err());
        assert_eq!(code[0].imm, 3);
        apply(&mut code, 0, &value(None, 5)).unwrap();
        assert_eq!(code[0].imm, 5);
        // A register as the source, an exit, and nothing at all.
        for insn in [Insn::mov(1, 2), Insn::exit()] {
            assert!(apply(&mut [insn], 0, &value(None, 5)).is_err());
        }
        assert!(apply(&mut [], 0, &value(None, 5)).is_err());
    }

    #[test]
    fn accesses_are_resized_only_where_that_is_safe() {
        let load = Insn { code: 0x79, dst: 2, src: 1, off: 8, ..Insn::default() };
        let resized = |safe, from, to| {
            let mut code = [load];
            let resize = Some(Resize { from, to, safe });
            let value = Value { expected: Some(8), wanted: 8, resize };
            apply(&mut code, 0, &value).map(|()| code[0].code)
        };
        assert_eq!(resized(true, 8, 4), Ok(0x61));
        assert!(resized(false, 8, 4).is_err());
        assert!(resized(true, 4, 8).is_err());
        assert!(resized(true, 8, 3).is_err());
    }

    #[test]
    fn an_unresolved_wide_load_is_replaced_whole() {
        let wide = Insn { code: 0x18, dst: 3, imm: 2, ..Insn::default() };
        let mut code = vec![wide, Insn::default(), Insn::exit()];
        refuse(&mut code, 0);
        assert!(code[..2].iter().all(|insn| insn.code == 0x85 && insn.imm == UNRESOLVED));
        assert_eq!(code[2], Insn::exit());
    }
}
