//! The structs and numbers of `<linux/fuse.h>`, ABI 7.31 to 7.45, as the kernel lays them out in memory.
//!
//! Native byte order, every struct padded to 8 bytes. Fields keep the names of the header, so that the header
//! and the kernel's documentation explain them; sizes are asserted at compile time.

mod consts;
mod input;
mod output;

pub use consts::*;
pub use input::*;
pub use output::*;

/// Declares plain structs of the kernel ABI and asserts their sizes.
macro_rules! abi_structs {
    ($( $(#[$meta:meta])* $name:ident = $size:literal { $( $field:ident: $ty:ty ),* $(,)? } )*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)]
        #[allow(missing_docs, reason = "fields are named and explained by <linux/fuse.h>")]
        pub struct $name { $( pub $field: $ty ),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}
use abi_structs;
