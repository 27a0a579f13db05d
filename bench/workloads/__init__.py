"""Make the messages that are sent, the same in every process.

Knows: what inference engines broadcast. Does not know: how it is sent.
"""
