"""Fixed histories: each trap that is known, told once, by name.

The traps come from measurements of Cargo 1.95 and from other tools' mistakes.  Independent ones
share a story, because a build costs more than a look at it.
"""

from __future__ import annotations

from .histories import History, Step
from .workspaces import Member, Workspace, grand, small

ALL = ("--workspace", "--all-targets")


def build(at: str = "main", *args: str, by: str = "tool") -> Step:
    return {"do": "build", "at": at, "args": list(args), "by": by}


def edit(name: str, value: int, at: str = "main", how: str = "write") -> Step:
    return {"do": "edit", "at": at, "input": name, "value": value, "how": how}


def put(path: str, text: str, at: str = "main") -> Step:
    return {"do": "write", "at": at, "path": path, "text": text}


def move(path: str, to: str, at: str = "main") -> Step:
    return {"do": "move", "at": at, "path": path, "to": to}


def worktree(new: str, at: str = "main", ref: str | None = None, by: str = "tool") -> Step:
    return {"do": "worktree", "at": at, "new": new, "ref": ref, "by": by}


def do(what: str, at: str = "main", **more: object) -> Step:
    return {"do": what, "at": at, **more}


def variable(name: str, value: str | None) -> Step:
    return {"do": "set", "name": name, "value": value}


def commit(tag: str, at: str = "main") -> list[Step]:
    return [do("commit", at), do("tag", at, name=tag)]


def _together(*members: Member) -> Workspace:
    """Members, the macros, and ``app`` using all of them."""
    named = tuple(member.name for member in members)
    mac = [Member("mac")] if any("macro" in part for m in members for part in m.parts) else []
    return Workspace((*mac, *members, Member("app", ("config_env",), None, named)))


def _same_commit() -> History:
    """Nothing ties these units to a path: a new worktree has nothing to compile."""
    workspace = _together(
        Member("base", ("own_text", "deep", "odd_module", "location", "warns")),
        Member("reads", ("outside_text", "readme"), "declares_file", ("base",)),
        Member("lists", ("feature",), "declares_directory"),
        Member("makes", (), "generates_data"),
    )
    app = workspace.members[-1]._replace(parts=())
    workspace = workspace._replace(members=(*workspace.members[:-1], app))
    return History(workspace, (build(), worktree("w1"), build("w1"), build("main")))


def _baked_paths() -> History:
    """Every way in which an absolute path gets into an output."""
    workspace = _together(
        Member("manifest", ("manifest_env", "rooted_text", "location", "exports")),
        Member("out", (), "bakes_out_dir"),
        Member("inside", (), "generates_path"),
        Member("told", (), "bakes_path"),
        Member("stands", (), "bakes_cwd", ("manifest",)),
        Member("metal", (), "links"),
        Member("tells", ("capi",), "uses_links", ("metal",)),
        Member("compiles", (), "native"),
        Member("linked", (), "links_out"),
        Member("asks", ("macro_paths", "macro_include")),
    )
    steps = (
        build("main", *ALL),
        worktree("w1"),
        build("w1", *ALL),
        worktree("w2", "w1", by="git"),
        build("w2"),
        edit("linked.input", 102, "w2"),
        edit("asks.absolute", 102, "w2"),
        edit("asks.served", 102, "w2"),
        build("w2"),
        build(),
    )
    return History(workspace, steps)


def _baked_unseen() -> History:
    """Paths in places where they are hard to find: metadata, data files, other crates."""
    workspace = _together(
        Member("tells", (), "bakes_included"),
        Member("expands", ("macro_constants",)),
        Member("writes", (), "writes_data"),
        Member("metal", (), "links"),
        Member("reads", (), "uses_links", ("metal",)),
    )
    steps = (build(), worktree("w1"), build("w1"), worktree("w2", "w1", by="git"), build("w2"))
    return History(workspace, steps)


def _older_checkout() -> History:
    """Experiment (e): the checkout is older than the target that it gets."""
    workspace = small("own_text", script="declares_file")
    steps = (
        worktree("w1", by="git"),
        edit("one.value", 102),
        edit("one.note", 102),
        edit("one.input", 102),
        build(),
        build("w1"),
    )
    return History(workspace, steps)


