//! Which directory stands where: `identity.json`, and paths by component.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

/// Version of `identity.json`.
const FORMAT: u64 = 1;

/// What lies at `real` is seen by rustc at `seen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub real: PathBuf,
    pub seen: PathBuf,
}

impl Place {
    /// Whether the real path lies inside of the seen one.
    pub fn is_nested(&self) -> bool {
        self.real.starts_with(&self.seen)
    }

    /// Whether `path` lies below the seen path, and is the same inside all the same.
    fn keeps(&self, path: &Path) -> bool {
        self.is_nested() && path.starts_with(&self.real)
    }
}

/// In the order in which they are bound: first the checkout, then its build directory where that
/// has a place of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places(Vec<Place>);

impl Places {
    /// `text` is that of `identity.json` of the checkout at `root`.
    pub fn parse(text: &str, root: &Path) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if value.get("format").and_then(Value::as_u64) != Some(FORMAT) {
            return Err("another format".to_owned());
        }
        let path = |key: &str| {
            let text = value.get(key).and_then(Value::as_str);
            text.map(PathBuf::from).filter(|path| is_plain(path))
        };
        let place = |real: &str, seen: &str| {
            let (real, seen) = path(real).zip(path(seen)).ok_or("no plain paths")?;
            Ok::<_, String>(Place { real, seen })
        };
        let mut places = vec![place("checkout", "identity")?];
        if value.get("build_dir").is_some() {
            places.push(place("build_dir", "build_dir_identity")?);
        }
        if places[0].real != root {
            return Err(format!(
                "for another checkout: {}",
                places[0].real.display()
            ));
        }
        Self::of(places)
    }

    pub fn of(mut places: Vec<Place>) -> Result<Self, String> {
        places.retain(|place| place.real != place.seen);
        for (index, Place { real, .. }) in places.iter().enumerate() {
            for (other, Place { seen, .. }) in places.iter().enumerate() {
                // A real path inside a seen one would vanish, except in its own, where it is kept
                // (`frame`); a seen one inside a real one would be part of what it shows.
                if index != other && real.starts_with(seen) || seen.starts_with(real) {
                    let (real, seen) = (real.display(), seen.display());
                    return Err(format!("{real} and {seen} lie in each other"));
                }
            }
        }
        if places.is_empty() {
            return Err("its own place".to_owned());
        }
        Ok(Self(places))
    }

    /// Everything is seen where it is.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    pub fn all(&self) -> &[Place] {
        &self.0
    }

    /// `path` as rustc shall see it; `None` where that is no other than it is.
    pub fn seen(&self, path: &Path) -> Option<PathBuf> {
        // `..` behind a prefix may lead out of it.
        if path.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let nearest = |place: &&Place| place.real.components().count();
        let inside = self.0.iter().filter(|place| path.starts_with(&place.real));
        let place = inside.max_by_key(nearest)?;
        let rest = path.strip_prefix(&place.real).ok()?;
        // Joined to an empty rest, a path gets a slash at its end.
        Some(if rest.as_os_str().is_empty() {
            place.seen.clone()
        } else {
            place.seen.join(rest)
        })
    }

    /// Whether `path` names what lies below an identity outside, and so something else inside.
    pub fn hides(&self, path: &Path) -> bool {
        let hides = |place: &Place| path.starts_with(&place.seen) && !place.keeps(path);
        self.0.iter().any(hides)
    }
}

/// Absolute, more than `/`, and spelled as the kernel would spell it.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|part| matches!(part, Component::Normal(_)))
        && path.components().as_path().as_os_str() == path.as_os_str()
        && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(pairs: &[(&str, &str)]) -> Result<Places, String> {
        let place = |(real, seen): &(&str, &str)| Place {
            real: real.into(),
            seen: seen.into(),
        };
        Places::of(pairs.iter().map(place).collect())
    }

    fn seen(places: &Places, path: &str) -> Option<String> {
        let seen = places.seen(Path::new(path))?;
        Some(seen.to_str().unwrap().to_owned())
    }

    #[test]
    fn paths_are_moved_by_component() {
        let places = places(&[("/w/p", "/id"), ("/w/p/out", "/cache/out")]).unwrap();
        let moved = [
            ("/w/p", "/id"),
            ("/w/p/", "/id"),
            ("/w/p/src/a.rs", "/id/src/a.rs"),
            ("/w//p/./src", "/id/src"),
            ("/w/p/out/debug", "/cache/out/debug"),
            ("/w/p/outer", "/id/outer"),
        ];
        for (path, expected) in moved {
            assert_eq!(seen(&places, path).as_deref(), Some(expected), "{path}");
        }
        for path in ["/w/p-old", "/work", "/x/w/p", "p", "", "/w/p/../q"] {
            assert_eq!(seen(&places, path), None, "{path}");
        }
    }

    #[test]
    fn places_that_lie_in_each_other_are_refused() {
        for (real, seen) in [("/w/p", "/w/p/id"), ("/w/p", "/w/p")] {
            assert!(places(&[(real, seen)]).is_err(), "{real} {seen}");
        }
        assert!(places(&[("/w/p-old", "/w/p")]).is_ok());
        // A checkout inside of its identity is kept there; what belongs to it is not.
        let nested = [("/w/p/.worktrees/x", "/w/p")];
        let inside = places(&nested).unwrap();
        assert!(inside.hides(Path::new("/w/p/.git")));
        assert!(!inside.hides(Path::new("/w/p/.worktrees/x/src")));
        assert!(places(&[nested[0], ("/w/p/out", "/cache")]).is_err());
        // A build directory that keeps its place needs no bind.
        let same = places(&[("/a", "/b"), ("/cache", "/cache")]).unwrap();
        assert_eq!(same.all().len(), 1);
        // Inside the checkout's identity it would vanish.
        assert!(places(&[("/a", "/b"), ("/b/target", "/c")]).is_err());
    }

    #[test]
    fn what_a_file_may_say() {
        let parse = |text: &str| Places::parse(text, Path::new("/w"));
        let good = r#"{"format":1,"checkout":"/w","identity":"/id","later":[]}"#;
        assert_eq!(parse(good).unwrap(), places(&[("/w", "/id")]).unwrap());
        let both = r#"{"format":1,"checkout":"/w","identity":"/id",
            "build_dir":"/b","build_dir_identity":"/c"}"#;
        let expected = places(&[("/w", "/id"), ("/b", "/c")]).unwrap();
        assert_eq!(parse(both).unwrap(), expected);
        for bad in [
            "",
            "[]",
            r#"{"format":2,"checkout":"/w","identity":"/id"}"#,
            r#"{"checkout":"/w","identity":"/id"}"#,
            r#"{"format":1,"checkout":"/w"}"#,
            r#"{"format":1,"checkout":"/v","identity":"/id"}"#,
            r#"{"format":1,"checkout":"/w","identity":"id"}"#,
            r#"{"format":1,"checkout":"/w","identity":"/"}"#,
            r#"{"format":1,"checkout":"/w","identity":"/id/"}"#,
            r#"{"format":1,"checkout":"/w","identity":"/a/../id"}"#,
            r#"{"format":1,"checkout":"/w","identity":"/a//id"}"#,
            r#"{"format":1,"checkout":"/w","identity":"/id","build_dir":"/b"}"#,
            r#"{"format":1,"checkout":"/w","identity":7}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
