"""This machine: segments, processes, CPUs. Knows the kernel; does not know messages."""
