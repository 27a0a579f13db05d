"""Real engines, with their own queues and with shmcast's in their place, in turns.

They run in an environment of their own (`make engines`), each as a process that is told what to do.
"""
