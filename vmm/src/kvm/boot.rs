//! Direct boot of an ELF vmlinux by the 64-bit boot protocol (Linux, Documentation/x86/boot.rst).

use std::fs::File;
use std::io::{Seek, SeekFrom};

use crate::memory::GuestMemoryMmap;
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::layout::{
    COMMAND_LINE, COMMAND_LINE_BYTES, DEVICE_HOLE, HIGH_START, PAGE_TABLES, SETUP_DATA, VIRTIO, VIRTIO_IRQ,
    ZERO_PAGE,
};
use super::{KvmError, mptable};
use crate::transport::mmio::REGION_BYTES;

const PAGE: u64 = 4096;
const E820_RAM: u32 = 1;
/// `setup_data` type of a seed for the random number generator.
const SETUP_RNG_SEED: u32 = 9;
const SEED_BYTES: usize = 32;
/// "HdrS": the setup header is valid.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A boot loader without an assigned number.
const LOADER_UNKNOWN: u8 = 0xff;

/// A kernel in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Guest physical address of its entry point.
    pub entry: u64,
    /// First byte behind it.
    pub end: u64,
}

/// Fills guest memory with all that a vCPU finds when it enters the kernel by the 64-bit protocol: kernel, initramfs, zero page,
/// command line, random seed, page tables, and the table of `vcpus` CPUs. Returns the kernel's entry point.
///
/// # Errors
/// The kernel is none, or something does not fit into memory.
pub fn fill(
    memory: &GuestMemoryMmap,
    kernel: &mut File,
    initramfs: &mut File,
    command_line: &str,
    vcpus: u8,
) -> Result<u64, KvmError> {
    let kernel = load_kernel(memory, kernel)?;
    let initramfs = load_initramfs(memory, initramfs, kernel)?;
    let mut seed = [0; SEED_BYTES];
    crate::virtio::sys::random(&mut seed)?;
    write_parameters(memory, command_line, Some(initramfs), seed)?;
    write_page_tables(memory)?;
    mptable::write(memory, vcpus)?;
    Ok(kernel.entry)
}

/// Loads the kernel's segments.
///
/// # Errors
/// The file is no ELF kernel for this machine, or does not fit into its memory.
pub fn load_kernel(memory: &GuestMemoryMmap, file: &mut File) -> Result<Kernel, KvmError> {
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(HIGH_START)));
    let loaded = loaded.map_err(|error| KvmError::Kernel(error.to_string()))?;
    Ok(Kernel { entry: loaded.kernel_load.0, end: loaded.kernel_end })
}

/// Loads the initramfs at the end of the memory below the device hole. Returns its address and size.
///
/// # Errors
/// It cannot be read, or does not fit above the kernel.
pub fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &mut File,
    kernel: Kernel,
) -> Result<(u32, u32), KvmError> {
    let size = file.seek(SeekFrom::End(0)).map_err(KvmError::Initramfs)?;
    file.rewind().map_err(KvmError::Initramfs)?;
    let top = low_end(memory);
    let address = top.saturating_sub(size) & !(PAGE - 1);
    if size == 0 || address < kernel.end {
        return Err(KvmError::InitramfsSize { size, room: top.saturating_sub(kernel.end) });
    }
    let bytes = usize::try_from(size).map_err(|_| KvmError::InitramfsSize { size, room: top })?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, bytes)
        .map_err(|error| KvmError::Initramfs(std::io::Error::other(error)))?;
    let too_large = |_| KvmError::InitramfsSize { size, room: top };
    Ok((u32::try_from(address).map_err(too_large)?, u32::try_from(size).map_err(too_large)?))
}

/// End of the RAM that starts at zero.
fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().next().map_or(0, |region| region.len()).min(DEVICE_HOLE)
}

