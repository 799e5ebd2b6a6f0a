//! Whatever is done to a chain that its writer did not do is found.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests: a failure is the message")]

use canopy_api::wire::Decision;
use canopy_audit::{Chain, Entry, Finding, Head, Kind, LineHash, Report, Verifier};
use proptest::prelude::*;

/// A chain of so many requests, each begun and ended.
fn chain(requests: u64) -> (Vec<String>, Head) {
    let mut chain = Chain::new("h-web1-loader".parse().unwrap(), "00112233445566aa".to_owned());
    let mut lines = Vec::new();
    let mut add = |entry: Entry, chain: &mut Chain| {
        let (line, next) = chain.next(entry).unwrap();
        lines.push(line);
        *chain = next;
    };
    add(Entry { reason: "there was none".into(), ..Entry::new(Kind::Opened, "t0") }, &mut chain);
    for i in 0..requests {
        let begun = Entry {
            principal: "u-alice".parse().ok(),
            verb: Some("apply".to_owned()),
            request: Some(LineHash::of(&i.to_le_bytes())),
            ..Entry::new(Kind::Begun, format!("t{i}"))
        };
        add(begun.clone(), &mut chain);
        let ended = Entry {
            kind: Kind::Ended,
            of: Some(chain.head().seq),
            decision: Some(Decision::Done),
            rules: vec!["platform".to_owned()],
            ..begun
        };
        add(ended, &mut chain);
    }
    (lines, chain.head())
}

fn verify(lines: &[impl AsRef<[u8]>], expected: Option<Head>) -> Report {
    let mut verifier = Verifier::expecting(expected);
    for line in lines {
        verifier.line(line.as_ref());
    }
    verifier.end()
}

#[test]
fn a_chain_as_it_was_written_is_good() {
    let (lines, head) = chain(3);
    let report = verify(&lines, Some(head));
    assert_eq!(report.findings, []);
    assert_eq!((report.records, report.first, report.head), (7, 1, Some(head)));
    assert_eq!(report.unended, [] as [u64; 0]);
    assert_eq!(head.to_string().parse(), Ok(head));
    assert_eq!(verify(&lines[..6], None).unended, [6]);
    assert_eq!(verify(&[] as &[&str], None).findings, []);
}

#[test]
fn each_way_of_tampering_has_its_name() {
    let (lines, head) = chain(3);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        verify(&lines, Some(head)).findings
    };
    let alice = |line: &str| line.replace("u-alice", "u-mallory");
    assert_eq!(with(&|l| l[2] = alice(&l[2])), [Finding::Changed { seq: 4 }]);
    // The last one has nobody behind it but whoever saw it.
    assert_eq!(with(&|l| l[6] = alice(&l[6])), [Finding::Replaced { seq: 7 }]);
    assert_eq!(with(&|l| drop(l.remove(3))), [Finding::Missing { from: 4, to: 4 }]);
    assert_eq!(with(&|l| l.truncate(4)), [Finding::Truncated { last: 4, expected: 7 }]);
    assert_eq!(with(&|l| drop(l.drain(..2))), [Finding::NoBeginning { first: 3 }]);
    assert_eq!(with(&|l| l.insert(4, l[3].clone())), [Finding::Repeated { seq: 4 }]);
    assert_eq!(
        with(&|l| l.swap(3, 4)),
        [Finding::Missing { from: 4, to: 4 }, Finding::Repeated { seq: 4 }]
    );
    let (other, _) = chain(1);
    let foreign = other[1].replace("web1", "web2");
    let [Finding::Foreign { line: 3, writer, .. }] = &with(&|l| l.insert(2, foreign.clone()))[..]
    else {
        panic!("a foreign record was taken");
    };
    assert_eq!(writer, "h-web2-loader");
    // The same record in another text.
    let [Finding::NoRecord { line: 3, .. }, _] = &with(&|l| l[2] = l[2].replace(':', ": "))[..]
    else {
        panic!("two texts for one record");
    };
}

#[test]
fn what_was_removed_in_order_is_told_from_what_was_cut_off() {
    let (mut lines, head) = chain(3);
    let chain = Chain::at("h-web1-loader".parse().unwrap(), "00112233445566aa".to_owned(), head);
    let trimmed = |of: u64, line: &str| Entry {
        of: Some(of),
        previous_of: Some(LineHash::of(line.as_bytes())),
        ..Entry::new(Kind::Trimmed, "t")
    };
    let (line, _) = chain.next(trimmed(3, &lines[2])).unwrap();
    lines.push(line);
    assert_eq!(verify(&lines[3..], None).findings, []);
    assert_eq!(verify(&lines[3..], None).first, 4);
    // One more than was written down, or others than those.
    assert_eq!(verify(&lines[4..], None).findings, [Finding::NoBeginning { first: 5 }]);
    let mut forged = lines[3..].to_vec();
    forged[0] = forged[0].replace("u-alice", "u-mallory");
    assert_eq!(verify(&forged, None).findings, [Finding::Changed { seq: 5 }]);
    let seen = Head { seq: 2, hash: LineHash::of(lines[1].as_bytes()) };
    assert_eq!(verify(&lines[3..], Some(seen)).findings, [Finding::Gone { seq: 2 }]);
}

proptest! {
    /// Any byte of any line, any line away, any place to cut: seen by whoever kept the head.
    #[test]
    fn nothing_can_be_done_to_a_chain_unseen(
        at in 0usize..10_000, byte in 1u8..=255, what in 0usize..4,
    ) {
        let (lines, head) = chain(4);
        let mut bytes: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
        let line = at % bytes.len();
        match what {
            0 => { bytes.remove(line); }
            1 => bytes.truncate(line),
            2 => { let again = bytes[line].clone(); bytes.push(again); }
            _ => {
                let place = at % bytes[line].len();
                bytes[line][place] ^= byte;
            }
        }
        prop_assert!(!verify(&bytes, Some(head)).findings.is_empty());
    }

    #[test]
    fn no_bytes_make_the_verifier_panic(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..6)) {
        let _ = verify(&lines, None);
    }
}
