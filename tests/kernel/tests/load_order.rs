//! exp
use canopy_api::Hook;
use canopy_kernel_tests::chain::{Chains, member, object};

#[test]
fn exp() {
    let all = [
        "find_byte",
        "match_text",
        "tcp_options",
        "gather_flags",
        "long_list",
        "lookups",
        "headers",
        "checksum",
        "nested",
        "small",
    ];
    let of = |f: &str, i: usize| {
        member(&format!("{}-{i}", f.replace('_', "-")), Hook::Xdp, &object("load_order"), f)
    };
    let chains = Chains::new();
    let mut generation = 0;
    let mut run = |list: Vec<&str>| {
        generation += 1;
        eprintln!("--- {list:?}");
        let begun = std::time::Instant::now();
        let p = chains.load(
            Hook::Xdp,
            generation,
            list.iter().enumerate().map(|(i, f)| of(f, i)).collect(),
        );
        eprintln!("total {:?} verified {}", begun.elapsed(), p.verified_instructions);
    };
    for f in all {
        run(vec![f, f]);
        run(vec![f, f, f, f]);
    }
    run(all.to_vec());
    let mut rev = all.to_vec();
    rev.reverse();
    run(rev);
    for i in 0..all.len() {
        let mut l = all.to_vec();
        l.rotate_left(i);
        run(l);
    }
}
