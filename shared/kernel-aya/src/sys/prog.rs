//! Programs: load, test run, information.

use super::{
    Cmd, OBJ_NAME_LEN, address, address_mut, bpf, bpf_fd, length, obj_info, object_name, raw, text,
};
use std::{
    ffi::CString,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// First size of the verifier's log; it grows up to [`LOG_MAX`].
const LOG_START: usize = 256 << 10;
/// Largest log asked for. `UINT_MAX >> 2` is the kernel's limit; 16 MiB is what libbpf asks for.
const LOG_MAX: usize = 16 << 20;

/// Bytes of one `struct bpf_func_info`.
pub(crate) const FUNC_INFO_SIZE: usize = 8;
/// Bytes of one `struct bpf_line_info`.
pub(crate) const LINE_INFO_SIZE: usize = 16;

/// A program for the kernel.
#[derive(Clone, Copy, Debug)]
pub struct ProgLoad<'a> {
    /// `enum bpf_prog_type`.
    pub prog_type: u32,
    /// `enum bpf_attach_type`; 0 where the type has none.
    pub expected_attach_type: u32,
    /// `BPF_F_…` of `BPF_PROG_LOAD`.
    pub flags: u32,
    /// Instructions, 8 bytes each.
    pub insns: &'a [u8],
    /// Licence, as the object says.
    pub license: &'a str,
    /// Name; made fit for the kernel by [`object_name`].
    pub name: &'a str,
    /// Type information, needed for the two tables below.
    pub btf: Option<BorrowedFd<'a>>,
    /// `struct bpf_func_info`, 8 bytes each.
    pub func_info: &'a [u8],
    /// `struct bpf_line_info`, 16 bytes each.
    pub line_info: &'a [u8],
    /// For tracing and freplace: the BTF id of the target, and the program it is in.
    pub attach_to: Option<(u32, Option<BorrowedFd<'a>>)>,
}

impl<'a> ProgLoad<'a> {
    /// A program with nothing but its instructions.
    pub fn new(prog_type: u32, insns: &'a [u8], license: &'a str, name: &'a str) -> Self {
        Self {
            prog_type,
            expected_attach_type: 0,
            flags: 0,
            insns,
            license,
            name,
            btf: None,
            func_info: &[],
            line_info: &[],
            attach_to: None,
        }
    }
}

/// What the kernel would not take, and its log.
#[derive(Debug)]
pub struct Rejected {
    /// The error.
    pub error: io::Error,
    /// The verifier's (or BTF checker's) log; empty when it did not come to that.
    pub log: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refused it")?;
        match self.log.trim_end().lines().rev().find(|line| !line.starts_with("processed ")) {
            Some(line) => write!(f, ": {line}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Rejected {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<io::Error> for Rejected {
    fn from(error: io::Error) -> Self {
        Self { error, log: String::new() }
    }
}

/// How much of a log is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogPart {
    /// All of it, as far as it fits the largest buffer.
    Whole,
    /// Its end. Since 6.4 the kernel keeps that of a log too long for the buffer; writing a longer one
    /// takes seconds where the verifier walked to its limit.
    End,
}

/// Tries without a log (loading with one is several times slower), then, when refused, once more
/// for the log, in a buffer that grows until it fits.
pub(super) fn with_log(
    part: LogPart,
    load: impl Fn(&mut [u8]) -> io::Result<OwnedFd>,
) -> Result<OwnedFd, Rejected> {
    let first = match retried(|| load(&mut [])) {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    let mut size = LOG_START;
    loop {
        let mut log = vec![0; size];
        let error = match load(&mut log) {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        let log = text(&log);
        let enough = part == LogPart::End && is_ended(&log);
        if error.raw_os_error() == Some(libc::ENOSPC) && size < LOG_MAX && !enough {
            size = (size * 4).min(LOG_MAX);
            continue;
        }
        return Err(Rejected { error: first, log });
    }
}

/// A pending signal interrupts the verifier; libbpf tries five times too.
fn retried(load: impl Fn() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let mut result = load();
    for _ in 0..5 {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => result = load(),
            _ => break,
        }
    }
    result
}

/// Whether a verifier's log goes to its end, which are its statistics.
fn is_ended(log: &str) -> bool {
    log.trim_end().lines().next_back().is_some_and(|line| line.starts_with("processed "))
}

#[repr(C)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; OBJ_NAME_LEN],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    core_relo_cnt: u32,
}

fn records(table: &[u8], size: usize) -> io::Result<(u32, u32)> {
    if !table.len().is_multiple_of(size) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if table.is_empty() {
        return Ok((0, 0));
    }
    Ok((length(table.len() / size)?, length(size)?))
}

/// Loads a program (`BPF_PROG_LOAD`); what it returns has passed the verifier.
///
/// # Errors
///
/// The kernel's error and the verifier's whole log (its end, when longer than 16 MiB).
pub fn prog_load(prog: &ProgLoad<'_>) -> Result<OwnedFd, Rejected> {
    with_log(LogPart::Whole, |log| load(prog, u32::from(!log.is_empty()), log))
}

/// Loads a program once, without a log: where it is worth a try, and what the verifier says against it
/// does not matter. A log costs several times as much as the verifying itself.
///
/// # Errors
///
/// The kernel's.
pub fn prog_try_load(prog: &ProgLoad<'_>) -> io::Result<OwnedFd> {
    retried(|| load(prog, 0, &mut []))
}

/// Loads a program and returns the verifier's statistics with it (`BPF_LOG_STATS`), which say how
/// much stack each function uses.
///
/// # Errors
///
/// As [`prog_load`], with the end of the log.
pub fn prog_load_with_stats(prog: &ProgLoad<'_>) -> Result<(OwnedFd, String), Rejected> {
    const BPF_LOG_STATS: u32 = 4;
    let mut log = vec![0; 16 << 10];
    match load(prog, BPF_LOG_STATS, &mut log) {
        Ok(fd) => Ok((fd, text(&log))),
        // Once more, for the log; or it was the log that did not fit.
        Err(_) => with_log(LogPart::End, |log| load(prog, u32::from(!log.is_empty()), log))
            .map(|fd| (fd, String::new())),
    }
}

fn load(prog: &ProgLoad<'_>, log_level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    let license =
        CString::new(prog.license).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let (insn_cnt, _) = records(prog.insns, 8)?;
    let (func_info_cnt, func_info_rec_size) = records(prog.func_info, FUNC_INFO_SIZE)?;
    let (line_info_cnt, line_info_rec_size) = records(prog.line_info, LINE_INFO_SIZE)?;
    let (attach_btf_id, attach_prog) = prog.attach_to.unwrap_or((0, None));
    let mut attr = ProgLoadAttr {
        prog_type: prog.prog_type,
        insn_cnt,
        insns: address(prog.insns),
        license: license.as_ptr() as u64,
        log_level,
        log_size: length(log.len())?,
        log_buf: address_mut(log),
        kern_version: 0,
        prog_flags: prog.flags,
        prog_name: object_name(prog.name),
        prog_ifindex: 0,
        expected_attach_type: prog.expected_attach_type,
        prog_btf_fd: prog.btf.as_ref().map_or(0, raw),
        func_info_rec_size,
        func_info: address(prog.func_info),
        func_info_cnt,
        line_info_rec_size,
        line_info: address(prog.line_info),
        line_info_cnt,
        attach_btf_id,
        attach_prog_fd: attach_prog.as_ref().map_or(0, raw),
        core_relo_cnt: 0,
    };
    // SAFETY: the layout is the kernel's; every address is that of a slice (or terminated
    // string) that outlives the call, with its own length beside it.
    unsafe { bpf_fd(Cmd::ProgLoad, &mut attr) }
}

/// What to run a program on.
#[derive(Clone, Copy, Debug, Default)]
pub struct TestRun<'a> {
    /// The packet, from its Ethernet header on.
    pub data: &'a [u8],
    /// The context (`struct xdp_md`, `struct __sk_buff`); empty for none.
    pub context: &'a [u8],
    /// How often; 0 is once.
    pub repeat: u32,
    /// `BPF_F_TEST_…`.
    pub flags: u32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRunOutput {
    /// What the program returned at last.
    pub retval: u32,
    /// The kernel's mean, nanoseconds a run.
    pub duration: u32,
    /// The packet afterwards.
    pub data: Vec<u8>,
    /// The context afterwards.
    pub context: Vec<u8>,
}

#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// Runs a program on a packet that never was on a wire (`BPF_PROG_TEST_RUN`).
pub fn prog_test_run(prog: &impl AsFd, run: &TestRun<'_>) -> io::Result<TestRunOutput> {
    // Room for what a program may put in front (XDP_PACKET_HEADROOM) and behind; a frags packet is
    // at most 64 KiB.
    let mut data = vec![0; run.data.len() + 4096];
    let mut context = vec![0; run.context.len()];
    let mut attr = TestRunAttr {
        prog_fd: raw(prog),
        retval: 0,
        data_size_in: length(run.data.len())?,
        data_size_out: length(data.len())?,
        data_in: address(run.data),
        data_out: address_mut(&mut data),
        repeat: run.repeat,
        duration: 0,
        ctx_size_in: length(run.context.len())?,
        ctx_size_out: length(context.len())?,
        ctx_in: address(run.context),
        ctx_out: address_mut(&mut context),
        flags: run.flags,
        cpu: 0,
        batch_size: 0,
        reserved: 0,
    };
    // SAFETY: the layout is the kernel's; every address is that of a slice that outlives the call,
    // with its own length beside it.
    unsafe { bpf(Cmd::ProgTestRun, &mut attr) }?;
    data.truncate(attr.data_size_out as usize);
    context.truncate(attr.ctx_size_out as usize);
    Ok(TestRunOutput { retval: attr.retval, duration: attr.duration, data, context })
}

#[repr(C)]
#[derive(Default)]
struct RawProgInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; OBJ_NAME_LEN],
    ifindex: u32,
    gpl_compatible: u32,
    netns_dev: u64,
    netns_ino: u64,
    nr_jited_ksyms: u32,
    nr_jited_func_lens: u32,
    jited_ksyms: u64,
    jited_func_lens: u64,
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    nr_func_info: u32,
    nr_line_info: u32,
    line_info: u64,
    jited_line_info: u64,
    nr_jited_line_info: u32,
    line_info_rec_size: u32,
    jited_line_info_rec_size: u32,
    nr_prog_tags: u32,
    prog_tags: u64,
    run_time_ns: u64,
    run_cnt: u64,
    recursion_misses: u64,
    verified_insns: u32,
    attach_btf_obj_id: u32,
    attach_btf_id: u32,
    reserved: u32,
}

