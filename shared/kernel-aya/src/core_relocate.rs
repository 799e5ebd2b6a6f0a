//! CO-RE: instructions that depend on the layout of kernel types are fitted to this kernel.
//!
//! aya-obj does it. It takes program types from section names and keys its tables by them, so it is
//! given a copy of the object in which every executable section has a name of its own that it knows
//! (in the ELF names, in the BTF strings and in `.BTF.ext`), and no other section that it would
//! parse. aya-obj panics on some malformed objects; what it is given has been read by
//! [`crate::elf`] before, and a panic that is left is an error here.

use crate::{
    btf_ext::BtfExt,
    elf::{Elf, ObjectError},
};
use aya_obj::{
    Object,
    btf::{Btf, BtfKind},
};
use canopy_chain::insn::Insn;
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

/// Most CO-RE relocations of an object.
const RELOCATIONS: usize = 1 << 16;
/// Most types that they are of: each is looked for in the kernel's, which takes milliseconds.
const TYPES: usize = 1024;

/// The kernel's own type information, parsed once a process: it takes 15 to 20 ms.
fn kernel_btf() -> Result<&'static Btf, ObjectError> {
    static BTF: OnceLock<Result<Btf, String>> = OnceLock::new();
    BTF.get_or_init(|| Btf::from_sys_fs().map_err(|error| error.to_string())).as_ref().map_err(
        |error| ObjectError::Unsupported {
            what: format!("the kernel's type information cannot be read: {error}"),
            remedy: "use a kernel with CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux)".to_owned(),
        },
    )
}

/// The kernel's id of a function programs may call.
pub(crate) fn kernel_function(name: &str) -> Result<Option<u32>, ObjectError> {
    Ok(kernel_btf()?.id_by_type_name_kind(name, BtfKind::Func).ok())
}

/// The kernel's id of a function or variable whose address programs may take.
pub(crate) fn kernel_symbol(name: &str) -> Result<Option<u32>, ObjectError> {
    let btf = kernel_btf()?;
    let of = |kind| btf.id_by_type_name_kind(name, kind).ok();
    Ok(of(BtfKind::Var).or_else(|| of(BtfKind::Func)))
}

/// Fits the object's functions to this kernel.
pub(crate) fn relocate(elf: &mut Elf, bytes: &[u8]) -> Result<(), ObjectError> {
    let btf = elf.section(".BTF").map(|section| section.data.clone());
    let ext = elf.section(".BTF.ext").map(|section| section.data.clone());
    let (Some(btf), Some(ext)) = (btf, ext) else { return Ok(()) };
    let malformed = || ObjectError::Malformed(".BTF.ext is not whole".to_owned());
    let parsed = BtfExt::parse(&ext).ok_or_else(malformed)?;
    if parsed.relocations == 0 {
        return Ok(());
    }
    if parsed.relocations > RELOCATIONS || parsed.relocated_types > TYPES {
        return Err(ObjectError::Malformed(format!(
            "it has more than {RELOCATIONS} CO-RE relocations, or ones of more than {TYPES} types"
        )));
    }
    let kernel = kernel_btf()?;
    let copy = renamed(elf, bytes, &btf, ext, &parsed).ok_or_else(malformed)?;
    let object = catch_unwind(AssertUnwindSafe(|| {
        let mut object = Object::parse(&copy).map_err(|error| chain_of(&error))?;
        object.relocate_btf(kernel).map_err(|error| chain_of(&error))?;
        Ok::<_, String>(object)
    }))
    .unwrap_or_else(|_| Err("the object is malformed".to_owned()))
    .map_err(|error| ObjectError::Unsupported {
        what: format!("its CO-RE relocations cannot be applied: {error}"),
        remedy: "compile the object again, guarding fields this kernel may lack with \
                 bpf_core_field_exists"
            .to_owned(),
    })?;

    for function in &mut elf.functions {
        let key = (function.section, function.address);
        let Some(relocated) = object.functions.get(&key) else { continue };
        if relocated.instructions.len() != function.instructions.len() {
            return Err(malformed());
        }
        for (ours, theirs) in function.instructions.iter_mut().zip(&relocated.instructions) {
            *ours = Insn {
                code: theirs.code,
                dst: theirs.dst_reg(),
                src: theirs.src_reg(),
                off: theirs.off,
                imm: theirs.imm,
            };
        }
    }
    Ok(())
}

