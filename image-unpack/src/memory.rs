//! Giving memory back between two steps that need much of it, so that their peaks do not add up.

/// Returns to the system what is freed. Threads that end leave their buffers to the allocator, which keeps them for
/// threads to come: after the layers' pipelines that is 10 MiB that the merge could not use.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back() {
    // SAFETY: the call has no preconditions, and may be made from any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators are not known to keep much.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}
