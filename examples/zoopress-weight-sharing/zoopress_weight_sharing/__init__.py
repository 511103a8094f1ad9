"""Weight sharing by k-means, a plugin for zoopress."""
