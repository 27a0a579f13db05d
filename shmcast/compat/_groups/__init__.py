"""An engine's collectives of objects over `ShmBroadcaster`: one file for each kind."""
