"""Quantizers of what enters layers, one a file."""
