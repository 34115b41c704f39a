"""Whether private mount namespaces can be had here, and if not, what refuses them.

Identities and sandbox mode need one.  It is found by making one, as they do; where that fails, the
usual causes are looked at (user_namespaces(7), namespaces(7); Debian's, Ubuntu's and containers'
restrictions), and one that does refuse is named before one that only might.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from cargo_cow import native

_WANTED = 15_000


class Facts(NamedTuple):
    """What was met: the error of the attempt, and what the system says of itself.

    Settings are None where the kernel has none of that name.
    """

    number: int | None
    said: str
    is_root: bool
    user_limit: int | None = None
    mount_limit: int | None = None
    unprivileged_clone: int | None = None
    apparmor_restricts: int | None = None
    seccomp: bool = False


class Refusal(NamedTuple):
    """Why there is none, and what would allow it."""

    reason: str
    mend: str


def refusal() -> Refusal | None:
    """None where a namespace can be had.  Raises NativeMissing where that cannot be tried."""
    with tempfile.TemporaryDirectory(prefix="cargo-cow-") as directory:
        failed = native.try_view(Path(directory))
    if failed is None:
        return None
    number, said = failed
    return explain(
        Facts(
            number,
            said,
            os.geteuid() == 0,
            _setting("user/max_user_namespaces"),
            _setting("user/max_mnt_namespaces"),
            _setting("kernel/unprivileged_userns_clone"),
            _setting("kernel/apparmor_restrict_unprivileged_userns"),
            _behind_seccomp(),
        )
    )


def explain(facts: Facts) -> Refusal:
    """The reason that fits the facts best."""
    filtered = facts.seccomp and facts.number in (errno.EPERM, errno.EACCES, errno.ENOSYS)
    if facts.number in (errno.ENOSPC, errno.EUSERS):
        for name, limit in (
            ("user.max_user_namespaces", facts.user_limit),
            ("user.max_mnt_namespaces", facts.mount_limit),
        ):
            if limit == 0:
                return Refusal(f"{name} is 0", f"sysctl -w {name}={_WANTED}, as root")
        return Refusal(
            "the limit on namespaces is reached "
            f"(user.max_user_namespaces is {facts.user_limit} here; one around us counts, too)",
            f"sysctl -w user.max_user_namespaces={_WANTED}, as root, here and around us",
        )
    if facts.is_root:
        where = ", behind a seccomp filter, as in a container" if filtered else ""
        return Refusal(
            f"root may not mount anything{where}: {facts.said}",
            "run the container with --cap-add SYS_ADMIN --security-opt apparmor=unconfined"
            + (" --security-opt seccomp=unconfined" if filtered else "")
            + ", or work as an ordinary user",
        )
    if facts.unprivileged_clone == 0:
        name = "kernel.unprivileged_userns_clone"
        return Refusal(f"{name} is 0", f"sysctl -w {name}=1, as root")
    if facts.apparmor_restricts:
        name = "kernel.apparmor_restrict_unprivileged_userns"
        return Refusal(
            f"{name} is {facts.apparmor_restricts}",
            f"an AppArmor profile with `userns,` for {native.NAME}, or sysctl -w {name}=0, as root",
        )
    if filtered:
        return Refusal(
            f"a seccomp filter, as containers have, seems to refuse them: {facts.said}",
            "run the container with --security-opt seccomp=unconfined, or a profile that allows "
            "unshare and mount",
        )
    if facts.number in (errno.ENOSYS, errno.EINVAL):
        return Refusal(
            f"the kernel has no user namespaces: {facts.said}", "a kernel with CONFIG_USER_NS"
        )
    return Refusal(facts.said, "allow unshare(CLONE_NEWUSER | CLONE_NEWNS) and mount for this user")


def _setting(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _behind_seccomp() -> bool:
    """Whether system calls of this process are filtered (proc(5), ``Seccomp``)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.split() == ["Seccomp:", "2"] for line in lines)
