"""Levels that weights take, fixed by a scheme: what is fitted to a weight is scales alone."""
