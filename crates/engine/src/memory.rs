//! Memory that was freed, and that the allocator keeps for what comes next.
#![allow(unsafe_code)]

/// Gives free memory back to the system. Models are loaded and measured by
/// many threads, and the C library's allocator keeps what each of them freed: a
/// node of one model of 5 MB kept a gigabyte. Takes milliseconds; does nothing
/// where the allocator is another.
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // Sound at any time, from any thread: it only touches what is free.
        unsafe { malloc_trim(0) };
    }
}
