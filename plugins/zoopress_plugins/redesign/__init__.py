"""The techniques that give a model another architecture, one file each."""
