//! The way back: what rustc says of the paths that it saw, said of the real ones.
//!
//! rustc's JSON (rustc_errors' `json.rs`, 1.95) is changed in place: every byte but those of the
//! strings concerned stays.  Source text in it (`text`, `suggested_replacement`, quoted lines of
//! `rendered`) is the user's and stays as well, because `cargo fix` writes it into files.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::path::Path;

use super::super::guarded;

/// `(seen, real)`.
#[derive(Clone)]
pub struct Back(Vec<(String, String)>);

impl Back {
    pub fn new(mut pairs: Vec<(String, String)>) -> Self {
        // The longest first: one seen path may lie inside another.
        pairs.sort_by_key(|(seen, _)| std::cmp::Reverse(seen.len()));
        Self(pairs)
    }

    /// Copies `from` to `to` until its end, mapped, each line as soon as it is complete.  Where
    /// nobody listens any more, returns: `from` is then closed, as `to` is.
    pub fn relay(&self, mut from: impl Read, mut to: impl Write) {
        let mut held = Vec::new();
        let mut buffer = [0; 64 * 1024];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let new = held.len();
            held.extend_from_slice(&buffer[..count]);
            let complete = match held[new..].iter().rposition(|byte| *byte == b'\n') {
                _ if count == 0 => held.len(),
                Some(last) => new + last + 1,
                None => continue,
            };
            let mut mapped = Vec::with_capacity(complete);
            for line in held[..complete].split_inclusive(|byte| *byte == b'\n') {
                mapped.extend_from_slice(&self.line(line));
            }
            if to.write_all(&mapped).is_err() || count == 0 {
                return;
            }
            held.drain(..complete);
        }
    }

    /// One line of rustc's stderr.
    fn line<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        let mapped = guarded(|| {
            if line.first() == Some(&b'{')
                && let Ok(text) = std::str::from_utf8(line)
            {
                return self.json(text).map(String::into_bytes);
            }
            self.text(line)
        });
        mapped.map_or(Cow::Borrowed(line), Cow::Owned)
    }

    /// `None`: nothing to change.
    fn json(&self, line: &str) -> Option<String> {
        let escaped = |seen: &String| serde_json::to_string(seen).unwrap_or_default();
        if !self.0.iter().any(|(seen, _)| {
            line.contains(seen.as_str()) || line.contains(escaped(seen).trim_matches('"'))
        }) {
            return None;
        }
        let bytes = line.as_bytes();
        let mut result = String::with_capacity(line.len() + 256);
        let mut copied = 0;
        let mut key = "";
        let mut at = 0;
        while let Some(start) = bytes[at..].iter().position(|byte| *byte == b'"') {
            let start = at + start;
            let end = end_of_string(bytes, start)?;
            at = end;
            let next = bytes[end..].iter().find(|byte| !byte.is_ascii_whitespace());
            if next == Some(&b':') {
                key = &line[start + 1..end - 1];
                continue;
            }
            let map: fn(&Self, &str) -> Option<String> = match key {
                "file_name" | "artifact" => Self::path,
                "message" | "label" => Self::words,
                "rendered" => Self::rendered,
                _ => continue,
            };
            let value: String = serde_json::from_str(&line[start..end]).ok()?;
            if let Some(mapped) = map(self, &value) {
                result.push_str(&line[copied..start]);
                result.push_str(&serde_json::to_string(&mapped).ok()?);
                copied = end;
            }
        }
        result.push_str(&line[copied..]);
        Some(result)
    }

    /// A whole path.  `None`: it is no other.
    pub fn path(&self, path: &str) -> Option<String> {
        self.0.iter().find_map(|(seen, real)| {
            let rest = path.strip_prefix(seen.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then(|| format!("{real}{rest}"))
        })
    }

    fn words(&self, text: &str) -> Option<String> {
        String::from_utf8(self.text(text.as_bytes())?).ok()
    }

    /// A diagnostic as it is shown, where lines of source code are quoted.
    fn rendered(&self, text: &str) -> Option<String> {
        let mut result = String::with_capacity(text.len() + 256);
        for line in text.split_inclusive('\n') {
            let mapped = if quotes_source(line) {
                None
            } else {
                self.words(line)
            };
            result.push_str(mapped.as_deref().unwrap_or(line));
        }
        (result != text).then_some(result)
    }

    /// Paths within other text.  `None`: there are none.
    pub fn text(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut result = Vec::new();
        let mut copied = 0;
        let mut at = 0;
        while let Some(slash) = text[at..].iter().position(|byte| *byte == b'/') {
            let start = at + slash;
            at = start + 1;
            let found = self.0.iter().find(|(seen, _)| {
                text[start..].starts_with(seen.as_bytes())
                    && ends_name(&text[start + seen.len()..])
                    && begins_path(&text[..start])
            });
            if let Some((seen, real)) = found {
                result.extend_from_slice(&text[copied..start]);
                result.extend_from_slice(real.as_bytes());
                copied = start + seen.len();
                at = copied;
            }
        }
        if copied == 0 {
            return None;
        }
        result.extend_from_slice(&text[copied..]);
        Some(result)
    }

    /// Whether a seen path is named, in whatever form an option may take (`-L/path`, `a=/path`).
    pub fn is_named_in(&self, text: &[u8]) -> bool {
        let named = |seen: &str, start: usize| {
            text[start..].starts_with(seen.as_bytes())
                && ends_name(&text[start + seen.len()..])
                && (begins_path(&text[..start]) || follows_option(&text[..start]))
        };
        let mut slashes = (0..text.len()).filter(|at| text[*at] == b'/');
        slashes.any(|at| {
            let found = self.0.iter().find(|(seen, _)| named(seen, at));
            found.is_some_and(|(seen, real)| seen != real)
        })
    }

    /// A dep-info (`.d`): targets and files, in which rustc escapes nothing but spaces.  Values
    /// of variables are what they were.  `None`: nothing to change.
    pub fn dep_info(&self, text: &str) -> Option<String> {
        let pairs: Vec<_> = self
            .0
            .iter()
            .map(|(seen, real)| (escape(seen), escape(real)))
            .collect();
        let name = |word: &str| {
            pairs.iter().find_map(|(seen, real)| {
                let rest = word.strip_prefix(seen.as_str())?;
                let ends = matches!(rest.as_bytes(), [] | [b'/', ..] | [b':']);
                ends.then(|| format!("{real}{rest}"))
            })
        };
        let mut result = String::with_capacity(text.len() + 1024);
        for line in text.split_inclusive('\n') {
            if line.starts_with('#') {
                // `# checksum:blake3=… file_len:… PATH` (unstable), unescaped; `# env-dep:…`
                let path = line
                    .starts_with("# checksum:")
                    .then(|| {
                        line.splitn(4, ' ')
                            .nth(3)
                            .map(|path| line.len() - path.len())
                    })
                    .flatten();
                let mapped = path.and_then(|at| Some((at, self.path(&line[at..])?)));
                match mapped {
                    Some((at, mapped)) => {
                        result.push_str(&line[..at]);
                        result.push_str(&mapped);
                    }
                    None => result.push_str(line),
                }
                continue;
            }
            let (line, end) = match line.strip_suffix('\n') {
                Some(line) => (line, "\n"),
                None => (line, ""),
            };
            let mut start = 0;
            for (at, _) in line.match_indices(' ').chain([(line.len(), "")]) {
                if line[..at].ends_with('\\') {
                    continue;
                }
                let word = &line[start..at];
                match name(word) {
                    Some(mapped) => result.push_str(&mapped),
                    None => result.push_str(word),
                }
                if at < line.len() {
                    result.push(' ');
                }
                start = at + 1;
            }
            result.push_str(end);
        }
        (result != text).then_some(result)
    }

    /// The dep-info at `path`, replaced at once.  That there is none is not ours to judge.
    pub fn restore_dep_info(&self, path: &Path) -> io::Result<()> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text?,
        };
        let Some(mapped) = self.dep_info(&text) else {
            return Ok(());
        };
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".cow-{}", std::process::id()));
        std::fs::write(&aside, mapped)
            .and_then(|()| std::fs::rename(&aside, path))
            .inspect_err(|_| {
                let _ = std::fs::remove_file(&aside);
            })
    }
}

