//! nf_tables without the `nft` program: tables as values, their difference as one transaction.
//!
//! [`table`] and [`rule`] say what a table should be, [`diff`] turns the difference of two tables into messages; both
//! are pure. [`Tables`] is the shell that sends them and notices when others changed the rules. Only tables whose
//! names we were given are ever touched.

mod check;
pub mod diff;
pub mod expr;
pub mod frame;
pub mod part;
pub mod rule;
mod socket;
pub mod table;

pub use socket::{Tables, probe};
