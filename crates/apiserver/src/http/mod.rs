//! From bytes on a connection to a call of the engine, and back.

pub mod body;
pub mod handler;
pub mod in_process;
pub mod negotiate;
pub mod request_info;
pub mod respond;
mod serve;
