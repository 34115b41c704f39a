"""Cargo workspaces as plain data, and their files on disk.

A ``Workspace`` is a few ``Member``s; a member is a name, a set of *parts* and at most one kind of
build script.  Each part is one way in which a unit can depend on something: an included file, a
baked path, a hidden read of a macro.  ``render`` turns the data into files, and names the
*inputs*: places in those files that hold a number, which histories change.  All numbers have three
digits, so that an edit never changes a file's size unless it is meant to.

Every member observes itself: ``observe()`` returns what its own compilation has baked in, and the
binary of the member ``app`` prints all of it as ``obs <key> = <value>``.  There are no registry
dependencies, so all of this works offline.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FIRST = 100  # the number that every input holds at first


class Member(NamedTuple):
    """One package.  ``place``: ``crates``, ``root`` (the workspace's own) or ``side`` (outside)."""

    name: str
    parts: tuple[str, ...] = ()
    script: str | None = None
    uses: tuple[str, ...] = ()
    place: str = "crates"
    package: str | None = None  # the name in Cargo.toml where it is not ``name``

    @property
    def package_name(self) -> str:
        return self.package or self.name


class Workspace(NamedTuple):
    """``nested``: the workspace lies in ``ws/`` of the repository, with ``side/`` beside it."""

    members: tuple[Member, ...]
    nested: bool = False
    debug: str = "0"
    target_dir: str | None = None  # ``build.target-dir``, relative
    build_dir: str | None = None  # ``build.build-dir``, relative

    @property
    def root(self) -> str:
        """The workspace root relative to the checkout; empty where they are the same."""
        return "ws" if self.nested else ""

    def targets(self) -> tuple[str, ...]:
        """Directories that Cargo writes, relative to the workspace root."""
        named = (self.target_dir or "target", self.build_dir)
        return tuple(directory for directory in named if directory)

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "members": [member._asdict() for member in self.members]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workspace:
        members = tuple(
            Member(**{**member, "parts": tuple(member["parts"]), "uses": tuple(member["uses"])})
            for member in data["members"]
        )
        return cls(**{**data, "members": members})


class Input(NamedTuple):
    """A number in a file: what follows ``marker`` in ``path`` (relative to the checkout)."""

    path: str
    marker: str


class Rendered(NamedTuple):
    """What a workspace is on disk, relative to the checkout."""

    files: dict[str, str]
    inputs: dict[str, Input]
    directories: tuple[str, ...]  # where a history may add and remove files
    moves: tuple[tuple[str, str], ...]  # module files that may live in either place


class Builder:
    """Collects what the parts of one member contribute."""

    def __init__(self, workspace: Workspace, member: Member) -> None:
        self.workspace = workspace
        self.member = member
        self.files: dict[str, str] = {}
        self.inputs: dict[str, Input] = {}
        self.directories: list[str] = []
        self.moves: list[tuple[str, str]] = []
        self.inner: list[str] = []
        self.items: list[str] = []
        self.observed: list[tuple[str, str]] = []
        self.manifest: list[str] = []
        self.crate_types: list[str] = []
        self.features: list[str] = []
        self.build_dependencies: list[str] = []

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def here(self) -> str:
        """The package's directory relative to the checkout."""
        return _place(self.workspace, self.member)

    @property
    def up(self) -> str:
        """From the package's directory to the workspace root."""
        return _relative(self.here, self.workspace.root)

    def file(self, path: str, text: str, *inputs: tuple[str, str]) -> None:
        """A file of the package with its inputs: pairs of input name and marker."""
        whole = _join(self.here, path)
        self.files[whole] = text
        for name, marker in inputs:
            assert re.search(re.escape(marker) + r"\d{3}", text), (path, marker)
            self.inputs[f"{self.name}.{name}"] = Input(whole, marker)

    def see(self, key: str, expression: str) -> None:
        """Lets the member observe an expression that is ``Display``."""
        self.observed.append((key, expression))


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _place(workspace: Workspace, member: Member) -> str:
    if member.place == "root":
        return workspace.root
    if member.place == "side":
        assert workspace.nested, "a package outside the workspace needs a nested workspace"
        return f"side/{member.name}"
    return _join(workspace.root, "crates", member.name)


def _relative(start: str, end: str) -> str:
    """``end`` as seen from ``start``, both relative to the checkout."""
    have, want = [p for p in start.split("/") if p], [p for p in end.split("/") if p]
    while have and want and have[0] == want[0]:
        have, want = have[1:], want[1:]
    return "/".join([".."] * len(have) + want) or "."


# --- parts: what a library's own compilation depends on ---------------------------------------


def _values(b: Builder) -> None:
    b.file(
        "src/values.rs",
        f"""pub const VALUE: u32 = {FIRST};
pub fn generic<T: std::fmt::Display>(item: T) -> String {{ format!("{{item}}/{{}}", VALUE + 1) }}
#[inline]
pub fn inlined() -> u32 {{ VALUE * 2 }}
""",
        ("value", "VALUE: u32 = "),
    )
    b.items.append("pub mod values;\npub use values::{generic, inlined, VALUE};")
    b.see("value", "VALUE")
    b.moves.append((_join(b.here, "src/values.rs"), _join(b.here, "src/values/mod.rs")))


def _own_text(b: Builder) -> None:
    b.file("src/note.txt", f"note {FIRST}\n", ("note", "note "))
    b.see("note", 'include_str!("note.txt")')


def _blob(b: Builder) -> None:
    b.file("data/blob.bin", f"blob {FIRST}\n", ("blob", "blob "))
    b.see("blob", 'String::from_utf8_lossy(include_bytes!("../data/blob.bin"))')


def _outside_text(b: Builder) -> None:
    b.see("shared", f'include_str!("../{b.up}/shared.txt")')


def _readme(b: Builder) -> None:
    b.file("README.md", f"# readme {FIRST}\n", ("readme", "readme "))
    b.inner.append('#![doc = include_str!("../README.md")]')
    b.see("readme", 'include_str!("../README.md")')


def _rooted_text(b: Builder) -> None:
    b.file("rooted.txt", f"rooted {FIRST}\n", ("rooted", "rooted "))
    b.see("rooted", 'include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/rooted.txt"))')


def _manifest_env(b: Builder) -> None:
    for name in (
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_PKG_VERSION",
        "CARGO_PKG_NAME",
        "CARGO_PKG_DESCRIPTION",
        "CARGO_PKG_AUTHORS",
        "CARGO_CRATE_NAME",
    ):
        b.see(name, f'env!("{name}")')
    b.see("primary", 'option_env!("CARGO_PRIMARY_PACKAGE").is_some()')


def _description(b: Builder) -> None:
    b.see("description", 'env!("CARGO_PKG_DESCRIPTION")')
    b.see("authors", 'env!("CARGO_PKG_AUTHORS")')


def _option_env(b: Builder) -> None:
    b.see("option", 'option_env!("ORACLE_OPTION").unwrap_or("unset")')


def _config_env(b: Builder) -> None:
    b.see("config.path", 'env!("ORACLE_CONFIG_PATH")')
    b.see("config.plain", 'env!("ORACLE_CONFIG_PLAIN")')


def _feature(b: Builder) -> None:
    b.features.append("extra = []")
    b.see("extra", 'cfg!(feature = "extra")')


def _location(b: Builder) -> None:
    b.file(
        "src/places.rs",
        f"""// pad {FIRST}
pub fn caller() -> String {{ caught().to_string() }}
#[track_caller]
fn caught() -> &'static std::panic::Location<'static> {{ std::panic::Location::caller() }}
pub const FILE: &str = concat!(file!(), ":", line!(), ":", module_path!());
""",
        ("pad", "// pad "),
    )
    b.items.append("pub mod places;")
    b.see("location", "places::caller()")
    b.see("file", "places::FILE")


def _odd_module(b: Builder) -> None:
    b.file("odd/place.rs", f"pub const ODD: u32 = {FIRST};\n", ("odd", "ODD: u32 = "))
    b.items.append('#[path = "../odd/place.rs"]\npub mod place;')
    b.see("odd", "place::ODD")


def _deep(b: Builder) -> None:
    b.file("src/deep.rs", "pub mod leaf;\n")
    b.file("src/deep/leaf.rs", f"pub const LEAF: u32 = {FIRST};\n", ("leaf", "LEAF: u32 = "))
    b.items.append("pub mod deep;")
    b.see("leaf", "deep::leaf::LEAF")
    b.moves.append((_join(b.here, "src/deep.rs"), _join(b.here, "src/deep/mod.rs")))
    b.moves.append((_join(b.here, "src/deep/leaf.rs"), _join(b.here, "src/deep/leaf/mod.rs")))


def _warns(b: Builder) -> None:
    b.file("src/idle.rs", f"fn unused_{FIRST}() {{}}\n", ("warning", "unused_"))
    b.items.append("mod idle;")


def _exports(b: Builder) -> None:
    b.file(
        "src/exported.rs",
        f"""#[macro_export]
macro_rules! here {{
    () => {{ concat!({FIRST}, "|", env!("CARGO_MANIFEST_DIR"), "|", file!()) }};
}}
""",
        ("exported", "concat!("),
    )
    b.items.append("pub mod exported;")


def _slow(b: Builder) -> None:
    """Keeps rustc busy for a while, so that a history can act meanwhile."""
    b.file(
        "src/slow.rs",
        f"""pub const LATE: u64 = {{ let mut n = 0; let mut i = 0;
    while i < 400_000 {{ n = (n + i) % 1_000_003; i += 1; }} n - n + {FIRST} }};
""",
        ("late", "n - n + "),
    )
    b.inner.append("#![allow(long_running_const_eval)]")
    b.items.append("pub mod slow;")
    b.see("late", "slow::LATE")


def _incbin(b: Builder) -> None:
    """A file that the assembler reads: neither rustc nor Cargo knows of it."""
    b.file("data/asm.bin", f"asm {FIRST}\n", ("asm", "asm "))
    path = _join(_relative(b.workspace.root, b.here), "data/asm.bin")
    b.items.append(
        f"""core::arch::global_asm!(".section .rodata.oracle,\\"a\\"", ".globl oracle_{b.name}",
    "oracle_{b.name}:", ".incbin \\"{path}\\"", ".byte 0", ".text");
extern "C" {{ #[link_name = "oracle_{b.name}"] static ASM: u8; }}
fn asm() -> String {{
    unsafe {{ std::ffi::CStr::from_ptr(&raw const ASM as *const _) }}.to_string_lossy().into()
}}"""
    )
    b.see("asm", "asm()")


def _macros(b: Builder) -> None:
    """Everything that a procedural macro can do behind Cargo's back inside its package."""
    b.file("hidden.txt", f"hidden {FIRST}\n", ("hidden", "hidden "))
    b.file("assets/one.txt", f"one {FIRST}\n", ("asset", "one "))
    b.directories.append(_join(b.here, "assets"))
    b.see("mac.read", 'mac::read!("hidden.txt")')
    b.see("mac.list", 'mac::list!("assets")')


def _macro_outside(b: Builder) -> None:
    b.see("mac.outside", f'mac::read!("{b.up}/shared.txt")')


def _macro_dotenv(b: Builder) -> None:
    b.see("mac.dotenv", "mac::dotenv!()")


def _macro_env(b: Builder) -> None:
    b.see("mac.var", 'mac::var!("ORACLE_MACRO")')


def _macro_paths(b: Builder) -> None:
    """Paths that a macro bakes without ``env!``: rustc reports no ``env-dep`` for them."""
    b.file("served.txt", f"served {FIRST}\n", ("served", "served "))
    b.see("mac.manifest", "mac::manifest!()")
    b.see("mac.cwd", "mac::cwd!()")
    b.see("mac.served", 'mac::served!("served.txt")')


def _macro_include(b: Builder) -> None:
    """As ``include_dir!`` does: an ``include_str!`` of an absolute path."""
    b.file("absolute.txt", f"absolute {FIRST}\n", ("absolute", "absolute "))
    b.see("mac.absolute", 'mac::include_absolute!("absolute.txt")')


def _macro_constants(b: Builder) -> None:
    """Baked paths that only users of the crate see: they stand in its metadata alone."""
    b.file("constant.txt", f"constant {FIRST}\n", ("constant", "constant "))
    b.see("mac.constant", 'mac::include_absolute!("constant.txt")')
    b.items.append(
        "pub const CWD: &str = mac::cwd!();\n"
        'pub const FILE: &str = mac::path!("constant.txt");\n'
        "pub const PARTS: [&str; 2] = [mac::cwd!(), mac::manifest!()];"
    )


def _macro_config(b: Builder) -> None:
    """A variable of Cargo's configuration, read by a macro."""
    b.see("mac.config", 'mac::var!("ORACLE_CONFIG_PLAIN")')


def _macro_derived(b: Builder) -> None:
    b.see("mac.derived", "mac::derived!()")


def _macro_exists(b: Builder) -> None:
    b.see("mac.exists", 'mac::exists!("maybe.ignored")')


def _reexports(b: Builder) -> None:
    """Hands the macros on: users reach them without depending on ``mac`` themselves."""
    b.items.append("pub use mac;")


def _macro_reexported(b: Builder) -> None:
    """A macro by way of the first used member that hands it on."""
    b.file("reached.txt", f"reached {FIRST}\n", ("reached", "reached "))
    for name in b.member.uses:
        used = next(member for member in b.workspace.members if member.name == name)
        if "macro_reexports" in used.parts:
            b.see("mac.reached", f'{name}::mac::read!("reached.txt")')
            return


def _flag(b: Builder) -> None:
    b.inner.append("#![allow(unexpected_cfgs)]")
    b.see("flag", "cfg!(oracle_flag)")
    b.see("debug", "cfg!(debug_assertions)")


def _capi(b: Builder) -> None:
    b.crate_types.extend(["rlib", "cdylib", "staticlib"])
    crate = b.member.package_name.replace("-", "_")  # as who calls it knows it, by its file
    b.items.append(
        f"""#[no_mangle]
pub extern "C" fn oracle_{crate}() -> *const std::ffi::c_char {{
    let line = |(k, v): &(&str, String)| format!("obs {{k}} = {{v:?}}");
    let lines: Vec<String> = observe().iter().map(line).collect();
    std::ffi::CString::new(lines.join("\\n")).unwrap().into_raw()
}}"""
    )


PARTS: dict[str, Callable[[Builder], None]] = {
    "own_text": _own_text,
    "blob": _blob,
    "outside_text": _outside_text,
    "readme": _readme,
    "rooted_text": _rooted_text,
    "manifest_env": _manifest_env,
    "description": _description,
    "option_env": _option_env,
    "config_env": _config_env,
    "feature": _feature,
    "location": _location,
    "odd_module": _odd_module,
    "deep": _deep,
    "warns": _warns,
    "exports": _exports,
    "slow": _slow,
    "incbin": _incbin,
    "macros": _macros,
    "macro_outside": _macro_outside,
    "macro_dotenv": _macro_dotenv,
    "macro_env": _macro_env,
    "macro_paths": _macro_paths,
    "macro_include": _macro_include,
    "macro_constants": _macro_constants,
    "macro_config": _macro_config,
    "macro_derived": _macro_derived,
    "macro_exists": _macro_exists,
    "macro_reexports": _reexports,
    "reached": _macro_reexported,
    "flag": _flag,
    "capi": _capi,
}


# --- build scripts -----------------------------------------------------------------------------


def _bake(b: Builder, key: str, expression: str) -> str:
    """Script text that bakes a value through ``rustc-env``; the library observes it."""
    variable = f"BAKED_{key.upper()}"
    b.see(f"script.{key}", f'env!("{variable}")')
    return f'println!("cargo::rustc-env={variable}={{}}", {expression});\n'


def _generate(b: Builder, key: str, expression: str) -> str:
    """Script text that generates a constant of a string into OUT_DIR; the library includes it."""
    b.items.append(f'mod generated_{key} {{ include!(concat!(env!("OUT_DIR"), "/{key}.rs")); }}')
    b.see(f"generated.{key}", f"generated_{key}::TEXT")
    return (
        f'fs::write(out.join("{key}.rs"), '
        f'format!("pub const TEXT: &str = {{:?}};", {expression})).unwrap();\n'
    )


def _script_input(b: Builder) -> str:
    b.file("input.txt", f"input {FIRST}\n", ("input", "input "))
    return 'text(&manifest.join("input.txt"))'


def _declares_file(b: Builder) -> str:
    return _bake(b, "input", _script_input(b)) + 'println!("cargo::rerun-if-changed=input.txt");\n'


def _declares_directory(b: Builder) -> str:
    b.file("declared/one.txt", f"declared {FIRST}\n", ("declared", "declared "))
    b.file("declared/deeper/two.txt", f"deeper {FIRST}\n", ("deeper", "deeper "))
    b.directories.extend([_join(b.here, "declared"), _join(b.here, "declared/deeper")])
    return (
        _generate(b, "listing", 'listing(&manifest.join("declared"))')
        + 'println!("cargo::rerun-if-changed=declared");\n'
    )


def _declares_missing(b: Builder) -> str:
    """The common slip: the file is not there, and Cargo runs the script every time."""
    return _bake(b, "input", _script_input(b)) + 'println!("cargo::rerun-if-changed=missing");\n'


def _declares_env(b: Builder) -> str:
    return (
        _bake(b, "env", 'env::var("ORACLE_RERUN").unwrap_or("unset".into())')
        + 'println!("cargo::rerun-if-env-changed=ORACLE_RERUN");\n'
    )


def _declares_nothing(b: Builder) -> str:
    b.file("listed/one.txt", f"listed {FIRST}\n", ("listed", "listed "))
    b.directories.extend([_join(b.here, "listed"), b.here or "."])
    return _bake(b, "input", _script_input(b)) + _generate(
        b, "listing", 'listing(&manifest.join("listed"))'
    )


def _reads_ignored(b: Builder) -> str:
    """Declares nothing, and reads a file that git ignores."""
    return _bake(b, "ignored", 'text(&manifest.join("script.ignored"))')


def _declares_absolute(b: Builder) -> str:
    return _bake(b, "input", _script_input(b)) + (
        'println!("cargo::rerun-if-changed={}", manifest.join("input.txt").display());\n'
    )


def _declares_outside(b: Builder) -> str:
    shared = f"{b.up}/shared.txt"
    return (
        _bake(b, "shared", f'text(&manifest.join("{shared}"))')
        + f'println!("cargo::rerun-if-changed={shared}");\n'
    )


def _bakes_path(b: Builder) -> str:
    return _bake(b, "path", 'manifest.join("src").display()') + (
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _bakes_cwd(b: Builder) -> str:
    return _generate(b, "cwd", "env::current_dir().unwrap().display().to_string()") + (
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _generates(b: Builder) -> str:
    return (
        _generate(b, "input", _script_input(b)) + 'println!("cargo::rerun-if-changed=input.txt");\n'
    )


def _generates_data(b: Builder) -> str:
    source = _script_input(b)
    b.see("data", 'include_str!(concat!(env!("OUT_DIR"), "/data.txt"))')
    return (
        f'fs::write(out.join("data.txt"), {source}).unwrap();\n'
        'println!("cargo::rerun-if-changed=input.txt");\n'
    )


def _bakes_out_dir(b: Builder) -> str:
    """OUT_DIR is both included from and baked, and read again when the program runs."""
    b.see("out_dir", 'env!("OUT_DIR")')
    b.see(
        "out_dir.read",
        'std::fs::read_to_string(concat!(env!("OUT_DIR"), "/input.rs"))'
        ".unwrap_or_else(|e| e.kind().to_string())",
    )
    return _generates(b)


def _bakes_included(b: Builder) -> str:
    """The path of an included file, as a constant that only users of the crate see."""
    b.items.append('pub const INCLUDED: &str = concat!(env!("OUT_DIR"), "/input.rs");')
    return _generates(b)


def _hashes_out_dir(b: Builder) -> str:
    """OUT_DIR goes into the output, but not as text."""
    b.items.append(
        "pub const SUM: u64 = {\n"
        '    let (bytes, mut sum, mut i) = (env!("OUT_DIR").as_bytes(), 7, 0);\n'
        "    while i < bytes.len() { sum = sum * 31 % 1_000_003 + bytes[i] as u64; i += 1; }\n"
        "    sum\n};\n"
    )
    b.see("sum", "SUM")
    return _generates(b)


def _writes_data(b: Builder) -> str:
    """Data with a path in it, in OUT_DIR, found when the program runs."""
    b.see(
        "config.json",
        'std::fs::read_to_string(concat!(env!("OUT_DIR"), "/config.json")).unwrap_or_default()',
    )
    return (
        'fs::write(out.join("config.json"), manifest.display().to_string()).unwrap();\n'
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _generates_path(b: Builder) -> str:
    """Code that contains the manifest directory, only ever included."""
    return _generate(b, "path", "manifest.display().to_string()") + (
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _links_out(b: Builder) -> str:
    """A symbolic link in OUT_DIR to a file of the package, by its absolute path."""
    _script_input(b)
    b.see("linked", 'include_str!(concat!(env!("OUT_DIR"), "/linked.txt"))')
    return (
        'let _ = fs::remove_file(out.join("linked.txt"));\n'
        'std::os::unix::fs::symlink(manifest.join("input.txt"), out.join("linked.txt")).unwrap();\n'
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _git_silent(b: Builder) -> str:
    return _bake(b, "head", 'git(&["rev-parse", "HEAD"])')


def _git_build_only(b: Builder) -> str:
    return (
        _bake(b, "head", 'git(&["rev-parse", "HEAD"])')
        + _bake(b, "top", 'git(&["rev-parse", "--show-toplevel"])')
        + 'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _git_head(b: Builder) -> str:
    head = _join(_relative(b.here, ""), ".git/HEAD")
    return _bake(b, "head", 'git(&["rev-parse", "HEAD"])') + (
        f'println!("cargo::rerun-if-changed={head}");\n'
    )


def _git_head_resolved(b: Builder) -> str:
    """As vergen does: declares the absolute path that git names."""
    return _bake(b, "head", 'git(&["rev-parse", "HEAD"])') + (
        'println!("cargo::rerun-if-changed={}", '
        'git(&["rev-parse", "--path-format=absolute", "--git-path", "HEAD"]));\n'
        'println!("cargo::rerun-if-changed={}", '
        'git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]));\n'
    )


def _git_describe(b: Builder) -> str:
    return _bake(b, "version", 'git(&["describe", "--always", "--tags"])') + (
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _git_file(b: Builder) -> str:
    """Reads the reference that HEAD names, without git."""
    return (
        _bake(b, "head", 'text(&Path::new(&git(&["rev-parse", "--git-dir"])).join("HEAD"))')
        + 'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _git_dirty(b: Builder) -> str:
    return (
        _bake(b, "dirty", 'git(&["status", "--porcelain"]).lines().count()')
        + _bake(b, "branch", 'git(&["rev-parse", "--abbrev-ref", "HEAD"])')
        + 'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _build_only(b: Builder) -> str:
    """Reads what it does not declare, in its package."""
    return _bake(b, "input", _script_input(b)) + 'println!("cargo::rerun-if-changed=build.rs");\n'


def _reads_beyond(b: Builder) -> str:
    """Reads what it does not declare, elsewhere."""
    return (
        _bake(b, "shared", f'text(&manifest.join("{b.up}/shared.txt"))')
        + _bake(b, "env", 'env::var("ORACLE_SCRIPT").unwrap_or("unset".into())')
        + 'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _links(b: Builder) -> str:
    b.manifest.append(f'links = "oracle_{b.name}"')
    return (
        f'println!("cargo::metadata=number={{}}", {_script_input(b)}.trim());\n'
        'println!("cargo::metadata=include={}", manifest.join("include").display());\n'
        'println!("cargo::metadata=out={}", out.display());\n'
        f'fs::write(out.join("api.txt"), {_script_input(b)}).unwrap();\n'
        'fs::write(out.join("where.txt"), manifest.display().to_string()).unwrap();\n'
        'println!("cargo::rerun-if-changed=input.txt");\n'
    )


def _uses_links(b: Builder) -> str:
    """Consumes the metadata of every ``links`` package that it uses."""
    text = 'println!("cargo::rerun-if-changed=build.rs");\n'
    for used in b.member.uses:
        for key in ("NUMBER", "INCLUDE", "OUT"):
            variable = f"DEP_ORACLE_{used.upper()}_{key}"
            value = f'env::var("{variable}").unwrap_or("unset".into())'
            text += _bake(b, f"{used}_{key.lower()}", value)
            if key == "OUT":
                text += _generate(b, f"{used}_api", f'text(&Path::new(&{value}).join("api.txt"))')
                baked = f"BAKED_{used.upper()}_OUT"
                if any(m.name == used and m.script == "links" for m in b.workspace.members):
                    b.see(f"{used}.where", f'include_str!(concat!(env!("{baked}"), "/where.txt"))')
    return text


def _prints_cfg(b: Builder) -> str:
    source = _script_input(b)
    b.see("odd_input", "cfg!(odd_input)")
    return (
        'println!("cargo::rustc-check-cfg=cfg(odd_input)");\n'
        f"if {source}.contains('1') {{ println!(\"cargo::rustc-cfg=odd_input\"); }}\n"
        'println!("cargo::rerun-if-changed=input.txt");\n'
    )


def _native(b: Builder) -> str:
    """A C library in OUT_DIR: its ``__FILE__`` is an absolute path."""
    b.file(
        "native/code.c",
        f'const char *oracle_native_{b.name}(void) {{ return __FILE__ ":{FIRST}"; }}\n',
        ("native", '__FILE__ ":'),
    )
    b.items.append(
        f"""extern "C" {{ fn oracle_native_{b.name}() -> *const std::ffi::c_char; }}
fn native() -> String {{
    unsafe {{ std::ffi::CStr::from_ptr(oracle_native_{b.name}()) }}.to_string_lossy().into()
}}"""
    )
    b.see("native", "native()")
    return f"""
let object = out.join("code.o");
let run = |program: &str, args: &[&std::ffi::OsStr]| {{
    assert!(std::process::Command::new(program).args(args).status().unwrap().success());
}};
run("cc", &["-g".as_ref(), "-c".as_ref(), manifest.join("native/code.c").as_os_str(),
    "-o".as_ref(), object.as_os_str()]);
let archive = out.join("liboracle_{b.name}.a");
let _ = fs::remove_file(&archive);
run("ar", &["crs".as_ref(), archive.as_os_str(), object.as_os_str()]);
println!("cargo::rustc-link-search=native={{}}", out.display());
println!("cargo::rustc-link-lib=static=oracle_{b.name}");
println!("cargo::rerun-if-changed=native");
"""


def _search_path(b: Builder) -> str:
    """A directory of the package, by its absolute path, for the linker."""
    b.file("lib/README", "libraries\n")
    return (
        'println!("cargo::rustc-link-search=native={}", manifest.join("lib").display());\n'
        'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _declares_package(b: Builder) -> str:
    b.file("listed/one.txt", f"listed {FIRST}\n", ("listed", "listed "))
    b.directories.extend([_join(b.here, "listed"), b.here or "."])
    return (
        _generate(b, "listing", 'listing(&manifest.join("listed"))')
        + 'println!("cargo::rerun-if-changed=.");\n'
    )


def _declares_source(b: Builder) -> str:
    """Only ``src`` is declared; what it reads lies beside it."""
    return _bake(b, "input", _script_input(b)) + 'println!("cargo::rerun-if-changed=src");\n'


def _declares_out(b: Builder) -> str:
    """Declares its own product, which is always newer than the script's start."""
    return (
        "std::thread::sleep(std::time::Duration::from_millis(50));\n"
        + _generate(b, "input", _script_input(b))
        + (
            'println!("cargo::rerun-if-changed={}", out.join("input.rs").display());\n'
            'println!("cargo::rerun-if-changed=input.txt");\n'
        )
    )


def _declares_odd(b: Builder) -> str:
    """Paths that are not in their shortest form."""
    b.file("declared/one.txt", f"declared {FIRST}\n", ("declared", "declared "))
    b.directories.append(_join(b.here, "declared"))
    return (
        _bake(b, "input", _script_input(b))
        + _generate(b, "listing", 'listing(&manifest.join("declared"))')
        + 'println!("cargo::rerun-if-changed=./src/../input.txt");\n'
        + 'println!("cargo::rerun-if-changed=declared/");\n'
    )


def _declares_empty(b: Builder) -> str:
    return _bake(b, "input", _script_input(b)) + 'println!("cargo::rerun-if-changed=");\n'


def _writes_source(b: Builder) -> str:
    """Generates a module of the package itself, which git ignores."""
    b.items.append("pub mod written;")
    b.see("written", "written::TEXT")
    return (
        f'let made = format!("pub const TEXT: &str = {{:?}};", {_script_input(b)});\n'
        'let place = manifest.join("src/written.rs");\n'
        "if text(&place) != made { fs::write(place, made).unwrap(); }\n"
        'println!("cargo::rerun-if-changed=input.txt");\n'
    )


def _uses_helper(b: Builder) -> str:
    """Build dependencies on the used members: their values come through the script."""
    text = 'println!("cargo::rerun-if-changed=build.rs");\n'
    for used in b.member.uses:
        b.build_dependencies.append(used)
        text += _bake(b, f"{used}_value", f"{used}::generic(1)")
    return text


def _bakes_profile(b: Builder) -> str:
    return (
        _bake(b, "profile", 'env::var("PROFILE").unwrap()')
        + _bake(b, "opt", 'env::var("OPT_LEVEL").unwrap()')
        + 'println!("cargo::rerun-if-changed=build.rs");\n'
    )


def _warning(b: Builder) -> str:
    return (
        f'println!("cargo::warning=input is {{}}", {_script_input(b)}.trim());\n'
        'println!("cargo::rerun-if-changed=input.txt");\n'
    )


SCRIPTS: dict[str, Callable[[Builder], str]] = {
    "declares_file": _declares_file,
    "declares_directory": _declares_directory,
    "declares_missing": _declares_missing,
    "declares_env": _declares_env,
    "declares_nothing": _declares_nothing,
    "reads_ignored": _reads_ignored,
    "declares_absolute": _declares_absolute,
    "declares_outside": _declares_outside,
    "bakes_path": _bakes_path,
    "bakes_cwd": _bakes_cwd,
    "generates": _generates,
    "generates_data": _generates_data,
    "bakes_out_dir": _bakes_out_dir,
    "bakes_included": _bakes_included,
    "hashes_out_dir": _hashes_out_dir,
    "writes_data": _writes_data,
    "generates_path": _generates_path,
    "links_out": _links_out,
    "git_silent": _git_silent,
    "git_build_only": _git_build_only,
    "git_head": _git_head,
    "git_head_resolved": _git_head_resolved,
    "git_describe": _git_describe,
    "git_file": _git_file,
    "git_dirty": _git_dirty,
    "build_only": _build_only,
    "reads_beyond": _reads_beyond,
    "links": _links,
    "uses_links": _uses_links,
    "prints_cfg": _prints_cfg,
    "native": _native,
    "search_path": _search_path,
    "declares_package": _declares_package,
    "declares_source": _declares_source,
    "declares_out": _declares_out,
    "declares_odd": _declares_odd,
    "declares_empty": _declares_empty,
    "writes_source": _writes_source,
    "uses_helper": _uses_helper,
    "bakes_profile": _bakes_profile,
    "warning": _warning,
}

# The limits that docs/correctness.md names: hidden reads outside the package and of ignored files,
# scripts that declare some of what they read, OUT_DIR in an output but not as text.
BEYOND = frozenset(
    {
        "macro_outside",
        "macro_env",
        "macro_config",
        "macro_exists",
        "reads_beyond",
        "reads_ignored",
        "declares_source",
        "hashes_out_dir",
    }
)

_SCRIPT_FRAME = """#![allow(dead_code, unused_variables, unused_imports)]
use std::{{env, fs, path::{{Path, PathBuf}}, process::Command}};

const STEP: u32 = {first};

fn text(path: &Path) -> String {{
    fs::read_to_string(path).unwrap_or("absent".into()).trim().to_string()
}}

fn git(args: &[&str]) -> String {{
    let out = Command::new("git").args(args).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_string()
}}

fn listing(directory: &Path) -> String {{
    let mut found = Vec::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {{
        for entry in fs::read_dir(next).unwrap() {{
            let path = entry.unwrap().path();
            if path.is_dir() {{ left.push(path); continue; }}
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            found.push(format!("{{name}}={{}}", text(&path)));
        }}
    }}
    found.sort();
    found.join(",")
}}

fn main() {{
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    println!("cargo::rustc-env=BAKED_STEP={{STEP}}");
{body}}}
"""

_MACROS = """use proc_macro::TokenStream;
use std::{env, fs, path::{Path, PathBuf}};

const DERIVED: u32 = FIRST;

fn argument(input: TokenStream) -> String {
    input.to_string().trim_matches('"').to_string()
}

fn manifest_dir() -> PathBuf { PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()) }

fn literal(text: &str) -> TokenStream { format!("{text:?}").parse().unwrap() }

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or("absent".into()).trim().to_string()
}

#[proc_macro]
pub fn read(input: TokenStream) -> TokenStream {
    literal(&content(&manifest_dir().join(argument(input))))
}

#[proc_macro]
pub fn list(input: TokenStream) -> TokenStream {
    let mut found: Vec<String> = fs::read_dir(manifest_dir().join(argument(input)))
        .map(|entries| {
            entries
                .map(|entry| entry.unwrap().path())
                .map(|path| format!("{}={}", path.file_name().unwrap().display(), content(&path)))
                .collect()
        })
        .unwrap_or_default();
    found.sort();
    literal(&found.join(","))
}

#[proc_macro]
pub fn var(input: TokenStream) -> TokenStream {
    literal(&env::var(argument(input)).unwrap_or("unset".into()))
}

#[proc_macro]
pub fn manifest(_: TokenStream) -> TokenStream { literal(&manifest_dir().display().to_string()) }

#[proc_macro]
pub fn path(input: TokenStream) -> TokenStream {
    literal(&manifest_dir().join(argument(input)).display().to_string())
}

#[proc_macro]
pub fn cwd(_: TokenStream) -> TokenStream {
    literal(&env::current_dir().unwrap().display().to_string())
}

#[proc_macro]
pub fn served(input: TokenStream) -> TokenStream {
    let path = manifest_dir().join(argument(input));
    format!("std::fs::read_to_string({path:?}).unwrap_or(\\"absent\\".into()).trim().to_string()")
        .parse()
        .unwrap()
}

#[proc_macro]
pub fn include_absolute(input: TokenStream) -> TokenStream {
    format!("include_str!({:?})", manifest_dir().join(argument(input))).parse().unwrap()
}

#[proc_macro]
pub fn dotenv(_: TokenStream) -> TokenStream {
    let manifest = manifest_dir();
    let found = manifest.ancestors().map(|dir| dir.join(".env")).find(|path| path.exists());
    literal(&found.map_or("absent".into(), |path| content(&path)))
}

#[proc_macro]
pub fn exists(input: TokenStream) -> TokenStream {
    manifest_dir().join(argument(input)).exists().to_string().parse().unwrap()
}

#[proc_macro]
pub fn derived(_: TokenStream) -> TokenStream { DERIVED.to_string().parse().unwrap() }
"""


# --- files --------------------------------------------------------------------------------------


def _library(b: Builder, libraries: dict[str, Member]) -> str:
    for name in b.member.uses:
        used = libraries[name]
        b.see(f"{name}.value", f"{name}::VALUE")
        b.see(f"{name}.generic", f"{name}::generic({len(b.name)})")
        b.see(f"{name}.inlined", f"{name}::inlined()")
        if "exports" in used.parts:
            b.see(f"{name}.here", f"{name}::here!()")
        if "macro_constants" in used.parts:
            for constant in ("CWD", "FILE", "PARTS[1]"):
                b.see(f"{name}.{constant}", f"{name}::{constant}")
        if used.script == "bakes_included":
            b.see(f"{name}.included", f"{name}::INCLUDED")
    rows = "".join(
        f'        ("{b.name}.{key}", format!("{{}}", {expression})),\n'
        for key, expression in b.observed
    )
    return "\n".join(
        [
            *b.inner,
            *b.items,
            "pub fn observe() -> Vec<(&'static str, String)> {",
            f"    vec![\n{rows}    ]",
            "}",
            "#[cfg(test)]\nmod tests {\n    #[test]\n    fn observed() {",
            '        for (key, value) in super::observe() { println!("obs {key} = {value:?}"); }',
            "    }\n}\n",
        ]
    )


def _manifest(b: Builder, workspace: Workspace, by_name: dict[str, Member]) -> str:
    side = b.member.place == "side"
    lines = [
        "[package]",
        f'name = "{b.member.package_name}"',
        f'version = "{2 if b.member.package else 1}.0.{FIRST}"',
        'edition = "2021"',
        f'description = "d{FIRST}"',
        'authors = ["side"]' if side else "authors.workspace = true",
        *b.manifest,
    ]
    if b.name == "mac":
        lines += ["[lib]", "proc-macro = true", "test = false"]
    elif b.crate_types:
        lines += ["[lib]", f"crate-type = {list(b.crate_types)!r}".replace("'", '"')]
    if b.name == "app":
        for kind, name in (("test", "it"), ("bench", "be")):
            lines += [f"[[{kind}]]", f'name = "{name}"', "harness = false"]
    features = list(b.features)
    if b.name == "app":
        forward = [f'"{name}/extra"' for name in b.member.uses if "feature" in by_name[name].parts]
        features = [f"extra = [{', '.join(forward)}]"]
    if features:
        lines += ["[features]", *features]
    lines.append("[dependencies]")
    names = [*b.member.uses]
    if b.name != "mac" and any(part.startswith("macro") for part in b.member.parts):
        names.append("mac")
    for name in names:
        used = by_name[name]
        path = _relative(b.here, _place(workspace, used))
        package = f', package = "{used.package}"' if used.package else ""
        lines.append(f'{name} = {{ path = "{path}"{package} }}')
    if b.build_dependencies:
        lines.append("[build-dependencies]")
        lines += [line for line in lines if line.partition(" =")[0] in b.build_dependencies]
    return "\n".join(lines) + "\n"


def _root_manifest(workspace: Workspace) -> str:
    paths = [
        _relative(workspace.root, _place(workspace, member))
        for member in workspace.members
        if member.place != "side"
    ]
    members = ", ".join(f'"{path}"' for path in paths)
    return f"""[workspace]
resolver = "2"
members = [{members}]
[workspace.package]
authors = ["a{FIRST}"]
[profile.dev]
debug = {workspace.debug}
[profile.release]
opt-level = 1
[profile.dev.build-override]
debug = 0
"""


def _targets(b: Builder) -> None:
    """The other targets of ``app``; all of them print everything."""
    libraries = [name for name in b.member.uses if name != "mac"]
    calls = "".join(f"    all.extend({name}::observe());\n" for name in libraries)
    b.items.append(
        "pub fn everything() -> Vec<(&'static str, String)> {\n"
        f"    let mut all = observe();\n{calls}    all\n}}\n"
        "pub fn print() {\n"
        '    for (key, value) in everything() { println!("obs {key} = {value:?}"); }\n}'
    )
    own = 'println!("obs {} = {:?}", "own.{kind}", "{kind} {first}");'
    for path, kind, more in (
        ("src/main.rs", "main", 'println!("obs {} = {:?}", "own.bin", env!("CARGO_BIN_NAME"));'),
        (
            "tests/it.rs",
            "test",
            (
                'println!("obs {} = {:?}", "own.exe", env!("CARGO_BIN_EXE_app"));\n'
                '    println!("obs {} = {:?}", "own.tmp", env!("CARGO_TARGET_TMPDIR"));\n'
                '    let mut app = std::process::Command::new(env!("CARGO_BIN_EXE_app"));\n'
                "    let out = String::from_utf8(app.output().unwrap().stdout).unwrap();\n"
                '    print!("{}", out.replace("obs ", "obs exe."));'
            ),
        ),
        ("examples/ex.rs", "example", ""),
        ("benches/be.rs", "bench", ""),
    ):
        line = own.replace("{kind}", kind).replace("{first}", str(FIRST))
        b.file(
            path,
            f"fn main() {{\n    app::print();\n    {line}\n    {more}\n}}\n",
            (kind, f'"{kind} '),
        )


def render(workspace: Workspace) -> Rendered:
    """The files of a workspace with the inputs in them."""
    by_name = {member.name: member for member in workspace.members}
    libraries = {name: member for name, member in by_name.items() if name != "mac"}
    root = workspace.root
    files: dict[str, str] = {}
    inputs: dict[str, Input] = {}
    directories: list[str] = []
    moves: list[tuple[str, str]] = []
    root_manifest = _root_manifest(workspace)
    for member in workspace.members:
        b = Builder(workspace, member)
        if member.name == "mac":
            b.file(
                "src/lib.rs",
                _MACROS.replace("FIRST", str(FIRST)),
                ("derived", "DERIVED: u32 = "),
            )
        else:
            _values(b)
            for part in member.parts:
                PARTS[part](b)
            if member.script is not None:
                body = SCRIPTS[member.script](b)
                if member.name in OLD_SYNTAX:
                    body = body.replace("cargo::metadata=", "cargo:").replace("cargo::", "cargo:")
                b.see("script.step", 'env!("BAKED_STEP")')
                indented = "".join(f"    {line}\n" for line in body.splitlines())
                b.file(
                    "build.rs",
                    _SCRIPT_FRAME.format(first=FIRST, body=indented),
                    ("script", "STEP: u32 = "),
                )
            if member.name == "app":
                _targets(b)
            b.file("src/lib.rs", _library(b, libraries))
        manifest = _manifest(b, workspace, by_name)
        if member.place == "root":
            manifest, root_manifest = manifest + root_manifest, ""
        version = f'version = "{2 if member.package else 1}.0.'
        b.file("Cargo.toml", manifest, ("manifest", 'description = "d'), ("version", version))
        files |= b.files
        inputs |= b.inputs
        directories += b.directories
        moves += b.moves
    if root_manifest:
        files[_join(root, "Cargo.toml")] = root_manifest
    inputs["authors"] = Input(_join(root, "Cargo.toml"), 'authors = ["a')
    files[_join(root, "shared.txt")] = f"shared {FIRST}\n"
    inputs["shared"] = Input(_join(root, "shared.txt"), "shared ")
    config = f"""[env]
ORACLE_CONFIG_PATH = {{ value = "shared.txt", relative = true }}
ORACLE_CONFIG_PLAIN = "c{FIRST}"
"""
    if workspace.target_dir or workspace.build_dir:
        config += "[build]\n"
    if workspace.target_dir:
        config += f'target-dir = "{workspace.target_dir}"\n'
    if workspace.build_dir:
        config += f'build-dir = "{workspace.build_dir}"\n'
    files[_join(root, ".cargo/config.toml")] = config
    inputs["config"] = Input(_join(root, ".cargo/config.toml"), 'PLAIN = "c')
    ignored = "".join(f"/{_join(root, directory)}\n" for directory in workspace.targets())
    files[".gitignore"] = f"{ignored}.env\n*.ignored\nwritten.rs\n/.worktrees/\nother/\n"
    return Rendered(files, inputs, tuple(dict.fromkeys(directories)), tuple(moves))


def write(workspace: Workspace, checkout: Path) -> Rendered:
    """Renders a workspace into an existing directory."""
    rendered = render(workspace)
    for name, text in rendered.files.items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return rendered


def small(
    *parts: str,
    script: str | None = None,
    more: Sequence[Member] = (),
    uses: Sequence[str] = (),
    **options: Any,
) -> Workspace:
    """A library ``one`` of the given parts, the members in ``more``, and ``app`` using all."""
    one = Member("one", parts, script, tuple(uses))
    members = [*more, one]
    if any(part.startswith("macro") for member in members for part in member.parts):
        members.insert(0, Member("mac"))
    used = tuple(member.name for member in members if member.name != "mac")
    return Workspace((*members, Member("app", uses=used)), **options)


def grand() -> Workspace:
    """One workspace with most of the parts and scripts, for whole stories."""
    members = (
        Member("mac"),
        Member("base", ("own_text", "deep", "exports", "feature")),
        Member("paths", ("manifest_env", "rooted_text", "location"), "bakes_path"),
        Member("makes", ("blob", "option_env"), "bakes_out_dir", ("base",)),
        Member("asks", ("macros", "macro_dotenv", "macro_paths"), None, ("base",)),
        Member("old", ("readme", "outside_text"), "declares_nothing"),
        Member("lists", ("warns",), "declares_directory"),
        Member("metal", (), "links"),
        Member("tells", ("capi",), "uses_links", ("metal",)),
        Member(
            "app",
            ("config_env", "description"),
            None,
            ("base", "paths", "makes", "asks", "old", "lists", "metal", "tells"),
        ),
    )
    return Workspace(members)


OLD_SYNTAX = ("beta", "delta")  # their scripts say ``cargo:`` with one colon
NAMES = ("alpha", "beta", "gamma", "delta", "omega")


def generate(chance: random.Random) -> Workspace:
    """A random workspace of three to eight members; none reads beyond its package unseen."""
    nested = chance.random() < 0.35
    all_parts, all_scripts = sorted(set(PARTS) - BEYOND), sorted(set(SCRIPTS) - BEYOND)
    members: list[Member] = []
    names = NAMES[: chance.randint(2, 4)]
    for name in names:
        parts = chance.sample(all_parts, chance.randint(0, 3))
        script = chance.choice(all_scripts) if chance.random() < 0.65 else None
        before = [member.name for member in members]
        uses = tuple(used for used in before if chance.random() < 0.5)
        place = "side" if nested and chance.random() < 0.3 else "crates"
        if place == "side":  # a package outside cannot be assumed to see members inside
            uses = tuple(
                used for used in uses if any(m.name == used and m.place == "side" for m in members)
            )
        package = f"{name}-kit" if chance.random() < 0.15 else None
        members.append(Member(name, tuple(parts), script, uses, place, package))
    if nested and chance.random() < 0.3:
        members.append(Member("twice", ("own_text",), None, (), "crates"))
        members.append(Member("again", ("own_text",), None, (), "side", package="twice"))
    if any(part.startswith("macro") for member in members for part in member.parts):
        sides = [m for m in members if m.place == "side" and any("macro" in p for p in m.parts)]
        members.insert(0, Member("mac", place="side" if sides else "crates"))
    used_by_app = tuple(member.name for member in members if member.name != "mac")
    app_parts = tuple(
        part
        for part in chance.sample(all_parts, chance.randint(0, 2))
        if part != "capi" and not part.startswith("macro")
    )
    members.append(
        Member(
            "app",
            app_parts,
            chance.choice(all_scripts) if chance.random() < 0.3 else None,
            used_by_app,
            "root" if chance.random() < 0.25 else "crates",
        )
    )
    return Workspace(
        tuple(members),
        nested=nested,
        debug=chance.choice(["0", "0", '"line-tables-only"', "true"]),
        target_dir="out/built" if chance.random() < 0.1 else None,
        build_dir="between" if chance.random() < 0.1 else None,
    )
