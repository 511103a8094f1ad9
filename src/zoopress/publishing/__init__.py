"""From a finished run to the Hub: page, licence, release, lineage."""
