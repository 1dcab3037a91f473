//! See `image_unpack::fuzz::layers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = image_unpack::fuzz::layers(data);
});
