"""``cargo cow verify --recompile``: entries against what the compiler makes of the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from blake3 import blake3

from tests.support.projects import SOURCE

from .conftest import DEPENDENCIES, PACKAGE, Place


def verified(
    place: Place, *words: str, status: int = 0, extra: dict[str, str] | None = None
) -> dict[str, str]:
    """Verdict and reason by crate."""
    command = ["verify", "--recompile", *words, "--store", str(place.store), "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "cargo_cow", *command],
        cwd=place.root,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **(extra or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)["recompiled"]
    assert list(place.store.glob("making/*")) == []
    return {one["crate"]: f"{one['verdict']} {one['why']}".strip() for one in told}


# A script, what it generates, a macro, a program that links all of it.
PROJECT = {
    **{name: text for name, text in DEPENDENCIES.items() if not name.startswith("baked")},
    "Cargo.toml": '[workspace]\nmembers = ["gen", "leaf", "named", "app"]\nresolver = "2"\n',
    "named/Cargo.toml": PACKAGE.format("named", "[lib]\nproc-macro = true\n"),
    "named/src/lib.rs": "use proc_macro::TokenStream;\n"
    '#[proc_macro]\npub fn seven(_: TokenStream) -> TokenStream { "7".parse().unwrap() }\n',
    "app/Cargo.toml": PACKAGE.format(
        "app", '[dependencies]\ngen = { path = "../gen" }\nnamed = { path = "../named" }\n'
    ),
    "app/src/main.rs": 'fn main() { println!("{} {}", gen::shown(), named::seven!()); }\n',
}


def test_all_of_a_project_compiles_to_the_same(place: Place) -> None:
    project = place.project("main", PROJECT)
    place.build(project, CARGO_INCREMENTAL="0")
    crates = ["app", "build_script_build", "gen", "leaf", "named"]
    assert verified(place) == dict.fromkeys(crates, "same")
    # The target is not what is compared, nor needed but for what scripts generated.
    for path in (project / "target/debug").iterdir():
        if path.name != "build" and path.is_dir():
            shutil.rmtree(path)
    assert verified(place) == dict.fromkeys(crates, "same")
    shutil.rmtree(project / "target")
    gone = "not-tried what its build script generated g.rs is not there any more"
    assert verified(place) == dict.fromkeys(crates, "same") | {"gen": gone}


LIBRARY = {
    "Cargo.toml": PACKAGE.format("library", ""),
    "src/lib.rs": 'pub fn answer() -> &\'static str { option_env!("MARK").unwrap_or("none") }\n',
}


def forge(place: Place, old: bytes, new: bytes) -> None:
    """Something else in an output, and its digest with it."""
    for entry in place.entries():
        line = (entry / "entry.json").read_bytes().split(b"\n")[0]
        value = json.loads(line)
        for index, output in enumerate(value["outputs"]):
            file = entry / str(index)
            file.chmod(0o600)
            file.write_bytes(file.read_bytes().replace(old, new))
            output[2] = blake3(file.read_bytes()).hexdigest()
        line = json.dumps(value, separators=(",", ":")).encode()
        (entry / "entry.json").write_bytes(line + b"\n" + blake3(line).hexdigest().encode() + b"\n")


def test_what_no_compile_gives_is_told(place: Place) -> None:
    place.build(place.project("library", LIBRARY), MARK="mark-one", CARGO_INCREMENTAL="0")
    assert verified(place) == {"library": "same"}
    forge(place, b"mark-one", b"mark-two")
    told = verified(place, status=1)["library"]
    assert told.startswith("differs liblibrary-")
    assert "first at byte " in told


def test_what_differs_each_time_proves_nothing(place: Place) -> None:
    files = {
        "Cargo.toml": '[workspace]\nmembers = ["now", "library"]\nresolver = "2"\n',
        "now/Cargo.toml": PACKAGE.format("now", "[lib]\nproc-macro = true\n"),
        "now/src/lib.rs": """
