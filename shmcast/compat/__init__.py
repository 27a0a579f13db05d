"""Engines' own interfaces over shmcast: what they call, with their signatures.

It knows the engines' queues and collectives, not slots, bytes or waiting. An engine is imported
only by what is asked for by name; `shmcast` itself imports nothing from here.
"""
