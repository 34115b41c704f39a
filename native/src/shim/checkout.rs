//! git checkouts, found by looking at `.git` alone (gitrepository-layout(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MARKER: &str = "seeded";

pub struct Checkout {
    pub root: PathBuf,
    /// Of this checkout alone: `.git`, or `<common>/worktrees/<name>` in a linked worktree.
    pub git_dir: PathBuf,
    /// Of the project.
    pub common_dir: PathBuf,
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
        self.of_ours(MARKER).symlink_metadata().is_ok()
    }

    pub fn mark(&self) -> io::Result<()> {
        self.write(MARKER, "")
    }

    pub fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.of_ours(name)).ok()
    }

    pub fn write(&self, name: &str, content: &str) -> io::Result<()> {
        match fs::create_dir(self.of_ours("")) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::write(self.of_ours(name), content)
    }

    fn of_ours(&self, name: &str) -> PathBuf {
        self.git_dir.join("cargo-cow").join(name)
    }
}
