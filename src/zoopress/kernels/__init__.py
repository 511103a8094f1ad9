"""Products with weights that stay coded, compiled for the machine at hand."""
