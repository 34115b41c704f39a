"""The demonstration and the benchmark: the same work done by plain Cargo and by Cargo-CoW.

``processes`` runs one step; ``counting`` counts compilers; ``scratch`` finds a directory where
files can be cloned; ``projects`` fetches what is built; ``tools`` are what is compared, ``caches``
other people's among them; ``workloads`` measure, ``sharing`` what goes beyond one project, both
by ``steps``; ``report`` judges and renders; ``demo`` tells the main job as one table.
"""
