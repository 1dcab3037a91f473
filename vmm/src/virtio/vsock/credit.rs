//! Credit: how many bytes each side may still send (virtio 1.2 section 5.10.6.3). All counters wrap modulo 2^32.

/// Flow control of one stream, both directions.
#[derive(Debug)]
pub struct Credit {
    /// Our buffer space, as told to the guest.
    buf_alloc: u32,
    /// Bytes received from the guest.
    received: u32,
    /// Of these, bytes that left our buffer.
    forwarded: u32,
    /// `forwarded`, as the guest was last told.
    told: u32,
    /// The guest's buffer space.
    peer_buf_alloc: u32,
    /// What left the guest's buffer, as it last told us.
    peer_forwarded: u32,
    /// Bytes sent to the guest.
    sent: u32,
}

impl Credit {
    /// A new stream, for which we hold at most `buf_alloc` bytes that the host's socket does not take yet.
    #[must_use]
    pub fn new(buf_alloc: u32) -> Self {
        Self { buf_alloc, received: 0, forwarded: 0, told: 0, peer_buf_alloc: 0, peer_forwarded: 0, sent: 0 }
    }

    /// Takes over what a header of the guest says about its buffer.
    pub fn update(&mut self, peer_buf_alloc: u32, peer_forwarded: u32) {
        self.peer_buf_alloc = peer_buf_alloc;
        self.peer_forwarded = peer_forwarded;
    }

    /// Bytes that may be sent to the guest now. A guest that claims to have forwarded more than it got has no credit.
    #[must_use]
    pub fn may_send(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Bytes were sent to the guest.
    pub fn on_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes came from the guest. False if they exceed our buffer: the guest breaks the rules.
    #[must_use]
    pub fn on_received(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > self.buf_alloc.saturating_sub(held) {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }

    /// Bytes left our buffer.
    pub fn on_forwarded(&mut self, bytes: usize) {
        // No more than `buf_alloc` can ever be in the buffer, so that the count fits.
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether the guest should be told: it thinks that less than half of our buffer is free, and that is too low.
    #[must_use]
    pub fn worth_telling(&self) -> bool {
        let free_as_told = self.buf_alloc.saturating_sub(self.received.wrapping_sub(self.told));
        self.forwarded != self.told && free_as_told < self.buf_alloc / 2
    }

    /// `(buf_alloc, fwd_cnt)` for the header of a packet that is certain to be sent.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buf_alloc, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_cannot_send_more_than_the_buffer_holds() {
        let mut credit = Credit::new(100);
        assert!(credit.on_received(60));
        assert!(!credit.on_received(41));
        assert!(credit.on_received(40));
        credit.on_forwarded(10);
        assert!(!credit.on_received(11));
        assert!(credit.on_received(10));
    }

    #[test]
    fn we_send_no_more_than_the_guest_allows_and_wrap() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.may_send(), 0);
        credit.sent = u32::MAX - 10;
        credit.update(64, u32::MAX - 10);
        credit.on_sent(40);
        assert_eq!(credit.may_send(), 24);
        credit.update(64, credit.sent);
        assert_eq!(credit.may_send(), 64);
        credit.update(64, credit.sent.wrapping_add(1));
        assert_eq!(credit.may_send(), 0, "more forwarded than sent");
        credit.update(16, credit.sent.wrapping_sub(64));
        assert_eq!(credit.may_send(), 0, "a buffer that shrank");
    }

    #[test]
    fn the_guest_is_told_when_it_runs_low_and_not_twice() {
        let mut credit = Credit::new(100);
        assert!(credit.on_received(40));
        credit.on_forwarded(40);
        assert!(!credit.worth_telling(), "it still sees 60 of 100");
        assert!(credit.on_received(20));
        assert!(credit.worth_telling(), "it sees 40 of 100");
        assert_eq!(credit.tell(), (100, 40));
        assert!(!credit.worth_telling());
    }
}
