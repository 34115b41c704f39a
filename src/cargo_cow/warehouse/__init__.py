"""The warehouse: units that were compiled once, for all projects on one filesystem.

``store`` knows what lies on the disk, ``stats`` what became of calls, ``gc`` what may go.
"""
