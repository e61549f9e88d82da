//! What a database can hold and a schema can become: every row is published as documented or blocks its aggregate
//! with a reason that names the column; the relay never ends, and no row reaches another topic.

mod changes;
mod large;
pub mod rig;
mod rows;
