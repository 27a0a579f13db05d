"""For operators: what runs on this host, how it does, and who holds everybody up.

Knows segments as others see them, by files that processes have open, and what /proc tells of these
processes. Takes part in nothing: it opens segments for reading only, and stops nobody. (Only
`bench` has rings, of its own.)
"""
