//! Checks of histories: what clients asked and were told, against sequential models.

pub mod chunk;
pub mod names;
pub mod wgl;

pub use wgl::{Event, Model, Verdict};
