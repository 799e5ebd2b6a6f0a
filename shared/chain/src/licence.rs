//! Which licence strings the kernel takes for GPL-compatible.

/// Whether the kernel lets a program with this licence call helpers reserved to GPL-compatible
/// ones (`license_is_gpl_compatible` in `include/linux/license.h`).
pub fn gpl_compatible(licence: &str) -> bool {
    matches!(
        licence,
        "GPL"
            | "GPL v2"
            | "GPL and additional rights"
            | "Dual BSD/GPL"
            | "Dual MIT/GPL"
            | "Dual MPL/GPL"
    )
}
