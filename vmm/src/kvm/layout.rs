//! Where things lie in guest physical memory. All addresses and sizes in bytes.

/// Global descriptor table that the boot protocol asks for.
pub const GDT: u64 = 0x500;
/// The zero page (`boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack, growing down.
pub const STACK: u64 = 0x8ff0;
/// Page tables that map the first GiB to itself: three pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Most bytes of the command line with its final zero (x86's COMMAND_LINE_SIZE).
pub const COMMAND_LINE_BYTES: usize = 2048;
/// The list of `setup_data`. Outside of what the kernel is told to be RAM: else it splits its memory map around it.
pub const SETUP_DATA: u64 = 0x9_f000;
/// The MP table: the last KiB of conventional memory, where kernels look for it.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Where conventional memory ends.
pub const LOW_END: u64 = 0xa_0000;
/// Where memory goes on after the ISA hole; the kernel is loaded from here up.
pub const HIGH_START: u64 = 0x10_0000;

/// RAM stops here and goes on at [`ABOVE_4G`]: room for devices, interrupt controllers and KVM's own pages.
pub const DEVICE_HOLE: u64 = 0xc000_0000;
/// RAM beyond the hole.
pub const ABOVE_4G: u64 = 0x1_0000_0000;

/// First page of virtio-mmio registers; one page per device.
pub const VIRTIO: u64 = 0xd000_0000;
/// Interrupt line of the first virtio device; one line per device.
pub const VIRTIO_IRQ: u32 = 5;
/// Most virtio devices: the I/O APIC's lines from [`VIRTIO_IRQ`] on.
pub const MAX_VIRTIO: usize = 19;
/// Registers of the I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Input lines of the I/O APIC.
pub const IO_APIC_LINES: u8 = 24;
/// Registers of the local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs for real mode on old Intel CPUs.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for the same.
pub const TSS: usize = 0xfffb_d000;

/// The first serial port, and its interrupt line.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Command and status port of the keyboard controller, whose one use is to reset the machine.
pub const KEYBOARD_PORT: u16 = 0x64;
