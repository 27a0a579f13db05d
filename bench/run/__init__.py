"""Measure: start processes, let transports take turns, and make rows of what they did.

Knows: transports and workloads. Does not know: how results are shown.
"""
