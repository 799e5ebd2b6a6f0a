//! The kernel's configuration, as programs read it by `__kconfig` variables.
//!
//! What libbpf does (`bpf_object__resolve_externs`, `set_kcfg_value_*`): options are read from the
//! running kernel's own copy, else from the file beside the kernel image; three variables are known
//! that are no options.

use crate::{facts, sys};
use canopy_chain::{
    btf::{Btf, kind},
    insn::Insn,
};
use nix::sys::utsname::uname;
use std::{collections::HashMap, fs, io, sync::OnceLock};

/// The section of variables that stand for the kernel's configuration.
pub(crate) const SECTION: &str = ".kconfig";
/// Bytes of all variables of an object; a kernel's options take far less.
const SIZE: usize = 1 << 20;
/// Bytes of a configuration that is not compressed; about 300,000 in fact.
const TEXT: usize = 16 << 20;

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    /// Where it lies in the map.
    pub(crate) offset: usize,
    pub(crate) outcome: Outcome,
}

/// What is known of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has its value.
    Set,
    /// There is no such option: weak variables read as 0.
    Absent,
    /// It cannot have a value.
    Refused(String),
}

/// The variables of an object, with the contents of the map they lie in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configuration {
    pub(crate) variables: Vec<Variable>,
    pub(crate) contents: Vec<u8>,
}

/// The type of a variable (`enum kcfg_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Char { signed: bool },
    Bool,
    Integer { signed: bool },
    Tristate,
    Text,
}

/// The form of a type, `None` for one that no option can have.
fn form(btf: &Btf<'_>, id: u32, depth: u32) -> Option<Form> {
    let (_, ty) = btf.resolve(id)?;
    match ty.kind {
        kind::INT => {
            // BTF_INT_SIGNED is 1, BTF_INT_BOOL 4.
            let encoding = ty.word(0) >> 24 & 0xf;
            let signed = encoding & 1 != 0;
            match (encoding & 4 != 0, ty.size_or_type) {
                (true, 1) => Some(Form::Bool),
                (false, 1) => Some(Form::Char { signed }),
                (false, 2 | 4 | 8) => Some(Form::Integer { signed }),
                _ => None,
            }
        }
        kind::ENUM | kind::ENUM64 => (ty.size_or_type == 4
            && btf.string(ty.name) == "libbpf_tristate")
            .then_some(Form::Tristate),
        kind::ARRAY if depth == 0 && ty.word(2) > 0 => {
            matches!(form(btf, ty.word(0), 1), Some(Form::Char { .. })).then_some(Form::Text)
        }
        _ => None,
    }
}

impl Configuration {
    /// The object's variables with this kernel's values; `None` without any.
    pub(crate) fn new(btf: &Btf<'_>) -> Option<Self> {
        let section = |(_, ty): &(u32, &canopy_chain::btf::Type<'_>)| {
            ty.kind == kind::DATASEC && btf.string(ty.name) == SECTION
        };
        let (_, section) = btf.iter().find(section)?;
        let mut known = Self::default();
        for id in (0..usize::from(section.vlen)).map(|index| section.word(index * 3)) {
            let Some(variable) = btf.get(id).filter(|ty| ty.kind == kind::VAR) else { continue };
            let name = btf.string(variable.name).to_owned();
            let size = btf.size(variable.size_or_type).and_then(|size| usize::try_from(size).ok());
            let offset = known.contents.len().next_multiple_of(8);
            let room = size.filter(|size| offset.saturating_add(*size) <= SIZE);
            let mut place = vec![0; room.unwrap_or(0)];
            let outcome = match (form(btf, variable.size_or_type, 0), room) {
                (Some(form), Some(_)) => fill(&name, form, &mut place),
                _ => Outcome::Refused("no option has a value of its type".to_owned()),
            };
            known.contents.resize(offset, 0);
            known.contents.extend(place);
            known.variables.push(Variable { name, offset, outcome });
        }
        // A map's value has a size.
        known.contents.resize(known.contents.len().max(1), 0);
        (!known.variables.is_empty()).then_some(known)
    }
}

