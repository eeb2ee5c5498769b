"""A directory of YAML and JSON as the source: no cluster needed. The API server's part (defaults, validation, unique
names, immutability) is played here, so that plugins see what they would see from a cluster."""
