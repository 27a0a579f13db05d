"""Side by side: shmcast and its peers, on the same workloads, by one harness.

`python -m bench --help` lists the commands; README.md beside this file says what is measured.
"""