/// Puts the value of a variable where it lies.
fn fill(name: &str, form: Form, place: &mut [u8]) -> Outcome {
    let written = if name.starts_with("CONFIG_") {
        match options() {
            Err(why) => Err(why.clone()),
            Ok(options) => match options.get(name) {
                Some(value) => put(value, form, place),
                None => return Outcome::Absent,
            },
        }
    } else {
        let value = match name {
            "LINUX_KERNEL_VERSION" => u64::from(version()),
            "LINUX_HAS_BPF_COOKIE" => u64::from(has_cookie()),
            "LINUX_HAS_SYSCALL_WRAPPER" => u64::from(has_syscall_wrapper()),
            _ if name.starts_with("LINUX_") => return Outcome::Absent,
            _ => return Outcome::Refused("it is no option: those begin with CONFIG_".to_owned()),
        };
        match form {
            // libbpf takes `bool` here too.
            Form::Bool => number(value.min(1), false, place),
            _ => put(&value.to_string(), form, place),
        }
    };
    written.map_or_else(Outcome::Refused, |()| Outcome::Set)
}

/// Puts an option's text where its variable lies.
fn put(text: &str, form: Form, place: &mut [u8]) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("its value {text} does not fit {what}"));
    match (text.chars().next(), form) {
        (Some('y' | 'n' | 'm'), Form::Bool) if text.starts_with('m') => wrong("a bool"),
        (Some(first @ ('y' | 'n')), Form::Bool) => number(u64::from(first == 'y'), false, place),
        (Some(first @ ('y' | 'n' | 'm')), Form::Tristate) => {
            // enum libbpf_tristate
            let value = match first {
                'y' => 1,
                'm' => 2,
                _ => 0,
            };
            number(value, false, place)
        }
        (Some(first @ ('y' | 'n' | 'm')), Form::Char { .. }) => {
            number(u64::from(u32::from(first)), false, place)
        }
        (Some('y' | 'n' | 'm'), _) => wrong("a number or a text"),
        (Some('"'), Form::Text) => {
            let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            let Some(inner) = inner else { return wrong("a text: it does not end") };
            // One that is longer is cut; the last byte stays 0.
            let room = place.len().saturating_sub(1);
            place.iter_mut().take(room).zip(inner.bytes()).for_each(|(to, from)| *to = from);
            Ok(())
        }
        (Some('"'), _) => wrong("a variable that is no array of char"),
        (_, Form::Integer { signed } | Form::Char { signed }) => {
            let Some(value) = integer(text) else { return wrong("a number") };
            number(value, signed, place)
        }
        (Some('0' | '1'), Form::Bool) if text.len() == 1 => {
            number(u64::from(text == "1"), false, place)
        }
        _ => wrong("a bool, a tristate or a text"),
    }
}

