//! See `image_unpack::fuzz::streams`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    image_unpack::fuzz::streams(data);
});
