"""Tasks: how models are run and compared."""
