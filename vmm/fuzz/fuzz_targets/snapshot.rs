#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = vmm::fuzz::snapshot(bytes);
});