/// A number as `strtoull` reads it with any base.
fn integer(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = if let Some(digits) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(digits, 16).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8).ok()?
    } else {
        digits.parse().ok()?
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

/// Writes a number if a variable of that size holds it (`is_kcfg_value_in_range`).
fn number(value: u64, signed: bool, place: &mut [u8]) -> Result<(), String> {
    let bits = u32::try_from(place.len() * 8).unwrap_or(64);
    let fits = if bits >= 64 {
        true
    } else if signed {
        let half = 1_u64 << (bits - 1);
        value.wrapping_add(half) < half * 2
    } else {
        value >> bits == 0
    };
    if !fits {
        return Err(format!("its value {value} does not fit {} bytes", place.len()));
    }
    let bytes = if cfg!(target_endian = "little") {
        value.to_le_bytes().to_vec()
    } else {
        value.to_be_bytes().into_iter().skip(8_usize.saturating_sub(place.len())).collect()
    };
    place.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    Ok(())
}

type Options = HashMap<String, String>;

/// The running kernel's options.
fn options() -> Result<&'static Options, &'static String> {
    static OPTIONS: OnceLock<Result<Options, String>> = OnceLock::new();
    OPTIONS
        .get_or_init(|| {
            let beside = format!("/boot/config-{}", facts::release());
            let mut failures = Vec::new();
            // The kernel's own copy first: it cannot be that of another build.
            for path in ["/proc/config.gz", &beside] {
                let text = fs::read(path).and_then(|bytes| unpack(&bytes));
                match text {
                    Ok(text) => return Ok(parse(&text)),
                    Err(error) => failures.push(format!("{path}: {error}")),
                }
            }
            Err(format!("the kernel's configuration cannot be read: {}", failures.join("; ")))
        })
        .as_ref()
}

fn parse(text: &str) -> Options {
    text.lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// A file that may be compressed by gzip (RFC 1952), as text.
fn unpack(bytes: &[u8]) -> io::Result<String> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some(rest) = bytes.strip_prefix(&[0x1f, 0x8b, 8]) else {
        return String::from_utf8(bytes.to_vec()).map_err(|_| invalid("it is no text"));
    };
    let body = deflated(rest).ok_or_else(|| invalid("it ends too early"))?;
    let text = miniz_oxide::inflate::decompress_to_vec_with_limit(body, TEXT)
        .map_err(|error| invalid(&format!("it cannot be unpacked: {error}")))?;
    String::from_utf8(text).map_err(|_| invalid("it is no text"))
}

/// What follows the header of a gzip file, whose first three bytes are gone.
fn deflated(bytes: &[u8]) -> Option<&[u8]> {
    let (flags, mut rest) = (*bytes.first()?, bytes.get(7..)?);
    if flags & 4 != 0 {
        let length = u16::from_le_bytes(rest.get(..2)?.try_into().ok()?);
        rest = rest.get(2 + usize::from(length)..)?;
    }
    // The file's name, and a comment.
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & 2 != 0 { rest.get(2..) } else { Some(rest) }
}

/// `KERNEL_VERSION(a, b, c)` of the running kernel. Distributions whose release says another number
/// than the kernel they build say it elsewhere.
fn version() -> u32 {
    let ubuntu = fs::read_to_string("/proc/version_signature").unwrap_or_default();
    if let Some(version) = ubuntu.split(' ').nth(2).filter(|version| version.contains('.')) {
        return version_code(version);
    }
    let build = uname()
        .map_or_else(|_| String::new(), |name| name.version().to_string_lossy().into_owned());
    match build.split_once("Debian ") {
        Some((_, version)) if version.starts_with(|c: char| c.is_ascii_digit()) => {
            version_code(version)
        }
        _ => version_code(&facts::release()),
    }
}

/// `KERNEL_VERSION(a, b, c)` of a release such as `6.1.0-18-amd64`.
fn version_code(release: &str) -> u32 {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || parts.next().flatten().unwrap_or(0u32);
    let (major, minor, patch) = (next(), next(), next());
    (major << 16) + (minor << 8) + patch.min(255)
}

/// Whether programs of tracing have `bpf_get_attach_cookie`: one that calls it is loaded.
fn has_cookie() -> bool {
    /// `BPF_PROG_TYPE_TRACEPOINT`
    const TRACEPOINT: u32 = 5;
    /// `BPF_FUNC_get_attach_cookie`
    const GET_ATTACH_COOKIE: i32 = 174;
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let code: Vec<u8> = [Insn::call_helper(GET_ATTACH_COOKIE), Insn::exit()]
            .into_iter()
            .flat_map(Insn::to_bytes)
            .collect();
        sys::prog_load(&sys::ProgLoad::new(TRACEPOINT, &code, "GPL", "cookie")).is_ok()
    })
}

