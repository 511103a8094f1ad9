"""Time, memory and disk, before anything runs."""
