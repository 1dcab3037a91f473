//! A serial port (National Semiconductor 16550A): what the guest sends goes into the console ring; nothing is ever received.

use crate::console::ConsoleRing;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_IDENTITY: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;
/// Number of ports.
pub const PORTS: u16 = 8;
/// Bytes of the saved registers.
pub const STATE_BYTES: usize = 8;

const ENABLE_TRANSMIT: u8 = 2;
const IDENTITY_NONE: u8 = 1;
const IDENTITY_TRANSMIT: u8 = 2;
const IDENTITY_FIFO: u8 = 0xc0;
const FIFO_ENABLE: u8 = 1;
const DIVISOR_LATCH: u8 = 0x80;
const LOOP_BACK: u8 = 0x10;
/// Transmitter empty, in both registers: sending takes no time.
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Carrier, data set ready, clear to send.
const MODEM_READY: u8 = 0xb0;

/// Linux's words when it gives up, at the start of what may be a longer line.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Most bytes kept of the line that holds them.
const MAX_PANIC_LINE: usize = 200;

/// The port, and what was learned from its output.
#[derive(Debug)]
pub struct Serial {
    console: ConsoleRing,
    interrupt_enable: u8,
    transmit_pending: bool,
    fifo: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    line: Vec<u8>,
    panic: Option<String>,
}

impl Serial {
    /// A port whose output goes to `console`.
    #[must_use]
    pub fn new(console: ConsoleRing) -> Self {
        Self {
            console,
            interrupt_enable: 0,
            transmit_pending: false,
            fifo: 0,
            line_control: 3,
            modem_control: 8,
            scratch: 0,
            divisor: [12, 0],
            line: Vec::new(),
            panic: None,
        }
    }

    /// The guest kernel's last words, if it panicked.
    #[must_use]
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// The registers.
    #[must_use]
    pub fn save(&self) -> [u8; STATE_BYTES] {
        [
            self.interrupt_enable,
            u8::from(self.transmit_pending),
            self.fifo,
            self.line_control,
            self.modem_control,
            self.scratch,
            self.divisor[0],
            self.divisor[1],
        ]
    }

    /// Takes over registers; every value is one that a guest could have written.
    pub fn restore(&mut self, state: [u8; STATE_BYTES]) {
        let [interrupt_enable, pending, fifo, line_control, modem_control, scratch, low, high] = state;
        self.interrupt_enable = interrupt_enable & 0xf;
        self.transmit_pending = pending != 0;
        (self.fifo, self.line_control, self.scratch) = (fifo, line_control, scratch);
        self.modem_control = modem_control & 0x1f;
        self.divisor = [low, high];
    }

    fn latched(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    /// The guest reads register `offset`.
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            DATA | INTERRUPT_ENABLE if self.latched() => self.divisor[usize::from(offset)],
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_IDENTITY => {
                let fifo = if self.fifo & FIFO_ENABLE != 0 { IDENTITY_FIFO } else { 0 };
                // Reading the identity takes the interrupt back.
                let pending = std::mem::take(&mut self.transmit_pending);
                fifo | if pending { IDENTITY_TRANSMIT } else { IDENTITY_NONE }
            }
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => TRANSMITTER_EMPTY,
            MODEM_STATUS if self.modem_control & LOOP_BACK != 0 => {
                // RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD.
                let out = self.modem_control;
                (out & 2) << 3 | (out & 1) << 5 | (out & 4) << 4 | (out & 8) << 4
            }
            MODEM_STATUS => MODEM_READY,
            SCRATCH => self.scratch,
            _ => 0,
        }
    }

    /// The guest writes register `offset`; true asks for an interrupt.
    #[must_use]
    pub fn write(&mut self, offset: u16, value: u8) -> bool {
        match offset {
            DATA | INTERRUPT_ENABLE if self.latched() => self.divisor[usize::from(offset)] = value,
            DATA => {
                if self.modem_control & LOOP_BACK == 0 {
                    self.send(value);
                }
                return self.transmitted();
            }
            INTERRUPT_ENABLE => {
                let before = self.interrupt_enable;
                self.interrupt_enable = value & 0xf;
                return value & !before & ENABLE_TRANSMIT != 0 && self.transmitted();
            }
            INTERRUPT_IDENTITY => self.fifo = value,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & 0x1f,
            SCRATCH => self.scratch = value,
            _ => {}
        }
        false
    }

    fn transmitted(&mut self) -> bool {
        self.transmit_pending = self.interrupt_enable & ENABLE_TRANSMIT != 0;
        self.transmit_pending
    }

    fn send(&mut self, byte: u8) {
        self.console.write(&[byte]);
        if byte == b'\n' {
            self.note_panic();
            self.line.clear();
        } else if self.line.len() < MAX_PANIC_LINE {
            self.line.push(byte);
        }
    }

    fn note_panic(&mut self) {
        let start = self.line.windows(PANIC.len()).position(|window| window == PANIC);
        if let (None, Some(start)) = (&self.panic, start) {
            let text = String::from_utf8_lossy(&self.line[start..]);
            self.panic = Some(text.chars().filter(|c| !c.is_control()).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(serial: &mut Serial, text: &str) {
        for byte in text.bytes() {
            assert!(!serial.write(DATA, byte));
        }
    }

    #[test]
    fn output_reaches_the_console_and_a_panic_is_noticed() {
        let console = ConsoleRing::default();
        let mut serial = Serial::new(console.clone());
        say(&mut serial, "hello\n[    1.0] Kernel panic - not syncing: Attempted to kill init!\r\n");
        say(&mut serial, "Kernel panic - not syncing: another\n");
        assert_eq!(serial.panic(), Some("Kernel panic - not syncing: Attempted to kill init!"));
        assert!(console.text().starts_with("hello\n[    1.0] Kernel"));
    }

    #[test]
    fn passes_the_tests_of_drivers() {
        let mut serial = Serial::new(ConsoleRing::default());
        // Loop-back: RTS and OUT2 come back as CTS and DCD.
        let _ = serial.write(MODEM_CONTROL, LOOP_BACK | 0xa);
        assert_eq!(serial.read(MODEM_STATUS) & 0xf0, 0x90);
        let _ = serial.write(DATA, b'x');
        let _ = serial.write(MODEM_CONTROL, 8);
        let _ = serial.write(SCRATCH, 0x5a);
        assert_eq!(serial.read(SCRATCH), 0x5a);
        let _ = serial.write(LINE_CONTROL, DIVISOR_LATCH | 3);
        let _ = serial.write(DATA, 1);
        assert_eq!(serial.read(DATA), 1);
        let _ = serial.write(LINE_CONTROL, 3);
        assert_eq!(serial.read(DATA), 0);
        assert_eq!(serial.console.text(), "");
        let _ = serial.write(INTERRUPT_IDENTITY, FIFO_ENABLE);
        assert_eq!(serial.read(INTERRUPT_IDENTITY), IDENTITY_FIFO | IDENTITY_NONE);
        // The transmit interrupt: raised when enabled, taken back by reading its identity.
        assert!(serial.write(INTERRUPT_ENABLE, ENABLE_TRANSMIT));
        assert_eq!(serial.read(INTERRUPT_IDENTITY) & 0xf, IDENTITY_TRANSMIT);
        assert_eq!(serial.read(INTERRUPT_IDENTITY) & 0xf, IDENTITY_NONE);
        assert!(serial.write(DATA, b'y'));
    }
}
