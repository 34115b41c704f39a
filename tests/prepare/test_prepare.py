"""The mechanism on real filesystems with the real Cargo: what is fresh, what must not be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.projects import SOURCE, cargo, cow, git, repository, settle, write
from tests.support.sample import BAKED, FILES

from cargo_cow import filesystems
from cargo_cow.cargo import workspace
from cargo_cow.cargo.target import Target
from cargo_cow.filesystems import btrfs as subvolumes
from cargo_cow.prepare import unchanged
from cargo_cow.prepare.place import place_of
from cargo_cow.prepare.proof import Drop
from cargo_cow.prepare.stamp import drop

ALL = ("--workspace", "--all-targets")


def _output(checkout: Path) -> str:
    return subprocess.run(
        [checkout / "target/debug/app"], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def main(any_filesystem: Path, tmp_path: Path) -> Path:
    """The sample's main checkout, built by plain Cargo."""
    root = repository(any_filesystem / "main", FILES)
    built = cargo(root, tmp_path, "build", *ALL)
    assert built.status == 0, built.output
    settle()
    return root


@pytest.fixture
def quick(btrfs: Path, tmp_path: Path) -> Path:
    """The same on Btrfs alone, its target a subvolume."""
    root = repository(btrfs / "main", FILES)
    filesystems.create_target(root / "target")
    built = cargo(root, tmp_path, "build", *ALL)
    assert built.status == 0, built.output
    settle()
    return root


def test_worktree_at_the_same_commit(main: Path, tmp_path: Path) -> None:
    there = main.parent / "there"
    git(main, "worktree", "add", "-q", str(there))
    prepared = cow(there, tmp_path, "prepare")
    assert prepared.status == 0, prepared.output
    built = cargo(there, tmp_path, "build", *ALL)
    assert built.rustc == BAKED, built.output
    assert built.scripts == 0
    output = _output(there)
    assert f"{there}/place" in output
    assert str(main) not in output.replace(str(there), "")
    again = cargo(there, tmp_path, "build", *ALL)
    assert again.rustc == []
    # The donor is as it was.
    assert cargo(main, tmp_path, "build", *ALL).rustc == []
    assert f"{main}/place" in _output(main)


def test_worktree_at_another_commit(quick: Path, tmp_path: Path) -> None:
    write(quick, {"gen/schema.txt": "schema 2\n", "shared.txt": "shared 2\n"})
    git(quick, "commit", "-qam", "second")
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "prepare").status == 0
    built = cargo(there, tmp_path, "build", *ALL)
    assert sorted(set(built.rustc)) == ["app", "gen", "it", "place", "util"]
    assert built.scripts == 1
    assert "shared 2" in _output(there)
    assert "schema 2" in _output(there)


