#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = vmm::fuzz::device(vmm::fuzz::Kind::Balloon, bytes);
});
