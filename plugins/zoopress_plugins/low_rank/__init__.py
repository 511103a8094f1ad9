"""The low-rank techniques, one file each."""
