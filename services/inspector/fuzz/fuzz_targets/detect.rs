#![no_main]
//! See `virtbus_inspector_fuzz::detect`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtbus_inspector_fuzz::detect(data));
