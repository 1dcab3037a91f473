//! XSAVE and XRSTOR in the standard format (Intel SDM volume 1, chapter 13), on the FPU state that KVM keeps for the vCPU.

use kvm_bindings::{CpuId, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::linear::{Fault, Linear};

/// Bytes of KVM's copy of the state.
const REGION: usize = 4096;
/// Offset of the header, and of what follows it.
const HEADER: usize = 512;
const EXTENDED: usize = 576;
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// The CPUID leaf that tells where components lie.
const LEAF: u32 = 0xd;

/// Where the components of the state lie, by number.
#[derive(Debug, Clone)]
pub struct Layout(Vec<Option<(usize, usize)>>);

impl Layout {
    /// As this host's KVM tells it.
    #[must_use]
    pub fn new(supported: &CpuId) -> Self {
        let components = (2..63).map(|index| {
            let leaf =
                supported.as_slice().iter().find(|leaf| leaf.function == LEAF && leaf.index == index)?;
            let (offset, size) = (usize::try_from(leaf.ebx).ok()?, usize::try_from(leaf.eax).ok()?);
            // Supervisor components have no place in the standard format.
            let user = leaf.ecx & 1 == 0 && size > 0 && offset >= EXTENDED;
            (user && offset.checked_add(size)? <= REGION).then_some((offset, size))
        });
        Self([None, None].into_iter().chain(components).collect())
    }

    /// The parts of the area that these components take, beside the header.
    fn parts(&self, components: u64) -> Vec<(usize, usize)> {
        let mut parts = Vec::new();
        if components & X87 != 0 {
            parts.extend([(0, 24), (32, 128)]);
        }
        if components & (SSE | AVX) != 0 {
            parts.push((24, 8));
        }
        if components & SSE != 0 {
            parts.push((160, 256));
        }
        let extended = self.0.iter().enumerate().filter(|(index, _)| components >> index & 1 != 0);
        parts.extend(extended.filter_map(|(_, part)| *part));
        parts
    }
}

/// The components that an instruction is to work on: those that EDX:EAX names and XCR0 enables.
fn requested(vcpu: &VcpuFd, mask: u64) -> Result<u64, Fault> {
    let xcrs = vcpu.get_xcrs().map_err(|error| error.to_string())?;
    let enabled = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|xcr| xcr.xcr == 0);
    Ok(mask & enabled.ok_or("no XCR0")?.value)
}

fn state(vcpu: &VcpuFd) -> Result<Vec<u8>, Fault> {
    let raw = vcpu.get_xsave().map_err(|error| error.to_string())?;
    Ok(raw.region.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn area_bytes(parts: &[(usize, usize)]) -> usize {
    parts.iter().map(|(offset, size)| offset + size).fold(EXTENDED, usize::max)
}

fn aligned(address: u64) -> Result<(), Fault> {
    if address.is_multiple_of(64) { Ok(()) } else { Err("an XSAVE area that is not aligned".into()) }
}

/// XSAVE to `address`.
///
/// # Errors
/// The area is not writable, or KVM refused.
pub fn save(
    vcpu: &VcpuFd,
    linear: &Linear<'_>,
    layout: &Layout,
    address: u64,
    mask: u64,
) -> Result<(), Fault> {
    aligned(address)?;
    let components = requested(vcpu, mask)?;
    let parts = layout.parts(components);
    let area = linear.map(address, area_bytes(&parts), true)?;
    let state = state(vcpu)?;
    for (offset, size) in parts {
        area.write(offset, &state[offset..offset + size])?;
    }
    let mut before = [0; 8];
    area.read(HEADER, &mut before)?;
    let present = u64::from_le_bytes(before) & !components | word(&state, HEADER) & components;
    area.write(HEADER, &present.to_le_bytes())
}

/// XRSTOR from `address`.
///
/// # Errors
/// The area is not readable or not in the standard format, or KVM refused its content.
pub fn restore(
    vcpu: &VcpuFd,
    linear: &Linear<'_>,
    layout: &Layout,
    address: u64,
    mask: u64,
) -> Result<(), Fault> {
    aligned(address)?;
    let components = requested(vcpu, mask)?;
    let all = layout.parts(components);
    let area = linear.map(address, area_bytes(&all), false)?;
    let mut header = [0; 64];
    area.read(HEADER, &mut header)?;
    let present = word(&header, 0) & components;
    if header[8..].iter().any(|byte| *byte != 0) {
        return Err("an XSAVE area in the compacted format".into());
    }
    let mut state = state(vcpu)?;
    // What is not present gets its initial value, which KVM gives to components that its header leaves out.
    for (offset, size) in layout.parts(present) {
        area.read(offset, &mut state[offset..offset + size])?;
    }
    let header = word(&state, HEADER) & !components | present;
    state[HEADER..HEADER + 8].copy_from_slice(&header.to_le_bytes());
    let mut raw = kvm_xsave::default();
    for (word, bytes) in raw.region.iter_mut().zip(state.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: no feature whose state is larger than this structure was ever asked for, so KVM reads no more than it.
    unsafe { vcpu.set_xsave(&raw) }.map_err(|error| error.to_string().into())
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn components_lie_where_the_host_says() {
        let leaf = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
            function: LEAF,
            index,
            eax,
            ebx,
            ecx,
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[
            leaf(2, 256, 576, 0),
            leaf(5, 64, 1088, 0),
            // A supervisor component, and one that lies beyond KVM's copy.
            leaf(11, 16, 0, 1),
            leaf(18, 8192, 2816, 0),
        ])
        .unwrap();
        let layout = Layout::new(&supported);
        assert_eq!(layout.parts(X87 | SSE), [(0, 24), (32, 128), (24, 8), (160, 256)]);
        assert_eq!(layout.parts(AVX), [(24, 8), (576, 256)]);
        assert_eq!(layout.parts(1 << 5 | 1 << 11 | 1 << 18), [(1088, 64)]);
        assert_eq!(area_bytes(&layout.parts(1 << 5)), 1152);
        assert_eq!(area_bytes(&layout.parts(0)), EXTENDED);
    }
}
