"""Writer, Reader and what they stand on: one object is one message. Knows no torch.distributed."""
