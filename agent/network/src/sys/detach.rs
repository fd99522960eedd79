//! Starting a process that outlives this one.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Starts `command` in a session of its own and as a child of init: it gets no signal meant for this process, and is
/// not waited for by it.
///
/// # Errors
/// When the program cannot be started, also when exec(2) fails.
pub fn spawn(command: &mut Command) -> io::Result<()> {
    // SAFETY: between fork and exec only async-signal-safe calls are made (setsid, fork, _exit; signal-safety(7)), and
    // nothing is allocated. The first child exits at once; the second returns and goes on to exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                _ => libc::_exit(0),
            }
        });
    }
    // Returns when the second child has called exec or failed to.
    command.spawn()?.wait()?;
    Ok(())
}
