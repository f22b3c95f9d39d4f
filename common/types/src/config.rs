//! Settings that document themselves: what stands as a comment in the source is what
//! `ember config show --defaults` prints.

/// A group of settings with defaults and documentation.
pub trait Documented: Default + serde::Serialize + serde::de::DeserializeOwned {
    /// What the group is for.
    const ABOUT: &'static str;
    /// `(field, its documentation)`, in the order of the struct.
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// Declares a group of settings: a struct whose fields have a default and a comment. Unknown keys are refused.
///
/// ```
/// ember_types::config! {
///     /// Settings of an example.
///     pub struct Example {
///         /// How often, in milliseconds.
///         pub period_ms: u64 = 500,
///     }
/// }
/// assert_eq!(Example::default().period_ms, 500);
/// ```
#[macro_export]
macro_rules! config {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                pub $field:ident: $type:ty = $default:expr
            ),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, PartialEq, Debug, $crate::config::serde::Serialize, $crate::config::serde::Deserialize)]
        #[serde(crate = "ember_types::config::serde", deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::config::Documented for $name {
            const ABOUT: &'static str = concat!($($about, "\n",)*);
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), concat!($($doc, "\n",)*)),)*];
        }
    };
}

#[doc(hidden)]
pub use serde;
