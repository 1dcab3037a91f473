use std::fs::File;
use std::os::linux::fs::MetadataExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset};

use super::*;
use crate::virtio::testing::{Driver, END, SEAM, rings_within};

const CONFIG: BalloonConfig =
    BalloonConfig { target_mib: 2, deflate_on_oom: true, free_page_reporting: true };
const LIST: u64 = 0x5000;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

fn balloon() -> Balloon {
    let mut balloon = Balloon::new(&CONFIG, 64).unwrap();
    balloon.set_features(balloon.features());
    balloon
}

/// A driver whose memory is a file that others map as well, as under vhost-user.
fn shared() -> (Driver, File) {
    let file = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(END).unwrap();
    let half = usize::try_from(SEAM).unwrap();
    let range = |at| (GuestAddress(at), half, Some(FileOffset::new(file.try_clone().unwrap(), at)));
    let memory = GuestMemoryMmap::from_ranges_with_files([range(0), range(SEAM)]).unwrap();
    (Driver::with_memory(memory, 4), file)
}

fn inflate(
    driver: &mut Driver,
    balloon: &mut Balloon,
    queue: usize,
    pages: &[u32],
) -> Result<(), DeviceError> {
    let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.write(LIST, &list);
    driver.chain_on(queue, 0, &[(LIST, u32::try_from(list.len()).unwrap(), false)]);
    driver.notify_on(queue, balloon)
}

fn page_is_zero(driver: &Driver, page: u64) -> bool {
    driver.read(page * PAGE, 4096) == [0; 4096]
}

