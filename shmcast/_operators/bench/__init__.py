"""`shmcast bench`: what a broadcast costs on this machine, beside gloo and a Pipe.

Knows its own messages, its processes and what to compare with. It has rings of its own for as long
as it measures, and looks at nobody else's.
"""
