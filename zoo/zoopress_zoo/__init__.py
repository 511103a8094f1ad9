"""The zoo: cards, and the sources, architectures and tasks they name."""
