//! Mounts: the structured form of services and `--mount`, and the short form of `-v`.

use skep_proto::model::container::{BindOptions, Driver, Mount, MountKind, TmpfsOptions, VolumeOptions};

use super::refuse;
use crate::docker::error::ApiError;
use crate::docker::types::service as json;

/// Reads a mount of the structured form.
///
/// # Errors
/// 501 for kinds and options that are not built, 400 for unknown kinds.
pub(crate) fn read(mount: json::Mount) -> Result<Mount, ApiError> {
    refuse("Mount", &mount.rest)?;
    let kind = match mount.kind.as_str() {
        "bind" => MountKind::Bind,
        "volume" => MountKind::Volume,
        "tmpfs" => MountKind::Tmpfs,
        "npipe" | "cluster" | "image" => {
            return Err(ApiError::not_supported(format!("a mount of type {}", mount.kind)));
        }
        other => return Err(ApiError::invalid_argument(format!("invalid MountType: \"{other}\""))),
    };
    let bind = mount
        .bind_options
        .map(|o| {
            refuse("BindOptions", &o.rest)?;
            if !["", "private", "rprivate", "shared", "rshared", "slave", "rslave"].contains(&o.propagation.as_str()) {
                return Err(ApiError::invalid_argument(format!("invalid MountPropagation: \"{}\"", o.propagation)));
            }
            Ok(BindOptions {
                propagation: o.propagation,
                non_recursive: o.non_recursive,
                create_mountpoint: o.create_mountpoint,
            })
        })
        .transpose()?;
    let volume = mount
        .volume_options
        .map(|o| {
            refuse("VolumeOptions", &o.rest)?;
            Ok::<_, ApiError>(VolumeOptions {
                no_copy: o.no_copy,
                subpath: o.subpath,
                labels: o.labels,
                driver: o.driver_config.map(|d| Driver { name: d.name, options: d.options }),
                scratch: o.scratch,
                pinned: o.pinned,
                gid: o.gid,
            })
        })
        .transpose()?;
    let tmpfs = mount
        .tmpfs_options
        .map(|o| {
            refuse("TmpfsOptions", &o.rest)?;
            Ok::<_, ApiError>(TmpfsOptions { size: o.size_bytes, mode: o.mode })
        })
        .transpose()?;
    Ok(Mount {
        kind,
        source: mount.source,
        target: mount.target,
        read_only: mount.read_only,
        consistency: mount.consistency,
        bind,
        volume,
        tmpfs,
    })
}

/// Shows a mount in the structured form.
pub(crate) fn show(mount: &Mount) -> json::Mount {
    json::Mount {
        kind: word(mount.kind).into(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        consistency: mount.consistency.clone(),
        bind_options: mount.bind.as_ref().map(|o| json::BindOptions {
            propagation: o.propagation.clone(),
            non_recursive: o.non_recursive,
            create_mountpoint: o.create_mountpoint,
            ..Default::default()
        }),
        volume_options: mount.volume.as_ref().map(|o| json::VolumeOptions {
            no_copy: o.no_copy,
            labels: o.labels.clone(),
            subpath: o.subpath.clone(),
            driver_config: o.driver.as_ref().map(|d| json::Driver { name: d.name.clone(), options: d.options.clone() }),
            scratch: o.scratch,
            pinned: o.pinned,
            gid: o.gid,
            ..Default::default()
        }),
        tmpfs_options: mount.tmpfs.map(|o| json::TmpfsOptions {
            size_bytes: o.size,
            mode: o.mode,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn word(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Bind => "bind",
        MountKind::Volume => "volume",
        MountKind::Tmpfs => "tmpfs",
    }
}

/// Reads `[SOURCE:]TARGET[:OPTIONS]` (`docker run -v`).
///
/// # Errors
/// 400 in Docker's words.
pub(crate) fn read_bind(text: &str) -> Result<Mount, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid volume specification: '{text}'"));
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or("");
    let (source, target, options) = match (parts.next(), parts.next(), parts.next()) {
        (None, _, _) => ("", first, ""),
        (Some(target), None, _) => (first, target, ""),
        (Some(target), Some(options), None) => (first, target, options),
        (Some(_), Some(_), Some(_)) => return Err(invalid()),
    };
    if !target.starts_with('/') || target == "/" || (source.is_empty() && text.contains(':')) {
        return Err(invalid());
    }
    let is_bind = source.starts_with('/');
    let mut mount = Mount {
        kind: if is_bind { MountKind::Bind } else { MountKind::Volume },
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: None,
    };
    // `-v` makes a missing source; `--mount` does not.
    let mut bind = BindOptions { create_mountpoint: true, ..BindOptions::default() };
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            // z and Z relabel for SELinux, which is not in use.
            "rw" | "z" | "Z" => {}
            "nocopy" if !is_bind => {
                mount.volume = Some(VolumeOptions { no_copy: true, ..VolumeOptions::default() });
            }
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" if is_bind => {
                bind.propagation = option.to_owned();
            }
            "consistent" | "cached" | "delegated" | "default" => mount.consistency = option.to_owned(),
            _ => return Err(ApiError::bad_request(format!("invalid mode: {options}"))),
        }
    }
    if is_bind {
        mount.bind = Some(bind);
    }
    Ok(mount)
}

