//! The table that tells the guest its CPUs and interrupt lines (Intel MultiProcessor Specification 1.4).

use crate::memory::GuestMemoryMmap;
use vm_memory::{Bytes, GuestAddress};

use super::KvmError;
use super::layout::{IO_APIC, IO_APIC_LINES, LOCAL_APIC, MP_TABLE};

const APIC_VERSION: u8 = 0x14;
const SPECIFICATION: u8 = 4;
const FLOATING_POINTER_BYTES: u64 = 16;
const HEADER_BYTES: usize = 44;
const ENTRY_CPU: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const CPU_ENABLED: u8 = 1;
const CPU_BOOTSTRAP: u8 = 2;
const INTERRUPT: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

/// Writes floating pointer and table for so many vCPUs. Without it the kernel searches all of the BIOS area.
///
/// # Errors
/// The guest has no memory there.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), KvmError> {
    let table = build(vcpus);
    let address = MP_TABLE + FLOATING_POINTER_BYTES;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(u32::try_from(address).unwrap_or(0).to_le_bytes());
    // Length in paragraphs, revision, checksum, features: 0 means that there is a table, IMCR absent.
    pointer.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    memory.write_slice(&pointer, GuestAddress(MP_TABLE)).map_err(KvmError::Write)?;
    memory.write_slice(&table, GuestAddress(address)).map_err(KvmError::Write)
}

fn build(vcpus: u8) -> Vec<u8> {
    let io_apic = vcpus;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = CPU_ENABLED | if id == 0 { CPU_BOOTSTRAP } else { 0 };
        // Signature and features: family 6, with APIC and FPU.
        let mut entry = vec![ENTRY_CPU, id, APIC_VERSION, flags];
        entry.extend(0x600u32.to_le_bytes());
        entry.extend(0x201u32.to_le_bytes());
        entry.extend([0; 8]);
        add(&entry);
    }
    add(&[&[ENTRY_BUS, 0][..], b"ISA   "].concat());
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    add(&[ENTRY_IO_APIC, io_apic, APIC_VERSION, 1, a, b, c, d]);
    for line in 0..IO_APIC_LINES {
        // Flags 0: polarity and trigger as the bus has them, so active high and edge.
        add(&[ENTRY_INTERRUPT, INTERRUPT, 0, 0, 0, line, io_apic, line]);
    }
    add(&[ENTRY_LOCAL_INTERRUPT, EXTERNAL, 0, 0, 0, 0, 0, 0]);
    add(&[ENTRY_LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);

    let length = u16::try_from(HEADER_BYTES + entries.len()).unwrap_or(u16::MAX);
    let mut table = b"PCMP".to_vec();
    table.extend(length.to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"BULKHEAD");
    table.extend(b"microVM     ");
    // No OEM table: pointer and size.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_VCPUS;
    use crate::kvm::layout::LOW_END;

    #[test]
    fn fits_and_adds_up_for_every_number_of_vcpus() {
        for vcpus in 1..=MAX_VCPUS {
            let table = build(vcpus);
            assert!(MP_TABLE + FLOATING_POINTER_BYTES + table.len() as u64 <= LOW_END);
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), u16::from(vcpus) + 28);
        }
    }
}
