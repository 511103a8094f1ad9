"""Layers that stand where others were, one file each."""
