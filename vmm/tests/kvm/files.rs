//! Files made on the fly: ELF images, cpio archives, all in memory.

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// An anonymous file with this content, at its start.
pub fn memfd(content: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

/// A static 64-bit ELF executable: one segment at `address`, entered at its start.
pub fn elf(address: u64, code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let size = code.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    // Type: executable; machine: x86-64; version.
    image.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    for word in [address, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    // Flags; sizes and counts of the headers: one program header, no sections.
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // Load, readable, writable and executable.
    image.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    // The offset is congruent to the address, as loaders want it.
    let offset = HEADERS.next_multiple_of(4096);
    for word in [offset, address, address, size, size, 4096] {
        image.extend(word.to_le_bytes());
    }
    image.resize(usize::try_from(offset).unwrap(), 0);
    image.extend(code);
    image
}

/// One member of a cpio archive.
pub struct Member<'a> {
    pub name: &'a str,
    /// Type and permissions.
    pub mode: u32,
    /// Device number (major, minor) of a device node.
    pub device: (u32, u32),
    pub content: &'a [u8],
}

/// A cpio archive ("newc"), as the kernel unpacks it.
pub fn cpio(members: &[Member<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    let trailer = Member { name: "TRAILER!!!", mode: 0, device: (0, 0), content: &[] };
    for (inode, member) in (1u32..).zip(members.iter().chain([&trailer])) {
        let size = u32::try_from(member.content.len()).unwrap();
        let name = u32::try_from(member.name.len() + 1).unwrap();
        let (major, minor) = member.device;
        archive.extend(b"070701");
        for field in [inode, member.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0] {
            archive.extend(format!("{field:08X}").bytes());
        }
        archive.extend(member.name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(member.content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
