//! What is otherwise in one table than in another. Both are walked through once, side by side: they are large, and mostly
//! alike.

use std::{cmp::Ordering, collections::BTreeMap};

/// Every key that `after` has otherwise than `before`, in order, with its value there: none where it is gone.
pub(crate) fn differences<'table, K: Ord, V: PartialEq>(
    before: &'table BTreeMap<K, V>,
    after: &'table BTreeMap<K, V>,
) -> impl Iterator<Item = (&'table K, Option<&'table V>)> {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((one, _)), Some((other, _))) => one.cmp(other),
            };
            match order {
                Ordering::Less => return old.next().map(|(key, _)| (key, None)),
                Ordering::Greater => return new.next().map(|(key, value)| (key, Some(value))),
                Ordering::Equal => {
                    let was = old.next().map(|(_, value)| value);
                    let (key, value) = new.next()?;
                    if was != Some(value) {
                        return Some((key, Some(value)));
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_new_or_changed_is_named_and_nothing_else() {
        let before = BTreeMap::from([(1, 'a'), (2, 'b'), (4, 'd'), (6, 'f')]);
        let after = BTreeMap::from([(0, 'z'), (2, 'b'), (4, 'x'), (5, 'e'), (7, 'g')]);
        let found: Vec<_> = differences(&before, &after).collect();
        let expected = [
            (&0, Some(&'z')),
            (&1, None),
            (&4, Some(&'x')),
            (&5, Some(&'e')),
            (&6, None),
            (&7, Some(&'g')),
        ];
        assert_eq!(found, expected);
        assert_eq!(differences(&after, &after).count(), 0);
        assert_eq!(differences(&before, &BTreeMap::new()).count(), 4);
    }
}
