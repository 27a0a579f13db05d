"""Writer, Reader and what they stand on: one object is one message. Does not know torch.distributed."""
