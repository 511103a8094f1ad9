"""Ways out for compressed models, a plugin for zoopress."""
