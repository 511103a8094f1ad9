"""What `zoopress init` and `zoopress plugin new` write."""
