"""Runtimes and exporters of other projects' formats, one file each."""
