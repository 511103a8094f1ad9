"""Losses that make rounding cost less."""
