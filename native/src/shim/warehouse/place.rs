//! Where a path package is compiled, and where the compiler sees that.
//!
//! Worktrees whose compiler sees them at one path (`identity`) share what is compiled there: their
//! keys name the paths that are *seen*.  What is real all the same (variables, what a macro asked
//! for by it) is in the entry, below the places that it was compiled at, and compared here below
//! those of here.  Outputs that hold a real place come back there alone.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::checkout::Checkout;
use super::super::identity::restore::Back;
use super::super::layout;
use super::baked::{self, Name};
use super::entry::Entry;
use crate::depinfo;

/// Real directories that outputs must not name to be of use elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Without git, the directory that compilers work in.
    pub checkout: PathBuf,
    pub target: PathBuf,
}

/// What of an entry is to be read otherwise here.
pub struct Moved {
    pub pairs: Vec<(String, String)>,
    /// Directories of which others are above here.
    roots: Vec<(PathBuf, PathBuf)>,
}

impl Place {
    pub fn of(directory: &Path, profile: &Path) -> Option<Self> {
        let checkout = Checkout::above(directory).map(|checkout| checkout.root);
        Some(Self {
            checkout: checkout.unwrap_or_else(|| directory.to_owned()),
            target: layout::target_directory(profile)?.to_owned(),
        })
    }

    pub fn value(&self) -> Option<Value> {
        Some(json!([self.checkout.to_str()?, self.target.to_str()?]))
    }

    fn parse(value: &Value) -> Option<Self> {
        let [checkout, target] = value.as_array()?.as_slice() else {
            return None;
        };
        Some(Self {
            checkout: checkout.as_str()?.into(),
            target: target.as_str()?.into(),
        })
    }

    /// The place that an entry was compiled at, where it is bound to one or may be.
    pub fn of_entry(entry: &Entry) -> Option<Self> {
        Self::parse(entry.value.get("place")?)
    }

    fn roots(&self) -> Vec<&Path> {
        if self.target.starts_with(&self.checkout) {
            vec![&self.checkout]
        } else {
            vec![&self.checkout, &self.target]
        }
    }

    /// Whether a value names the place.
    pub fn is_named(&self, value: &str) -> bool {
        let named = |root: &Path| root.to_str().is_none_or(|root| value.contains(root));
        self.roots().into_iter().any(named)
    }

    /// From the paths of an entry that was compiled there to those of here.
    pub fn moved(&self, here: &Self) -> Option<Moved> {
        let text = |path: &Path| path.to_str().map(str::to_owned);
        let pairs = [
            (&self.checkout, &here.checkout),
            (&self.target, &here.target),
        ];
        let named = pairs.map(|(was, here)| text(was).zip(text(here)));
        let count = self.roots().len();
        let differ = pairs
            .into_iter()
            .take(count)
            .filter(|(was, here)| was != here);
        Some(Moved {
            pairs: named.into_iter().collect::<Option<_>>()?,
            roots: differ
                .map(|(was, here)| (was.clone(), here.clone()))
                .collect(),
        })
    }
}

impl Moved {
    /// What was observed of a compile there, as it is to be found here, and what must not be there
    /// for it to be all.  `None`: something was asked for of which nobody knows what it is here.
    pub fn hidden(&self, hidden: &Value) -> Option<(Value, Vec<PathBuf>)> {
        let back = Back::new(self.pairs.clone());
        let mut value = hidden.clone();
        let mut absent = Vec::new();
        for kind in ["files", "directories", "missing", "existing"] {
            for entry in value.get_mut(kind)?.as_array_mut()? {
                let path = match entry {
                    Value::Array(parts) => parts.first_mut()?,
                    path => path,
                };
                let text = path.as_str()?;
                if let Some(here) = back.path(text) {
                    *path = Value::String(here);
                    continue;
                }
                for (was, here) in &self.roots {
                    if kind == "existing" && was.starts_with(text) {
                        continue; // a directory above: others are there as well
                    }
                    match asked_above(Path::new(text), was, here) {
                        Some(others) => absent.extend(others),
                        None if kind == "missing" => {}
                        None => return None,
                    }
                }
            }
        }
        Some((value, absent))
    }
}

