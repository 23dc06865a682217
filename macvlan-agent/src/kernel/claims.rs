//! A table in which several may claim one key, of whom one has it: it is changed claim by claim, and tells what is to be
//! written after that. Pure.

use std::collections::BTreeMap;

use smallvec::SmallVec;

/// Which of the claims to one key holds; they are in the order of those who claim it.
type Chooses<C, V> = fn(&[(C, V)]) -> Option<&(C, V)>;

/// A key that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference<K, C, V> {
    pub(super) key: K,
    /// What was written of it last.
    pub(super) before: Option<V>,
    /// Who has it now; none where it is to be taken out.
    pub(super) after: Option<(C, V)>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Claims<K, C, V> {
    keys: BTreeMap<K, SmallVec<[(C, V); 1]>>,
    /// Keys of which something else may have to be written, with what was written of them last.
    touched: BTreeMap<K, Option<V>>,
    chooses: Chooses<C, V>,
}

impl<K: Copy + Ord, C: Copy + Ord, V: Copy + PartialEq> Claims<K, C, V> {
    /// An empty one.
    pub(super) fn new(chooses: Chooses<C, V>) -> Self {
        Self {
            keys: BTreeMap::new(),
            touched: BTreeMap::new(),
            chooses,
        }
    }

    fn touch(&mut self, key: K) {
        // What has not been touched since is written as it is.
        let written = self.holder(key).map(|(_, value)| value);
        self.touched.entry(key).or_insert(written);
    }

    /// Somebody claims a key, or claims it otherwise than before.
    pub(super) fn claim(&mut self, key: K, who: C, value: V) {
        self.touch(key);
        let claims = self.keys.entry(key).or_default();
        match claims.binary_search_by_key(&who, |(claimant, _)| *claimant) {
            Ok(at) => claims[at].1 = value,
            Err(at) => claims.insert(at, (who, value)),
        }
    }

    /// Somebody claims a key no more.
    pub(super) fn withdraw(&mut self, key: K, who: &C) {
        self.touch(key);
        if let Some(claims) = self.keys.get_mut(&key) {
            claims.retain(|(claimant, _)| claimant != who);
            if claims.is_empty() {
                self.keys.remove(&key);
            }
        }
    }

    /// Who has a key, and how it is to be written.
    pub(super) fn holder(&self, key: K) -> Option<(C, V)> {
        (self.chooses)(self.keys.get(&key)?).copied()
    }

    /// Whether several claim a key.
    pub(super) fn is_disputed(&self, key: K) -> bool {
        self.keys.get(&key).is_some_and(|claims| claims.len() > 1)
    }

    /// The keys from this one on, in order.
    pub(super) fn keys_from(&self, first: K) -> impl Iterator<Item = K> {
        self.keys.range(first..).map(|(key, _)| *key)
    }

    /// The keys of which something else may have to be written, in order.
    pub(super) fn touched(&self) -> impl Iterator<Item = K> {
        self.touched.keys().copied()
    }

    /// What is to be written, in order of the keys.
    pub(super) fn differences(&self) -> impl Iterator<Item = Difference<K, C, V>> {
        self.touched.iter().filter_map(|(&key, &before)| {
            let after = self.holder(key);
            let differs = before != after.map(|(_, value)| value);
            differs.then_some(Difference { key, before, after })
        })
    }

    /// All of that was written.
    pub(super) fn written(&mut self) {
        self.touched.clear();
    }

    /// How many keys it has.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Written = Vec<(u8, Option<char>, Option<char>)>;

    fn differences(table: &Claims<u8, u8, char>) -> Written {
        let differences = table.differences();
        differences
            .map(|each| (each.key, each.before, each.after.map(|(_, value)| value)))
            .collect()
    }

    #[test]
    fn what_differs_from_what_was_written_is_told_until_it_is_written() {
        let mut table = Claims::new(<[_]>::last);
        table.claim(1, 7, 'a');
        table.claim(2, 5, 'b');
        table.claim(2, 4, 'c');
        assert!(table.is_disputed(2) && !table.is_disputed(1));
        let first = vec![(1, None, Some('a')), (2, None, Some('b'))];
        assert_eq!(differences(&table), first, "the last of several has it");
        assert_eq!(differences(&table), first, "nothing was written yet");
        table.written();
        assert_eq!(differences(&table), []);
        table.withdraw(2, &5);
        table.withdraw(1, &7);
        table.withdraw(3, &7);
        assert_eq!(table.keys_from(0).collect::<Vec<_>>(), [2]);
        assert_eq!(
            differences(&table),
            [(1, Some('a'), None), (2, Some('b'), Some('c'))],
            "the other one has it now"
        );
        table.written();
        assert_eq!((table.len(), table.holder(2)), (1, Some((4, 'c'))));
    }

    #[test]
    fn what_is_as_it_was_is_not_written_again() {
        let mut table = Claims::new(<[_]>::last);
        table.claim(1, 7, 'a');
        table.written();
        table.withdraw(1, &7);
        table.claim(1, 8, 'a');
        assert_eq!(table.touched().count(), 1);
        assert_eq!(differences(&table), []);
    }
}
