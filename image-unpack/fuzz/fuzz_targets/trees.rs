//! See `image_unpack::fuzz::trees`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = image_unpack::fuzz::trees(data);
});
