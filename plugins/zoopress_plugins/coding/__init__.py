"""The coding techniques, one file each."""