fn counter(balloon: &Balloon, name: &str) -> u64 {
    balloon.counters().into_iter().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn inflated_pages_go_back_to_the_host_from_private_and_from_shared_memory() {
    let (shared, file) = shared();
    for (mut driver, file) in [(Driver::with_queues(4), None), (shared, Some(file))] {
        let mut balloon = balloon();
        for page in 0x20..0x90u64 {
            driver.memory.write_slice(&[7; 4096], GuestAddress(page * PAGE)).unwrap();
        }
        // Touches what the queue itself needs.
        inflate(&mut driver, &mut balloon, QUEUE_INFLATE, &[0x20]).unwrap();
        assert_eq!(driver.used_on(QUEUE_INFLATE), Some((0, 0)));
        let before = file.as_ref().map(|file| file.metadata().unwrap().st_blocks());
        // Out of order, one twice, across the seam of the two regions.
        inflate(&mut driver, &mut balloon, QUEUE_INFLATE, &[0x82, 0x7f, 0x80, 0x30, 0x81, 0x7e, 0x30])
            .unwrap();
        assert_eq!(driver.used_on(QUEUE_INFLATE), Some((0, 0)));
        if let (Some(file), Some(before)) = (file, before) {
            assert_eq!(before - file.metadata().unwrap().st_blocks(), 6 * 8);
        }
        for page in [0x30, 0x7e, 0x7f, 0x80, 0x81, 0x82] {
            assert!(page_is_zero(&driver, page), "{page:#x}");
        }
        for page in [0x2f, 0x31, 0x7d, 0x83] {
            assert!(!page_is_zero(&driver, page), "{page:#x}");
        }
        assert_eq!(counter(&balloon, "inflated_bytes"), 7 * PAGE);
        inflate(&mut driver, &mut balloon, QUEUE_DEFLATE, &[0x30, 0x80]).unwrap();
        assert_eq!(counter(&balloon, "deflated_bytes"), 2 * PAGE);
    }
}

#[test]
fn reported_ranges_go_back_to_the_host_as_far_as_they_are_whole_pages() {
    let (mut driver, _file) = shared();
    let mut balloon = balloon();
    for page in 0x70..0x90u64 {
        driver.memory.write_slice(&[7; 4096], GuestAddress(page * PAGE)).unwrap();
    }
    let parts = [(0x71_800, 0x2_000, true), (0x7f_000, 0x2_000, true), (0x88_010, 0xfe0, true)];
    driver.chain_on(REPORTING, 0, &parts);
    driver.notify_on(REPORTING, &mut balloon).unwrap();
    assert_eq!(driver.used_on(REPORTING), Some((0, 0)));
    let zero: Vec<u64> = (0x70..0x90).filter(|page| page_is_zero(&driver, *page)).collect();
    assert_eq!(zero, [0x72, 0x7f, 0x80]);
    assert_eq!(counter(&balloon, "reported_bytes"), 0x4fe0);
}

#[test]
fn the_target_changes_and_the_driver_tells_what_it_reached() {
    let driver = Driver::with_queues(4);
    let mut balloon = balloon();
    let resize = |balloon: &mut Balloon, mib| {
        balloon
            .command(&Command::ResizeBalloon { mib }, &driver.interrupts)
            .map_err(|error| error.to_string())
    };
    let target = |balloon: &Balloon| {
        let mut bytes = [0; 4];
        balloon.read_config(0, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!(target(&balloon), 512);
    resize(&mut balloon, 2).unwrap();
    assert_eq!(driver.interrupts.changes(), 0);
    resize(&mut balloon, 64).unwrap();
    assert_eq!((driver.interrupts.changes(), target(&balloon)), (1, 64 * 256));
    assert!(resize(&mut balloon, 65).unwrap_err().contains("65"));
    assert!(resize(&mut balloon, u32::MAX).is_err());
    assert_eq!(target(&balloon), 64 * 256);
    for (offset, data) in
        [(4, &[9u8, 0, 0, 0][..]), (4, &[1]), (0, &[1, 0, 0, 0]), (5, &[1; 4]), (usize::MAX, &[1; 4])]
    {
        balloon.write_config(offset, data);
    }
    assert_eq!(counter(&balloon, "actual_bytes"), 9 * PAGE);
    assert_eq!(target(&balloon), 64 * 256);
    balloon.reset();
    assert_eq!(counter(&balloon, "actual_bytes"), 0);
    assert_eq!(target(&balloon), 64 * 256, "the supervisor's wish outlives a reset");
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut driver = Driver::with_queues(4);
    let mut balloon = balloon();
    let put = |driver: &mut Driver, balloon: &mut Balloon, entries: &[(u16, u64)]| {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        driver.write(LIST, &bytes);
        driver.chain_on(STATISTICS, 0, &[(LIST, u32::try_from(bytes.len()).unwrap(), false)]);
        driver.notify_on(STATISTICS, balloon).unwrap();
    };
    put(&mut driver, &mut balloon, &[(4, 1000), (5, 4000), (99, 1), (u16::MAX, 2)]);
    assert_eq!(driver.used_on(STATISTICS), None, "the buffer is kept");
    assert_eq!(counter(&balloon, "guest_free_bytes"), 1000);
    assert_eq!(balloon.counters().len(), 5 + 2);
    balloon.command(&Command::AskStatistics, &driver.interrupts).unwrap();
    assert!(rings_within(&balloon, 0));
    driver.host_event(&mut balloon).unwrap();
    assert_eq!(driver.used_on(STATISTICS), Some((0, 0)));
    put(&mut driver, &mut balloon, &[(4, 900)]);
    assert_eq!(counter(&balloon, "guest_free_bytes"), 900);
    // Asked before there is a buffer: given back as soon as there is one.
    balloon.reset();
    balloon.set_features(balloon.features());
    balloon.command(&Command::AskStatistics, &driver.interrupts).unwrap();
    driver.host_event(&mut balloon).unwrap();
    assert_eq!(driver.used_on(STATISTICS), None);
    put(&mut driver, &mut balloon, &[(4, 800)]);
    assert_eq!(driver.used_on(STATISTICS), Some((0, 0)));
    assert!(!rings_within(&balloon, 0));
}

#[test]
fn queues_are_numbered_without_gaps() {
    let mut balloon = Balloon::new(&CONFIG, 64).unwrap();
    assert_eq!((balloon.statistics_queue(), balloon.reporting_queue()), (None, None));
    balloon.set_features(FEATURE_REPORTING);
    assert_eq!((balloon.statistics_queue(), balloon.reporting_queue()), (None, Some(2)));
    balloon.set_features(FEATURE_REPORTING | FEATURE_STATISTICS);
    assert_eq!((balloon.statistics_queue(), balloon.reporting_queue()), (Some(2), Some(3)));
    let plain = BalloonConfig { target_mib: 0, deflate_on_oom: false, free_page_reporting: false };
    assert_eq!(Balloon::new(&plain, 64).unwrap().features(), FEATURE_STATISTICS);
}

#[test]
fn pages_that_are_not_there_cost_the_device() {
    for (queue, pages) in [(QUEUE_INFLATE, &[u32::MAX][..]), (QUEUE_INFLATE, &[0xff, 0x100])] {
        let mut driver = Driver::with_queues(4);
        assert!(inflate(&mut driver, &mut balloon(), queue, pages).is_err(), "{pages:x?}");
    }
    type Break = fn(&mut Driver);
    let breaks: &[(&str, usize, Break)] = &[
        ("a number in pieces", QUEUE_INFLATE, |d| d.chain_on(QUEUE_INFLATE, 0, &[(LIST, 3, false)])),
        ("too many numbers", QUEUE_INFLATE, |d| d.chain_on(QUEUE_INFLATE, 0, &[(LIST, 4100, false)])),
        ("a list of 4 GiB", QUEUE_DEFLATE, |d| d.chain_on(QUEUE_DEFLATE, 0, &[(LIST, u32::MAX - 3, false)])),
        ("a list to write to", QUEUE_DEFLATE, |d| d.chain_on(QUEUE_DEFLATE, 0, &[(LIST, 4, true)])),
        ("a list beyond memory", QUEUE_INFLATE, |d| d.chain_on(QUEUE_INFLATE, 0, &[(END, 4, false)])),
        ("a range beyond memory", REPORTING, |d| d.chain_on(REPORTING, 0, &[(END - 4096, 8192, true)])),
        ("a range that overflows", REPORTING, |d| d.chain_on(REPORTING, 0, &[(u64::MAX - 5, 4096, true)])),
        ("a range in the last page that there could be", REPORTING, |d| {
            d.chain_on(REPORTING, 0, &[(u64::MAX - 5, 3, true)]);
        }),
        ("statistics beyond memory", STATISTICS, |d| d.chain_on(STATISTICS, 0, &[(END, 10, false)])),
    ];
    for (what, queue, make) in breaks {
        let mut driver = Driver::with_queues(4);
        make(&mut driver);
        assert!(driver.notify_on(*queue, &mut balloon()).is_err(), "{what}");
    }
}