def _other_branch() -> History:
    """P2: a worktree of a branch that differs from the donor, and of one that is equal again."""
    workspace = small("own_text", "outside_text", "deep", script="declares_directory")
    steps = (
        *commit("t0"),
        edit("one.note", 102),
        edit("one.declared", 102),
        edit("shared", 102),
        edit("one.leaf", 102),
        *commit("t1"),
        build(),
        worktree("w1", ref="t0"),
        build("w1"),
        do("switch", "w1", ref="t1"),
        build("w1"),
        do("switch", "w1", ref="t0"),
        do("switch", "w1", ref="t1"),
        build("w1"),
        do("switch", "main", ref="t0"),
        build("main", by="prepare"),
    )
    return History(workspace, steps)


def _in_place() -> History:
    """Edits, undone and redone, stashed and popped; one member built alone in between."""
    workspace = small("own_text", "exports", more=[Member("under", ("deep",))], uses=["under"])
    steps = (
        build(),
        edit("under.value", 102),
        build("main", "-p", "under"),
        build(),
        edit("under.leaf", 103, how="replace"),
        do("stash"),
        build(),
        do("pop"),
        build(),
        edit("under.value", 104),
        build("main", by="plain"),
        do("undo"),
        build(),
        edit("under.value", 105),
        edit("under.value", 100),
        build(),
        build("main", "--release"),
        do("touch", path="crates/under/src/values.rs", how="future"),
        build(),
        edit("one.note", 102, how="future"),
        build(),
    )
    return History(workspace, steps)


def _renamed_module() -> History:
    """A module's file moves; its content stays."""
    workspace = small("deep")
    values, deep = "crates/one/src/values", "crates/one/src/deep"
    steps = (
        build(),
        worktree("w1"),
        move(f"{values}.rs", f"{values}/mod.rs", "w1"),
        build("w1"),
        move(f"{deep}.rs", f"{deep}/mod.rs", "w1"),
        edit("one.leaf", 102, "w1"),
        build("w1"),
        *commit("t1", "w1"),
        do("switch", ref="t1"),
        build(),
        edit("one.leaf", 103),
        build(),
    )
    return History(workspace, steps)


def _old_style_script() -> History:
    """A script that declares nothing: the newest file's time stands in the fingerprint."""
    workspace = small(script="declares_nothing", more=[Member("asks_git", (), "git_silent")])
    steps = (
        build(),
        worktree("w1"),
        build("w1"),
        put("crates/one/NOTES.txt", "notes\n", "w1"),
        put("crates/one/listed/new.txt", "new\n", "w1"),
        build("w1"),
        edit("one.listed", 102, "w1"),
        build("w1"),
        *commit("t1", "w1"),
        build("w1"),
        worktree("w2", "w1"),
        build("w2"),
        do("switch", ref="t1"),
        build(),
    )
    return History(workspace, steps)


def _hidden_inputs() -> History:
    """What a macro, an assembler and a script read unseen, different in new worktrees."""
    workspace = _together(
        Member("asks", ("macros", "macro_dotenv")),
        Member("metal", ("incbin",)),
        Member("quiet", (), "build_only"),
        Member("head", (), "git_build_only"),
    )
    steps = (
        put(".env", "ignored 100\n"),
        build(),
        worktree("w1"),
        build("w1"),
        worktree("w2"),
        edit("asks.hidden", 102, "w2"),
        edit("metal.asm", 102, "w2"),
        edit("quiet.input", 102, "w2"),
        put("crates/asks/assets/new.txt", "new\n", "w2"),
        build("w2"),
        *commit("t1", "w2"),
        worktree("w3", "w2", ref="t1", by="git"),
        build("w3"),
        worktree("w4", ref="t1", by="git"),
        edit("asks.hidden", 103, "w4"),
        edit("metal.asm", 103, "w4"),
        edit("quiet.input", 103, "w4"),
        build("w4"),
    )
    return History(workspace, steps)