fn escape(path: &str) -> String {
    path.replace(' ', "\\ ")
}

/// The end (exclusive) of the JSON string whose opening quote is at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Bytes that names in paths are commonly made of.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"_-+~@%.".contains(&byte)
}

/// Whether a name that ends before `rest` is complete: `/p` in `/p/x` and `/p:1`, not in `/p-old`.
fn ends_name(rest: &[u8]) -> bool {
    match rest {
        [b'.', after, ..] => !is_of_name(*after) && *after != b'/',
        [b'.'] | [] => true,
        [byte, ..] => !is_of_name(*byte),
    }
}

/// Whether a slash after `before` begins a path: it does not in `x/p`, it does in `file:///p` and
/// after a colour (`ESC [ … m`).
fn begins_path(before: &[u8]) -> bool {
    match before.last() {
        None => true,
        Some(b'/') => before.ends_with(b"://"),
        Some(b'm') => {
            let start = before[..before.len() - 1]
                .iter()
                .rposition(|byte| !byte.is_ascii_digit() && *byte != b';');
            start.is_some_and(|at| before[..=at].ends_with(b"\x1b["))
        }
        Some(byte) => !is_of_name(*byte),
    }
}

/// Whether `before` ends in `-L`, `-Wl` or the like, with nothing between it and the path.
fn follows_option(before: &[u8]) -> bool {
    let word = before
        .iter()
        .rposition(|byte| !byte.is_ascii_alphabetic() && *byte != b'-')
        .map_or(before, |at| &before[at + 1..]);
    word.first() == Some(&b'-')
}

