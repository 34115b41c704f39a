"""All we know of Cargo: target layouts, units, fingerprints, dep-info, script output, locks.

Facts carry their source, as file and function of rust-lang/cargo at 1.95.0 (f2d3ce0bd) unless
another version is named.  A format that is not known is reported and left alone, never guessed.
"""
