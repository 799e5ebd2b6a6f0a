//! Which members lie inside `main`, and that it makes no difference to what a chain does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use canopy_api::Hook;
use canopy_kernel::Member;
use canopy_kernel_aya::sys;
use canopy_kernel_tests::chain::{Chains, member, packet};
use canopy_test_support::compile_text;
use std::sync::Arc;

const PASS: u32 = 2;
const DROP: u32 = 1;

/// Functions of a generation's program, `main` included.
fn functions(chains: &Chains, generation: u64) -> usize {
    let path = chains.kernel.pins().prog(&Chains::key(Hook::Xdp), generation);
    sys::prog_records(&sys::obj_get(&path).unwrap()).unwrap().function_types.len()
}

fn members(count: usize, text: &str) -> Vec<Member> {
    let object: Arc<[u8]> = compile_text(text).unwrap().into();
    (0..count).map(|i| member(&format!("m{i:02}"), Hook::Xdp, &object, "entry")).collect()
}

#[test]
fn small_members_lie_inside_and_members_with_functions_are_called() {
    // Drops packets whose first payload byte is 1; counts the others on its own stack, to use some.
    let small = members(
        3,
        r#"
        #include <canopy/bpf.h>
        SEC("xdp") int entry(struct xdp_md *ctx)
        {
            unsigned char *data = (void *)(long)ctx->data;
            volatile __u64 mess[8] = { ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL };
            if ((void *)(data + 15) > (void *)(long)ctx->data_end)
                return XDP_ABORTED;
            if (data[14] == 1)
                return XDP_DROP;
            return mess[data[14] & 7] ? XDP_PASS : XDP_ABORTED;
        }
        char _license[] SEC("license") = "GPL";
        "#,
    );
    let with_function = members(
        1,
        r#"
        #include <canopy/bpf.h>
        __attribute__((noinline)) int of_its_own(struct xdp_md *ctx)
        {
            return ctx->ingress_ifindex == 12345 ? XDP_DROP : XDP_PASS;
        }
        SEC("xdp") int entry(struct xdp_md *ctx) { return of_its_own(ctx); }
        char _license[] SEC("license") = "GPL";
        "#,
    );
    let chains = Chains::new();
    chains.load(Hook::Xdp, 1, small.clone());
    assert_eq!(functions(&chains, 1), 1);

    // Called between members that lie inside: what `main` keeps survives both kinds.
    let mut mixed = small;
    mixed.insert(1, with_function.into_iter().next().unwrap());
    mixed[1].name = "called".parse().unwrap();
    chains.load(Hook::Xdp, 2, mixed);
    assert_eq!(functions(&chains, 2), 3);

    for generation in [1, 2] {
        for _ in 0..3 {
            assert_eq!(chains.run(Hook::Xdp, generation, &packet(&[0])).retval, PASS);
        }
        assert_eq!(chains.run(Hook::Xdp, generation, &packet(&[1])).retval, DROP);
        let cells = chains.cells(Hook::Xdp, generation);
        assert_eq!(cells[0].runs(), 4);
        assert_eq!(cells[0].exits[1], 1);
        assert!(cells[1..].iter().all(|member| member.runs() == 3), "{cells:?}");
    }
}

/// The verifier keeps at most 8,192 branches to come back to. These members have 400 each: one by
/// one they load, 30 of them in one function do not.
#[test]
fn a_chain_too_complex_to_lie_in_one_function_is_called_member_by_member() {
    let branch = |i| format!("\"if %[x] == {i} goto out_%=\\n\"\n");
    let branches = (1..=400).map(branch).collect::<Vec<_>>().concat();
    let text = format!(
        r#"
        #include <canopy/bpf.h>
        SEC("xdp") int entry(struct xdp_md *ctx)
        {{
            __u64 x = ctx->rx_queue_index;
            asm volatile({branches} "out_%=:" : : [x] "r"(x));
            return x == 12345 ? XDP_DROP : XDP_PASS;
        }}
        char _license[] SEC("license") = "GPL";
        "#
    );
    let chains = Chains::new();
    let members = members(30, &text);
    chains.load(Hook::Xdp, 1, members[..2].to_vec());
    assert_eq!(functions(&chains, 1), 1);
    chains.load(Hook::Xdp, 2, members);
    assert_eq!(functions(&chains, 2), 31);
    assert_eq!(chains.run(Hook::Xdp, 2, &packet(&[0])).retval, PASS);
    let cells = chains.cells(Hook::Xdp, 2);
    assert!(cells.iter().all(|member| member.runs() == 1), "{cells:?}");
}
