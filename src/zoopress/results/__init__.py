"""The records of what was measured, which everyone passes on."""
