"""What tells which weights and neurons to keep, a file each."""