/// An error with its causes, in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(value.len())?)?.copy_from_slice(value);
    Some(())
}

/// The object as aya-obj has to see it.
fn renamed(
    elf: &Elf,
    bytes: &[u8],
    btf: &[u8],
    mut ext: Vec<u8>,
    parsed: &BtfExt,
) -> Option<Vec<u8>> {
    let mut out = bytes.to_vec();
    // struct Elf64_Ehdr: e_shoff at 40, e_shentsize at 58, e_shnum at 60, e_shstrndx at 62.
    let table = usize::try_from(u64::from_ne_bytes(get(bytes, 40)?)).ok()?;
    let entry = usize::from(u16::from_ne_bytes(get(bytes, 58)?));
    let names_index = usize::from(u16::from_ne_bytes(get(bytes, 62)?));
    let header = |index: usize| table.checked_add(index.checked_mul(entry)?);
    // struct Elf64_Shdr: sh_name at 0, sh_offset at 24, sh_size at 32.
    let place = |out: &mut Vec<u8>, index: usize, contents: &[u8]| -> Option<()> {
        out.resize(out.len().next_multiple_of(8), 0);
        let offset = out.len() as u64;
        out.extend_from_slice(contents);
        let at = header(index)?;
        put(out, at + 24, &offset.to_ne_bytes())?;
        put(out, at + 32, &(contents.len() as u64).to_ne_bytes())
    };

    // struct btf_header: type offset at 8, type length at 12, string offset at 16, length at 20.
    let word = |bytes: &[u8], at| get(bytes, at).map(u32::from_ne_bytes).map(|w| w as usize);
    let length = word(btf, 4)?;
    let strings_at = length.checked_add(word(btf, 16)?)?;
    let mut strings = btf.get(strings_at..strings_at.checked_add(word(btf, 20)?)?)?.to_vec();
    let types_at = length.checked_add(word(btf, 8)?)?;
    let types = btf.get(types_at..types_at.checked_add(word(btf, 12)?)?)?;

    let shstrtab = header(names_index)?;
    let shstr_at = usize::try_from(u64::from_ne_bytes(get(bytes, shstrtab + 24)?)).ok()?;
    let shstr_len = usize::try_from(u64::from_ne_bytes(get(bytes, shstrtab + 32)?)).ok()?;
    let mut names = bytes.get(shstr_at..shstr_at.checked_add(shstr_len)?)?.to_vec();

    let mut btf_names = BTreeMap::new();
    let mut btf_index = None;
    let mut ext_index = None;
    for (index, section) in elf.sections.iter().enumerate().skip(1) {
        let name = match section.name.as_str() {
            ".BTF" => {
                btf_index = Some(index);
                continue;
            }
            ".BTF.ext" => {
                ext_index = Some(index);
                continue;
            }
            _ if section.executable => format!("classifier/{index}"),
            _ => format!("ignored/{index}"),
        };
        let offset = u32::try_from(names.len()).ok()?;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        put(&mut out, header(index)?, &offset.to_ne_bytes())?;
        if section.executable {
            let offset = u32::try_from(strings.len()).ok()?;
            btf_names.entry(section.name.as_str()).or_insert(offset);
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
    }

    let local = canopy_chain::btf::Btf::parse(btf).ok()?;
    for at in &parsed.names {
        let name = local.string(u32::from_ne_bytes(get(&ext, *at)?));
        let offset = btf_names.get(name)?;
        put(&mut ext, *at, &offset.to_ne_bytes())?;
    }

    let mut new_btf = btf.get(..24)?.to_vec();
    put(&mut new_btf, 4, &24u32.to_ne_bytes())?;
    put(&mut new_btf, 8, &0u32.to_ne_bytes())?;
    let types_len = u32::try_from(types.len()).ok()?;
    put(&mut new_btf, 12, &types_len.to_ne_bytes())?;
    put(&mut new_btf, 16, &types_len.to_ne_bytes())?;
    put(&mut new_btf, 20, &u32::try_from(strings.len()).ok()?.to_ne_bytes())?;
    new_btf.extend_from_slice(types);
    new_btf.extend_from_slice(&strings);

    place(&mut out, btf_index?, &new_btf)?;
    place(&mut out, ext_index?, &ext)?;
    place(&mut out, names_index, &names)?;
    Some(out)
}
