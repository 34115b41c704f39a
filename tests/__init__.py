"""The tests; their rooms mirror those of the package."""
