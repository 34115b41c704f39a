"""Projects built through the shim with a warehouse, on a real Btrfs."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cargo_cow import native
from tests.support.projects import Build, cargo, repository, settle

PACKAGE = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n{}'

# A dependency that generates code, one that bakes where it was generated, and a pure library.
DEPENDENCIES = {
    "Cargo.toml": '[workspace]\nmembers = ["gen", "baked", "leaf"]\nresolver = "2"\n',
    "leaf/Cargo.toml": PACKAGE.format("leaf", ""),
    "leaf/src/lib.rs": 'pub fn leaf<T: std::fmt::Display>(x: T) -> String { format!("<{x}>") }\n',
    "gen/Cargo.toml": PACKAGE.format("gen", '[dependencies]\nleaf = { path = "../leaf" }\n'),
    "gen/build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/g.rs"), "pub fn g() -> u32 { 7 }").unwrap();
}
""",
    "gen/src/lib.rs": 'include!(concat!(env!("OUT_DIR"), "/g.rs"));\n'
    "pub fn shown() -> String { leaf::leaf(g()) }\n",
    "baked/Cargo.toml": PACKAGE.format("baked", ""),
    "baked/build.rs": 'fn main() { println!("cargo:rerun-if-changed=build.rs"); }\n',
    "baked/src/lib.rs": 'pub const OUT: &str = env!("OUT_DIR");\n',
}

# A program with a library of its own, whose script declares a file that is not there.
FILES = {
    "Cargo.toml": '[workspace]\nmembers = ["app", "util"]\nresolver = "2"\n',
    "util/Cargo.toml": PACKAGE.format("util", ""),
    "util/src/lib.rs": "mod inner;\npub fn util() -> &'static str { inner::MARK }\n",
    "util/src/inner.rs": 'pub const MARK: &str = "u1";\n',
    "app/Cargo.toml": PACKAGE.format("app", '[dependencies]\nutil = { path = "../util" }\n'),
    "app/build.rs": 'fn main() { println!("cargo:rerun-if-changed=not-there"); }\n',
    "app/src/main.rs": """
fn main() { println!("{} {}", util::util(), option_env!("MARK").unwrap_or("none")); }
""",
}


class Place(NamedTuple):
    """Where a test builds: a store, and room for projects."""

    root: Path
    store: Path
    scratch: Path

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            "RUSTC_WRAPPER": str(native.program()),
            "CARGO_COW_WAREHOUSE": str(self.store),
            # The shim's door alone.
            "CARGO_COW_SEEDING": "1",
            "CARGO_COW_KEEP": "off",
            **extra,
        }

    def build(self, project: Path, *arguments: str, **extra: str) -> Build:
        """``cargo ARGUMENTS`` (``build``) that has to succeed, with its compilers counted."""
        settle()
        words = arguments or ("build",)
        built = cargo(project, self.scratch, *words, **self.environment(**extra))
        assert built.status == 0, built.output
        self.wait()
        return built

    def wait(self) -> None:
        """Until all that was compiled is kept, which goes on after the build."""
        until = time.monotonic() + 30
        while list(self.store.glob("making/*")) or list(self.store.glob("following/*")):
            assert time.monotonic() < until, "it is never kept"
            time.sleep(0.01)

    def project(self, name: str, files: dict[str, str]) -> Path:
        return repository(self.root / name, files)

    def events(self) -> list[dict[str, Any]]:
        """What the shim noted, oldest first."""
        try:
            lines = (self.store / "events").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def counts(self) -> Counter[str]:
        return Counter(str(event["what"]) for event in self.events())

    def reasons(self, what: str) -> list[str]:
        return [str(event["reason"]) for event in self.events() if event["what"] == what]

    def entries(self) -> list[Path]:
        return sorted(self.store.glob("units/*/*/*"))


def told(project: Path, program: str = "app") -> str:
    """What the program that was built says."""
    path = project / "target" / "debug" / program
    return subprocess.run([path], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def place(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("CARGO_HOME", str(btrfs / "cargo-home"))
    return Place(btrfs, btrfs / "store", tmp_path)


@pytest.fixture
def dependencies(btrfs: Path) -> Path:
    return repository(btrfs / "dependencies", DEPENDENCIES)


def user(name: str, dependencies: Path) -> dict[str, str]:
    """A package that uses all the dependencies."""
    wanted = "".join(
        f'{one} = {{ git = "file://{dependencies}" }}\n' for one in ("gen", "baked", "leaf")
    )
    return {
        "Cargo.toml": PACKAGE.format(name, f"[dependencies]\n{wanted}"),
        "src/main.rs": 'fn main() { println!("{} {}", gen::shown(), baked::OUT); }\n',
    }
