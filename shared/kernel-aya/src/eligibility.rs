//! Whether an object's program can be a member of a chain at all: judged from the object, before the
//! kernel is asked for anything.

use crate::{elf::ObjectError, object::Object};
use canopy_api::{
    Hook,
    program_section::{SectionFit, declares_frags, section_fit},
};
use canopy_chain::Code;

/// The kernel function that ends a program from any depth of calls, and the whole chain with it.
const THROW: &str = "bpf_throw";

/// Kernel functions of one device's driver (XDP metadata): the kernel takes a program that calls them
/// only when it is loaded for that device (`BPF_F_XDP_DEV_BOUND_ONLY`).
const DEVICE_BOUND: [&str; 3] =
    ["bpf_xdp_metadata_rx_hash", "bpf_xdp_metadata_rx_timestamp", "bpf_xdp_metadata_rx_vlan_tag"];

/// What device-bound programs are refused with.
pub(crate) const DEVICE_BOUND_REASON: &str = "it calls kernel functions of a device's driver, for \
     which the kernel wants the program bound to one device; chains do not do that yet";
/// And what to do.
pub(crate) const DEVICE_BOUND_HINT: &str = "use an object that does without them";

/// Compares the program with the hook that it is declared for. A doubt is returned as a remark.
pub(crate) fn section(
    object: &Object,
    function: &str,
    hook: Hook,
) -> Result<Option<String>, ObjectError> {
    let Some(section) = object.section_of(function) else { return Ok(None) };
    match section_fit(hook, section, object.context_of(function).as_deref()) {
        SectionFit::Fits => Ok(None),
        SectionFit::Doubtful(doubt) => Ok(Some(doubt)),
        SectionFit::Mismatch { reason, hint } => {
            Err(ObjectError::Unsupported { what: reason, remedy: hint })
        }
    }
}

/// Whether the program's section says that it handles multi-buffer packets.
pub(crate) fn frags(object: &Object, function: &str) -> bool {
    object.section_of(function).is_some_and(declares_frags)
}

/// Refuses code that would end the chain instead of the member: by an exception, which unwinds the
/// generated `main` as well, so that neither later members run nor the packet is counted.
pub(crate) fn exceptions(code: &Code) -> Result<(), ObjectError> {
    let Some(caller) = code.caller_of(THROW) else { return Ok(()) };
    Err(ObjectError::Unsupported {
        what: format!(
            "its function \"{caller}\" calls {THROW}(), which would end the whole chain: the \
             programs behind it would not run, and the packet would be counted nowhere"
        ),
        remedy: "return the verdict instead of throwing it (bpf_assert() and the like throw too)"
            .to_owned(),
    })
}

/// Refuses code that calls functions which only device-bound programs may. A weak call may be of a
/// function that the kernel lacks; only the kernel can say.
pub(crate) fn device_bound(code: &Code) -> Result<(), ObjectError> {
    let bound = |name: &str| DEVICE_BOUND.contains(&name);
    let call = code.kernel_calls.iter().find(|call| !call.weak && bound(call.kernel_name()));
    match call {
        None => Ok(()),
        Some(call) => Err(ObjectError::Unsupported {
            what: format!("{DEVICE_BOUND_REASON} ({})", call.kernel_name()),
            remedy: DEVICE_BOUND_HINT.to_owned(),
        }),
    }
}
