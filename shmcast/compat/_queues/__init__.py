"""A message queue of an engine's over `Writer` and `Reader`: one file for each of its concerns."""
