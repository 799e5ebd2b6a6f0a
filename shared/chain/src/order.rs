//! The order in which a chain's programs run.

use canopy_api::ProgramName;

/// Sorts by priority, low first; equal priorities by name, so that the order never depends on how a
/// document was written.
pub fn sort<T>(programs: &mut [T], key: impl Fn(&T) -> (u16, &ProgramName)) {
    programs.sort_by(|a, b| key(a).cmp(&key(b)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_does_not_depend_on_the_input_order(
            programs in proptest::collection::btree_map("[a-z0-9][a-z0-9_-]{0,4}", 0u16..3, 0..12),
            seed: usize,
        ) {
            let mut sorted: Vec<(u16, ProgramName)> =
                programs.iter().map(|(name, priority)| (*priority, name.parse().unwrap())).collect();
            let mut shuffled = sorted.clone();
            let count = shuffled.len().max(1);
            for i in 0..shuffled.len() {
                let other = seed.wrapping_mul(i + 31) % count;
                shuffled.swap(i, other);
            }
            sort(&mut sorted, |(priority, name)| (*priority, name));
            sort(&mut shuffled, |(priority, name)| (*priority, name));
            prop_assert_eq!(&sorted, &shuffled);
            prop_assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
