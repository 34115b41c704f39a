"""Cargo-CoW: copy-on-write build state for Cargo.

A new worktree, a branch switch or a fresh checkout builds as if it had always been there.
The vocabulary (target, unit, record, proof, stamp, donor, ...) is defined in
``docs/architecture.md``; the invariants are in ``docs/correctness.md``.
"""

__version__ = "0.1.0"
