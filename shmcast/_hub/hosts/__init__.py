"""A hub whose members are on several hosts: a leader on each other one, and one connection to it.

It knows hosts and whose reply is which. It does not know what is in a message or a reply.
"""