/// What the kernel says about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgInfo {
    /// Its id.
    pub id: u32,
    /// `enum bpf_prog_type`.
    pub prog_type: u32,
    /// Its name.
    pub name: String,
    /// Its tag, 16 hexadecimal digits.
    pub tag: String,
    /// Size of the native code, bytes; 0 when it is interpreted.
    pub jited_bytes: u32,
    /// Size of the instructions after the verifier, bytes.
    pub xlated_bytes: u32,
    /// Instructions the verifier walked. 0 before Linux 5.16, which does not say.
    pub verified_instructions: u32,
    /// Id of its type information; 0 for none.
    pub btf_id: u32,
    /// Whether its licence is GPL-compatible.
    pub gpl_compatible: bool,
    /// Ids of the maps it uses.
    pub map_ids: Vec<u32>,
    /// Runs, counted while `kernel.bpf_stats_enabled` is on.
    pub run_count: u64,
    /// Nanoseconds in all, counted likewise.
    pub run_time_ns: u64,
    /// When it was loaded, nanoseconds since boot.
    pub loaded_at_ns: u64,
    func_info: u32,
}

/// What the kernel says about a program.
pub fn prog_info(prog: &impl AsFd) -> io::Result<ProgInfo> {
    let mut info = RawProgInfo::default();
    // SAFETY: laid out as `struct bpf_prog_info`, with null addresses and zero lengths.
    unsafe { obj_info(prog, &mut info) }?;
    let mut map_ids = vec![0_u32; info.nr_map_ids as usize];
    if !map_ids.is_empty() {
        let mut again = RawProgInfo {
            nr_map_ids: info.nr_map_ids,
            map_ids: address_mut(&mut map_ids),
            ..RawProgInfo::default()
        };
        // SAFETY: as above; `map_ids` has the length given.
        unsafe { obj_info(prog, &mut again) }?;
    }
    Ok(ProgInfo {
        id: info.id,
        prog_type: info.prog_type,
        name: text(&info.name),
        tag: format!("{:016x}", u64::from_be_bytes(info.tag)),
        jited_bytes: info.jited_prog_len,
        xlated_bytes: info.xlated_prog_len,
        verified_instructions: info.verified_insns,
        btf_id: info.btf_id,
        gpl_compatible: info.gpl_compatible & 1 == 1,
        map_ids,
        run_count: info.run_cnt,
        run_time_ns: info.run_time_ns,
        loaded_at_ns: info.load_time,
        func_info: info.nr_func_info,
    })
}

