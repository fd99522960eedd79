//! The last steps before a container's process becomes its program, the same for its init and for further processes.
//!
//! Order matters: without no_new_privs loading the filter takes CAP_SYS_ADMIN, so the filter comes first and the
//! capabilities that the container does not get are dropped after it, by calls that the filter allows.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::BpfProgram;
use skep_shim::protocol::Params;

use crate::{seccomp, sys};

/// What a process may do once it runs.
#[derive(Clone)]
pub struct Confinement {
    keep: CapsHashSet,
    filters: Rc<[BpfProgram]>,
    no_new_privileges: bool,
}

/// Why a process cannot be confined or found. The texts are those that clients of OCI runtimes know.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such capability.
    #[error("unknown capability {0:?}")]
    Capability(String),
    /// The filter is not what the kernel or the compiler takes.
    #[error(transparent)]
    Compile(#[from] seccomp::CompileError),
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No file of that name in the search path.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A path that does not exist.
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    NoFile(String),
    /// Something that nobody may execute.
    #[error("exec: {0:?}: permission denied")]
    NotExecutable(String),
    /// A directory.
    #[error("exec: {0:?}: is a directory")]
    Directory(String),
    /// The kernel refused the program.
    #[error("exec {path}: {source}")]
    Exec {
        /// The program.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A word with a zero byte in it.
    #[error("arguments and environment must not contain zero bytes")]
    ZeroByte,
}

impl Confinement {
    /// Prepares filter and capability sets. The container's decide the filter, `process` are those that
    /// this process gets.
    pub fn new(params: &Params, process: &[String]) -> Result<Self, LaunchError> {
        let parse = |name: &String| Capability::from_str(name).map_err(|_| LaunchError::Capability(name.clone()));
        let filters = if params.seccomp { seccomp::programs(&params.capabilities)? } else { Vec::new() };
        Ok(Self {
            keep: process.iter().map(parse).collect::<Result<_, _>>()?,
            filters: filters.into(),
            no_new_privileges: params.no_new_privileges,
        })
    }

    /// Loads the filter and drops capabilities. The caller has all capabilities in its effective set.
    fn apply(&self) -> Result<(), LaunchError> {
        let step = |step| move |source: io::Error| LaunchError::Step { step, source };
        let caps_step =
            |step| move |e: caps::errors::CapsError| LaunchError::Step { step, source: io::Error::other(e) };
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(|e| step("forbidding new privileges")(e.into()))?;
        }
        for filter in self.filters.iter() {
            sys::load_seccomp(filter).map_err(step("loading the seccomp filter"))?;
        }
        for capability in caps::all() {
            // Those that this kernel does not know fail with EINVAL.
            if !self.keep.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, capability).map_err(caps_step("dropping bounding capabilities"))?;
            }
        }
        // A container's inheritable set is empty (CVE-2022-24769), and with it the ambient one.
        caps::clear(None, CapSet::Ambient).map_err(caps_step("clearing ambient capabilities"))?;
        caps::clear(None, CapSet::Inheritable).map_err(caps_step("clearing inheritable capabilities"))?;
        let permitted = caps::read(None, CapSet::Permitted).map_err(caps_step("reading capabilities"))?;
        let keep = self.keep.intersection(&permitted).copied().collect();
        caps::set(None, CapSet::Effective, &keep).map_err(caps_step("setting effective capabilities"))?;
        caps::set(None, CapSet::Permitted, &keep).map_err(caps_step("setting permitted capabilities"))
    }

    /// Confines this process and makes it `args`. Returns only on failure.
    pub fn exec(&self, args: &[String], env: &[String]) -> Result<Infallible, LaunchError> {
        let path = find(args.first().map_or("", String::as_str), env)?;
        let words = |list: &[String]| -> Result<Vec<CString>, LaunchError> {
            list.iter().map(|s| CString::new(s.as_str()).map_err(|_| LaunchError::ZeroByte)).collect()
        };
        let (args, env) = (words(args)?, words(env)?);
        let file = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| LaunchError::ZeroByte)?;
        self.apply()?;
        sys::execve(&file, &args, &env).map_err(|source| LaunchError::Exec { path: path.display().to_string(), source })
    }
}

/// Finds the program as a shell would, by the `PATH` of the process's own environment.
pub fn find(name: &str, env: &[String]) -> Result<PathBuf, LaunchError> {
    if name.contains('/') {
        return check(Path::new(name)).map(|()| PathBuf::from(name)).map_err(|e| match e {
            Unusable::Missing => LaunchError::NoFile(name.to_owned()),
            Unusable::Directory => LaunchError::Directory(name.to_owned()),
            Unusable::Forbidden => LaunchError::NotExecutable(name.to_owned()),
        });
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let mut forbidden = false;
    for dir in path.split(':').filter(|_| !name.is_empty()) {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Unusable::Forbidden) => forbidden = true,
            Err(Unusable::Missing | Unusable::Directory) => {}
        }
    }
    Err(if forbidden { LaunchError::NotExecutable(name.to_owned()) } else { LaunchError::NotInPath(name.to_owned()) })
}

enum Unusable {
    Missing,
    Directory,
    Forbidden,
}

fn check(path: &Path) -> Result<(), Unusable> {
    match path.metadata() {
        Ok(found) if found.is_dir() => Err(Unusable::Directory),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Err(Unusable::Forbidden),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Unusable::Forbidden),
        Err(_) => Err(Unusable::Missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_words_that_clients_match() {
        let env = ["PATH=/usr/bin:/bin".to_owned()];
        let text = |name: &str| find(name, &env).unwrap_err().to_string();
        assert_eq!(text("nope"), "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(text(""), "exec: \"\": executable file not found in $PATH");
        assert_eq!(text("/nope"), "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(text("/etc/passwd"), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(text("/etc"), "exec: \"/etc\": is a directory");
        assert!(find("sh", &env).unwrap().ends_with("sh"));
    }
}
