//! git for what runs inside rustc (`git_version!` and its like).
//!
//! A linked worktree's `.git` names a directory of the main checkout; where that is hidden by the
//! identity, git would find no repository, and a macro with a fallback would say so silently.  So
//! the common git directory is bound at a place of ours below Cargo's profile directory, and a
//! file that names it over the worktree's `.git`.  Paths through it are mapped back like others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::checkout::Checkout;
use super::places::Places;

/// Beside the incremental directory.
const PLACE: &str = ".cow-git";

pub struct Moved {
    /// The common git directory, and where it is seen.
    pub common: (PathBuf, PathBuf),
    /// The file that names it, and the worktree's `.git`.
    pub link: (PathBuf, PathBuf),
}

/// `None`: git is where it was.
pub fn moved(
    checkout: &Checkout,
    places: &Places,
    incremental: &Path,
) -> io::Result<Option<Moved>> {
    let link = checkout.root.join(".git");
    if !link.symlink_metadata()?.is_file() {
        return Ok(None);
    }
    let common = checkout.common_dir.canonicalize()?;
    if !places.hides(&common) {
        return Ok(None);
    }
    let own = checkout.git_dir.canonicalize()?;
    let own = own.strip_prefix(&common).map_err(io::Error::other)?;
    let place = incremental
        .parent()
        .filter(|parent| parent.is_absolute())
        .ok_or(io::ErrorKind::NotFound)?
        .join(PLACE);
    let seen = place.join("common");
    let file = place.join("dot-git");
    let text = format!("gitdir: {}\n", seen.join(own).display());
    if !seen.is_dir() || fs::read_to_string(&file).ok().as_ref() != Some(&text) {
        fs::create_dir_all(&seen)?;
        // Other compiles may be binding the old one.
        let aside = place.join(format!("dot-git.{}", std::process::id()));
        fs::write(&aside, text)?;
        fs::rename(&aside, &file)?;
    }
    Ok(Some(Moved {
        common: (common, seen),
        link: (file, link),
    }))
}
