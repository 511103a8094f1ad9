"""Factor layers, one file each."""
