"""What the workloads are made of: samples, built checkouts, edits, bytes on the disk."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow.bench import processes, projects, tools
from cargo_cow.bench.counting import Count
from cargo_cow.bench.tools import PLAIN, Bench


class Sample(NamedTuple):
    """One measurement.  ``values`` holds what only this workload knows, in seconds and bytes."""

    seconds: float
    ran: Count | None
    values: dict[str, float]


class Measured(NamedTuple):
    workload: str
    tool: str
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        return statistics.median(sample.seconds for sample in self.samples)

    def value(self, name: str) -> float | None:
        found = [sample.values[name] for sample in self.samples if name in sample.values]
        return statistics.median(found) if found else None

    def most(self, name: str) -> float:
        """The worst of the samples: a count that is promised holds in every run."""
        return max((sample.values.get(name, 0.0) for sample in self.samples), default=0.0)

    def counts(self, kind: str) -> tuple[int, ...]:
        """Sorted, each different number once: one number means that all runs agree."""
        taken = [sample.ran for sample in self.samples if sample.ran is not None]
        return tuple(sorted({len(c.scripts) if kind == "scripts" else c.rustc for c in taken}))


def sample(built: tools.Built, **values: float) -> Sample:
    return Sample(built.seconds, built.ran, values)


def occupied(directory: Path) -> int:
    """Bytes in use on the filesystem, by its own account.

    What was removed is given back some time later (Btrfs removes subvolumes in the background):
    so this waits until the number stands still.
    """
    last = -1
    for _ in range(40):
        # This filesystem only: another one's writes would be waited for in vain.
        words = ["sync", "--file-system", os.fspath(directory)]
        processes.run(words, cwd=directory, env=processes.environment())
        facts = os.statvfs(directory)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        if used == last:
            break
        last = used
        time.sleep(0.25)
    return last


def removed(directory: Path) -> None:
    """Wait until what was removed on the filesystem is given back.

    Btrfs begins with that up to a commit interval later, so that the number in use stands still
    before it falls.  ``btrfs subvolume sync`` (root) waits for it; else half a minute has to do.
    """
    program = shutil.which("btrfs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is not None:
        words = [program, "subvolume", "sync", os.fspath(directory)]
        done = processes.run(words, cwd=directory, env=processes.environment(), check=False)
        if done.status == 0:
            return
    time.sleep(_COMMIT_INTERVAL)


_COMMIT_INTERVAL = 35.0  # seconds; the mount option "commit" is 30 by default


def built_main(bench: Bench, tool: str) -> Path:
    """The tool's main checkout, built; a donor for what follows."""
    root = bench.main(tool)
    built = marker(bench, tool)
    if not built.exists():
        owner = tools.main_of(tool)
        bench.build(owner, root)
        processes.finished()
        built.touch()
        os.sync()
    return root


def stocked(bench: Bench, tool: str) -> Path:
    """The main checkout, and all that was built there in the tool's store."""
    # Plain Cargo has none: what it builds elsewhere does not depend on what was built here.
    return bench.main(tool) if tool == PLAIN else built_main(bench, tool)


def marker(bench: Bench, tool: str) -> Path:
    """Tells that the main checkout was built, and its store filled with it."""
    return bench.room / f"{tools.main_of(tool)}.built"


def edit(workspace: Path, number: int) -> Path:
    """Add a function to the first target of the first package here, and say to which file."""
    source = next(_sources(workspace), None)
    if source is None:
        raise processes.StepFailed(f"no source file to edit in {workspace}")
    function = f"fn cargo_cow_edit_{number}() -> u32 {{\n    {number}\n}}"
    source.write_text(f"{source.read_text()}\n#[allow(dead_code)]\n{function}\n")
    return source


def declare_missing(workspace: Path) -> Path:
    """Have a build script declare a file that is not there, and say which script.

    It is that of the first package here that has one; else the first package gets one.
    """
    packages = [Path(package["manifest_path"]).parent for package in _packages(workspace)]
    scripts = [script for script in map(projects.script_of, packages) if script is not None]
    declaring = 'println!("cargo:rerun-if-changed=cargo-cow-has-no-such-file");'
    if scripts:
        text = scripts[0].read_text()
        body = re.sub(r"(\bfn main\(\)[^{]*\{)", rf"\1\n    {declaring}", text, count=1)
        if body == text:
            raise processes.StepFailed(f"no `fn main()` in {scripts[0]}")
        scripts[0].write_text(body)
        return scripts[0]
    manifest = packages[0] / "Cargo.toml"
    text = re.sub(r"(?m)^build = false$", 'build = "build.rs"', manifest.read_text())
    manifest.write_text(text)
    script = packages[0] / "build.rs"
    script.write_text(f"fn main() {{\n    {declaring}\n}}\n")
    return script


def _sources(workspace: Path) -> Iterator[Path]:
    for package in _packages(workspace):
        targets = package["targets"]
        targets.sort(key=lambda target: "lib" not in target["kind"])
        for target in targets:
            if {"lib", "bin"} & set(target["kind"]):
                yield Path(target["src_path"])


def _packages(workspace: Path) -> list[dict[str, Any]]:
    import json

    words = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline"]
    metadata = json.loads(processes.run(words, cwd=workspace, env=processes.environment()).stdout)
    packages: list[dict[str, Any]] = metadata["packages"]
    return packages
