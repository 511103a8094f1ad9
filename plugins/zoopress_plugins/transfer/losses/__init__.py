"""What keeps weights small, or near where they came from: losses of the parameters, a file each."""
