//! A device that goes on from a snapshot, and its guest, which still holds the streams of before.

use super::super::device::QUEUE_EVENT;
use super::*;

/// Has clients of the host ask for streams; the ports of the host that name them.
fn ports_of_clients(guest: &mut Guest, path: &std::path::Path) -> Vec<u32> {
    let mut clients = Vec::new();
    let ports = (0..5).map(|_| {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(b"CONNECT 77\n").unwrap();
        clients.push(client);
        guest.expect(op::REQUEST).src_port
    });
    ports.collect()
}

#[test]
fn streams_after_a_restore_have_names_that_none_had_before() {
    let directory = tempfile::tempdir().unwrap();
    let device = |name: &str| {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        (Vsock::new(3, Some(listener.into()), []).unwrap(), path)
    };
    let (first, path) = device("first");
    let mut guest = Guest::new(first);
    let before = ports_of_clients(&mut guest, &path);
    let saved = guest.device.save().unwrap();
    for name in ["one", "two"] {
        let (mut twin, path) = device(name);
        twin.restore(&saved).unwrap();
        let mut guest = Guest::new(twin);
        let after = ports_of_clients(&mut guest, &path);
        assert!(after.iter().all(|port| !before.contains(port)), "{before:?} {after:?}");
    }
    // A state may come from anywhere.
    let (mut other, _) = device("other");
    for wrong in [&[][..], &[0; 4], &[0xff; 4], &[0, 0, 0, 0x40, 0]] {
        assert!(other.restore(wrong).unwrap_err().text.contains("no state of a socket device"), "{wrong:?}");
    }
}

#[test]
fn the_driver_is_told_once_that_its_connections_are_gone() {
    let mut guest = Guest::new(Vsock::new(3, None, []).unwrap());
    let saved = guest.device.save().unwrap();
    guest.device.restore(&saved).unwrap();
    // Without a buffer for it there is nothing to tell it by.
    let mut io = Io { memory: &guest.memory, queues: &mut guest.queues, interrupt: &guest.interrupts };
    guest.device.restored(&mut io).unwrap();
    assert_eq!(guest.interrupts.0.load(Ordering::Relaxed), 0);
    let address = BUFFERS[QUEUE_TX];
    for slot in 0..2u16 {
        guest.memory.write_slice(&[0xff; 8], GuestAddress(address)).unwrap();
        guest.descriptor(QUEUE_EVENT, slot, address, 8, 2, 0);
        guest.memory.write_obj(slot, GuestAddress(ring(QUEUE_EVENT, 1) + 4 + 2 * u64::from(slot))).unwrap();
    }
    guest.memory.write_obj(2u16, GuestAddress(ring(QUEUE_EVENT, 1) + 2)).unwrap();
    let mut io = Io { memory: &guest.memory, queues: &mut guest.queues, interrupt: &guest.interrupts };
    guest.device.restored(&mut io).unwrap();
    guest.event(Some(QUEUE_EVENT)).unwrap();
    // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, in the first buffer.
    let used: [u8; 12] = guest.memory.read_obj(GuestAddress(ring(QUEUE_EVENT, 2))).unwrap();
    assert_eq!(used, [0, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
    let event: [u8; 8] = guest.memory.read_obj(GuestAddress(address)).unwrap();
    assert_eq!(event, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(guest.interrupts.0.load(Ordering::Relaxed), 1);
}