def _partly_built() -> History:
    """The first builds in a worktree leave units out; their hidden inputs change meanwhile."""
    workspace = _together(
        Member("base", ("own_text",)),
        Member("asks", ("macros",)),
        Member("quiet", (), "build_only"),
    )
    steps = (
        build(),
        build("main", "--release"),
        worktree("w1"),
        build("w1", "-p", "base"),
        edit("asks.hidden", 102, "w1"),
        edit("quiet.input", 102, "w1"),
        build("w1"),
        edit("asks.hidden", 103, "w1"),
        build("w1", "--release"),
    )
    return History(workspace, steps)


def _touched_below() -> History:
    """Below a unit something is newer and yet the same: Cargo rebuilds both, and sees more."""
    workspace = _together(
        Member("base", ("own_text",)),
        Member("asks", ("macros",), None, ("base",)),
        Member("metal", (), "links"),
        Member("head", (), "git_head", ("metal",)),
        Member("quiet", (), "build_only", ("metal",)),
    )
    steps = (
        build(),
        edit("asks.hidden", 102),
        do("touch", path="crates/base/src/values.rs"),
        build(),
        edit("asks.hidden", 103),
        edit("base.note", 104),
        do("undo"),
        edit("asks.hidden", 103),
        build(),
        *commit("t1"),
        edit("quiet.input", 105),
        do("touch", path="crates/metal/build.rs"),
        build(),
    )
    return History(workspace, steps)


def _hidden_then_nothing() -> History:
    """A hidden input is edited, a build in place does nothing: the record must not learn it."""
    workspace = _together(
        Member("asks", ("macros",)),
        Member("metal", ("incbin",)),
        Member("quiet", (), "build_only"),
    )
    steps = (
        build(),
        edit("asks.hidden", 102),
        edit("metal.asm", 102),
        edit("quiet.input", 102),
        build(),
        build("main", by="prepare"),
        *commit("t1"),
        worktree("w1"),
        build("w1"),
    )
    return History(workspace, steps)


def _linked_directory() -> History:
    """A declared directory holds a symbolic link to another; what lies there changes."""
    workspace = small(script="declares_directory", more=[Member("two", (), "declares_package")])
    texts = "crates/one/texts"
    steps = (
        put(f"{texts}/far.txt", "far 1\n"),
        do("symlink", path="crates/one/declared/link", to=texts),
        do("symlink", path="crates/two/listed/link", to=texts),
        build("main", by="plain"),
        put(f"{texts}/far.txt", "far 2\n"),
        *commit("t1"),
        worktree("w1", ref="t1"),
        build("w1"),
        put(f"{texts}/far.txt", "far 3\n", "w1"),
        build("w1"),
        put(f"{texts}/far.txt", "far 2\n", "w1"),
        build("w1"),
    )
    return History(workspace, steps)


def _git_answers() -> History:
    """What git says changes without any file of a package."""
    workspace = _together(
        Member("version", (), "git_describe"),
        Member("branch", (), "git_dirty"),
        Member("head", (), "git_build_only"),
        Member("file", (), "git_file"),
        Member("silent", (), "git_silent"),
        Member("watched", (), "git_head_resolved"),
    )
    steps = (
        build("main", by="plain"),
        *commit("t1"),
        worktree("w1", ref="t1"),
        build("w1"),
        do("tag", name="t2"),
        worktree("w2", ref="t1"),
        build("w2"),
        do("branch", "w2", name="topic"),
        put("untracked.txt", "new\n", "w2"),
        worktree("w3", "w2", ref="topic"),
        build("w3"),
        do("commit", "w3"),
        build("w3"),
    )
    return History(workspace, steps)


def _beyond() -> History:
    """The limits that are known: see ``BEYOND`` in ``workspaces``."""
    workspace = _together(
        Member("asks", ("macro_outside", "macro_env", "macro_config")),
        Member("looks", ("macro_exists",)),
        Member("quiet", (), "reads_beyond"),
        Member("ignored", (), "reads_ignored"),
        Member("beside", (), "declares_source"),
    )
    steps = (
        put("crates/looks/maybe.ignored", "here\n"),
        put("crates/ignored/script.ignored", "here\n"),
        build(),
        worktree("w1", by="git"),
        edit("shared", 102, "w1"),
        edit("config", 102, "w1"),
        edit("beside.input", 102, "w1"),
        variable("ORACLE_MACRO", "set"),
        variable("ORACLE_SCRIPT", "set"),
        build("w1"),
    )
    return History(workspace, steps)


