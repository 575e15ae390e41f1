#![no_main]
//! See `virtbus_inspector_fuzz::stream`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtbus_inspector_fuzz::stream(data));
