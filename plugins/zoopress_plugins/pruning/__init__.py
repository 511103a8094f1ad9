"""The pruning techniques, one file each."""