def test_an_edit_in_the_clone_of_a_file_outside_the_package_is_seen(
    quick: Path, tmp_path: Path
) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", *ALL).status == 0
    settle()
    write(there, {"shared.txt": "shared 3\n"})
    built = cargo(there, tmp_path, "build", *ALL)
    assert "util" in built.rustc
    assert "shared 3" in _output(there)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("reader/secret.txt", "secret 2\n", "secret 2"),  # a macro's hidden input
        ("gen/parts/b.txt", "b\n", "[a.txt,b.txt]"),  # a new file in a declared directory
        ("old/data.txt", "old 2\n", "old 2"),  # a script without declarations
        ("absolute/table.txt", "table 2\n", "table 2"),
        ("util/src/inner.rs", 'pub const MARK: &str = "u2";\n', "<1u2>"),
    ],
)
def test_what_differs_in_a_worktree_is_built_whatever_its_mtime(
    quick: Path, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    write(there, {name: text})
    # Older than the donor's build: by mtimes alone the unit would be called Fresh.
    for path in (there / name, (there / name).parent):
        os.utime(path, ns=(10**18, 10**18))
    built = cow(there, tmp_path, "build", *ALL, "-v")
    assert built.status == 0, built.output
    assert expected in _output(there)


def test_switching_away_and_back_costs_no_compiler(quick: Path, tmp_path: Path) -> None:
    assert cow(quick, tmp_path, "build", *ALL).rustc == []
    git(quick, "switch", "-qc", "other")
    write(quick, {"util/src/inner.rs": 'pub const MARK: &str = "u9";\n', "old/data.txt": "old 9\n"})
    git(quick, "commit", "-qam", "other")
    git(quick, "switch", "-q", "main")
    built = cow(quick, tmp_path, "build", *ALL, "-v")
    assert (built.rustc, built.scripts) == ([], 0), built.output


def test_stash_and_pop_keep_what_was_built(quick: Path, tmp_path: Path) -> None:
    write(quick, {"util/src/inner.rs": 'pub const MARK: &str = "u5";\n'})
    assert "util" in cow(quick, tmp_path, "build", *ALL).rustc
    git(quick, "stash", "-q")
    settle()
    git(quick, "stash", "pop", "-q")
    assert cow(quick, tmp_path, "build", *ALL, "-v").rustc == []
    assert "<1u5>" in _output(quick)


def test_a_dependency_rebuilt_alone_leaves_its_dependents_stale(
    quick: Path, tmp_path: Path
) -> None:
    assert cow(quick, tmp_path, "build", *ALL).rustc == []
    write(quick, {"util/src/inner.rs": 'pub const MARK: &str = "u3";\n'})
    assert cow(quick, tmp_path, "build", "-p", "util").rustc == ["util"]
    settle()
    # Now util is proven again although its file is "newer", and app must not be called fresh.
    os.utime(quick / "util/src/inner.rs")
    os.utime(quick / "app/src/main.rs")
    built = cow(quick, tmp_path, "build", *ALL, "-v")
    assert "app" in built.rustc
    assert "<1u3>" in _output(quick)


def test_no_source_time_moves_but_those_of_scripts_without_declarations(
    quick: Path, tmp_path: Path
) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    assert cow(there, tmp_path, "build", *ALL).status == 0
    moved = {
        path.relative_to(there).parts[0]
        for path, mtime in before.items()
        if path.stat().st_mtime_ns != mtime
    }
    assert moved == {"old"}


def test_clone_of_a_clone(quick: Path, tmp_path: Path) -> None:
    first, second = quick.parent / "first", quick.parent / "second"
    git(quick, "worktree", "add", "-q", str(first))
    assert cow(first, tmp_path, "build", *ALL).status == 0
    git(first, "worktree", "add", "-q", str(second))
    assert cow(second, tmp_path, "prepare", "--from", str(first)).status == 0
    built = cargo(second, tmp_path, "build", *ALL)
    assert built.rustc == BAKED, built.output
    assert f"{second}/place" in _output(second)


def test_a_donor_in_the_middle_of_a_build(main: Path, tmp_path: Path) -> None:
    """Clones taken while the donor builds give what a clean build gives."""
    there = main.parent / "there"
    git(main, "worktree", "add", "-q", str(there))
    write(there, {"util/src/inner.rs": 'pub const MARK: &str = "u7";\n'})
    write(main, {"util/src/inner.rs": 'pub const MARK: &str = "u8";\n'})
    with subprocess.Popen(
        ["cargo", "build", *ALL], cwd=main, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as builder:
        time.sleep(0.25)
        built = cow(there, tmp_path, "build", *ALL, "-v")
        builder.wait()
    assert built.status == 0, built.output
    assert "<1u7>" in _output(there)


def test_killed_at_any_moment_the_target_is_whole_or_absent(quick: Path, tmp_path: Path) -> None:
    outcomes = set()
    for step in range(8):
        there = quick.parent / f"there{step}"
        git(quick, "worktree", "add", "-q", "--detach", str(there))
        with subprocess.Popen(
            [sys.executable, "-m", "cargo_cow", "prepare"],
            cwd=there,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(0.06 + 0.03 * step)
            process.send_signal(signal.SIGKILL)
        outcomes.add((there / "target").exists())
        built = cow(there, tmp_path, "build", *ALL, "-v")
        assert built.rustc == BAKED, built.output
        assert f"{there}/place" in _output(there)
        leftovers = [path.name for path in there.iterdir() if path.name.startswith(".target")]
        assert leftovers == []
    assert False in outcomes, "no kill came in time"


def test_two_prepares_at_once(quick: Path, tmp_path: Path) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "cargo_cow", "prepare"],
            cwd=there,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    built = cargo(there, tmp_path, "build", *ALL)
    assert built.rustc == BAKED, built.output
    assert sorted(path.name for path in there.iterdir() if "target" in path.name) == ["target"]


def test_a_read_only_donor_serves(quick: Path, tmp_path: Path) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    subprocess.run(["btrfs", "property", "set", quick / "target", "ro", "true"], check=True)
    try:
        prepared = cow(there, tmp_path, "prepare")
        assert prepared.status == 0, prepared.output
        assert cargo(there, tmp_path, "build", *ALL).rustc == BAKED
    finally:
        subprocess.run(["btrfs", "property", "set", quick / "target", "ro", "false"], check=True)


def test_a_donor_of_another_toolchain_is_refused_with_a_word(quick: Path, tmp_path: Path) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    info = quick / "target/.rustc_info.json"
    info.write_text(info.read_text().replace("rustc 1.", "rustc 0."))
    prepared = cow(there, tmp_path, "prepare")
    assert prepared.status == 0
    assert "it was built by rustc 0." in prepared.output
    assert not (there / "target").exists()


def test_dry_run_does_nothing_and_says_the_same(quick: Path, tmp_path: Path) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    said = cow(there, tmp_path, "prepare", "--dry-run").output
    assert not (there / "target").exists()
    assert "place" in said
    done = cow(there, tmp_path, "prepare").output
    assert [line for line in said.splitlines() if line.startswith("  ")] == [
        line for line in done.splitlines() if line.startswith("  ")
    ]


def test_no_space_in_the_middle_leaves_nothing_behind(
    small_filesystem: Callable[..., Path], tmp_path: Path
) -> None:
    room = small_filesystem("ext4", 512 << 20)
    root = repository(room / "main", FILES)
    assert cargo(root, tmp_path, "build", *ALL).status == 0
    there = room / "there"
    git(root, "worktree", "add", "-q", str(there))
    filler = room / "filler"
    with filler.open("wb") as file:
        status = os.statvfs(room)
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - (8 << 20)))
    prepared = cow(there, tmp_path, "prepare")
    assert prepared.status == 31, prepared.output
    assert "hint" in prepared.output
    assert sorted(path.name for path in there.iterdir() if "target" in path.name) == []
    assert cargo(root, tmp_path, "build", *ALL).rustc == []
    filler.unlink()
    assert cow(there, tmp_path, "build", *ALL).rustc == BAKED