/// Shows a mount in the short form, when that says all of it.
pub(crate) fn show_bind(mount: &Mount) -> Option<String> {
    if mount.source.is_empty() {
        return None;
    }
    let mut options = Vec::new();
    match (mount.kind, &mount.bind, &mount.volume) {
        (MountKind::Bind, Some(bind), None) if bind.create_mountpoint && !bind.non_recursive => {
            if !bind.propagation.is_empty() {
                options.push(bind.propagation.as_str());
            }
        }
        (MountKind::Volume, None, None) => {}
        (MountKind::Volume, None, Some(volume))
            if *volume == (VolumeOptions { no_copy: true, ..Default::default() }) =>
        {
            options.push("nocopy");
        }
        _ => return None,
    }
    if mount.read_only {
        options.push("ro");
    }
    if !mount.consistency.is_empty() {
        options.push(&mount.consistency);
    }
    let base = format!("{}:{}", mount.source, mount.target);
    Some(if options.is_empty() { base } else { format!("{base}:{}", options.join(",")) })
}

/// Reads one entry of `HostConfig.Tmpfs`: options as mount(8) writes them.
///
/// # Errors
/// 501 for options other than size, mode and those that are always on.
pub(crate) fn read_tmpfs(target: &str, options: &str) -> Result<Mount, ApiError> {
    let mut tmpfs = TmpfsOptions::default();
    let mut read_only = false;
    for option in options.split(',').filter(|o| !o.is_empty()) {
        let invalid = || ApiError::bad_request(format!("invalid tmpfs option \"{option}\""));
        match option.split_once('=') {
            Some(("size", size)) => tmpfs.size = bytes(size).ok_or_else(invalid)?,
            Some(("mode", mode)) => tmpfs.mode = u32::from_str_radix(mode, 8).map_err(|_| invalid())?,
            None if ["rw", "noexec", "nosuid", "nodev"].contains(&option) => {}
            None if option == "ro" => read_only = true,
            _ => return Err(ApiError::not_supported(format!("the tmpfs option {option}"))),
        }
    }
    Ok(Mount {
        kind: MountKind::Tmpfs,
        source: String::new(),
        target: target.to_owned(),
        read_only,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: Some(tmpfs),
    })
}

/// `64m`, `1g`, `1024`.
fn bytes(text: &str) -> Option<u64> {
    let unit = match text.chars().last()?.to_ascii_lowercase() {
        'k' => 1 << 10,
        'm' => 1 << 20,
        'g' => 1 << 30,
        _ => return text.parse().ok(),
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_short_form_tells_binds_volumes_and_anonymous_volumes_apart() {
        assert_eq!(read_bind("/a:/b:ro").unwrap().kind, MountKind::Bind);
        assert!(read_bind("/a:/b:ro").unwrap().read_only);
        assert_eq!(read_bind("data:/b").unwrap().kind, MountKind::Volume);
        assert_eq!(read_bind("/b").unwrap().source, "");
        for wrong in ["", "a", "a:b", ":/b", "/a:/b:nope", "/a:/b:ro:x", "/a:/"] {
            assert!(read_bind(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_short_form_is_shown_as_it_was_given() {
        for text in ["/a:/b", "/a:/b:ro", "/a:/b:rshared,ro", "data:/b", "data:/b:nocopy"] {
            assert_eq!(show_bind(&read_bind(text).unwrap()).as_deref(), Some(text));
        }
    }

    #[test]
    fn tmpfs_sizes_have_units() {
        let mount = read_tmpfs("/run", "rw,noexec,size=64m,mode=1777").unwrap();
        assert_eq!(mount.tmpfs, Some(TmpfsOptions { size: 64 << 20, mode: 0o1777 }));
    }

    proptest! {
        #[test]
        fn arbitrary_mounts_never_panic(text in ".{0,40}") {
            let _ = read_bind(&text);
            let _ = read_tmpfs("/t", &text);
        }
    }
}
