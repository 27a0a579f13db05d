"""A hub and its members: messages to all of them, and replies of each.

It knows who answers whom. It does not know slots or bytes, nor torch.distributed.
"""
