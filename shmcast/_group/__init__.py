"""The group: ranks and the source. Knows process groups; does not know slots or bytes."""