def _declared_inputs() -> History:
    """Declarations: missing, absolute, outside, directories with files that come and go."""
    workspace = _together(
        Member("missing", (), "declares_missing"),
        Member("absolute", (), "declares_absolute"),
        Member("outside", (), "declares_outside"),
        Member("lists", (), "declares_directory"),
        Member("variable", ("option_env",), "declares_env"),
        Member("head", (), "git_head"),
    )
    steps = (
        put("crates/lists/declared/untracked.txt", "untracked\n"),
        variable("ORACLE_OPTION", "set"),
        build(),
        worktree("w1"),
        build("w1"),
        edit("absolute.input", 102, "w1"),
        edit("shared", 102, "w1"),
        put("crates/lists/declared/deeper/new.txt", "new\n", "w1"),
        build("w1"),
        do("remove", "w1", path="crates/lists/declared/deeper/new.txt"),
        variable("ORACLE_OPTION", None),
        variable("ORACLE_RERUN", "set"),
        build("w1"),
        do("commit", "w1"),
        build("w1"),
        edit("missing.input", 102),
        build(),
    )
    return History(workspace, steps)


def _written_sources() -> History:
    """Scripts that write into their package: what they wrote is not in a new worktree."""
    workspace = _together(
        Member("writes", (), "writes_source"),
        Member("odd", (), "declares_odd"),
        Member("empty", (), "declares_empty"),
    )
    steps = (
        build(),
        worktree("w1"),
        build("w1"),
        edit("writes.input", 102, "w1"),
        edit("odd.input", 102, "w1"),
        put("crates/odd/declared/new.txt", "new\n", "w1"),
        build("w1"),
        edit("empty.input", 102, "w1"),
        build("w1"),
        build(),
    )
    return History(workspace, steps)


def _outside_workspace() -> History:
    """A package beside the workspace, in the same repository: Cargo hashes its absolute path."""
    workspace = Workspace(
        (
            Member("mac", place="side"),
            Member("aside", ("warns", "macros", "location"), "declares_nothing", (), "side"),
            Member("twice", ("own_text",)),
            Member("again", ("own_text",), None, (), "side", package="twice"),
            Member("app", ("outside_text",), None, ("aside", "twice", "again"), "root"),
        ),
        nested=True,
    )
    steps = (
        build(),
        worktree("w1"),
        build("w1"),
        edit("aside.value", 102, "w1"),
        edit("again.note", 102, "w1"),
        build("w1"),
        build(),
        edit("aside.hidden", 103),
        edit("aside.warning", 103),
        *commit("t1"),
        worktree("w2", ref="t1", by="git"),
        build("w2"),
    )
    return History(workspace, steps)


def _own_directories() -> History:
    """``build.target-dir`` and ``build.build-dir``."""
    workspace = small("manifest_env", script="bakes_out_dir")
    workspace = workspace._replace(target_dir="out/built", build_dir="between")
    steps = (
        build("main", *ALL),
        worktree("w1"),
        build("w1", *ALL),
        edit("one.value", 102, "w1"),
        build("w1", *ALL),
    )
    return History(workspace, steps)


def _disturbed() -> History:
    """Builds that are killed, raced by an edit, or cloned from while they run."""
    workspace = small("slow", "own_text", script="declares_file")
    steps = (
        build(),
        edit("one.note", 102),
        do("interrupt", after=0.5),
        do("undo"),
        build(),
        edit("one.value", 102),
        do("during", after=0.7, change=edit("one.note", 103)),
        do("undo"),
        build(),
        edit("one.late", 104),
        do("race", new="w1", after=0.4),
        build("w1"),
        build(),
        do("clean"),
        build(),
    )
    return History(workspace, steps)


def _kept_time() -> History:
    """New content under an old time: Cargo is blind, and what sees more must see all of it."""
    workspace = small("own_text", "macro_derived", script="declares_file")
    steps = (
        build("main", by="plain"),
        edit("one.value", 102, how="keep"),
        edit("one.note", 102, how="past"),
        edit("one.input", 102, how="keep"),
        build(),
        build(),
        edit("mac.derived", 102, how="keep"),
        edit("app.main", 102),
        build(),
        *commit("t1"),
        worktree("w1"),
        build("w1"),
        edit("one.input", 103, "w1", how="keep"),
        build("w1"),
        build("w1"),
    )
    return History(workspace, steps)


