//! The extents of a content, small: most contents have one, and it takes no memory of its own.

use crate::record::Extent;
use std::ops::Deref;

#[derive(Clone, Default)]
enum Kept {
    #[default]
    None,
    One(Extent),
    // Boxed twice: a fat pointer would double the size of all contents.
    Many(Box<Box<[Extent]>>),
}

/// Extents, sorted by their first block, without overlap.
#[derive(Clone, Default)]
pub(crate) struct Extents(Kept);

impl Extents {
    /// Just one.
    pub(crate) fn one(extent: Extent) -> Self {
        Self(Kept::One(extent))
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
            _ => Kept::Many(Box::new(extents.into())),
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
}
