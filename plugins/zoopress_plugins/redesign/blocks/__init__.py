"""What can take a module's place, a block a file."""