/// The command line: what the machine is, then `extra` of the accelerator, then what the configuration adds.
#[must_use]
pub fn command_line(devices: usize, tsc_khz: u32, extra: &str, configured: &str) -> String {
    // `quiet` lets errors and panics through; a panic resets the machine by the keyboard controller at once. There is
    // neither timer chip nor clock source but the TSC, whose frequency we know. The rest is for a short start: with one vCPU the
    // kernel would rewrite its 6000 locked instructions, each through a mapping of its own; memory of each CPU would come in
    // pieces of 2 MiB, searched page by page at every allocation; and the initramfs, which the agent leaves at once, need be no
    // tmpfs.
    let mut line = format!(
        "console=ttyS0 reboot=k no_timer_check noreplace-smp percpu_alloc=page rootfstype=ramfs \
         tsc=reliable tsc_early_khz={tsc_khz}"
    );
    let mut add = |part: &str| {
        if !part.is_empty() {
            line.push(' ');
            line.push_str(part);
        }
    };
    for (index, irq) in (0..devices).zip(VIRTIO_IRQ..) {
        let address = VIRTIO + REGION_BYTES * index as u64;
        add(&format!("virtio_mmio.device=4K@{address:#x}:{irq}"));
    }
    add(extra);
    add(configured);
    line
}

/// Writes zero page, command line and random seed.
///
/// # Errors
/// The command line is too long, or memory is missing.
pub fn write_parameters(
    memory: &GuestMemoryMmap,
    command_line: &str,
    initramfs: Option<(u32, u32)>,
    seed: [u8; SEED_BYTES],
) -> Result<(), KvmError> {
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    if line.len() > COMMAND_LINE_BYTES {
        return Err(KvmError::CommandLine(line.len()));
    }
    memory.write_slice(&line, GuestAddress(COMMAND_LINE)).map_err(KvmError::Write)?;

    // struct setup_data: next, type, length, data.
    let mut data = 0u64.to_le_bytes().to_vec();
    data.extend(SETUP_RNG_SEED.to_le_bytes());
    data.extend(u32::try_from(SEED_BYTES).unwrap_or(0).to_le_bytes());
    data.extend(seed);
    memory.write_slice(&data, GuestAddress(SETUP_DATA)).map_err(KvmError::Write)?;

    let mut params = boot_params::default();
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).unwrap_or(0);
    params.hdr.cmdline_size = u32::try_from(line.len()).unwrap_or(0);
    params.hdr.kernel_alignment = 0x20_0000;
    params.hdr.setup_data = SETUP_DATA;
    if let Some((address, size)) = initramfs {
        params.hdr.ramdisk_image = address;
        params.hdr.ramdisk_size = size;
    }
    // What is in no entry is no RAM: the kernel asks of each large page that it does not map whether any entry covers it.
    let mut map = vec![(0, SETUP_DATA, E820_RAM)];
    for region in memory.iter() {
        let start = region.start_addr().0.max(HIGH_START);
        map.push((start, region.start_addr().0 + region.len() - start, E820_RAM));
    }
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: *addr, size: *size, r#type: *type_ };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    memory.write_obj(params, GuestAddress(ZERO_PAGE)).map_err(KvmError::Write)
}

/// Page tables that map the first GiB to itself with 2 MiB pages.
///
/// # Errors
/// Memory is missing.
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let write =
        |address: u64, value: u64| memory.write_obj(value, GuestAddress(address)).map_err(KvmError::Write);
    write(PAGE_TABLES, (PAGE_TABLES + PAGE) | PRESENT_WRITABLE)?;
    write(PAGE_TABLES + PAGE, (PAGE_TABLES + 2 * PAGE) | PRESENT_WRITABLE)?;
    for index in 0..512 {
        write(PAGE_TABLES + 2 * PAGE + 8 * index, index << 21 | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MAX_CMDLINE, MAX_DISKS};
    use crate::kvm::memory;

    #[test]
    fn the_longest_command_line_fits() {
        let extra = "x".repeat(180);
        let line = command_line(MAX_DISKS + 2, u32::MAX, &extra, &"y".repeat(MAX_CMDLINE - 300));
        assert!(line.len() < COMMAND_LINE_BYTES, "{}", line.len());
        assert!(line.contains("virtio_mmio.device=4K@0xd0011000:22 "));
    }

    #[test]
    fn tells_the_kernel_its_memory() {
        let memory = memory::reserve(&memory::ranges(64)).unwrap();
        write_parameters(&memory, "quiet", Some((0x300_0000, 77)), [7; 32]).unwrap();
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        assert_eq!(params.e820_entries, 2);
        let last = params.e820_table[1];
        assert_eq!((last.addr, last.size), (HIGH_START, (64 << 20) - HIGH_START));
        let too_long = "x".repeat(COMMAND_LINE_BYTES);
        assert!(matches!(write_parameters(&memory, &too_long, None, [0; 32]), Err(KvmError::CommandLine(_))));
    }
}