/// `12 | let x = 1;` and the like (`+`, `-`, `~` in suggestions), colours aside.
fn quotes_source(line: &str) -> bool {
    let mut numbered = false;
    let mut bytes = line.bytes();
    loop {
        match bytes.next() {
            Some(b' ') => {}
            Some(b'0'..=b'9') => numbered = true,
            Some(b'\x1b') => {
                bytes.find(|byte| *byte == b'm');
            }
            Some(b'|' | b'+' | b'-' | b'~') => return numbered,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(pairs: &[(&str, &str)]) -> Back {
        let own = |(seen, real): &(&str, &str)| ((*seen).to_owned(), (*real).to_owned());
        Back::new(pairs.iter().map(own).collect())
    }

    fn simple() -> Back {
        back(&[("/w/p", "/wt/b")])
    }

    fn text(input: &str) -> String {
        let mapped = simple().text(input.as_bytes());
        mapped.map_or(input.to_owned(), |bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn text_is_mapped_by_component() {
        for (input, expected) in [
            ("/w/p", "/wt/b"),
            (" --> /w/p/src/a.rs:1:2", " --> /wt/b/src/a.rs:1:2"),
            ("`/w/p`, (/w/p/x)", "`/wt/b`, (/wt/b/x)"),
            ("in /w/p.", "in /wt/b."),
            ("a=/w/p:/w/p/c", "a=/wt/b:/wt/b/c"),
            ("file:///w/p/x", "file:///wt/b/x"),
            ("\x1b[0m/w/p/x\x1b[0m", "\x1b[0m/wt/b/x\x1b[0m"),
            ("\x1b[1;34m/w/p", "\x1b[1;34m/wt/b"),
        ] {
            assert_eq!(text(input), expected);
        }
        for input in [
            "/w/p-old/x",
            "/w/p.old",
            "/w/p2",
            "/w/på",
            "/mnt/w/p/x",
            "//w/p",
            "m/w/p",
            "work/p",
            "[0m/w/p",
        ] {
            assert_eq!(text(input), input);
        }
    }

    #[test]
    fn one_pass_and_the_longest_first() {
        let back = back(&[("/a", "/b"), ("/b", "/a"), ("/a/out", "/cache")]);
        let mapped = back.text(b"/a/x /b/x /a/out/x /a/outer").unwrap();
        assert_eq!(mapped, b"/b/x /a/x /cache/x /b/outer");
    }

    #[test]
    fn options_name_paths_in_their_own_ways() {
        let back = simple();
        for text in [
            "/w/p",
            "-L/w/p/x",
            "-Wl,-rpath,/w/p",
            "a=-I/w/p",
            "x:/w/p/y",
        ] {
            assert!(back.is_named_in(text.as_bytes()), "{text}");
        }
        for text in ["/mnt/w/p", "/w/p-old", "/x-L/w/p", "work/p"] {
            assert!(!back.is_named_in(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn json_keeps_all_but_its_paths() {
        let back = simple();
        let map = |line: &str| String::from_utf8(back.line(line.as_bytes()).into_owned()).unwrap();
        let artifact = |root: &str| {
            format!(
                r#"{{"$message_type":"artifact","artifact":"{root}/target/debug/deps/liba.rmeta","emit":"metadata"}}"#
            ) + "\n"
        };
        assert_eq!(map(&artifact("/w/p")), artifact("/wt/b"));
        assert_eq!(map(&artifact("/w/p-old")), artifact("/w/p-old"));
        let diagnostic = |root: &str| {
            let rendered = format!(
                "error: x\\n  --> {root}/src/a.rs:1:2\\n   |\\n12 | let a = \\\"/w/p/x\\\";\\n   |\\n"
            );
            format!(
                r#"{{"rendered":"{rendered}", "message":"see `{root}/y`","children":[{{"message":"{root}","code":null}}],"spans":[{{"file_name":"{root}/src/a.rs","label":"at {root}","text":[{{"text":"\"/w/p/x\""}}],"suggested_replacement":"/w/p/z","expansion":{{"span":{{"file_name":"{root}/src/m.rs"}}}}}}],"z":1.50}}"#
            )
        };
        assert_eq!(map(&diagnostic("/w/p")), diagnostic("/wt/b"));
        // Broken lines are not ours to judge.
        assert_eq!(map(r#"{"artifact":"/w/p/x"#), r#"{"artifact":"/w/p/x"#);
        assert_eq!(map("note: /w/p/x\n"), "note: /wt/b/x\n");
    }

    #[test]
    fn json_may_have_to_be_escaped() {
        let back = back(&[("/w \"q\"", "/r\\s")]);
        assert_eq!(
            back.json(r#"{"artifact":"/w \"q\"/x","text":"/w \"q\"/x"}"#)
                .unwrap(),
            r#"{"artifact":"/r\\s/x","text":"/w \"q\"/x"}"#
        );
    }

    #[test]
    fn quoted_source_is_known_in_colour() {
        for line in [
            "1 | x",
            "  12 | x",
            " \x1b[1m\x1b[94m3\x1b[0m \x1b[1m|\x1b[0m x",
            "4 + x",
            "5 - x",
        ] {
            assert!(quotes_source(line), "{line}");
        }
        for line in [
            "  --> /a:1:2",
            "   | ^^^ label",
            "   = note: x",
            "error: 3 | x",
            "",
        ] {
            assert!(!quotes_source(line), "{line}");
        }
    }

    #[test]
    fn dep_info_keeps_its_escapes_and_variables() {
        let back = back(&[("/w/my p", "/wt/b c")]);
        let of = |root: &str| {
            format!(
                "{root}/target/a-1.d: src/lib.rs {root}/src/my\\ own.rs /w/my\\ p-old/x\n\n\
                 {root}/target/liba-1.rmeta: src/lib.rs\n\nsrc/lib.rs:\n{root}/src/my\\ own.rs:\n\n\
                 # env-dep:ROOT=/w/my p/x\n"
            )
        };
        assert_eq!(back.dep_info(&of("/w/my\\ p")).unwrap(), of("/wt/b\\ c"));
        assert_eq!(back.dep_info("a.d: src/lib.rs\n"), None);
        let sum = "# checksum:blake3=00 file_len:3 /w/my p/src/x.rs\n";
        let expected = "# checksum:blake3=00 file_len:3 /wt/b c/src/x.rs\n";
        assert_eq!(back.dep_info(sum).unwrap(), expected);
    }

    /// Gives what it has in pieces, and fails the test if one is asked for too early.
    struct Pieces<'a>(Vec<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(piece) = self.0.pop() else {
                return Ok(0);
            };
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn lines_are_passed_on_one_by_one() {
        let pieces = Pieces(vec![b"/p \xff", b"c\n/w", b"a /w", b"x\nw/p/b\n"]);
        let mut output = Vec::new();
        simple().relay(pieces, &mut output);
        assert_eq!(output, b"x\nw/p/b\na /wc\n/wt/b \xff");
        struct Closed(usize);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut closed = Closed(0);
        simple().relay(Pieces(vec![b"b\n", b"a\n"]), &mut closed);
        assert_eq!(closed.0, 1);
    }
}
