"""What is built: published programs with their lock files, or the user's own project.

Published packages are fetched by Cargo itself, from wherever this machine gets its crates, and
taken from Cargo's own unpacked sources.  Two releases become two commits of a git repository, so
that there is a history to switch in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cargo_cow.bench import processes
from cargo_cow.errors import CowError

_SECONDS_OF_FIRST_COMMIT = 1_700_000_000  # fixed, so that commits have the same names everywhere

# What Cargo leaves beside a package's own files, and a toolchain other than this machine's.
_NOT_SOURCES = {
    ".cargo-ok",
    ".cargo_vcs_info.json",
    "Cargo.toml.orig",
    "rust-toolchain",
    "rust-toolchain.toml",
    ".git",
    ".gitignore",
    ".gitattributes",
    ".gitmodules",
}


class UnknownProject(CowError):
    """The name is neither a project we know nor a directory."""

    exit_code = 62


class Published(NamedTuple):
    """A program on the registry in two neighbouring releases.

    ``members``: its library packages that come from the same repository are unpacked too, and
    made members of one workspace, as they are in that repository.
    """

    package: str
    versions: tuple[str, str]
    members: bool = False


KNOWN: Mapping[str, Published] = {
    "ripgrep": Published("ripgrep", ("14.1.0", "14.1.1")),
    "ripgrep-workspace": Published("ripgrep", ("14.1.0", "14.1.1"), members=True),
    "fd": Published("fd-find", ("10.1.0", "10.2.0")),
    "bat": Published("bat", ("0.24.0", "0.25.0")),
    "just": Published("just", ("1.35.0", "1.36.0")),
    "hyperfine": Published("hyperfine", ("1.18.0", "1.19.0")),
    # 340 units and more, and a build script that declares a file which is not there.
    "hk": Published("hk", ("1.56.0", "1.57.0")),
}


SYNTHETIC = "synthetic"
_SYNTHETIC_PACKAGES = 150
_SYNTHETIC_MODULES = 12

LARGE = "large"
_LARGE_MODULES = 100
_LARGE_FUNCTIONS = 40  # of six lines each

NAMES = (*KNOWN, SYNTHETIC, LARGE)


class Project(NamedTuple):
    """A git repository in scratch, from which every tool gets clones of its own."""

    name: str
    repository: Path
    subdirectory: Path  # of the workspace, relative to the repository's root
    revisions: tuple[str, ...]  # the one to build and, if there is one, the other to switch to
    labels: tuple[str, ...]  # the same for people
    edited: Path | None = None  # a source whose last function has a body of one number


def obtain(
    name: str | None,
    path: Path | None,
    scratch: Path,
    *,
    other: str | None = None,
    say: Callable[[str], None],
) -> Project:
    """A known project by name, or the project at ``path``, which is only read."""
    if path is not None:
        return own(path, scratch / "project", other=other, say=say)
    name = name or "ripgrep"
    if name == SYNTHETIC:
        return synthetic(scratch / "project")
    if name == LARGE:
        return large(scratch / "project")
    if name not in KNOWN:
        raise UnknownProject(
            f"no project {name}", hint=f"known: {', '.join(NAMES)}; or give a path"
        )
    return published(name, KNOWN[name], scratch, say=say)


def published(
    name: str, project: Published, scratch: Path, *, say: Callable[[str], None]
) -> Project:
    """Fetch both releases and make a repository of them; the older is revision one."""
    env = processes.environment()
    repository = scratch / "project"
    repository.mkdir()
    git(["init", "-q", "-b", "main"], repository)
    for number, version in enumerate(project.versions):
        say(f"fetching {project.package} {version}")
        source = unpacked(project.package, version, scratch, env)
        for child in repository.iterdir():
            if child.name != ".git":
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        copy_sources(source, repository)
        if project.members:
            join_members(repository, env, say)
        (repository / ".gitignore").write_text("/target\n")
        commit(repository, f"{project.package} {version}", number)
        git(["tag", f"v{version}"], repository)
    tags = tuple(f"v{version}" for version in project.versions)
    fetch_dependencies(repository, tags, env)
    labels = tuple(f"{project.package} {version}" for version in project.versions)
    return Project(name, repository, Path(), tags, labels)


def unpacked(package: str, version: str, scratch: Path, env: Mapping[str, str]) -> Path:
    """The directory of a published package as Cargo unpacked it.

    ``cargo info`` (1.82 and later) downloads just that package.  Where it does not serve, a
    package that depends on it is fetched, with everything that needs; Cargo warns that a program
    is no library, and fetches it all the same (1.95).
    """
    found = _in_registry(package, version, env)
    if found is not None:
        return found
    elsewhere = scratch / "fetch"
    (elsewhere / "src").mkdir(parents=True, exist_ok=True)
    (elsewhere / "src" / "lib.rs").touch()
    processes.run(
        ["cargo", "info", "--quiet", f"{package}@{version}"], cwd=elsewhere, env=env, check=False
    )
    found = _in_registry(package, version, env)
    if found is None:
        (elsewhere / "Cargo.toml").write_text(
            '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n\n[workspace]\n\n'
            f'[dependencies]\n{package} = "={version}"\n'
        )
        processes.run(["cargo", "fetch", "--quiet"], cwd=elsewhere, env=env)
        found = _in_registry(package, version, env)
    if found is None:
        raise processes.StepFailed(f"Cargo did not unpack {package} {version}")
    return found


def _in_registry(package: str, version: str, env: Mapping[str, str]) -> Path | None:
    home = Path(env.get("CARGO_HOME") or Path.home() / ".cargo")
    # `.cargo-ok` is written last: without it the directory is only half unpacked.
    found = home.glob(f"registry/src/*/{package}-{version}/.cargo-ok")
    return next((path.parent for path in sorted(found)), None)


def copy_sources(source: Path, dest: Path) -> None:
    """Copy a package's files, with new times: the registry's are older than any build."""

    def not_sources(directory: str, names: list[str]) -> set[str]:
        return _NOT_SOURCES & set(names) if directory == os.fspath(source) else set()

    shutil.copytree(source, dest, copy_function=shutil.copy, ignore=not_sources, dirs_exist_ok=True)


def join_members(repository: Path, env: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Make a workspace of a program and those of its libraries that share its repository."""
    processes.run(["cargo", "fetch", "--quiet", "--locked"], cwd=repository, env=env)
    metadata = _metadata(repository, env)
    packages: list[dict[str, Any]] = metadata["packages"]
    manifest = repository / "Cargo.toml"
    home = next(p["repository"] for p in packages if Path(p["manifest_path"]) == manifest.resolve())
    ours = [
        package
        for package in packages
        if package["source"] is not None
        and home
        and f"{package['repository'] or ''}/".startswith(f"{home.removesuffix('.git')}/")
    ]
    names = sorted(package["name"] for package in ours)
    say(f"  with {', '.join(names)} as members")
    for package in ours:
        member = repository / "crates" / package["name"]
        copy_sources(Path(package["manifest_path"]).parent, member)
        (member / "Cargo.lock").unlink(missing_ok=True)
        _without_benches(member / "Cargo.toml")
    text = manifest.read_text()
    if "workspace" in tomllib.loads(text):
        raise processes.StepFailed(f"{manifest} has a [workspace] already")
    members = ", ".join(f'"crates/{name}"' for name in names)
    patches = "".join(f'{name} = {{ path = "crates/{name}" }}\n' for name in names)
    manifest.write_text(
        f"{text}\n[workspace]\nmembers = [{members}]\n\n[patch.crates-io]\n{patches}"
    )
    # Their versions stay as locked; only where they come from changes.  Cargo adds what their
    # own tests need.
    lock = repository / "Cargo.lock"
    locked = {(package["name"], package["version"]) for package in ours}
    parts = lock.read_text().split("[[package]]")
    lock.write_text("[[package]]".join(_local(part, locked) for part in parts))
    processes.run(["cargo", "fetch", "--quiet"], cwd=repository, env=env)


