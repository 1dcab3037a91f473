//! Bare-metal payloads: straight-line x86-64 code for kernel mode, assembled byte by byte. RAX, RBX and RDX are scratch.
//!
//! A payload checks what it sees and says so on the serial port: a word per step that worked, `FAIL` and the step that did not.

use super::files::elf;

/// Where payloads are loaded and entered.
pub const LOAD_ADDRESS: u64 = 0x100_0000;
const SERIAL: u16 = 0x3f8;
/// The page directory that maps what lies between 3 and 4 GiB, in memory that payloads leave alone.
const DEVICE_DIRECTORY: u64 = 0x4_0000;
/// The third GiB's entry in the page tables that a machine starts with.
const DEVICE_ENTRY: u64 = 0xa000 + 8 * 3;

/// Code under construction.
#[derive(Clone, Default)]
pub struct Code {
    bytes: Vec<u8>,
}

impl Code {
    /// Code that begins by mapping the device registers between 3 and 4 GiB.
    pub fn new() -> Self {
        let mut code = Self::default();
        code.store64(DEVICE_ENTRY, DEVICE_DIRECTORY | 3);
        for page in [0xd000_0000u64, 0xfec0_0000, 0xfee0_0000] {
            let page = page & !0x1f_ffff;
            code.store64(DEVICE_DIRECTORY + 8 * ((page - 0xc000_0000) >> 21), page | 0x83);
        }
        code
    }

    /// Appends raw instructions.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self
    }

    fn moffs(&mut self, opcode: &[u8], address: u64) -> &mut Self {
        self.raw(opcode).raw(&address.to_le_bytes())
    }

    pub fn store8(&mut self, address: u64, value: u8) -> &mut Self {
        self.raw(&[0xb0, value]).moffs(&[0xa2], address)
    }

    pub fn store16(&mut self, address: u64, value: u16) -> &mut Self {
        self.raw(&[0x66, 0xb8]).raw(&value.to_le_bytes()).moffs(&[0x66, 0xa3], address)
    }

    pub fn store32(&mut self, address: u64, value: u32) -> &mut Self {
        self.raw(&[0xb8]).raw(&value.to_le_bytes()).moffs(&[0xa3], address)
    }

    pub fn store64(&mut self, address: u64, value: u64) -> &mut Self {
        self.raw(&[0x48, 0xb8]).raw(&value.to_le_bytes()).moffs(&[0x48, 0xa3], address)
    }

    /// Stores bytes, eight at a time.
    pub fn store(&mut self, address: u64, bytes: &[u8]) -> &mut Self {
        for (at, chunk) in (address..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store64(at, u64::from_le_bytes(word));
        }
        self
    }

    /// Writes a byte to a port.
    pub fn out(&mut self, port: u16, value: u8) -> &mut Self {
        self.raw(&[0x66, 0xba]).raw(&port.to_le_bytes()).raw(&[0xb0, value, 0xee])
    }

    /// Says something on the serial port.
    pub fn say(&mut self, text: &str) -> &mut Self {
        self.raw(&[0x66, 0xba]).raw(&SERIAL.to_le_bytes());
        for byte in text.bytes() {
            self.raw(&[0xb0, byte, 0xee]);
        }
        self
    }

    /// Fails at `step` unless the byte / word / double word at an address has this value.
    pub fn expect8(&mut self, address: u64, value: u8, step: &str) -> &mut Self {
        self.moffs(&[0xa0], address).raw(&[0x3c, value]).fail_unless_equal(step)
    }

    pub fn expect16(&mut self, address: u64, value: u16, step: &str) -> &mut Self {
        self.moffs(&[0x66, 0xa1], address)
            .raw(&[0x66, 0x3d])
            .raw(&value.to_le_bytes())
            .fail_unless_equal(step)
    }

    pub fn expect32(&mut self, address: u64, value: u32, step: &str) -> &mut Self {
        self.moffs(&[0xa1], address).raw(&[0x3d]).raw(&value.to_le_bytes()).fail_unless_equal(step)
    }

    /// Fails at `step` if the double word at an address has this value.
    pub fn refuse32(&mut self, address: u64, value: u32, step: &str) -> &mut Self {
        self.moffs(&[0xa1], address).raw(&[0x3d]).raw(&value.to_le_bytes());
        self.branch_over(0x85, step)
    }

    /// Fails at `step` unless a byte read from a port has this value.
    pub fn expect_port(&mut self, port: u16, value: u8, step: &str) -> &mut Self {
        self.raw(&[0x66, 0xba]).raw(&port.to_le_bytes()).raw(&[0xec, 0x3c, value]).fail_unless_equal(step)
    }

    fn fail_unless_equal(&mut self, step: &str) -> &mut Self {
        self.branch_over(0x84, step)
    }

    /// `jcc` over the report of a failure.
    fn branch_over(&mut self, condition: u8, step: &str) -> &mut Self {
        let mut failure = Self::default();
        failure.say(&format!("FAIL {step}\n")).reset();
        let distance = i32::try_from(failure.bytes.len()).unwrap();
        self.raw(&[0x0f, condition]).raw(&distance.to_le_bytes()).raw(&failure.bytes)
    }

    /// Waits until the word at an address has this value.
    pub fn wait16(&mut self, address: u64, value: u16) -> &mut Self {
        let start = self.bytes.len();
        self.raw(&[0xf3, 0x90]).moffs(&[0x66, 0xa1], address).raw(&[0x66, 0x3d]).raw(&value.to_le_bytes());
        let back = i8::try_from(start as isize - self.bytes.len() as isize - 2).unwrap();
        self.raw(&[0x75, back.cast_unsigned()])
    }

    /// Waits until the double word at an address has this value.
    pub fn wait32(&mut self, address: u64, value: u32) -> &mut Self {
        let start = self.bytes.len();
        self.raw(&[0xf3, 0x90]).moffs(&[0xa1], address).raw(&[0x3d]).raw(&value.to_le_bytes());
        let back = i8::try_from(start as isize - self.bytes.len() as isize - 2).unwrap();
        self.raw(&[0x75, back.cast_unsigned()])
    }

    /// Resets the machine through the keyboard controller.
    pub fn reset(&mut self) -> &mut Self {
        self.out(0x64, 0xfe).halt()
    }

    /// Does nothing for ever.
    pub fn halt(&mut self) -> &mut Self {
        self.raw(&[0xfa, 0xf4, 0xeb, 0xfc])
    }

    /// Spins for ever.
    pub fn spin(&mut self) -> &mut Self {
        self.raw(&[0xf3, 0x90, 0xeb, 0xfc])
    }

    /// The address of what is appended next.
    pub fn here(&self) -> u64 {
        LOAD_ADDRESS + self.bytes.len() as u64
    }

    /// Appends code that is jumped over, and returns its address.
    pub fn aside(&mut self, code: &Self) -> u64 {
        let distance = i32::try_from(code.bytes.len()).unwrap();
        self.raw(&[0xe9]).raw(&distance.to_le_bytes());
        let address = self.here();
        self.raw(&code.bytes);
        address
    }

    /// The code as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The code as a kernel image.
    pub fn image(&self) -> Vec<u8> {
        elf(LOAD_ADDRESS, &self.bytes)
    }
}
