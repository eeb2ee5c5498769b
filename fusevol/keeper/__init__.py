"""The keeper: mounts, starts server and agent, restarts the one that dies, answers for both. Standard library only.

It never asks the mount anything and never waits for the network, so that nothing can hold it up.
"""