def _without_benches(manifest: Path) -> None:
    """Benchmarks of the libraries want an unstable compiler (``#![feature(test)]``)."""
    import tomlkit

    document = tomlkit.parse(manifest.read_text())
    document.pop("bench", None)
    document["package"]["autobenches"] = False
    manifest.write_text(tomlkit.dumps(document))


def _local(part: str, locked: set[tuple[str, str]]) -> str:
    name = re.search(r'^name = "(.*)"$', part, re.MULTILINE)
    version = re.search(r'^version = "(.*)"$', part, re.MULTILINE)
    if name is None or version is None or (name[1], version[1]) not in locked:
        return part
    return re.sub(r"^(source|checksum) = .*\n", "", part, flags=re.MULTILINE)


def _metadata(cwd: Path, env: Mapping[str, str]) -> dict[str, Any]:
    result = processes.run(["cargo", "metadata", "--format-version", "1"], cwd=cwd, env=env)
    metadata: dict[str, Any] = json.loads(result.stdout)
    return metadata


def synthetic(repository: Path) -> Project:
    """A workspace in which everything is local: the most that a proof can have to do.

    150 packages of four units each (build script, its run, library, test: 600 in all), with 14
    files each (2,100).  Each depends on the one at half its number; the other commit changes one
    that nobody depends on.  Needs no registry.
    """
    repository.mkdir()
    git(["init", "-q", "-b", "main"], repository)
    (repository / ".gitignore").write_text("/target\n")
    (repository / "Cargo.toml").write_text('[workspace]\nresolver = "2"\nmembers = ["p*"]\n')
    for number in range(_SYNTHETIC_PACKAGES):
        root = repository / f"p{number}"
        (root / "src").mkdir(parents=True)
        below = f'p{number // 2} = {{ path = "../p{number // 2}" }}\n' if number else ""
        (root / "Cargo.toml").write_text(
            f'[package]\nname = "p{number}"\nversion = "0.1.0"\nedition = "2021"\n\n'
            f"[dependencies]\n{below}"
        )
        (root / "build.rs").write_text(
            'fn main() {\n    println!("cargo::rerun-if-changed=build.rs");\n}\n'
        )
        modules = [f"m{module}" for module in range(_SYNTHETIC_MODULES)]
        for module in modules:
            (root / "src" / f"{module}.rs").write_text("pub fn number() -> u32 {\n    1\n}\n")
        total = " + ".join(f"{module}::number()" for module in modules)
        more = f" + p{number // 2}::number()" if number else ""
        (root / "src" / "lib.rs").write_text(
            "".join(f"pub mod {module};\n" for module in modules)
            + f"\npub fn number() -> u32 {{\n    {total}{more}\n}}\n"
        )
    env = processes.environment({"CARGO_NET_OFFLINE": "true"})
    processes.run(["cargo", "generate-lockfile", "--quiet"], cwd=repository, env=env)
    commit(repository, "all ones", 0)
    git(["tag", "one"], repository)
    last = repository / f"p{_SYNTHETIC_PACKAGES - 1}" / "src" / "m0.rs"
    last.write_text("pub fn number() -> u32 {\n    2\n}\n")
    commit(repository, "a two", 1)
    git(["tag", "two"], repository)
    git(["checkout", "-q", "--detach", "one"], repository)
    return Project(SYNTHETIC, repository, Path(), ("one", "two"), ("all ones", "a two"))


