"""Volume plugins: pure planners, one module each. They see values and return values; no I/O, no clock."""
