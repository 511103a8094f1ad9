"""The techniques that come with zoopress; each registers as a third party's would."""
