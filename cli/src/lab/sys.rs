//! The one call of the lab that the compiler cannot check.
#![allow(unsafe_code)] // unshare(2) has no safe wrapper: it can break assumptions of other threads

use rustix::thread::UnshareFlags;

/// Gives the calling thread a new network namespace.
///
/// # Errors
/// Those of unshare(2).
pub fn new_network_namespace() -> std::io::Result<()> {
    // SAFETY: only the network namespace of this thread changes; no memory or file descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}
