"""Objects to frames and back. Knows pickles, buffers and types; does not know shared memory."""
