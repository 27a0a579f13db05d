"""The transports that can be compared, each behind the interface of base.py.

Knows: one peer's library in each file. Does not know: how it is measured.
"""
