//! A map by file number that is cheap to copy: copies share what an edit does not touch.
//!
//! Neighbouring numbers lie in one chunk, sorted, behind an `Arc`; the chunks in a B-tree. A copy copies
//! the references to chunks, of which there is one for up to [`CHUNK`] entries, and a change copies the chunk
//! that it is made in, if another copy has it too. Not for maps that are changed as a whole: a B-tree is quicker.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::Arc;

use crate::file_names::FileNumber;

/// Numbers that one chunk is for.
const CHUNK: u64 = 64;

/// Entries of one chunk, by number, ascending. Never empty.
type Chunk<V> = Vec<(FileNumber, V)>;

/// See the module's words.
#[derive(Clone, Debug)]
pub(crate) struct SharedMap<V> {
    chunks: BTreeMap<u64, Arc<Chunk<V>>>,
    len: usize,
}

impl<V> Default for SharedMap<V> {
    fn default() -> Self {
        SharedMap {
            chunks: BTreeMap::new(),
            len: 0,
        }
    }
}

impl<V> SharedMap<V> {
    /// Entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(crate) fn get(&self, number: &FileNumber) -> Option<&V> {
        let chunk = self.chunks.get(&(number / CHUNK))?;
        let at = find(chunk, *number).ok()?;
        Some(&chunk[at].1)
    }

    pub(crate) fn contains_key(&self, number: &FileNumber) -> bool {
        self.get(number).is_some()
    }

    /// Entries by number, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FileNumber, &V)> {
        let entries = self.chunks.values().flat_map(|chunk| chunk.iter());
        entries.map(|(number, value)| (number, value))
    }

    /// Numbers, ascending.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &FileNumber> {
        self.iter().map(|(number, _)| number)
    }

    /// Values by number, ascending.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<V: Clone> SharedMap<V> {
    pub(crate) fn get_mut(&mut self, number: &FileNumber) -> Option<&mut V> {
        let chunk = self.chunks.get_mut(&(number / CHUNK))?;
        let at = find(chunk, *number).ok()?;
        Some(&mut Arc::make_mut(chunk)[at].1)
    }

    /// Sets the value of a number; returns the one before.
    pub(crate) fn insert(&mut self, number: FileNumber, value: V) -> Option<V> {
        let chunk = self.chunks.entry(number / CHUNK).or_default();
        let chunk = Arc::make_mut(chunk);
        match find(chunk, number) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                chunk.insert(at, (number, value));
                self.len += 1;
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, number: &FileNumber) -> Option<V> {
        let key = number / CHUNK;
        let chunk = self.chunks.get_mut(&key)?;
        let at = find(chunk, *number).ok()?;
        let chunk = Arc::make_mut(chunk);
        let (_, value) = chunk.remove(at);
        if chunk.is_empty() {
            self.chunks.remove(&key);
        }
        self.len -= 1;
        Some(value)
    }
}

/// Where a number is, or would be.
fn find<V>(chunk: &Chunk<V>, number: FileNumber) -> Result<usize, usize> {
    chunk.binary_search_by_key(&number, |(number, _)| *number)
}

/// # Panics
/// Without such a number.
impl<V> Index<&FileNumber> for SharedMap<V> {
    type Output = V;

    fn index(&self, number: &FileNumber) -> &V {
        self.get(number).expect("the number is known")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_apart_as_a_b_tree_would_and_share_the_rest() {
        let mut state = 7_u64;
        let mut draw = |limit: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 33) % limit
        };
        let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
        let mut copies = Vec::new();
        for step in 0..20_000 {
            let number = draw(1000);
            match draw(3) {
                0 => assert_eq!(map.remove(&number), model.remove(&number)),
                1 => assert_eq!(map.insert(number, step), model.insert(number, step)),
                _ => {
                    let (found, known) = (map.get_mut(&number), model.get_mut(&number));
                    assert_eq!(found.as_deref(), known.as_deref());
                    if let (Some(found), Some(known)) = (found, known) {
                        (*found, *known) = (step, step);
                    }
                }
            }
            if step % 1000 == 0 {
                copies.push((map.clone(), model.clone()));
            }
        }
        copies.push((map, model));
        for (map, model) in &copies {
            assert_eq!(map.len(), model.len());
            assert!(map.iter().eq(model.iter()));
            assert!((0..1000).all(|number| map.get(&number) == model.get(&number)));
        }
        let (map, _) = copies.last().unwrap();
        let mut copy = map.clone();
        copy.insert(5, 0);
        let shared = map.chunks.values().zip(copy.chunks.values());
        let shared = shared.filter(|(old, new)| Arc::ptr_eq(old, new)).count();
        assert_eq!(shared, map.chunks.len() - 1);
    }
}
