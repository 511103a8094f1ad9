"""How weights are rounded to a grid, one file each."""
