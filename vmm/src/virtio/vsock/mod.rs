//! The virtio socket device (virtio 1.2 section 5.10), bridged to unix stream sockets of the host.
//!
//! Two ways in, as with Firecracker's hybrid vsock:
//!
//! - a client of the host connects to the listener and writes `CONNECT <port>\n`; once the guest's listener on that port
//!   has accepted, it reads `OK <host port>\n`, and from then on bytes flow both ways;
//! - the guest connects to the host (CID 2) on a port of the configuration, and gets the connected socket behind it. Each
//!   such port works once.
//!
//! Memory is bounded whatever either side does: nothing is read from the host before the guest has credit and a buffer
//! for it, and what the guest sends is bounded by the credit that it was given. No byte is lost on an orderly close:
//! what the guest sent before its shutdown or reset reaches the host's socket first.
//!
//! The parts, lowest first: [`packet`] (the header on the wire), [`credit`] (flow control), [`connection`] (one
//! stream), [`muxer`] (all streams, and the host's side of setting them up), [`device`] (the queues).

pub mod connection;
pub mod credit;
pub mod device;
mod handshake;
pub mod muxer;
pub mod packet;
#[cfg(test)]
mod tests;

pub use device::Vsock;
