#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hurdlr_oauth2_fuzz::pending_login_cookie::check(data));
