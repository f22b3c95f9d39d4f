//! The extents of a content, small: most contents have one, and it takes no memory of its own.

use crate::record::Extent;
use std::ops::Deref;
use std::rc::Rc;

#[derive(Clone, Default)]
enum Kept {
    #[default]
    None,
    One(Extent),
    // Shared, as contents are copied more often than they change; and boxed: a fat pointer would double the size of
    // all contents.
    Many(Rc<Box<[Extent]>>),
}

/// Extents, sorted by their first block, without overlap.
#[derive(Clone, Default)]
pub(crate) struct Extents(Kept);

impl Extents {
    /// Just one.
    pub(crate) fn one(extent: Extent) -> Self {
        Self(Kept::One(extent))
    }
    /// Whether it is one of them.
    pub(crate) fn contains(&self, extent: &Extent) -> bool {
        self.binary_search_by_key(&extent.first, |e| e.first).is_ok_and(|at| self[at] == *extent)
    }
    /// Their parts within blocks `[from, to)`.
    pub(crate) fn within(&self, from: u32, to: u32) -> impl Iterator<Item = Extent> {
        let first = self.partition_point(|e| e.end() <= from);
        let extents = self[first..].iter().take_while(move |e| e.first() < to);
        extents.filter_map(move |e| e.clip(from, to))
    }
    /// Those that `other` doesn't have.
    pub(crate) fn unlike(&self, other: &Self) -> Vec<Extent> {
        // Most are the same before and behind what an update changed.
        let before = self.iter().zip(other.iter()).take_while(|(a, b)| a == b).count();
        let (own, rest) = (&self[before..], &other[before..]);
        let behind = own.iter().rev().zip(rest.iter().rev()).take_while(|(a, b)| a == b).count();
        let (own, rest) = (&own[..own.len() - behind], &rest[..rest.len() - behind]);
        let mut rest = rest.iter().peekable();
        let is_unlike = |extent: &&Extent| {
            while rest.next_if(|e| e.first < extent.first).is_some() {}
            rest.peek() != Some(extent)
        };
        own.iter().filter(is_unlike).copied().collect()
    }
}

impl Deref for Extents {
    type Target = [Extent];
    fn deref(&self) -> &[Extent] {
        match &self.0 {
            Kept::None => &[],
            Kept::One(extent) => std::slice::from_ref(extent),
            Kept::Many(extents) => extents,
        }
    }
}

impl From<Vec<Extent>> for Extents {
    fn from(extents: Vec<Extent>) -> Self {
        Self(match extents[..] {
            [] => Kept::None,
            [extent] => Kept::One(extent),
            _ => Kept::Many(Rc::new(extents.into())),
        })
    }
}

impl From<&[Extent]> for Extents {
    fn from(extents: &[Extent]) -> Self {
        extents.to_vec().into()
    }
}

impl<const N: usize> From<[Extent; N]> for Extents {
    fn from(extents: [Extent; N]) -> Self {
        extents.to_vec().into()
    }
}

impl<'a> IntoIterator for &'a Extents {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Extents {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
impl Eq for Extents {}

impl std::fmt::Debug for Extents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::SlotId;

    #[test]
    fn one_extent_takes_no_more_than_a_pointer_would() {
        assert_eq!(size_of::<Extents>(), 16);
        let at = SlotId { class: 1, slot: 2 };
        for n in 0..4 {
            let extents: Vec<Extent> = (0..n).map(|i| Extent::new(i, 1, at, 0)).collect();
            assert_eq!(*Extents::from(extents.clone()), extents);
        }
    }

    #[test]
    fn what_others_do_not_have_is_found() {
        let extent = |first, slot| Extent::new(first, 1, SlotId { class: 0, slot }, 0);
        let all = |extents: &[Extent]| Extents::from(extents);
        let a = all(&[extent(0, 1), extent(1, 2), extent(3, 3), extent(7, 4)]);
        let b = all(&[extent(0, 1), extent(1, 9), extent(2, 5), extent(7, 4), extent(8, 6)]);
        assert_eq!(a.unlike(&b), [extent(1, 2), extent(3, 3)]);
        assert_eq!(b.unlike(&a), [extent(1, 9), extent(2, 5), extent(8, 6)]);
        assert_eq!(a.unlike(&Extents::default()), *a);
        assert!(a.unlike(&a).is_empty() && a.contains(&extent(3, 3)) && !a.contains(&extent(3, 4)));
    }
}
