//! rustc's makefile dep-info (`.d`), read exactly as Cargo 1.95 reads it.
//!
//! Source: `parse_rustc_dep_info` in `src/cargo/core/compiler/fingerprint/dep_info.rs`.  Only the
//! first line with `": "` lists files; a space within a path is written `\ ` (nothing else is
//! escaped); `# env-dep:NAME=value` (or without `=value` when the variable was unset) escapes
//! `\`, newline and carriage return.

/// What one compile read, in the order of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DepInfo {
    /// As written by rustc: relative to its working directory, or absolute.
    pub files: Vec<String>,
    /// `None`: asked for, but not set.
    pub environment: Vec<(String, Option<String>)>,
}

/// `None` where Cargo would refuse the file, too: then nothing is known about the compile.
pub fn parse(contents: &str) -> Option<DepInfo> {
    let mut result = DepInfo::default();
    let mut seen = std::collections::HashSet::new();
    let mut found_files = false;
    for line in contents.lines() {
        if let Some(rest) = line.strip_prefix("# env-dep:") {
            let (name, value) = match rest.split_once('=') {
                Some((name, value)) => (name, Some(unescape(value)?)),
                None => (rest, None),
            };
            result.environment.push((unescape(name)?, value));
        } else if let Some((_, rest)) = line.split_once(": ") {
            if found_files {
                continue;
            }
            found_files = true;
            let mut words = rest.split_whitespace();
            while let Some(word) = words.next() {
                let mut file = word.to_owned();
                while file.ends_with('\\') {
                    file.pop();
                    file.push(' ');
                    file.push_str(words.next()?);
                }
                if seen.insert(file.clone()) {
                    result.files.push(file);
                }
            }
        }
    }
    Some(result)
}

fn unescape(text: &str) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\\' {
            result.push(match characters.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            });
        } else {
            result.push(character);
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_from_the_first_rule_only() {
        let text = "/t/deps/a.d: src/lib.rs src/b.rs src/lib.rs\n\n\
                    /t/deps/liba.rlib: src/lib.rs src/other.rs\n\nsrc/lib.rs:\nsrc/b.rs:\n";
        assert_eq!(parse(text).unwrap().files, ["src/lib.rs", "src/b.rs"]);
    }

    #[test]
    fn spaces_are_escaped_and_a_backslash_elsewhere_is_itself() {
        let text = "a.d: my\\ own\\ file.rs back\\slash.rs\n";
        assert_eq!(
            parse(text).unwrap().files,
            ["my own file.rs", "back\\slash.rs"]
        );
        assert_eq!(parse("a.d: trailing\\\n"), None);
    }

    #[test]
    fn variables_are_unescaped() {
        let text =
            "# env-dep:UNSET\n# env-dep:EMPTY=\n# env-dep:TEXT=a\\nb\\\\c=d\\r\na.d: lib.rs\n";
        let environment = parse(text).unwrap().environment;
        let expected = [
            ("UNSET", None),
            ("EMPTY", Some("")),
            ("TEXT", Some("a\nb\\c=d\r")),
        ];
        assert_eq!(
            environment,
            expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
        );
        assert_eq!(parse("# env-dep:BAD=\\x\n"), None);
    }

    #[test]
    fn checksums_of_unstable_cargo_are_no_files() {
        let text = "a.d: lib.rs\n\nlib.rs:\n# checksum:blake3=00 file_len:3 lib.rs\n";
        assert_eq!(parse(text).unwrap().files, ["lib.rs"]);
    }
}
