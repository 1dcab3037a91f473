use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::extents::Extent;
use super::*;
use crate::config::{Bucket, ExtentConfig, Fd, RateLimit};
use crate::virtio::testing::{Driver, END, INDIRECT, NEXT, SEAM, SIZE, WRITE, rings_within};

const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4100;
const DATA: u64 = 0x5000;

fn file(content: &[u8]) -> Arc<File> {
    let mut file = File::from(memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    Arc::new(file)
}

fn content(file: &Arc<File>) -> Vec<u8> {
    let mut file = &**file;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn block(parts: &[(&Arc<File>, u64, u64)], read_only: bool) -> Block {
    let extents = parts.iter().map(|(file, offset, length)| Extent {
        file: Arc::clone(file),
        offset: *offset,
        length: *length,
    });
    let mut block = Block::new(0, extents.collect(), read_only).unwrap();
    let features = block.features();
    block.set_features(features);
    block
}

fn header(driver: &Driver, kind: u32, sector: u64) {
    driver.write(HEADER, &kind.to_le_bytes());
    driver.write(HEADER + 4, &[0; 4]);
    driver.write(HEADER + 8, &sector.to_le_bytes());
    driver.write(STATUS, &[0xff]);
}

/// Plays a request of three parts and returns its status and used length.
fn play(
    driver: &mut Driver,
    block: &mut Block,
    kind: u32,
    sector: u64,
    data: &[(u64, u32, bool)],
) -> (u8, u32) {
    header(driver, kind, sector);
    let mut parts = vec![(HEADER, 16, false)];
    parts.extend(data);
    parts.push((STATUS, 1, true));
    driver.chain(&parts);
    driver.notify(block).unwrap();
    let (head, length) = driver.used().unwrap();
    assert_eq!(head, 0);
    (driver.read(STATUS, 1)[0], length)
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[test]
fn reads_across_extents_files_ends_and_memory_regions() {
    let a = file(&[b'a'; 1024]);
    let b = file(&[b'b'; 700]);
    let mut block = block(&[(&a, 512, 512), (&b, 0, 1024), (&a, 0, 512)], true);
    let mut driver = Driver::new();
    // 2048 bytes over three descriptors, the second of which crosses the seam of two regions.
    let parts = [(DATA, 100, true), (SEAM - 50, 1000, true), (DATA + 2048, 948, true)];
    driver.write(DATA + 2048, &[b'x'; 948]);
    assert_eq!(play(&mut driver, &mut block, 0, 0, &parts), (OK, 2049));
    let mut got = driver.read(DATA, 100);
    got.extend(driver.read(SEAM - 50, 1000));
    got.extend(driver.read(DATA + 2048, 948));
    let mut want = vec![b'a'; 512];
    want.extend([b'b'; 700]);
    want.extend([0; 324]);
    want.extend([b'a'; 512]);
    assert_eq!(got, want);
    assert_eq!(driver.interrupts.0.load(Ordering::Relaxed), 1);
}

#[test]
fn writes_flushes_and_tells_its_id() {
    let a = file(&[0; 1024]);
    let mut block = block(&[(&a, 0, 512), (&a, 512, 4096)], false);
    let mut driver = Driver::new();
    driver.write(DATA, &[b'w'; 1024]);
    assert_eq!(
        play(&mut driver, &mut block, 1, 0, &[(DATA, 1000, false), (DATA + 1000, 24, false)]),
        (OK, 1)
    );
    assert_eq!(content(&a), [b'w'; 1024]);
    assert_eq!(play(&mut driver, &mut block, 4, 0, &[]), (OK, 1));
    assert_eq!(play(&mut driver, &mut block, 8, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(&driver.read(DATA, 7), b"block0\0");
}

#[test]
fn takes_a_header_in_pieces_with_data_and_status_in_one() {
    let a = file(&[b'a'; 512]);
    let mut block = block(&[(&a, 0, 512)], false);
    let mut driver = Driver::new();
    header(&driver, 0, 0);
    driver.chain(&[(HEADER, 3, false), (HEADER + 3, 0, false), (HEADER + 3, 13, false), (DATA, 513, true)]);
    driver.notify(&mut block).unwrap();
    assert_eq!(driver.used(), Some((0, 513)));
    assert_eq!(driver.read(DATA, 512), [b'a'; 512]);
    assert_eq!(driver.read(DATA + 512, 1), [OK]);

    // Header and data in one descriptor.
    header(&driver, 1, 0);
    driver.write(HEADER + 16, &[b'z'; 512]);
    driver.chain(&[(HEADER, 528, false), (DATA, 1, true)]);
    driver.notify(&mut block).unwrap();
    assert_eq!(driver.read(DATA, 1), [OK]);
    assert_eq!(content(&a), [b'z'; 512]);
}

#[test]
fn takes_indirect_tables() {
    let a = file(&[b'a'; 512]);
    let mut block = block(&[(&a, 0, 512)], false);
    let mut driver = Driver::new();
    header(&driver, 0, 0);
    driver.descriptor_at(0x6000, 0, (HEADER, 16, NEXT, 1));
    driver.descriptor_at(0x6000, 1, (DATA, 512, NEXT | WRITE, 2));
    driver.descriptor_at(0x6000, 2, (STATUS, 1, WRITE, 0));
    driver.descriptor(5, (0x6000, 48, INDIRECT, 0));
    driver.offer(5);
    driver.notify(&mut block).unwrap();
    assert_eq!(driver.used(), Some((5, 513)));
    assert_eq!(driver.read(DATA, 512), [b'a'; 512]);
}

#[test]
fn punches_holes_and_writes_zeroes() {
    let a = file(&[b'a'; 8192]);
    let mut block = block(&[(&a, 0, 8192)], false);
    let mut driver = Driver::new();
    let range = |sector: u64, count: u32, flags: u32| {
        let mut raw = sector.to_le_bytes().to_vec();
        raw.extend(count.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw
    };
    driver.write(DATA, &range(0, 8, 0));
    assert_eq!(play(&mut driver, &mut block, 11, 0, &[(DATA, 16, false)]), (OK, 1));
    driver.write(DATA, &range(8, 2, 1));
    assert_eq!(play(&mut driver, &mut block, 13, 0, &[(DATA, 16, false)]), (OK, 1));
    let mut want = vec![0; 5120];
    want.extend([b'a'; 3072]);
    assert_eq!(content(&a), want);
    for (kind, bytes, status) in [
        (11, range(0, 8, 1), UNSUPP),
        (13, range(0, 8, 2), UNSUPP),
        (11, range(15, 2, 0), IOERR),
        (11, range(u64::MAX, 2, 0), IOERR),
        (13, range(0, u32::MAX, 0), IOERR),
        (13, vec![0; 15], IOERR),
        (13, vec![0; 16 * 33], IOERR),
    ] {
        driver.write(DATA, &bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        assert_eq!(play(&mut driver, &mut block, kind, 0, &[(DATA, length, false)]).0, status);
    }
    assert_eq!(content(&a), want);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let a = file(&[b'a'; 1024]);
    let mut block = block(&[(&a, 0, 1024)], true);
    assert_ne!(block.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(block.features() & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
    let mut driver = Driver::new();
    for kind in [1, 11, 13] {
        driver.write(DATA, &[0; 512]);
        assert_eq!(play(&mut driver, &mut block, kind, 0, &[(DATA, 512, false)]), (IOERR, 1));
    }
    assert_eq!(content(&a), [b'a'; 1024]);
}

#[test]
fn malformed_requests_with_a_status_byte_get_an_error() {
    let a = file(&[b'a'; 1024]);
    let mut block = block(&[(&a, 0, 1024)], false);
    let mut driver = Driver::new();
    for (kind, sector, data, status) in [
        // Beyond the disk, and where the multiplication overflows.
        (0, 2, (DATA, 512, true), IOERR),
        (0, u64::MAX, (DATA, 512, true), IOERR),
        (0, u64::MAX / 512, (DATA, 512, true), IOERR),
        (1, 1, (DATA, 1024, false), IOERR),
        // Not whole sectors.
        (0, 0, (DATA, 511, true), IOERR),
        (1, 0, (DATA, 513, false), IOERR),
        // Beyond guest memory.
        (0, 0, (END, 512, true), IOERR),
        (0, 0, (END - 1, 512, true), IOERR),
        (1, 0, (u64::MAX - 100, 512, false), IOERR),
        // More than anyone may ask for.
        (0, 0, (DATA, u32::MAX - 511, true), IOERR),
        // Unknown and SCSI.
        (2, 0, (DATA, 512, true), UNSUPP),
        (77, 0, (DATA, 512, false), UNSUPP),
    ] {
        let (got, _) = play(&mut driver, &mut block, kind, sector, &[data]);
        assert_eq!(got, status, "kind {kind} sector {sector} data {data:?}");
    }
    // A header that is too short.
    driver.chain(&[(HEADER, 15, false), (STATUS, 1, true)]);
    driver.notify(&mut block).unwrap();
    assert_eq!(driver.read(STATUS, 1), [IOERR]);
    assert_eq!(content(&a), [b'a'; 1024]);
}

#[test]
fn a_driver_that_breaks_the_queue_loses_its_device() {
    let a = file(&[b'a'; 1024]);
    type Break = fn(&mut Driver);
    let breaks: &[(&str, Break)] = &[
        ("no status byte", |d| d.chain(&[(HEADER, 16, false)])),
        ("status byte beyond memory", |d| d.chain(&[(HEADER, 16, false), (END, 1, true)])),
        ("readable after writable", |d| d.chain(&[(STATUS, 1, true), (HEADER, 16, false)])),
        ("loop", |d| {
            d.descriptor(0, (HEADER, 16, NEXT, 1));
            d.descriptor(1, (HEADER, 16, NEXT, 0));
            d.offer(0);
        }),
        ("next beyond the table", |d| {
            d.descriptor(0, (HEADER, 16, NEXT, SIZE));
            d.offer(0);
        }),
        ("head beyond the table", |d| d.offer(SIZE)),
        ("available index too far", |d| d.set_available(SIZE + 1)),
        ("indirect in indirect", |d| {
            d.descriptor_at(0x6000, 0, (0x6000, 16, INDIRECT, 0));
            d.descriptor(0, (0x6000, 16, INDIRECT, 0));
            d.offer(0);
        }),
        ("indirect table of odd length", |d| {
            d.descriptor(0, (0x6000, 17, INDIRECT, 0));
            d.offer(0);
        }),
        ("indirect table beyond memory", |d| {
            d.descriptor(0, (END, 16, INDIRECT, 0));
            d.offer(0);
        }),
        ("indirect table longer than the queue", |d| {
            for i in 0..=SIZE {
                d.descriptor_at(0x6000, i, (STATUS, 1, NEXT | WRITE, i + 1));
            }
            d.descriptor(0, (0x6000, 16 * 64, INDIRECT, 0));
            d.offer(0);
        }),
        ("2^32 bytes", |d| d.chain(&[(HEADER, 16, false), (DATA, u32::MAX, true), (STATUS, 1, true)])),
    ];
    for (what, make) in breaks {
        let mut block = block(&[(&a, 0, 1024)], false);
        let mut driver = Driver::new();
        header(&driver, 0, 0);
        make(&mut driver);
        assert!(driver.notify(&mut block).is_err(), "{what}");
    }
}

#[test]
fn a_busy_queue_yields_and_asks_to_be_called_again() {
    let a = file(&vec![0; 1 << 20]);
    let mut block = block(&[(&a, 0, 1 << 20)], false);
    let mut driver = Driver::new();
    header(&driver, 0, 0);
    // Eight requests of 0.9 MiB: the fifth goes over the bound of 4 MiB.
    let half = u32::try_from(SEAM).unwrap() - 0x1_0000;
    driver.descriptor(0, (HEADER, 16, NEXT, 1));
    driver.descriptor(1, (0x1_0000, half, NEXT | WRITE, 2));
    driver.descriptor(2, (0x1_0000, half, NEXT | WRITE, 3));
    driver.descriptor(3, (STATUS, 1, WRITE, 0));
    for _ in 0..8 {
        driver.offer(0);
    }
    driver.notify(&mut block).unwrap();
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), 5);
    assert!(rings_within(&block, 0));
    driver.host_event(&mut block).unwrap();
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), 3);
    assert!(!rings_within(&block, 0));
}

#[test]
fn each_way_has_limits_of_its_own() {
    let a = file(&[0; 4096]);
    let mut block = block(&[(&a, 0, 4096)], false);
    let few = RateLimit { bytes: None, operations: Some(Bucket { per_second: 1, burst: 2 }) };
    let free = RateLimit::default();
    let mut driver = Driver::new();
    for (kind, flags) in [(0, NEXT | WRITE), (1, NEXT)] {
        header(&driver, kind, 0);
        driver.descriptor(0, (HEADER, 16, NEXT, 1));
        driver.descriptor(1, (DATA, 512, flags, 2));
        driver.descriptor(2, (STATUS, 1, WRITE, 0));
        for limited in [0, 1] {
            let (read, write) = if limited == 0 { (few, free) } else { (free, few) };
            block.command(&Command::LimitDiskWays { read: free, write: free }, &driver.interrupts).unwrap();
            block.command(&Command::LimitDiskWays { read, write }, &driver.interrupts).unwrap();
            for _ in 0..6 {
                driver.offer(0);
            }
            driver.notify(&mut block).unwrap();
            let served = std::iter::from_fn(|| driver.used()).count();
            // The burst, and what time has brought since.
            let some = (2..6).contains(&served);
            assert!(
                if kind == limited { some } else { served == 6 },
                "{served}: kind {kind}, limited {limited}"
            );
            block.command(&Command::LimitDiskWays { read: free, write: free }, &driver.interrupts).unwrap();
            driver.host_event(&mut block).unwrap();
            assert_eq!(served + std::iter::from_fn(|| driver.used()).count(), 6);
        }
    }
}

#[test]
fn a_limited_disk_goes_on_by_its_timer_and_at_once_when_the_limit_is_lifted() {
    let a = file(&[0; 4096]);
    let mut block = block(&[(&a, 0, 4096)], false);
    let limit = |per_second| {
        Command::LimitDisk(RateLimit { bytes: Some(Bucket { per_second, burst: 1024 }), operations: None })
    };
    let mut driver = Driver::new();
    block.command(&limit(2048), &driver.interrupts).unwrap();
    header(&driver, 0, 0);
    driver.descriptor(0, (HEADER, 16, NEXT, 1));
    driver.descriptor(1, (DATA, 512, NEXT | WRITE, 2));
    driver.descriptor(2, (STATUS, 1, WRITE, 0));
    for _ in 0..8 {
        driver.offer(0);
    }
    driver.notify(&mut block).unwrap();
    // The burst, and nothing more however often the driver asks.
    driver.notify(&mut block).unwrap();
    let served = std::iter::from_fn(|| driver.used()).count();
    assert!((2..8).contains(&served), "{served}");
    let mut turns = 0;
    let mut total = served;
    while total < 6 {
        // Nothing but the timer calls: a turn without a request served could only be a spurious one.
        assert!(rings_within(&block, 20_000));
        driver.host_event(&mut block).unwrap();
        total += std::iter::from_fn(|| driver.used()).count();
        turns += 1;
    }
    assert!(turns <= 8, "{turns} turns for {total} requests");
    block.command(&limit(0), &driver.interrupts).unwrap_err();
    let none = RateLimit::default();
    let zero = RateLimit { bytes: None, operations: Some(Bucket { per_second: 0, burst: 1 }) };
    block.command(&Command::LimitDiskWays { read: none, write: zero }, &driver.interrupts).unwrap_err();
    block.command(&Command::SetLink { up: true }, &driver.interrupts).unwrap_err();
    block.command(&Command::LimitDisk(RateLimit::default()), &driver.interrupts).unwrap();
    assert!(rings_within(&block, 0));
    driver.host_event(&mut block).unwrap();
    total += std::iter::from_fn(|| driver.used()).count();
    assert_eq!(total, 8);
    let counters = block.counters();
    assert_eq!(counters[..2], [("requests", 8), ("bytes", 8 * 512)]);
    assert!(counters[2].1 > 0);
}

#[test]
fn descriptors_must_allow_what_the_disk_does_and_no_more() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), [b'a'; 512]).unwrap();
    let read = Arc::new(File::open(path.path()).unwrap());
    let both = Arc::new(File::options().read(true).write(true).open(path.path()).unwrap());
    let write = Arc::new(File::options().write(true).open(path.path()).unwrap());
    for (file, read_only, allowed) in [
        (&read, true, true),
        (&read, false, false),
        (&both, true, false),
        (&both, false, true),
        (&write, true, false),
        (&write, false, false),
    ] {
        let extent = ExtentConfig { file: Fd(0), offset: 0, length: 512 };
        let disk = DiskConfig {
            read_only,
            extents: vec![extent],
            limit: RateLimit::default(),
            read: RateLimit::default(),
            write: RateLimit::default(),
        };
        let made = Block::from_config(3, &disk, std::slice::from_ref(file));
        assert_eq!(made.is_ok(), allowed, "{file:?} read-only {read_only}");
        if let Err(error) = made {
            assert!(error.to_string().starts_with("disk 3: descriptor 0 must be opened"), "{error}");
        }
    }
}

#[test]
fn without_flush_writes_are_durable_at_once() {
    let a = file(&[0; 512]);
    let mut block = block(&[(&a, 0, 512)], false);
    block.set_features(0);
    assert!(block.disk.write_through);
    let mut driver = Driver::new();
    driver.write(DATA, &[b'w'; 512]);
    assert_eq!(play(&mut driver, &mut block, 1, 0, &[(DATA, 512, false)]), (OK, 1));
    assert_eq!(content(&a), [b'w'; 512]);
}

#[test]
fn configuration_space_is_as_the_specification_lays_it_out() {
    let a = file(&[]);
    let block = block(&[(&a, 0, 512 * 77)], false);
    let mut capacity = [0u8; 8];
    block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 77);
    let mut beyond = [1u8; 8];
    block.read_config(56, &mut beyond);
    assert_eq!(beyond, [1, 0, 0, 0, 0, 0, 0, 0]);
    block.read_config(usize::MAX, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}
