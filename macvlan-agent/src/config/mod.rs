//! What the user asks for: on the command line, and in the file.

pub mod args;
pub mod check;
pub mod file;
pub mod load;
pub mod manage_args;
pub mod reference;
pub mod values;

mod places;
