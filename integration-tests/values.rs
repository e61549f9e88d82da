//! One value is spelt in one way, whoever reads it: the table or the log, with whatever type, table and database it has.

mod changes;
mod columns;
mod parts;
mod sendable;
mod spelling;
