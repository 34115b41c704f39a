"""Switching Cargo-CoW on and off, and checking that what it needs is there.

``notes`` remembers what was changed, ``switching`` plans and carries out ``init`` and
``uninstall``, ``checks`` is what ``doctor`` looks at.
"""
