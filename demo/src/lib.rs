//! What the demonstration is made of: a site of real processes that is driven
//! as a user would, the text detector, applications, pictures, and a federation. The benchmarks
//! use the same site.
//!
//! Start at [`site`].

pub mod applications;
pub mod boxes;
pub mod cache;
pub mod classes;
pub mod detector;
pub mod draw;
pub mod federation;
pub mod picture;
pub mod screen;
pub mod site;
pub mod table;