def large(repository: Path) -> Project:
    """A workspace with one crate of more than 24,000 lines, between a small one and two programs.

    Generic code and much that is not inlined: what incremental state is for.  One commit; needs no
    registry.  Release builds are incremental, too.
    """
    repository.mkdir()
    git(["init", "-q", "-b", "main"], repository)
    (repository / ".gitignore").write_text("/target\n")
    members = {"base": (), "large": ("base",), "one": ("large",), "two": ("base", "large")}
    (repository / "Cargo.toml").write_text(
        f'[workspace]\nresolver = "2"\nmembers = {json.dumps(list(members))}\n\n'
        "[profile.release]\nincremental = true\n"
    )
    for name, used in members.items():
        (repository / name / "src").mkdir(parents=True)
        needs = "".join(f'{other} = {{ path = "../{other}" }}\n' for other in used)
        (repository / name / "Cargo.toml").write_text(
            f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n\n'
            f"[dependencies]\n{needs}"
        )
    (repository / "base" / "src" / "lib.rs").write_text(
        "pub trait Step: Copy {\n    fn step(self, by: u64) -> Self;\n}\n\n"
        "impl Step for u64 {\n    fn step(self, by: u64) -> Self {\n"
        "        self.wrapping_mul(31).wrapping_add(by)\n    }\n}\n"
    )
    source = repository / "large" / "src"
    for module in range(_LARGE_MODULES):
        parts = ["use base::Step;\n"]
        for number in range(_LARGE_FUNCTIONS):
            after = f"f{number + 1}(values)" if number + 1 < _LARGE_FUNCTIONS else "values.len()"
            parts.append(
                f"pub fn f{number}(values: &mut Vec<u64>) -> usize {{\n"
                f"    let last = values.last().copied().unwrap_or({number});\n"
                f"    values.push(last.step({module}));\n"
                f'    let text = format!("{{last}} {{}}", values.len());\n'
                f"    text.len() + {after}\n}}\n"
            )
        (source / f"m{module}.rs").write_text("".join(parts))
    modules = "".join(f"pub mod m{module};\n" for module in range(_LARGE_MODULES))
    calls = "".join(f"        + m{module}::f0(values)\n" for module in range(_LARGE_MODULES))
    (source / "lib.rs").write_text(
        f"{modules}pub mod edited;\n\n"
        f"pub fn all(values: &mut Vec<u64>) -> usize {{\n    edited::number()\n{calls}}}\n"
    )
    (source / "edited.rs").write_text("#[inline(never)]\npub fn number() -> usize {\n    0\n}\n")
    for name in ("one", "two"):
        (repository / name / "src" / "main.rs").write_text(
            'fn main() {\n    println!("{}", large::all(&mut Vec::new()));\n}\n'
        )
    env = processes.environment({"CARGO_NET_OFFLINE": "true"})
    processes.run(["cargo", "generate-lockfile", "--quiet"], cwd=repository, env=env)
    commit(repository, "large", 0)
    git(["checkout", "-q", "--detach", "HEAD"], repository)
    edited = Path("large", "src", "edited.rs")
    return Project(LARGE, repository, Path(), (_commit_of(repository, "HEAD"),), ("large",), edited)