def _same_path_again() -> History:
    """A worktree goes, and another of another commit comes to its path; a worktree moves."""
    workspace = small("own_text", "manifest_env", script="bakes_out_dir")
    steps = (
        *commit("t0"),
        edit("one.note", 102),
        edit("one.input", 102),
        *commit("t1"),
        build(),
        worktree("w1", ref="t0"),
        build("w1"),
        do("drop", "w1"),
        worktree("w1", ref="t1"),
        build("w1"),
        do("relocate", "w1", new="w2"),
        edit("one.value", 102, "w2"),
        build("w2"),
        worktree("w1", "w2", by="git"),
        build("w1"),
    )
    return History(workspace, steps)


def _whole() -> History:
    """A little of everything in one workspace, for every filesystem and layout."""
    steps = (
        put(".env", "ignored 100\n"),
        build("main", *ALL),
        worktree("w1"),
        build("w1", *ALL),
        edit("base.value", 102, "w1"),
        edit("asks.hidden", 102, "w1"),
        edit("lists.declared", 102, "w1"),
        build("w1"),
        *commit("t1", "w1"),
        worktree("w2", "w1", by="git"),
        edit("old.listed", 103, "w2"),
        build("w2"),
        do("switch", ref="t1"),
        build(),
    )
    return History(grand(), steps)


def _inside() -> History:
    """Worktrees inside of the main checkout, at whose path rustc sees them."""
    workspace = _together(
        Member("base", ("own_text", "deep", "location", "exports")),
        Member("asks", ("macros", "macro_paths", "macro_include", "macro_constants")),
        Member("out", ("warns",), "bakes_out_dir", ("base",)),
    )
    steps = (
        build("main", *ALL),
        {**worktree("w1"), "nested": True},
        build("w1", *ALL),
        edit("base.value", 102, "w1"),
        edit("asks.absolute", 102, "w1"),
        build("w1", *ALL),
        {**worktree("w2", "w1", by="git"), "nested": True},
        edit("base.leaf", 103, "w2"),
        build("w2"),
        *commit("t1", "w1"),
        do("switch", ref="t1"),
        edit("asks.constant", 104),
        build(),
        do("relocate", "w2", new="w3"),
        edit("base.value", 105, "w3"),
        build("w3"),
    )
    return History(workspace, steps)


def edits_in_turn(number: int) -> History:
    """Edits in two worktrees in turn, which rustc sees at one path."""
    workspace = small("own_text", "deep", "location", script="generates_data", more=[Member("mac")])
    names = ("one.value", "one.leaf", "one.note")
    steps: list[Step] = [build(), worktree("w1"), worktree("w2", "w1")]
    for turn in range(number):
        at = f"w{turn % 2 + 1}"
        steps += [edit(names[turn % 3], 101 + turn, at), build(at)]
    return History(workspace, tuple(steps))


STORIES: dict[str, History] = {
    "inside": _inside(),
    "edits-in-turn": edits_in_turn(6),
    "same-commit": _same_commit(),
    "baked-paths": _baked_paths(),
    "baked-unseen": _baked_unseen(),
    "linked-directory": _linked_directory(),
    "git-answers": _git_answers(),
    "older-checkout": _older_checkout(),
    "other-branch": _other_branch(),
    "in-place": _in_place(),
    "renamed-module": _renamed_module(),
    "old-style-script": _old_style_script(),
    "hidden-inputs": _hidden_inputs(),
    "partly-built": _partly_built(),
    "touched-below": _touched_below(),
    "hidden-then-nothing": _hidden_then_nothing(),
    "declared-inputs": _declared_inputs(),
    "written-sources": _written_sources(),
    "outside-workspace": _outside_workspace(),
    "own-directories": _own_directories(),
    "disturbed": _disturbed(),
    "kept-time": _kept_time(),
    "same-path-again": _same_path_again(),
}
WHOLE = _whole()
BEYOND = _beyond()
