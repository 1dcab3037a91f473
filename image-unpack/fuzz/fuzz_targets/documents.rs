//! See `image_unpack::fuzz::documents`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    image_unpack::fuzz::documents(data);
});
