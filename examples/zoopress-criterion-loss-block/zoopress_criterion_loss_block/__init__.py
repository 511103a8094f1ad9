"""A pruning criterion, a loss and a block, a plugin for zoopress."""
