//! git checkouts, found by looking at `.git` alone (gitrepository-layout(5)).

use std::fs;
use std::path::{Path, PathBuf};

pub struct Checkout {
    pub root: PathBuf,
    /// Of this checkout alone: `.git`, or `<common>/worktrees/<name>` in a linked worktree.
    git_dir: PathBuf,
    /// Of the project.
    common_dir: PathBuf,
}

impl Checkout {
    /// The checkout that `directory` (absolute) lies in.
    pub fn above(directory: &Path) -> Option<Self> {
        directory.ancestors().find_map(Self::at)
    }

    fn at(root: &Path) -> Option<Self> {
        let dot_git = root.join(".git");
        let git_dir = if dot_git.symlink_metadata().ok()?.is_file() {
            let link = fs::read_to_string(&dot_git).ok()?;
            root.join(link.strip_prefix("gitdir:")?.trim())
        } else {
            dot_git
        };
        // Everything else that is called `.git` has no HEAD.
        git_dir.join("HEAD").symlink_metadata().ok()?;
        let common_dir = match fs::read_to_string(git_dir.join("commondir")) {
            Ok(relative) => git_dir.join(relative.trim_end_matches(['\n', '\r'])),
            Err(_) => git_dir.clone(),
        };
        Some(Self {
            root: root.to_owned(),
            git_dir,
            common_dir,
        })
    }

    /// Whether the project has linked worktrees, and so anything to seed from.
    pub fn has_sibling(&self) -> bool {
        fs::read_dir(self.common_dir.join("worktrees"))
            .is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Set once this checkout had a target: from then on a missing target was removed by
    /// somebody, who wants a clean build.
    pub fn is_marked(&self) -> bool {
        self.marker().symlink_metadata().is_ok()
    }

    pub fn mark(&self) -> std::io::Result<()> {
        let marker = self.marker();
        if let Some(directory) = marker.parent()
            && let Err(error) = fs::create_dir(directory)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(marker)
            .map(drop)
    }

    fn marker(&self) -> PathBuf {
        self.git_dir.join("cargo-cow/seeded")
    }
}
