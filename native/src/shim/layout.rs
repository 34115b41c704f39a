//! Where the files of a unit lie in Cargo's target, in both layouts.
//!
//! Cargo 1.95: `src/cargo/core/compiler/layout.rs` and `compilation_files.rs`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::strip_prefix;

/// What a unit's outputs lie in, below its profile.
enum OutDir<'a> {
    /// `build/<package>/<hash>/out`, in the new layout: the directory that holds `out`.
    Own(&'a Path),
    /// `deps` or `examples`, with those of all others.
    Shared,
    /// `build/<package>-<hash>`, of a build script.
    Script(&'a OsStr),
}

/// The profile that `out_dir` lies in, and what it is there.
fn placed(out_dir: &Path) -> Option<(&Path, OutDir<'_>)> {
    let parent = out_dir.parent()?;
    let name = out_dir.file_name()?;
    if name == "deps" || name == "examples" {
        return Some((parent, OutDir::Shared));
    }
    let (build, found) = if name == "out" {
        (parent.parent()?.parent()?, OutDir::Own(parent))
    } else {
        (parent, OutDir::Script(name))
    };
    (build.file_name()? == "build").then_some((build.parent()?, found))
}

/// Cargo's fingerprint directory of the unit that compiles into `out_dir`.
///
/// In the old layout a unit without `-C extra-filename` (a path package's cdylib or dylib) does not
/// tell its hash, and is not observed.
pub fn unit_directory(
    out_dir: &Path,
    extra_filename: &OsStr,
    package_name: Option<&OsStr>,
) -> Option<PathBuf> {
    let (profile, found) = placed(out_dir)?;
    let hash = || strip_prefix(extra_filename, "-").filter(|hash| !hash.is_empty());
    let unit = match found {
        OutDir::Own(unit) => return Some(unit.join("fingerprint")),
        OutDir::Shared => {
            let mut unit = package_name?.to_owned();
            unit.push("-");
            unit.push(hash()?);
            unit
        }
        OutDir::Script(unit) => {
            hash()?;
            if !unit.as_bytes().ends_with(extra_filename.as_bytes()) {
                return None;
            }
            unit.to_owned()
        }
    };
    Some(profile.join(".fingerprint").join(unit))
}

/// `target/debug` and the like: the directory of everything that is built with one profile for one
/// platform, of which `out_dir` holds a unit's outputs.
pub fn profile_directory(out_dir: &Path) -> Option<&Path> {
    placed(out_dir).map(|(profile, _)| profile)
}

/// The target directory that a profile's directory lies in: Cargo marks it.
pub fn target_directory(profile: &Path) -> Option<&Path> {
    profile
        .ancestors()
        .skip(1)
        .take(2)
        .find(|path| path.join("CACHEDIR.TAG").exists())
        .or_else(|| profile.parent())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(out_dir: &str, extra: &str, package: &str) -> Option<PathBuf> {
        unit_directory(
            Path::new(out_dir),
            OsStr::new(extra),
            Some(OsStr::new(package)),
        )
    }

    #[test]
    fn the_unit_follows_from_the_output() {
        let found = |path: &str| Some(PathBuf::from(path));
        assert_eq!(
            unit("/t/debug/deps", "-0a", "app"),
            found("/t/debug/.fingerprint/app-0a")
        );
        assert_eq!(
            unit("/t/x86_64-unknown-linux-gnu/release/examples", "-0a", "app"),
            found("/t/x86_64-unknown-linux-gnu/release/.fingerprint/app-0a")
        );
        assert_eq!(
            unit("/t/debug/build/my-app-0a", "-0a", "my-app"),
            found("/t/debug/.fingerprint/my-app-0a")
        );
        assert_eq!(
            unit("/t/debug/build/app/0a/out", "-0a", "app"),
            found("/t/debug/build/app/0a/fingerprint")
        );
    }

    #[test]
    fn the_profile_follows_from_the_output() {
        for out_dir in [
            "/t/debug/deps",
            "/t/debug/examples",
            "/t/debug/build/my-app-0a",
            "/t/debug/build/app/0a/out",
        ] {
            let found = profile_directory(Path::new(out_dir));
            assert_eq!(found, Some(Path::new("/t/debug")), "{out_dir}");
        }
        assert_eq!(profile_directory(Path::new("/tmp/out")), None);
    }

    #[test]
    fn other_directories_are_no_units() {
        assert_eq!(unit("/t/debug/deps", "", "app"), None);
        assert_eq!(unit("/tmp", "-0a", "app"), None);
        assert_eq!(unit("/t/debug/build/app-0b", "-0a", "app"), None);
        assert_eq!(unit("/somewhere/out", "-0a", "app"), None);
    }
}
