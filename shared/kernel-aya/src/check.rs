//! What a loader would say of a program, asked before there is a loader: by the same reader, linker and
//! limits, and where that is wanted by this machine's kernel.

use crate::{
    AyaKernel,
    elf::ObjectError,
    map_create,
    member::{self, compose_error, object_error},
    object::Object,
    pins, prepare, verifier_log,
};
use canopy_api::{ChainKey, Hook, TcMode, XdpMode};
use canopy_chain::{Attachment, compose};
use canopy_kernel::{ChainBuild, Kernel as _, KernelError, Member, Prepared};
use std::path::PathBuf;

/// Reads the object as a chain does, and refuses what no chain can have: a malformed object, a function
/// that is not there, a program of another type, an exception, more than the limits of a chain. Nothing
/// is loaded. What depends on a kernel that the member would be loaded into is no refusal here: this
/// machine's answer is among the remarks.
///
/// # Errors
///
/// As [`canopy_kernel::Kernel::prepare`] refuses it.
pub fn check_member(member: &Member, hook: Hook) -> Result<Vec<String>, KernelError> {
    let name = &member.name;
    let here = |what: &str| format!("on this machine's kernel: {what}; hosts may differ");
    let object = match Object::get(&member.object) {
        Ok(object) => object,
        Err(ObjectError::Unsupported { what, .. }) => return Ok(vec![here(&what)]),
        Err(error) => return Err(object_error(name, &error)),
    };
    // By itself first: what the kernel lacks and what the object lacks are told apart by the error.
    if let Err(ObjectError::Unsupported { what, .. }) = object.link(&member.function) {
        let section = crate::eligibility::section(&object, &member.function, hook);
        let remark = section.map_err(|error| object_error(name, &error))?;
        return Ok(remark.into_iter().chain([here(&what)]).collect());
    }
    let linked = member::link_programs(member, &object, hook)?;
    for map in linked.used.iter().filter_map(|map| object.maps.get(*map)) {
        let mut map = map.clone();
        if let Some((_, entries)) = member.max_entries.iter().find(|(known, _)| *known == map.name)
        {
            map.max_entries = *entries;
        }
        map_create::settle_size(name, &mut map)?;
    }
    let attachment = if hook == Hook::Xdp { Attachment::Xdp } else { Attachment::Tcx };
    if let Some(entry) = linked.members.first() {
        compose(attachment, std::slice::from_ref(entry)).map_err(|error| compose_error(&error))?;
    }
    let mut remarks: Vec<String> = linked.remark.into_iter().collect();
    if hook == Hook::Xdp && !member.frags && prepare::takes_frags(member) {
        remarks.push(
            "its section says that it handles multi-buffer packets: it is taken as frags: true"
                .to_owned(),
        );
    }
    Ok(remarks)
}

/// Loads a chain of this member into this machine's kernel, as a loader does, and removes it again. It is
/// attached to nothing.
///
/// # Errors
///
/// As [`canopy_kernel::Kernel::prepare`], and where this process may not load programs.
pub fn load_member(member: &Member, hook: Hook) -> Result<Prepared, KernelError> {
    const NEEDED: [(u64, &str); 2] = [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN")];
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let have = verifier_log::capabilities().unwrap_or(u64::MAX);
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|(bit, _)| have & (1 << bit | CAP_SYS_ADMIN) == 0)
        .map(|(_, name)| name)
        .collect();
    if !missing.is_empty() {
        return Err(KernelError::Unsupported {
            what: format!("this process may not load programs: it lacks {}", missing.join(", ")),
            remedy: "run it as root or with these capabilities, or check without the kernel"
                .to_owned(),
        });
    }
    let root = PathBuf::from(format!("/sys/fs/bpf/canopy-check-{}", std::process::id()));
    let result = AyaKernel::new(&root).and_then(|kernel| {
        kernel.prepare(&ChainBuild {
            // Of every namespace; nothing is attached to it.
            key: ChainKey { netns: None, interface: loopback()?, hook },
            generation: 1,
            xdp_mode: XdpMode::Best,
            tc_mode: TcMode::Best,
            members: vec![member.clone()],
            together: Vec::new(),
            left_entries: Vec::new(),
        })
    });
    let removed = pins::remove_tree(&root);
    let prepared = result?;
    removed.map(|()| prepared)
}

fn loopback() -> Result<canopy_api::InterfaceName, KernelError> {
    "lo".parse().map_err(|error: canopy_api::name::NameError| KernelError::Unsupported {
        what: error.to_string(),
        remedy: String::new(),
    })
}
