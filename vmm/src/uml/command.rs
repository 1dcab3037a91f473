//! What the guest kernel is told: its command line and its environment.

use std::ffi::{CString, NulError};

/// Name of the initramfs in the jail.
pub const INITRAMFS: &str = "initramfs";

/// Loops per jiffy (HZ = 100), given so that the kernel need not measure it, which takes some jiffies. Only the guest's
/// short delays depend on it, and no device of ours needs one.
const LOOPS_PER_JIFFY: u32 = 10_000_000;

/// Name of device `index`'s socket in the jail.
pub fn socket_name(index: usize) -> String {
    format!("v{index}")
}

/// The kernel's arguments. `devices` are the device types in order; `extra` comes last, so that it wins.
///
/// # Errors
/// `extra` holds a zero byte.
pub fn arguments(memory_mib: u32, devices: &[u32], extra: &str) -> Result<Vec<CString>, NulError> {
    let mut words = vec![
        "linux".to_owned(),
        format!("mem={memory_mib}M"),
        // Emergencies only, which a panic is; they go to standard error, which is our pipe.
        "loglevel=1".to_owned(),
        "stderr=1".to_owned(),
        "console=stderr0".to_owned(),
        "con=null".to_owned(),
        format!("lpj={LOOPS_PER_JIFFY}"),
        // Never the mode in which guest processes share an address space with all guest RAM.
        "seccomp=off".to_owned(),
        // A panic ends the process at once, and an oops is one.
        "panic=-1".to_owned(),
        "oops=panic".to_owned(),
        format!("initrd=/{INITRAMFS}"),
        "rdinit=/init".to_owned(),
    ];
    words.extend(
        devices
            .iter()
            .enumerate()
            .map(|(index, kind)| format!("virtio_uml.device=/{}:{kind}:{index}", socket_name(index))),
    );
    words.extend(extra.split_ascii_whitespace().map(str::to_owned));
    words.into_iter().map(CString::new).collect()
}

/// The kernel's environment: where it makes the file that is the guest's RAM, and where it looks for its own files.
pub const ENVIRONMENT: [&std::ffi::CStr; 2] = [c"TMPDIR=/", c"HOME=/"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_everything_and_the_extra_words_last() {
        let words = arguments(128, &[2, 2, 19], "  loglevel=8 foo ").unwrap();
        let line: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        assert!(line.contains(&"mem=128M") && line.contains(&"seccomp=off"));
        assert!(line.contains(&"virtio_uml.device=/v1:2:1") && line.contains(&"virtio_uml.device=/v2:19:2"));
        assert_eq!(line[line.len() - 2..], ["loglevel=8", "foo"]);
        assert!(arguments(128, &[], "a\0b").is_err());
    }
}
