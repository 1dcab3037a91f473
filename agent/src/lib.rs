//! Bulkhead's guest agent: PID 1 of every machine, and the protocol it shares with the host.
