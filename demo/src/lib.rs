//! What the demonstration is made of: a site of real processes that is driven
//! as a user would, the text detector, and pictures. The benchmarks use the
//! same site.
//!
//! Start at [`site`].

pub mod boxes;
pub mod detector;
pub mod draw;
pub mod picture;
pub mod site;
pub mod table;