# What decides which units a package's dependencies are.
_OF_DEPENDENCIES = ("dependencies", "dev-dependencies", "build-dependencies", "features")
_OF_ROOTS = ("profile", "patch", "replace")


def another(project: Project, root: Path, name: str) -> Path:
    """A project ``name`` in ``root`` with the dependencies, features and flags of ``project``.

    The same lock file; its own code is an empty library, and an empty build script where
    ``project`` has one (else its build dependencies would be none of ours).  Only for a project
    ``of_one_package``.
    """
    assert of_one_package(project)
    source = project.repository / project.subdirectory
    manifest = tomllib.loads((source / "Cargo.toml").read_text())
    package = manifest["package"]
    kept = {key: package[key] for key in ("edition", "resolver") if key in package}
    made: dict[str, Any] = {
        "package": {"name": name, "version": "0.1.0", **kept, "autobins": False},
        "lib": {"path": "src/lib.rs", "test": False, "doctest": False, "bench": False},
        "workspace": {},
        **{key: manifest[key] for key in (*_OF_DEPENDENCIES, *_OF_ROOTS) if key in manifest},
    }
    targets = {
        condition: {key: table[key] for key in _OF_DEPENDENCIES if key in table}
        for condition, table in manifest.get("target", {}).items()
    }
    if targets:
        made["target"] = targets
    (root / "src").mkdir(parents=True)
    (root / "src" / "lib.rs").touch()
    if script_of(source) is not None:
        (root / "build.rs").write_text(
            'fn main() {\n    println!("cargo::rerun-if-changed=build.rs");\n}\n'
        )
    import tomlkit

    (root / "Cargo.toml").write_text(tomlkit.dumps(made))
    lock = (source / "Cargo.lock").read_text()
    was = f'name = "{package["name"]}"\nversion = "{package["version"]}"\n'
    (root / "Cargo.lock").write_text(lock.replace(was, f'name = "{name}"\nversion = "0.1.0"\n'))
    if (source / ".cargo").is_dir():
        shutil.copytree(source / ".cargo", root / ".cargo")
    (root / ".gitignore").write_text("/target\n")
    # Cargo puts the lock file's packages into their order; nothing else may differ.
    _metadata(root, processes.environment({"CARGO_NET_OFFLINE": "true"}))
    git(["init", "-q", "-b", "main"], root)
    commit(root, name, 0)
    return root


def of_one_package(project: Project) -> bool:
    """Whether ``another`` project with the same dependencies can be made."""
    source = project.repository / project.subdirectory
    manifest = tomllib.loads((source / "Cargo.toml").read_text())
    tables = [manifest, *manifest.get("target", {}).values()]
    needed = [
        dependency
        for table in tables
        for key in ("dependencies", "dev-dependencies", "build-dependencies")
        for dependency in table.get(key, {}).values()
    ]
    return (
        "package" in manifest
        and not manifest.get("workspace")
        and (source / "Cargo.lock").exists()
        and not any(
            isinstance(dependency, dict) and ({"path", "workspace"} & set(dependency))
            for dependency in needed
        )
    )


def script_of(package: Path) -> Path | None:
    """The source of a package's build script, if it has one."""
    build = tomllib.loads((package / "Cargo.toml").read_text())["package"].get("build")
    if isinstance(build, str):
        return package / build
    found = package / "build.rs"
    return found if build is not False and found.exists() else None


