"""Transfer learning: a model learns a task, before it is compressed or to recover from it."""
