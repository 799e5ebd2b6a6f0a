//! What `canopy package check` says of a program is what the loader says of it: one reader, one verdict.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code: a failure is a panic")]

use canopy_api::Hook;
use canopy_kernel::{KernelError, Member};
use canopy_kernel_aya::{check_member, load_member};
use canopy_kernel_tests::chain::{Chains, member, object};
use canopy_test_support::{compile_with, repository};

fn xdp(object_name: &str, function: &str) -> Member {
    member(&function.replace('_', "-"), Hook::Xdp, &object(object_name), function)
}

/// What is refused for reasons that are in the object, whatever the kernel.
#[test]
fn check_gives_the_verdict_of_the_loader() {
    let chains = Chains::new();
    for (object, function) in [
        ("throws", "from_static"),
        ("throws", "from_tail_call"),
        ("throws", "throws_nothing"),
        ("other_types", "on_switch"),
        ("other_types", "on_devmap"),
        ("other_types", "by_context"),
        ("other_types", "by_manifest"),
        ("device_bound", "device_bound"),
        ("entries", "entries"),
        ("limits", "deep"),
        ("tail_calls", "tail_calls"),
        ("tail_calls_outside", "tail_calls_outside"),
        ("xdp_frags", "measure"),
        ("functions", "functions"),
        ("map_in_map", "nested"),
        ("legacy_maps", "old"),
        ("void_context", "missing"),
    ] {
        let said = |result: Result<(), KernelError>| match result {
            Ok(()) => None,
            Err(KernelError::Refused { reason, remedy, .. }) => Some((reason, remedy)),
            Err(error) => panic!("{object}: {function}: {error}"),
        };
        let loader = chains.prepare(Hook::Xdp, 1, vec![xdp(object, function)]).map(|_| ());
        let check = check_member(&xdp(object, function), Hook::Xdp).map(|_| ());
        assert_eq!(said(check), said(loader), "{object}: {function}");
        let _ = canopy_kernel::Kernel::discard(&chains.kernel, &Chains::key(Hook::Xdp), 1);
    }
}

/// Authors and distributions build with other options than ours.
#[test]
fn shipped_programs_load_at_any_optimisation() {
    let directory = tempfile::tempdir().unwrap();
    let pins = canopy_test_support::bpffs::BpffsDir::new().unwrap();
    for entry in std::fs::read_dir(repository().join("ebpf/packages")).unwrap() {
        let package = entry.unwrap().file_name().into_string().unwrap();
        for option in ["-O1", "-O2", "-Os", "-O3"] {
            let source = repository().join(format!("ebpf/packages/{package}/{package}.bpf.c"));
            let out = directory.path().join("object.o");
            compile_with(&source, &out, &[option]).unwrap();
            let to = pins.path().join(format!("{package}{option}"));
            let loaded = std::process::Command::new("bpftool")
                .args(["prog", "loadall"])
                .args([&out, &to])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&loaded.stderr);
            assert!(loaded.status.success(), "{package} {option}: {said}");
            std::fs::remove_dir_all(&to).unwrap();
        }
    }
}

#[test]
fn check_with_the_kernel_gives_the_verifiers_verdict() {
    // Read, it is a program like any other.
    check_member(&xdp("rejected", "rejected"), Hook::Xdp).unwrap();
    let error = load_member(&xdp("rejected", "rejected"), Hook::Xdp).unwrap_err();
    let KernelError::Refused { reason, log, .. } = error else { panic!("{error:?}") };
    assert!(reason.contains("outside of the packet"), "{reason}");
    assert!(log.is_some_and(|log| log.contains("processed")));
    load_member(&xdp("void_context", "untyped"), Hook::Xdp).unwrap();
    let left = std::fs::read_dir("/sys/fs/bpf")
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("canopy-check-"));
    assert!(!left, "pins are left");
}
