//! Whether a snapshot fits this host: its CPU must be of the same make, and have every feature that the guest was shown.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::state::MachineState;
use crate::snapshot::SnapshotError;

/// Where CPUID tells features as bits: leaf, index, and which registers (EAX, EBX, ECX, EDX).
const FEATURES: &[(u32, u32, [u32; 4])] = &[
    (1, 0, [0, 0, !(TSC_DEADLINE | HYPERVISOR | OSXSAVE), !HTT]),
    (7, 0, [0, u32::MAX, !OSPKE, u32::MAX]),
    (7, 1, [u32::MAX, 0, 0, 0]),
    (0xd, 0, [u32::MAX, 0, 0, u32::MAX]),
    (0xd, 1, [u32::MAX, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
];
/// Bits that are the machine's own, or that show what the guest's kernel turned on.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;
const HTT: u32 = 1 << 28;
/// Base model, extended model, base family, extended family; not the stepping.
const FAMILY_MODEL: u32 = 0x0fff_0ff0;

/// Names of features that people know: leaf, index, register, bit.
const NAMES: &[(u32, u32, usize, u32, &str)] = &[
    (1, 0, 2, 13, "cx16"),
    (1, 0, 2, 20, "sse4_2"),
    (1, 0, 2, 25, "aes"),
    (1, 0, 2, 26, "xsave"),
    (1, 0, 2, 28, "avx"),
    (1, 0, 2, 30, "rdrand"),
    (7, 0, 1, 3, "bmi1"),
    (7, 0, 1, 5, "avx2"),
    (7, 0, 1, 8, "bmi2"),
    (7, 0, 1, 16, "avx512f"),
    (7, 0, 1, 18, "rdseed"),
    (7, 0, 1, 20, "smap"),
    (7, 0, 1, 29, "sha_ni"),
    (0xd, 1, 0, 1, "xsavec"),
    (0xd, 1, 0, 3, "xsaves"),
    (0x8000_0001, 0, 3, 26, "pdpe1gb"),
];

/// Checks a snapshot against the features that this host's KVM supports.
///
/// # Errors
/// What does not fit, by name.
pub fn check(state: &MachineState, supported: &CpuId) -> Result<(), SnapshotError> {
    for vcpu in &state.vcpus {
        check_features(&vcpu.features, supported.as_slice())?;
    }
    Ok(())
}

fn check_features(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), SnapshotError> {
    let (was, is) = (cpu(saved), cpu(here));
    if was != is {
        return Err(SnapshotError::Cpu { saved: was, here: is });
    }
    for (function, index, masks) in FEATURES {
        let had = registers(saved, *function, *index);
        let has = registers(here, *function, *index);
        for (register, mask) in masks.iter().enumerate() {
            let missing = had[register] & !has[register] & mask;
            if missing != 0 {
                let bit = missing.trailing_zeros();
                return Err(SnapshotError::Feature(name(*function, *index, register, bit)));
            }
        }
    }
    Ok(())
}

fn registers(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let leaf = leaves.iter().find(|leaf| leaf.function == function && leaf.index == index);
    leaf.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

/// Make, family and model, such as `AuthenticAMD family 25 model 1`.
fn cpu(leaves: &[kvm_cpuid_entry2]) -> String {
    let [_, ebx, ecx, edx] = registers(leaves, 0, 0);
    let vendor: String = [ebx, edx, ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' })
        .collect();
    let signature = registers(leaves, 1, 0)[0] & FAMILY_MODEL;
    let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    let model = (signature >> 4 & 0xf) | (signature >> 12 & 0xf0);
    format!("{vendor} family {family} model {model}")
}

fn name(function: u32, index: u32, register: usize, bit: u32) -> String {
    let known =
        NAMES.iter().find(|known| (known.0, known.1, known.2, known.3) == (function, index, register, bit));
    match known {
        Some(known) => known.4.to_owned(),
        None => {
            let register = ["EAX", "EBX", "ECX", "EDX"].get(register).unwrap_or(&"?");
            format!("bit {bit} of CPUID leaf {function:#x}.{index} {register}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn amd(signature: u32, features: u32) -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            leaf(1, 0, [signature, 0, HYPERVISOR, 0]),
            leaf(7, 0, [0, features, 0, 0]),
        ]
    }

    #[test]
    fn what_does_not_fit_is_told_by_name() {
        let here = amd(0x00a0_0f11, 0xff);
        assert!(check_features(&amd(0x00a0_0f10, 0x0f), &here).is_ok(), "another stepping, fewer features");
        let error = check_features(&amd(0x0083_0f10, 0xff), &here).unwrap_err().to_string();
        assert!(
            error.contains("AuthenticAMD family 23 model 49") && error.contains("family 25 model 1"),
            "{error}"
        );
        let error = check_features(&amd(0x00a0_0f11, 0x1_00ff), &here).unwrap_err().to_string();
        assert!(error.contains("avx512f"), "{error}");
        let error = check_features(&amd(0x00a0_0f11, 0x4_0000_u32 << 9), &here).unwrap_err().to_string();
        assert!(error.contains("bit 27 of CPUID leaf 0x7.0 EBX"), "{error}");
    }
}
