"""Frozen values that every process uses: references, Pods, volume trees, errors with their errno."""