#[proc_macro]
pub fn now(_: proc_macro::TokenStream) -> proc_macro::TokenStream {
    format!("{}u128", std::process::id()).parse().unwrap()
}
""",
        "library/Cargo.toml": PACKAGE.format("library", '[dependencies]\nnow.path = "../now"\n'),
        "library/src/lib.rs": "pub const BUILT: u128 = now::now!();\n",
    }
    place.build(place.project("two", files), CARGO_INCREMENTAL="0")
    told = verified(place)
    assert told["now"] == "same"
    assert told["library"].startswith("not-repeatable two compiles in a row differ")


def test_what_cannot_be_tried_and_why(place: Place) -> None:
    project = place.project("library", LIBRARY)
    place.build(project, MARK="a")
    source = project / "src/lib.rs"
    source.write_text(source.read_text() + "// more\n")
    assert verified(place) == {"library": "not-tried its source src/lib.rs was changed"}
    source.unlink()
    assert verified(place) == {"library": "not-tried its source src/lib.rs is not there any more"}
    shutil.rmtree(project)
    assert verified(place) == {"library": f"not-tried {project} is not there any more"}


def test_what_only_the_system_tells(place: Place) -> None:
    """Another linker, other libraries of the system: what is linked would be something else."""
    files = {"Cargo.toml": PACKAGE.format("app", ""), "src/main.rs": "fn main() {}\n"}
    place.build(place.project("app", files), CARGO_INCREMENTAL="0")
    assert verified(place) == {"app": "same"}
    (entry,) = place.entries()
    text = (entry / "entry.json").read_bytes().split(b"\n")[0]

    def with_part(kind: str) -> None:
        value = json.loads(text)
        for part in value["parts"]:
            if part[0] == kind:
                part[1] = part[1][:-1] + ("1" if part[1][-1] == "0" else "0")
                break
        line = json.dumps(value, separators=(",", ":")).encode()
        (entry / "entry.json").write_bytes(line + b"\n" + blake3(line).hexdigest().encode() + b"\n")

    for kind, reason in (
        ("linker", "not-tried the linker "),
        ("system", "not-tried the system's libraries in "),
        ("compiler", "not-tried the compiler of then is another by now"),
    ):
        with_part(kind)
        assert verified(place)["app"].startswith(reason)


def test_a_dependency_that_went(place: Place) -> None:
    files = {name: PROJECT[name] for name in PROJECT if name.startswith(("gen/", "leaf/"))}
    files["Cargo.toml"] = '[workspace]\nmembers = ["gen", "leaf"]\nresolver = "2"\n'
    place.build(place.project("main", files))
    for entry in place.entries():
        if json.loads((entry / "entry.json").read_bytes().split(b"\n")[0])["crate"] == "leaf":
            shutil.rmtree(entry)
    told = verified(place, "gen")["gen"]
    assert told.startswith("not-tried its dependency libleaf-")


def test_a_secret_is_not_kept(place: Place) -> None:
    """A macro that may read it, and is not observed, makes it count; the entry knows its digest."""
    files = {
        "Cargo.toml": '[workspace]\nmembers = ["named", "library"]\nresolver = "2"\n',
        **{name: text for name, text in PROJECT.items() if name.startswith("named/")},
        "library/Cargo.toml": PACKAGE.format(
            "library", '[dependencies]\nnamed.path = "../named"\n'
        ),
        "library/src/lib.rs": "pub const SEVEN: u8 = named::seven!();\n",
    }
    secrets = {"SOME_TOKEN": "hunter-two", "DATABASE_URL": "postgres://me:hunter-two@host/base"}
    project = place.project("two", files)
    extra = {**secrets, "CARGO_INCREMENTAL": "0", "CARGO_COW_OBSERVE": "off"}
    place.build(project, **extra)
    kept = [(entry / "entry.json").read_text() for entry in place.entries()]
    kept += [path.read_text() for path in project.rglob("cow-asked.json")]
    assert any("SOME_TOKEN" in text for text in kept)
    assert not any("hunter-two" in text for text in kept)
    shutil.rmtree(project / "target")
    assert place.build(project, **extra).rustc == []
    told = verified(place)["library"]
    assert told in {
        f"not-tried the value of {name} is not known: only its digest is kept" for name in secrets
    }
    assert verified(place, extra=secrets)["library"] == "same"
    shutil.rmtree(project / "target")
    extra["SOME_TOKEN"] = "another"
    assert "library" in place.build(project, **extra).rustc


def test_a_sample_is_the_same_with_the_same_seed(place: Place) -> None:
    files = {name: PROJECT[name] for name in PROJECT if name.startswith(("gen/", "leaf/"))}
    files["Cargo.toml"] = '[workspace]\nmembers = ["gen", "leaf"]\nresolver = "2"\n'
    place.build(place.project("main", files))
    one, again = (verified(place, "--sample", "1", "--seed", "3") for _ in range(2))
    # What two compiles of it differ in, if they do, may be another byte each time.
    assert one.keys() == again.keys()
    assert len(one) == 1
