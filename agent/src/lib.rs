//! Bulkhead's guest agent: PID 1 of every machine.
//!
//! [`protocol`] is the only thing that host and guest share; everything under [`guest`] runs inside the machine and
//! knows nothing of the host but a vsock.

pub mod guest;
pub mod protocol;