def own(
    path: Path, repository: Path, *, other: str | None = None, say: Callable[[str], None]
) -> Project:
    """A clone of the user's project in scratch; the user's checkout is only read.

    Uncommitted work is not part of it, and said so.  Without git the files are copied and
    become a repository of one commit.
    """
    env = processes.environment()
    path = path.resolve()
    if not (path / "Cargo.toml").is_file():
        raise UnknownProject(f"{path} has no Cargo.toml", hint="give the path of a Cargo project")
    reading = _reading(env)
    top = processes.run(["git", "rev-parse", "--show-toplevel"], cwd=path, env=reading, check=False)
    if top.status != 0:
        say(f"{path} is not in a git repository: its files are copied, one commit")
        shutil.copytree(path, repository, symlinks=True, ignore=_no_target)
        git(["init", "-q", "-b", "main"], repository)
        (repository / ".git" / "info").mkdir(exist_ok=True)
        (repository / ".git" / "info" / "exclude").write_text("target\n")
        commit(repository, path.name, 0)
        revisions = [_commit_of(repository, "HEAD")]
        return Project(path.name, repository, Path(), tuple(revisions), (path.name,))

    root = Path(top.stdout.rstrip("\n"))
    status = processes.run(["git", "status", "--porcelain", "-z"], cwd=root, env=reading)
    if status.stdout:
        say(f"{root} has uncommitted changes: only what is committed is measured")
    # --shared borrows objects: fast, and nothing is written to the user's repository.
    words = ["clone", "-q", "--shared", "--no-checkout", "--template="]
    processes.run(["git", *words, "--", root, repository], cwd=repository.parent, env=reading)
    here = _commit_of(repository, "HEAD")
    git(["checkout", "-q", "--detach", here], repository)
    if (repository / ".gitmodules").exists():
        say("submodules are not fetched: a build that needs them fails")
    revisions = [here]
    try:
        revisions.append(_commit_of(repository, other or "HEAD~1"))
    except processes.StepFailed:
        if other is not None:
            raise
        say("there is only one commit: nothing to switch to")
    labels = tuple(
        git(["log", "-1", "--format=%h %s", revision], repository).stdout.strip()[:60]
        for revision in revisions
    )
    project = Project(path.name, repository, path.relative_to(root), tuple(revisions), labels)
    fetch_dependencies(repository / project.subdirectory, revisions, env)
    return project


def _reading(env: Mapping[str, str]) -> dict[str, str]:
    """For git in the user's own repository: with the user's configuration (which may be what
    allows to read it), and without refreshing the index, as `git status` does by the way."""
    users = {name: value for name, value in env.items() if not name.startswith("GIT_CONFIG_")}
    return {**users, "GIT_OPTIONAL_LOCKS": "0"}


def _no_target(directory: str, names: list[str]) -> set[str]:
    """Build output is not copied; a directory of sources may well be called ``target``."""
    return {
        name for name in names if name == ".git" or Path(directory, name, "CACHEDIR.TAG").exists()
    }


def fetch_dependencies(workspace: Path, revisions: Sequence[str], env: Mapping[str, str]) -> None:
    """Have every crate on this machine before anything is timed.  Ends at the first revision."""
    for revision in [*revisions, revisions[0]]:
        # By force: a lock file that Cargo has made may be a file of the next revision.
        git(["checkout", "-q", "--force", "--detach", revision], workspace)
        if (workspace / "Cargo.toml").exists():
            processes.run(["cargo", "fetch", "--quiet"], cwd=workspace, env=env)
            # A project that does not commit its lock file gets one; a committed one is left as is.
            git(["checkout", "-q", "--", "."], workspace)


def commit(repository: Path, message: str, number: int) -> None:
    moment = f"@{_SECONDS_OF_FIRST_COMMIT + 86_400 * number} +0000"
    who = {
        "GIT_AUTHOR_NAME": "Cargo-CoW",
        "GIT_AUTHOR_EMAIL": "cargo-cow@localhost",
        "GIT_COMMITTER_NAME": "Cargo-CoW",
        "GIT_COMMITTER_EMAIL": "cargo-cow@localhost",
        "GIT_AUTHOR_DATE": moment,
        "GIT_COMMITTER_DATE": moment,
    }
    git(["add", "--all", "--force", "."], repository)
    git(["commit", "-q", "--allow-empty", "-m", message], repository, who)


def git(args: Sequence[str], cwd: Path, extra: Mapping[str, str] | None = None) -> processes.Result:
    return processes.run(["git", *args], cwd=cwd, env=processes.environment(extra))


def _commit_of(repository: Path, revision: str) -> str:
    words = ["rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}"]
    return git(words, repository).stdout.strip()