/// Whether system calls have functions of the architecture's own names in front.
fn has_syscall_wrapper() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let name = match std::env::consts::ARCH {
        "x86_64" => "__x64_sys_bpf",
        "aarch64" => "__arm64_sys_bpf",
        "s390x" => "__s390x_sys_bpf",
        "riscv64" => "__riscv_sys_bpf",
        _ => return false,
    };
    *KNOWN.get_or_init(|| {
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        symbols.lines().any(|line| line.split(' ').nth(2) == Some(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_the_kernel_writes_them() {
        let text =
            "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=m\nCONFIG_D=\"a b\"\nCONFIG_E=0x10\n";
        let options = parse(text);
        let get = |name: &str| options.get(name).map(String::as_str);
        assert_eq!(get("CONFIG_A"), None);
        assert_eq!(get("CONFIG_B"), Some("y"));
        assert_eq!(get("CONFIG_D"), Some("\"a b\""));
        assert_eq!(get("CONFIG_E"), Some("0x10"));
    }

    /// The bytes of a variable of this size and form that is given an option's text.
    fn stored(text: &str, form: Form, size: usize) -> Result<Vec<u8>, String> {
        let mut place = vec![0; size];
        put(text, form, &mut place).map(|()| place)
    }

    #[test]
    fn each_form_of_a_variable_takes_its_values_only() {
        let signed = Form::Integer { signed: true };
        let unsigned = Form::Integer { signed: false };
        let character = Form::Char { signed: true };
        assert_eq!(stored("y", Form::Bool, 1), Ok(vec![1]));
        assert!(stored("m", Form::Bool, 1).is_err());
        assert!(stored("250", Form::Bool, 1).is_err());
        assert_eq!(stored("y", Form::Tristate, 4), Ok(vec![1, 0, 0, 0]));
        assert_eq!(stored("m", Form::Tristate, 4), Ok(vec![2, 0, 0, 0]));
        assert!(stored("1", Form::Tristate, 4).is_err());
        assert_eq!(stored("m", character, 1), Ok(vec![b'm']));
        assert_eq!(stored("7", character, 1), Ok(vec![7]));
        assert!(stored("y", signed, 4).is_err());
        assert_eq!(stored("250", signed, 4), Ok(vec![250, 0, 0, 0]));
        assert_eq!(stored("-1", signed, 2), Ok(vec![255, 255]));
        assert!(stored("-1", unsigned, 2).is_err());
        assert!(stored("32768", signed, 2).is_err());
        assert_eq!(stored("32768", unsigned, 2), Ok(vec![0, 128]));
        assert_eq!(stored("0xffffffff80000000", unsigned, 8).unwrap()[7], 255);
        assert!(stored("0xffffffff80000000", unsigned, 4).is_err());
        assert_eq!(stored("\"abc\"", Form::Text, 5), Ok(vec![b'a', b'b', b'c', 0, 0]));
        assert_eq!(stored("\"abc\"", Form::Text, 3), Ok(vec![b'a', b'b', 0]));
        assert!(stored("\"abc", Form::Text, 8).is_err());
        assert!(stored("\"abc\"", unsigned, 8).is_err());
        assert!(stored("7", Form::Text, 8).is_err());
    }

    #[test]
    fn the_running_kernels_configuration_is_read() {
        let options = options().unwrap();
        assert_eq!(options.get("CONFIG_BPF_SYSCALL").map(String::as_str), Some("y"));
    }

    #[test]
    fn compressed_text_is_read_and_what_is_cut_short_refused() {
        let mut file = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
        file.extend_from_slice(b"config\0");
        file.extend(miniz_oxide::deflate::compress_to_vec(b"CONFIG_A=y\n", 6));
        assert_eq!(unpack(&file).unwrap(), "CONFIG_A=y\n");
        assert_eq!(unpack(b"CONFIG_A=y\n").unwrap(), "CONFIG_A=y\n");
        for end in 3..file.len() {
            assert!(unpack(&file[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_release_as_a_version_number() {
        assert_eq!(version_code("6.1.0-18-amd64"), 0x06_01_00);
        assert_eq!(version_code("5.15.300"), 0x05_0f_ff);
        assert_eq!(version_code("6.1.76-1 (2024-02-01)"), 0x06_01_4c);
    }
}