/// What else may be asked for from `here` by who asked for `path` from `was`, outside of it: whoever
/// looks for a file in each directory above meets others here.  Whether it was that, or a path
/// that is the same from everywhere, nobody can tell; both are right only where none of the
/// answer is there.  `None`: it lies below a directory that is not above `here`.
///
/// The rule is that of `asked_above` in `src/cargo_cow/prepare/place.py`.
fn asked_above(path: &Path, was: &Path, here: &Path) -> Option<Vec<PathBuf>> {
    let is_above =
        |directory: &Path, place: &Path| directory != place && place.starts_with(directory);
    let common = path.ancestors().find(|above| was.starts_with(above))?;
    if !is_above(common, here) {
        return None;
    }
    let rest = path.strip_prefix(common).ok()?;
    let others = here.ancestors().skip(1);
    let others = others.take_while(|above| !is_above(above, was));
    Some(others.map(|above| above.join(rest)).collect())
}

/// Whether the outputs of an entry that was compiled at `place` hold that other than where it does
/// not count: as the name of a source in the source map, of a generated file, or in debug information.
pub fn holds(entry: &Entry, place: &Place) -> bool {
    holds_some(entry, place).unwrap_or(true)
}

fn holds_some(entry: &Entry, place: &Place) -> Option<bool> {
    let directory = Path::new(entry.text("directory")?);
    let out = entry.text("out").map(Path::new);
    let read = depinfo::parse(entry.text("dep_info")?)?;
    let text = |path: PathBuf| path.to_str().map(str::to_owned);
    let mut names = vec![Name::of_source(text(directory.to_owned())?)];
    for file in &read.files {
        let path = directory.join(file);
        let generated = out.is_some_and(|out| path.starts_with(out));
        let path = text(path)?;
        names.push(if generated {
            Name::of_generated(path)
        } else {
            Name::of_source(path)
        });
    }
    let needles: Vec<&str> = place
        .roots()
        .into_iter()
        .map(Path::to_str)
        .collect::<Option<_>>()?;
    // What is generated for others comes with these, which are the same here.
    let others = baked::Others {
        target: place.target.to_str()?,
        own: out.and_then(Path::to_str),
    };
    for index in 0..entry.outputs()?.len() {
        let data = std::fs::read(entry.file(index)).ok()?;
        if needles
            .iter()
            .any(|needle| baked::holds(&data, needle, &names, Some(&others)))
        {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(checkout: &str) -> Place {
        Place {
            checkout: checkout.into(),
            target: Path::new(checkout).join("target"),
        }
    }

    fn hidden(kind: &str, path: &str) -> Value {
        let mut value = json!({"files": [], "directories": [], "missing": [], "existing": []});
        value[kind] = match kind {
            "missing" | "existing" => json!([path]),
            _ => json!([[path, "digest"]]),
        };
        value
    }

    #[test]
    fn what_was_asked_there_and_here() {
        let moved = |was: &str, here: &str, kind: &str, path: &str| {
            let moved = place(was).moved(&place(here)).unwrap();
            let (value, absent) = moved.hidden(&hidden(kind, path))?;
            let told = match &value[kind][0] {
                Value::Array(parts) => parts[0].clone(),
                path => path.clone(),
            };
            let absent: Vec<String> = absent
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Some((told.as_str()?.to_owned(), absent.join(" ")))
        };
        let some = |path: &str, absent: &str| Some((path.to_owned(), absent.to_owned()));
        assert_eq!(moved("/a/p", "/b/q", "files", "/a/p/x"), some("/b/q/x", ""));
        assert_eq!(
            moved("/a/p", "/b/c/q", "missing", "/.env"),
            some("/.env", "/b/c/.env /b/.env")
        );
        assert_eq!(
            moved("/a/p", "/b/q", "missing", "/a/.env"),
            some("/a/.env", "")
        );
        assert_eq!(moved("/a/p", "/b/q", "files", "/a/.env"), None);
        assert_eq!(
            moved("/a/p", "/a/q", "files", "/a/.env"),
            some("/a/.env", "")
        );
        assert_eq!(
            moved("/a/p", "/a/p/t/q", "files", "/a/.env"),
            some("/a/.env", "/a/p/t/.env /a/p/.env")
        );
        assert_eq!(moved("/a/p", "/a/b/q", "existing", "/a"), some("/a", ""));
        assert_eq!(
            moved("/a/p", "/a/b/q", "directories", "/a"),
            some("/a", "/a/b/")
        );
        assert_eq!(moved("/a/p", "/a/p", "files", "/x"), some("/x", ""));
    }
}
