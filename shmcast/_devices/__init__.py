"""Device tensors over a device group. Knows tensors and collectives; does not know the ring."""
