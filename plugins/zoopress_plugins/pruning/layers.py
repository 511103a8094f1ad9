"""Layer removal."""