def test_damaged_records_are_no_records(quick: Path, tmp_path: Path) -> None:
    assert cow(quick, tmp_path, "build", *ALL).rustc == []
    records = sorted((quick / "target/debug/.fingerprint").glob("*/cow-record.json"))
    assert len(records) > 10
    for number, path in enumerate(records):
        text = path.read_text()
        damaged = [
            text[: len(text) // 2],
            text.replace('"format":1', '"format":99'),
            "[]",
            text.replace('"unit":"', '"unit":"other/'),
        ][number % 4]
        path.write_text(damaged)
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", *ALL).rustc == BAKED


def test_a_dropped_unit_takes_its_dependents_along_in_the_same_build(
    quick: Path, tmp_path: Path
) -> None:
    """An empty fingerprint alone would leave ``app`` Fresh until the build after."""
    unit = next(
        unit
        for unit in Target(str(quick / "target")).units
        if unit.package == "util" and unit.stem == "lib-util"
    )
    drop(Drop(unit.hash_file, unit.reference_file))
    built = cargo(quick, tmp_path, "build", *ALL)
    assert built.rustc == ["app", "app", "it", "util"]
    assert cargo(quick, tmp_path, "build", *ALL).rustc == []


def test_the_new_layout(btrfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``build/<pkg>/<hash>/{fingerprint,out,run}``, the default from Cargo 1.100 on."""
    monkeypatch.setenv("__CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS", "nightly")
    new = (*ALL, "-Zbuild-dir-new-layout")
    root = repository(btrfs / "main", FILES)
    assert cargo(root, tmp_path, "build", *new).status == 0
    assert {profile.layout for profile in Target(str(root / "target")).profiles} == {"new"}
    settle()
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "prepare").status == 0
    built = cargo(there, tmp_path, "build", *new)
    assert (built.rustc, built.scripts) == (BAKED, 0), built.output
    assert str(root) not in _output(there).replace(str(there), "")
    settle()
    write(there, {"gen/parts/b.txt": "b\n", "shared.txt": "shared 4\n"})
    git(there, "stash", "-q", "-u")
    git(there, "stash", "pop", "-q")
    again = cow(there, tmp_path, "build", *new, "-v")
    assert {"gen", "util"} <= set(again.rustc)
    assert "[a.txt,b.txt]" in _output(there)
    assert "shared 4" in _output(there)
    git(there, "stash", "-q", "-u")
    git(there, "stash", "pop", "-q")
    assert cow(there, tmp_path, "build", *new, "-v").rustc == []


_TELLTALE = {
    "Cargo.toml": """[workspace]
members = ["teller", "asks", "quiet", "gitty"]
resolver = "2"
""",
    # A macro that puts a path into the code without a trace in the dep-info.
    "teller/Cargo.toml": '[package]\nname = "teller"\nversion = "0.1.0"\nedition = "2021"\n'
    "[lib]\nproc-macro = true\n",
    "teller/src/lib.rs": """
use proc_macro::TokenStream;
#[proc_macro]
pub fn manifest(_: TokenStream) -> TokenStream {
    format!("{:?}", std::env::var("CARGO_MANIFEST_DIR").unwrap()).parse().unwrap()
}
#[proc_macro]
pub fn dotenv(_: TokenStream) -> TokenStream {
    let root = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let found = root.ancestors().find_map(|d| std::fs::read_to_string(d.join(".env")).ok());
    format!("{:?}", found.unwrap_or("none".into()).trim()).parse().unwrap()
}
""",
    "asks/Cargo.toml": '[package]\nname = "asks"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nteller = { path = "../teller" }\n',
    "asks/src/main.rs": """
fn main() { println!("{} {}", teller::manifest!(), teller::dotenv!()); }
""",
    # A script that declares less than it reads.
    "quiet/Cargo.toml": '[package]\nname = "quiet"\nversion = "0.1.0"\nedition = "2021"\n',
    "quiet/build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=TEXT={}", std::fs::read_to_string("text.txt").unwrap().trim());
}
""",
    "quiet/text.txt": "one\n",
    "quiet/src/main.rs": 'fn main() { println!("{}", env!("TEXT")); }\n',
    # A script that asks git for the branch.
    "gitty/Cargo.toml": '[package]\nname = "gitty"\nversion = "0.1.0"\nedition = "2021"\n',
    "gitty/build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let output = std::process::Command::new("git")
        .args(["rev-parse", "--abbrev-ref", "HEAD"]).output().unwrap();
    println!("cargo:rustc-env=BRANCH={}", String::from_utf8(output.stdout).unwrap().trim());
}
""",
    "gitty/src/main.rs": 'fn main() { println!("{}", env!("BRANCH")); }\n',
    ".gitignore": "/target\n.env\n",
}


def test_what_no_dep_info_tells(btrfs: Path, tmp_path: Path) -> None:
    """Macros that bake paths or look for ``.env``, scripts that say less than they read."""
    root = repository(btrfs / "main", _TELLTALE)
    write(root, {".env": "secret\n"})
    assert cargo(root, tmp_path, "build").status == 0
    settle()
    write(root, {"quiet/text.txt": "two\n"})
    os.utime(root / "quiet/text.txt", ns=(10**18, 10**18))
    git(root, "commit", "-qam", "text")
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", "-b", "topic", str(there))
    assert cow(there, tmp_path, "build").status == 0

    def told(name: str) -> str:
        return subprocess.run(
            [there / "target/debug" / name], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert told("asks") == f"{there}/asks none"
    assert told("quiet") == "two"
    assert told("gitty") == "topic"


def test_nothing_changed_is_told_by_stats_and_every_change_is_seen(
    quick: Path, tmp_path: Path
) -> None:
    place = place_of(workspace.load(quick))
    assert not unchanged.holds(place)
    assert cow(quick, tmp_path, "build", *ALL).rustc == []
    assert unchanged.holds(place)
    assert cow(quick, tmp_path, "build", *ALL).rustc == []
    assert unchanged.holds(place)
    for name, text in {
        "util/src/inner.rs": 'pub const MARK: &str = "u6";\n',  # the same size
        "gen/parts/new.txt": "new\n",
        "old/data.txt": "old 5\n",
        "shared.txt": "shared 5\n",
    }.items():
        path = quick / name
        before = path.stat().st_mtime_ns if path.exists() else 10**18
        write(quick, {name: text})
        os.utime(path, ns=(before, before))
        assert not unchanged.holds(place), name
        settle()
        assert cow(quick, tmp_path, "build", *ALL).rustc != [], name
        settle()
        assert cow(quick, tmp_path, "build", *ALL).rustc == []
        assert unchanged.holds(place), name
    assert "<1u6>" in _output(quick)
    assert "old 5" in _output(quick)
    # What another Cargo built is not what was noted.
    os.utime(quick / "util/src/inner.rs")
    assert "util" in cargo(quick, tmp_path, "build", *ALL).rustc
    assert not unchanged.holds(place)


def test_a_hidden_input_edited_before_the_first_build_in_a_clone(
    quick: Path, tmp_path: Path
) -> None:
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "prepare").status == 0
    write(there, {"reader/secret.txt": "secret 7\n"})
    assert cow(there, tmp_path, "build", *ALL).status == 0
    assert "secret 7" in _output(there)
    # Once built here, Cargo is as blind as in any checkout.  That build was observed.
    settle()
    write(there, {"reader/secret.txt": "secret 8\n"})
    assert cow(there, tmp_path, "build", *ALL).status == 0
    assert "secret 8" in _output(there)
    assert cow(there, tmp_path, "build", *ALL).rustc == []


def test_a_unit_that_asks_whether_it_was_selected(btrfs: Path, tmp_path: Path) -> None:
    member = '[package]\nname = "{}"\nversion = "0.1.0"\nedition = "2021"\n'
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": '[workspace]\nmembers = ["app", "util"]\nresolver = "2"\n',
            "util/Cargo.toml": member.format("util"),
            "util/src/lib.rs": "pub fn selected() -> bool "
            '{ option_env!("CARGO_PRIMARY_PACKAGE").is_some() }\n',
            "app/Cargo.toml": member.format("app")
            + '[dependencies]\nutil = { path = "../util" }\n',
            "app/src/main.rs": 'fn main() { println!("{}", util::selected()); }\n',
        },
    )
    assert cargo(root, tmp_path, "build", "--workspace").status == 0
    assert _output(root) == "true\n"
    settle()
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", "-p", "app").status == 0
    assert _output(there) == "false\n"


def test_a_package_at_the_root_whose_script_declares_nothing(btrfs: Path, tmp_path: Path) -> None:
    """As in many programs: Cargo.lock and all belong to the package, whose times Cargo hashes."""
    root = repository(
        btrfs / "main",
        {
            "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n',
            "build.rs": 'fn main() { println!("cargo:rustc-env=X=1"); }\n',
            "src/main.rs": 'fn main() { println!("{}", env!("X")); }\n',
            "README.md": "read me\n",
        },
    )
    assert cargo(root, tmp_path, "build", *ALL).status == 0
    git(root, "add", "Cargo.lock")
    git(root, "commit", "-qm", "lock")
    assert cargo(root, tmp_path, "build", *ALL).status == 0
    settle()
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    built = cow(there, tmp_path, "build", *ALL, "-v")
    assert (built.rustc, built.scripts) == ([], 0), built.output
    write(there, {"README.md": "again\n"})
    assert cow(there, tmp_path, "build", *ALL, "-v").scripts == 1


def test_new_content_under_an_old_time_is_not_recorded(quick: Path, tmp_path: Path) -> None:
    """``cp -p``, ``tar`` and ``touch -r`` fool Cargo in place; the lie must not spread."""
    for name, text in {"gen/schema.txt": "schema 9\n", "shared.txt": "shared 9\n"}.items():
        before = (quick / name).stat().st_mtime_ns
        write(quick, {name: text})
        os.utime(quick / name, ns=(before, before))
    assert cow(quick, tmp_path, "build", *ALL).rustc == []  # fooled, as plain Cargo
    git(quick, "commit", "-qam", "nine")
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", *ALL).status == 0
    assert "schema 9" in _output(there)
    assert "shared 9" in _output(there)


def test_a_declared_directory_is_followed_through_links(quick: Path, tmp_path: Path) -> None:
    write(quick, {"texts/far.txt": "far\n"})
    (quick / "gen/parts/link").symlink_to("../../texts")
    git(quick, "add", "-A")
    git(quick, "commit", "-qm", "link")
    assert cargo(quick, tmp_path, "build", *ALL).status == 0
    settle()
    write(quick, {"texts/far.txt": "far away\n"})
    assert cow(quick, tmp_path, "build", *ALL, "-v").scripts == 1
    settle()
    write(quick, {"texts/far.txt": "farther\n"})
    there = quick.parent / "there"
    git(quick, "commit", "-qam", "farther")
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", *ALL, "-v").scripts == 1


def test_a_unit_of_a_clone_that_another_build_left_alone(quick: Path, tmp_path: Path) -> None:
    """Until Cargo compiles it here, a clean build would see its hidden inputs."""
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    assert cow(there, tmp_path, "build", "-p", "util").status == 0
    assert cow(there, tmp_path, "build", "-p", "util").status == 0
    write(there, {"reader/secret.txt": "secret 7\n"})
    assert cow(there, tmp_path, "build", *ALL).status == 0
    assert "secret 7" in _output(there)


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("edited", [False, True], ids=["same-commit", "another-source-first"])
def test_a_script_that_writes_into_its_package(
    edited: bool, recorded: bool, btrfs: Path, tmp_path: Path
) -> None:
    root = repository(
        btrfs / "main",
        {
            ".gitignore": "/target\nwritten.rs\n",
            "Cargo.toml": '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n',
            "build.rs": """
fn main() {
    println!("cargo:rerun-if-changed=input.txt");
    let text = std::fs::read_to_string("input.txt").unwrap();
    std::fs::write("src/written.rs", format!("pub const T: &str = {:?};", text.trim())).unwrap();
}
""",
            "input.txt": "one\n",
            "src/main.rs": 'mod written;\nfn main() { println!("{}", written::T); }\n',
        },
    )
    build = cow if recorded else cargo
    assert build(root, tmp_path, "build").status == 0
    settle()
    if edited:
        # The first difference is a source; what the script wrote is missing all the same.
        text = (root / "src/main.rs").read_text()
        write(root, {"src/main.rs": text.replace("{}", "edited {}")})
        git(root, "commit", "-qam", "edited")
    there = root.parent / "there"
    git(root, "worktree", "add", "-q", str(there))
    git(root, "reset", "-q", "--hard", "HEAD~1" if edited else "HEAD")
    built = cow(there, tmp_path, "build", "-v")
    assert built.status == 0, built.output
    assert built.scripts == 1
    assert _output(there) == ("edited one\n" if edited else "one\n")


def test_a_script_that_writes_nothing_is_not_run_again(quick: Path, tmp_path: Path) -> None:
    assert cow(quick, tmp_path, "build", *ALL).rustc == []  # all of it is recorded
    write(quick, {"gen/src/lib.rs": FILES["gen/src/lib.rs"] + "// edited\n"})
    git(quick, "commit", "-qam", "edited")
    there = quick.parent / "there"
    git(quick, "worktree", "add", "-q", str(there))
    git(quick, "reset", "-q", "--hard", "HEAD~1")
    built = cow(there, tmp_path, "build", "-v", *ALL)
    assert "gen" in built.rustc
    assert built.scripts == 0


def test_times_are_put_back_only_where_cargo_hashes_them(quick: Path, tmp_path: Path) -> None:
    """Another target of the checkout may have been built from the newer content."""
    write(quick, {"old/NOTES": "later\n"})
    future = time.time_ns() + 10**15
    os.utime(quick / "old/NOTES", ns=(future, future))
    assert cow(quick, tmp_path, "build", *ALL).status == 0
    settle()
    write(quick, {"old/data.txt": "old 2\n", "old/src/lib.rs": FILES["old/src/lib.rs"] + "// 2\n"})
    other = {"CARGO_TARGET_DIR": str(quick.parent / "other")}
    assert cargo(quick, tmp_path, "build", "-p", "old", **other).status == 0
    settle()
    for name in ("data.txt", "src/lib.rs"):
        write(quick, {f"old/{name}": FILES[f"old/{name}"]})
    before = (quick / "old/src/lib.rs").stat().st_mtime_ns
    assert cow(quick, tmp_path, "build", *ALL).status == 0
    assert (quick / "old/src/lib.rs").stat().st_mtime_ns == before
    assert "old" in cargo(quick, tmp_path, "build", "-p", "old", **other).rustc


def test_the_first_build_of_all_makes_a_target_that_can_be_snapshotted(
    btrfs: Path, tmp_path: Path
) -> None:
    package = '[package]\nname = "app"\nversion = "0.1.0"\nedition = "2021"\n'
    root = repository(
        btrfs / "main", {"Cargo.toml": package, "src/main.rs": 'fn main() { println!("1"); }\n'}
    )
    assert cow(root, tmp_path, "build").rustc == ["app"]
    assert subvolumes.is_subvolume(root / "target")
    tag = (root / "target" / "CACHEDIR.TAG").read_bytes()
    # Cargo makes the same: to it, and to backup programs, this target is like any other.
    assert cargo(root, tmp_path, "build", "--target-dir", "plain").status == 0
    assert (root / "plain" / "CACHEDIR.TAG").read_bytes()[:43] == tag[:43]
    assert cargo(root, tmp_path, "clean").status == 0
    assert not (root / "target").exists()
    # What is there is left as it is, and no worktree that may yet be seeded gets an empty one.
    git(root, "worktree", "add", "-q", str(btrfs / "there"))
    assert cow(btrfs / "there", tmp_path, "prepare").status == 0
    assert not (btrfs / "there" / "target").exists()
