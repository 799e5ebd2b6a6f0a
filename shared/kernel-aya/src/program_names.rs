//! The names of all loaded programs, for a process without `CAP_SYS_ADMIN`: it gets no descriptor by an
//! id, and may have the kernel walk through its programs (an iterator, `bpf_iter_bpf_prog` in
//! `kernel/bpf/prog_iter.c`; Linux 5.9, `CAP_BPF` and `CAP_PERFMON`).

use crate::{
    kernel_btf::KernelBtf,
    sys::{self, OBJ_NAME_LEN, ProgLoad},
};
use canopy_chain::{
    btf::{Type, kind},
    insn::Insn,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
};

const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;
/// `BPF_FUNC_seq_write`
const SEQ_WRITE: i32 = 127;
/// The function that the kernel calls for each program.
const TARGET: &str = "bpf_iter_bpf_prog";
/// Bytes of a record: the id and the name.
const RECORD: usize = 4 + OBJ_NAME_LEN;
/// Where a record is put together on the stack.
const PLACE: i16 = -24;

/// Name by id.
pub(crate) fn names() -> io::Result<BTreeMap<u32, String>> {
    let layout = Layout::of_kernel().ok_or(io::ErrorKind::Unsupported)?;
    let code = layout.code().ok_or(io::ErrorKind::Unsupported)?;
    let bytes: Vec<u8> = code.into_iter().flat_map(Insn::to_bytes).collect();
    let prog = sys::prog_load(&ProgLoad {
        expected_attach_type: BPF_TRACE_ITER,
        attach_to: Some((layout.target, None)),
        ..ProgLoad::new(BPF_PROG_TYPE_TRACING, &bytes, "GPL", "canopy_names")
    })
    .map_err(|rejected| rejected.error)?;
    let link = sys::link_create_tracing(&prog, BPF_TRACE_ITER)?;
    let mut records = Vec::new();
    let mut iterator = File::from(sys::iter_create(&link)?);
    sys::timed(|| iterator.read_to_end(&mut records))?;
    Ok(read(&records))
}

fn read(records: &[u8]) -> BTreeMap<u32, String> {
    let (records, _) = records.as_chunks::<RECORD>();
    let record = |record: &[u8; RECORD]| {
        let (id, name) = record.split_first_chunk::<4>()?;
        let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
        Some((u32::from_ne_bytes(*id), String::from_utf8_lossy(&name).into_owned()))
    };
    records.iter().filter_map(record).collect()
}

/// Where the kernel keeps what is asked for.
struct Layout {
    /// The id of [`TARGET`] in the kernel's types.
    target: u32,
    /// Of `struct bpf_prog`, bytes.
    aux: i16,
    /// Of `struct bpf_prog_aux`, bytes.
    id: i16,
    name: i16,
}

impl Layout {
    fn of_kernel() -> Option<Self> {
        let kernel = KernelBtf::get().ok()?;
        let of = |name| kernel.btf.get(kernel.find(name, kind::STRUCT)?);
        let (prog, aux) = (of("bpf_prog")?, of("bpf_prog_aux")?);
        let target = kernel.find(TARGET, kind::FUNC)?;
        let offset = |ty: &Type<'_>, name: &str| {
            let mut members = (0..usize::from(ty.vlen)).map(|member| member * 3);
            let member = members.find(|at| kernel.btf.string(ty.word(*at)) == name)?;
            // With bit-fields in the struct the upper byte is a size.
            let bits = ty.word(member + 2);
            let bits = if ty.flag { bits & 0x00ff_ffff } else { bits };
            i16::try_from(bits / 8).ok()
        };
        let (id, name) = (offset(aux, "id")?, offset(aux, "name")?);
        Some(Self { target, aux: offset(prog, "aux")?, id, name })
    }

    /// Writes one record for each program: the context has `struct bpf_iter_meta *`, which begins with the
    /// file, and the program, which is none at the end.
    fn code(&self) -> Option<Vec<Insn>> {
        const LOAD32: u8 = 0x61;
        const LOAD8: u8 = 0x71;
        const STORE32: u8 = 0x63;
        const STORE8: u8 = 0x73;
        let load = |code, dst, src, off| Insn { code, dst, src, off, imm: 0 };
        let store = |code, off| Insn { code, dst: 10, src: 1, off, imm: 0 };
        let mut code = vec![Insn::load64(6, 1, 8), Insn::load64(7, 1, 0), Insn::load64(7, 7, 0)];
        let mut body =
            vec![Insn::load64(8, 6, self.aux), load(LOAD32, 1, 8, self.id), store(STORE32, PLACE)];
        for byte in 0..i16::try_from(OBJ_NAME_LEN).ok()? {
            body.push(load(LOAD8, 1, 8, self.name.checked_add(byte)?));
            body.push(store(STORE8, PLACE + 4 + byte));
        }
        body.extend([
            Insn::mov(1, 7),
            Insn::mov(2, 10),
            Insn::add_imm(2, PLACE.into()),
            Insn::mov32_imm(3, i32::try_from(RECORD).ok()?),
            Insn::call_helper(SEQ_WRITE),
        ]);
        code.push(Insn::jump_eq64(6, 0, i16::try_from(body.len()).ok()?));
        code.append(&mut body);
        code.extend([Insn::mov32_imm(0, 0), Insn::exit()]);
        Some(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_ids_and_names() {
        let mut bytes = Vec::new();
        for (id, name) in [(7_u32, "canopy_tc"), (9, "a_name_of_15_ch")] {
            bytes.extend(id.to_ne_bytes());
            bytes.extend(sys::object_name(name));
        }
        bytes.extend([1, 2, 3]);
        let names = read(&bytes);
        assert_eq!(names.into_values().collect::<Vec<_>>(), ["canopy_tc", "a_name_of_15_ch"]);
    }
}
