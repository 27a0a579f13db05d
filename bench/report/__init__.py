"""From results to tables, pictures and documents.

Knows: files of results. Does not know: how they were measured.
"""
