"""A cell of the zoo, one card × one recipe: selection, plan, and the keys of its results."""
