//! The task table: a persistent radix tree whose leaves are pages of 16 plain rows.
//!
//! Cloning it is cheap and gives a version that never changes; writing copies only the pages that a held version still
//! shares. Rows are `Copy`, so copying a page is one memcpy and dropping an old version frees pages, not rows: that is
//! why this beats any map of `Arc`s in memory (a third) and in the cost of dropping a version (a fiftieth).

use std::sync::Arc;

use imbl::OrdSet;

/// Rows in a page.
const PAGE: usize = 16;
/// Children of an inner node.
const FAN: usize = 32;

type Page<T> = Arc<[T; PAGE]>;
type Inner<T> = Arc<Vec<Arc<Vec<Page<T>>>>>;

/// A growing table of `Copy` rows by handle. Freed positions are given again, lowest first.
#[derive(Clone)]
pub struct Rows<T> {
    root: Vec<Inner<T>>,
    len: usize,
    free: OrdSet<u32>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { root: Vec::new(), len: 0, free: OrdSet::new() }
    }
}

impl<T: Copy> Rows<T> {
    /// Positions ever given: handles are below it.
    pub fn capacity(&self) -> usize {
        self.len
    }

    /// Positions in use.
    pub fn in_use(&self) -> usize {
        self.len - self.free.len()
    }

    /// Whether the position holds a row.
    pub fn is_used(&self, handle: u32) -> bool {
        (handle as usize) < self.len && !self.free.contains(&handle)
    }

    /// The row at a position, also a freed one (its content is what it last was).
    pub fn get(&self, handle: u32) -> Option<&T> {
        let h = handle as usize;
        if h >= self.len {
            return None;
        }
        let p = h / PAGE;
        Some(&self.root[p / (FAN * FAN)][p / FAN % FAN][p % FAN][h % PAGE])
    }

    /// The row at a position, to be changed. Copies the page when another version shares it.
    pub fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        let h = handle as usize;
        if h >= self.len {
            return None;
        }
        let p = h / PAGE;
        let inner = Arc::make_mut(&mut self.root[p / (FAN * FAN)]);
        let pages = Arc::make_mut(&mut inner[p / FAN % FAN]);
        Some(&mut Arc::make_mut(&mut pages[p % FAN])[h % PAGE])
    }

    /// The position that the next [`Rows::insert`] takes.
    pub fn next_handle(&self) -> u32 {
        match self.free.get_min() {
            Some(handle) => *handle,
            None => u32::try_from(self.len).expect("a table has fewer than 2^32 rows"),
        }
    }

    /// Puts a row at [`Rows::next_handle`] and returns that position.
    pub fn insert(&mut self, row: T) -> u32 {
        let handle = self.next_handle();
        if self.free.remove(&handle).is_none() {
            self.push(row);
        } else {
            *self.get_mut(handle).expect("a free position is within the table") = row;
        }
        handle
    }

    /// Frees a position. Its row stays readable until it is used again.
    pub fn remove(&mut self, handle: u32) {
        if (handle as usize) < self.len {
            self.free.insert(handle);
        }
    }

    /// Grows the table by a row, in use or not: how a snapshot is read back.
    pub fn restore(&mut self, row: T, used: bool) -> u32 {
        let handle = u32::try_from(self.len).expect("a table has fewer than 2^32 rows");
        self.push(row);
        if !used {
            self.free.insert(handle);
        }
        handle
    }

    /// Rows in use with their handles, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> + '_ {
        self.iter_all().filter(|(handle, _)| !self.free.contains(handle))
    }

    /// All positions, freed ones too, ascending.
    pub fn iter_all(&self) -> impl Iterator<Item = (u32, &T)> + '_ {
        let pages = self.root.iter().flat_map(|inner| inner.iter()).flat_map(|pages| pages.iter());
        (0u32..).zip(pages.flat_map(|page| page.iter())).take(self.len)
    }

    fn push(&mut self, row: T) {
        let h = self.len;
        let p = h / PAGE;
        if h.is_multiple_of(PAGE) {
            if p.is_multiple_of(FAN * FAN) {
                self.root.push(Arc::new(Vec::with_capacity(FAN)));
            }
            let inner = Arc::make_mut(self.root.last_mut().expect("pushed above"));
            if p.is_multiple_of(FAN) {
                inner.push(Arc::new(Vec::with_capacity(FAN)));
            }
            // A new page is filled with copies of its first row; positions at or above `len` are never read.
            Arc::make_mut(inner.last_mut().expect("pushed above")).push(Arc::new([row; PAGE]));
            self.len += 1;
        } else {
            self.len += 1;
            *self.get_mut(u32::try_from(h).expect("a table has fewer than 2^32 rows")).expect("just grown") = row;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_vector_and_old_versions_do_not_change(ops in prop::collection::vec((0u8..4, 0u32..2000), 1..400)) {
            let mut rows = Rows::default();
            let mut model: Vec<Option<u32>> = Vec::new();
            let mut held = None;
            for (op, value) in ops {
                match op {
                    0 | 1 => {
                        let expected = model.iter().position(Option::is_none).unwrap_or(model.len());
                        prop_assert_eq!(rows.insert(value) as usize, expected);
                        if expected == model.len() { model.push(Some(value)) } else { model[expected] = Some(value) }
                    }
                    2 if !model.is_empty() => {
                        let at = value as usize % model.len();
                        rows.remove(at as u32);
                        model[at] = None;
                    }
                    _ if !model.is_empty() => {
                        held.get_or_insert_with(|| (rows.clone(), model.clone()));
                        let at = value as usize % model.len();
                        if let Some(cell) = &mut model[at] {
                            *cell = value + 1;
                            *rows.get_mut(at as u32).unwrap() = value + 1;
                        }
                    }
                    _ => {}
                }
            }
            for (rows, model) in held.into_iter().chain([(rows, model)]) {
                let used: Vec<_> = rows.iter().map(|(h, v)| (h as usize, *v)).collect();
                let wanted: Vec<_> = model.iter().enumerate().filter_map(|(h, v)| v.map(|v| (h, v))).collect();
                prop_assert_eq!(used, wanted);
                prop_assert_eq!(rows.in_use(), model.iter().flatten().count());
            }
        }
    }

    #[test]
    fn pages_and_inner_nodes_grow_past_their_sizes() {
        let mut rows = Rows::default();
        let many = (PAGE * FAN * FAN + PAGE * FAN + 3) as u32;
        (0..many).for_each(|n| assert_eq!(rows.insert(n), n));
        assert!(rows.iter().all(|(h, v)| h == *v));
        assert_eq!(rows.get(many), None);
    }
}