/// Has a map live as long as a program, which need not use it (`BPF_PROG_BIND_MAP`, Linux 5.10): it
/// is among the program's map ids from then on.
pub fn prog_bind_map(prog: &impl AsFd, map: &impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        map_fd: u32,
        flags: u32,
    }
    let mut attr = Attr { prog_fd: raw(prog), map_fd: raw(map), flags: 0 };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf(Cmd::ProgBindMap, &mut attr) }.map(drop)
}

/// A program's function table, as the kernel keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgRecords {
    /// For each function, in order: the BTF id of its `FUNC`.
    pub function_types: Vec<u32>,
    /// For each function, in order: the size of its native code, bytes.
    pub jited_lengths: Vec<u32>,
}

/// A program's functions. Empty for one loaded without type information.
pub fn prog_records(prog: &impl AsFd) -> io::Result<ProgRecords> {
    let count = prog_info(prog)?.func_info;
    let mut table = vec![[0_u32; 2]; count as usize];
    let mut lengths = vec![0_u32; count as usize];
    let mut info = RawProgInfo {
        func_info_rec_size: length(FUNC_INFO_SIZE)?,
        nr_func_info: count,
        func_info: address_mut(&mut table),
        nr_jited_func_lens: count,
        jited_func_lens: address_mut(&mut lengths),
        ..RawProgInfo::default()
    };
    // SAFETY: laid out as `struct bpf_prog_info`; `table` and `lengths` have `count` records of the
    // sizes given.
    unsafe { obj_info(prog, &mut info) }?;
    lengths.truncate(info.nr_jited_func_lens as usize);
    Ok(ProgRecords {
        function_types: table.into_iter().map(|[_, type_id]| type_id).collect(),
        jited_lengths: lengths,
    })
}
