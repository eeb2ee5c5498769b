"""kubelet's volume manager, event-driven.

One direction: what sources deliver becomes desired state; the reconciler compares it with actual state and starts
operations; operations publish. Everything here runs on one trio thread and is synchronous between checkpoints, so the
tables need no locks.
"""
